"""Options of `tfc build-engine` that belong together."""

from __future__ import annotations

import click

from tfc.cli.options import Command


def traffic_options(function: Command) -> Command:
    """Sizes from the user's own texts."""
    for decorate in (
        click.option(
            "--buckets",
            type=click.IntRange(1, 8),
            metavar="N",
            help="For TensorRT, with --profile-from: how many lengths to compile for.  [default: as"
            " many as save 2% each]",
        ),
        click.option(
            "--profile-from",
            type=click.Path(),
            metavar="DATA",
            help="Texts such as the engine will read, in any format of 'tfc run': their lengths "
            "choose the sizes, in place of --seq.",
        ),
    ):
        function = decorate(function)
    return function


def cache_option(function: Command) -> Command:
    """Whether earlier builds help, and this one later ones."""
    return click.option(
        "--no-cache",
        is_flag=True,
        help="Build anew, and keep nothing in ~/.cache/tfc (or TFC_CACHE_DIR).",
    )(function)


def plan_options(function: Command) -> Command:
    """What a plan of TensorRT itself can do later."""
    for decorate in (
        click.option(
            "--hardware-compatible",
            type=click.Choice(["ampere+", "same-capability"]),
            help="For TensorRT: other GPUs run the engine, too; slower than for one.",
        ),
        click.option(
            "--version-compatible",
            is_flag=True,
            help="For TensorRT: later versions run the engine, too; it is larger.",
        ),
        click.option(
            "--refit",
            is_flag=True,
            help="For TensorRT: the next checkpoint of this architecture puts its weights into the"
            " engine instead of building one. Nothing is folded into the weights, which may cost "
            "speed.",
        ),
    ):
        function = decorate(function)
    return function
