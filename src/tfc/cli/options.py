"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

Command = Callable[..., Any]

if TYPE_CHECKING:
    _RangeType = click.ParamType[tuple[int, int, int]]
    _ListType = click.ParamType[tuple[int, ...]]
    _ShareType = click.ParamType[float]
    _NumbersType = click.ParamType[tuple[float, ...]]
    _NamesType = click.ParamType[tuple[str, ...]]
else:  # generic in recent versions of click only
    _RangeType = _ListType = _ShareType = _NumbersType = _NamesType = click.ParamType


class SizeRange(_RangeType):
    """`MIN:OPT:MAX`, or one size for all three."""

    name = "min:opt:max"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int, int]:
        """Three positive integers."""
        if isinstance(value, tuple):
            return value
        try:
            sizes = [int(part) for part in str(value).split(":")]
        except ValueError:
            self.fail(f"'{value}' is not MIN:OPT:MAX, e.g. 1:32:256", param, ctx)
        if len(sizes) == 1:
            sizes *= 3
        if len(sizes) != 3:
            self.fail(f"'{value}' is not MIN:OPT:MAX, e.g. 1:32:256", param, ctx)
        return sizes[0], sizes[1], sizes[2]


class SizeList(_ListType):
    """`A,B,C`: a list of sizes."""

    name = "sizes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """One or more positive integers."""
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' is not a list of sizes, e.g. 1,8,32", param, ctx)
        if min(sizes) < 1:
            self.fail("a size must be at least 1", param, ctx)
        return sizes


class NumberList(_NumbersType):
    """`0.5,0.3,0.2`: a list of numbers."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """One or more numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' is not a list of numbers, e.g. 0.5,0.3,0.2", param, ctx)


class CapabilityList(_NamesType):
    """`89,120` or `8.9,12.0`: compute capabilities, as `8.9`."""

    name = "capabilities"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """One or more, each once."""
        if isinstance(value, tuple):
            return value
        found = []
        for part in str(value).split(","):
            match = re.fullmatch(r"(\d+)\.?(\d)", part.strip())
            if match is None:
                self.fail(f"'{part}' is not a compute capability, e.g. 8.9 or 89", param, ctx)
            found.append(f"{match[1]}.{match[2]}")
        return tuple(dict.fromkeys(found))


class Percent(_ShareType):
    """`0.5%`: a share, as a float. Without the sign nobody could tell 0.5 % from a half."""

    name = "percent"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """From 0 to less than 100 percent."""
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / 100
        except ValueError:
            share = -1.0
        if not text.endswith("%") or not 0 <= share < 1:
            self.fail(f"'{value}' is not a percentage from 0% to 99%, e.g. 0.5%", param, ctx)
        return share


def artifact_argument(function: Command) -> Command:
    """The artifact that the command works on."""
    return click.argument("artifact", metavar="ARTIFACT")(function)


def json_option(function: Command) -> Command:
    """Print for machines."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(
        function
    )


def engine_option(function: Command) -> Command:
    """Which engines; may be given several times."""
    return click.option(
        "--engine",
        "engines",
        multiple=True,
        metavar="NAME",
        help="An engine of the artifact; may be repeated.  [default: all]",
    )(function)


def checkpoint_options(function: Command) -> Command:
    """Where the checkpoint is, and what it may do."""
    for decorate in (
        click.option(
            "--allow-pickle",
            is_flag=True,
            help="Read weights that are pickles. A pickle can run code.",
        ),
        click.option(
            "--trust-remote-code",
            is_flag=True,
            help="Run the Python code that comes with the checkpoint.",
        ),
        click.option(
            "--base",
            metavar="CHECKPOINT",
            help="Where the base model of an adapter is now.",
        ),
        click.option(
            "--checkpoint",
            "checkpoints",
            multiple=True,
            metavar="CHECKPOINT",
            help="Where the checkpoint is now, if it moved since export; repeated for the members "
            "of an ensemble, in their order.",
        ),
    ):
        function = decorate(function)
    return function


def allow_missed_option(function: Command) -> Command:
    """Go on although the fusion contract does not hold."""
    return click.option("--allow-missed", is_flag=True, help="Go on although a fusion was missed.")(
        function
    )


PassNames = dict[str, tuple[str, ...]]


def passes_option(function: Command) -> Command:
    """Modules with passes of the user's own."""
    return click.option(
        "--passes",
        multiple=True,
        metavar="MODULE",
        help="A module, or a .py file, with PASSES of your own; may be repeated.",
    )(function)


def remove_padding_option(function: Command) -> Command:
    """Whether linear layers run on packed tokens."""
    return click.option(
        "--remove-padding",
        is_flag=True,
        help="For ONNX Runtime on the CPU: linear layers on packed tokens, padding around attention"
        " only. Pays where batches cannot be sorted by length.",
    )(function)


def pass_options(function: Command) -> Command:
    """Which passes are to run."""
    for name, text in (
        ("--skip", "Leave out a pass; may be repeated."),
        ("--only", "Run this pass only; may be repeated."),
    ):
        function = click.option(name, multiple=True, metavar="PASS", help=text)(function)
    return passes_option(function)
