"""How the members of an ensemble are combined: what a call may choose, checked before any work.

The rules, on what each member says of a text (`exporter/ensemble/combine.py` has the formulas):

========  =====================================================================================
mean      the mean of the members
weighted  the mean with a weight for each member
vote      the share of the members that choose the label; ties go to the higher mean
max       the most that any member gives
stack     what a second stage makes of what all members give (`tfc.stage`)
========  =====================================================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tfc.errors import UsageError
from tfc.manifest import Ensemble
from tfc.stage import SecondStage

MEAN, WEIGHTED, VOTE, MAX, STACK = RULES = ("mean", "weighted", "vote", "max", "stack")
# Not a combination: each model has an output of its own.
HEADS = "heads"
# No combination either: what a second stage is fitted on.
FEATURES = "features"
SOFTMAX, ZSCORE, TEMPERATURE = NORMALIZATIONS = ("softmax", "zscore", "temperature")


@dataclass(frozen=True)
class Combination:
    """A rule, with the weight and the temperature of each member.

    `weights` sum to 1. `normalize` is empty where the caller left it open, and with the rule
    `stack` what `stage` reads. A member's logits are divided by its temperature.
    """

    rule: str
    normalize: str
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    stage: SecondStage | None = None


def combination_of(
    members: int,
    rule: str,
    *,
    weights: Sequence[float] | None = None,
    normalize: str | None = None,
    temperatures: Sequence[float] | None = None,
    stage: SecondStage | None = None,
) -> Combination:
    """The combination of so many members that a call asks for.

    Args:
        members: how many there are.
        rule: one of `RULES`.
        weights: a weight above 0 for each member, for the rule `weighted`.
        normalize: one of `NORMALIZATIONS`.
        temperatures: a temperature above 0 for each member, for `temperature`.
        stage: the second stage, for the rule `stack`.

    Raises:
        UsageError: there is no such rule, or the arguments do not fit each other.
    """
    if rule not in RULES:
        raise UsageError(f"there is no rule '{rule}'", fix=f"Choose one of: {', '.join(RULES)}")
    if normalize is not None and normalize not in NORMALIZATIONS:
        raise UsageError(
            f"there is no normalisation '{normalize}'",
            fix=f"Choose one of: {', '.join(NORMALIZATIONS)}",
        )
    if members < 2:
        raise UsageError(
            "an ensemble has two members or more, and one checkpoint was given",
            fix="Give the others too, or leave --ensemble out",
        )
    _check_stage(rule, stage, normalize)
    _check_together("weights", weights, "--ensemble weighted", rule == WEIGHTED)
    _check_together(
        "temperature", temperatures, "--normalize temperature", normalize == TEMPERATURE
    )
    shares = _numbers("weights", weights, members)
    total = math.fsum(shares)
    return Combination(
        rule,
        stage.reads if stage is not None else normalize or "",
        tuple(share / total for share in shares),
        _numbers("temperature", temperatures, members),
        stage,
    )


def features_of(members: int, reads: str) -> Combination:
    """What a second stage over so many members is fitted on.

    Raises:
        UsageError: there are fewer than two members.
    """
    each = combination_of(members, MEAN)
    return Combination(FEATURES, reads, each.weights, each.temperatures)


_HEAD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# What the graph's inputs are called.
_TAKEN = re.compile(r"(input_ids|attention_mask|token_type_ids)(_\d+)?")


def side_by_side(members: int, heads: Sequence[str]) -> Combination:
    """What is done with models that keep an output each: nothing.

    Args:
        members: how many there are.
        heads: a name for each.

    Raises:
        UsageError: the names do not fit.
    """
    if len(heads) != members:
        raise UsageError(
            f"there are {members} checkpoints, and --heads has a name for {len(heads)}",
            fix="Name each, in their order, with commas: --heads intent,mood",
        )
    for head in heads:
        if not _HEAD.fullmatch(head) or _TAKEN.fullmatch(head):
            raise UsageError(
                f"'{head}' is no name for a head",
                fix="Use letters, digits, _ and -, and none of the names of the model's inputs",
            )
        if list(heads).count(head) > 1:
            raise UsageError(f"two heads are called '{head}'", fix="Give each a name of its own")
    if members < 2:
        raise UsageError(
            "heads are those of two checkpoints or more, and one was given",
            fix="Give the others too, or leave --heads out",
        )
    return Combination(HEADS, "", (1.0,) * members, (1.0,) * members)


def nothing_combines(checkpoints: int) -> UsageError:
    """What is said of several checkpoints, or none, without a rule."""
    return UsageError(
        f"there are {checkpoints} checkpoints, and nothing says how they are combined",
        fix="Give one checkpoint, a rule for several (--ensemble mean), or a name for each "
        "(--heads intent,mood)",
    )


def ensemble_summary(ensemble: Ensemble) -> str:
    """`weighted (0.5, 0.3, 0.2) of 3 models, softmax`."""
    rule, members, stage = ensemble.rule, ensemble.members, ensemble.stage
    if stage is not None:
        reads = f", which reads {ensemble.normalize}" if ensemble.normalize else ""
        return (
            f"stack of {len(members)} models under {stage.kind}{reads}, {stage.parameters} weights"
        )
    if rule == HEADS:
        return f"{len(members)} models, each with an output of its own"
    if rule == WEIGHTED:
        rule += f" ({', '.join(f'{member.weight:.3g}' for member in members)})"
    how = ensemble.normalize
    if how == TEMPERATURE:
        how += f" ({', '.join(f'{member.temperature:.3g}' for member in members)})"
    return f"{rule} of {len(members)} models" + (f", {how}" if how else "")


def _check_stage(rule: str, stage: SecondStage | None, normalize: str | None) -> None:
    """A second stage belongs to the rule `stack`, and says itself what it reads."""
    if rule == STACK and stage is None:
        raise UsageError(
            "--ensemble stack needs a second stage",
            fix="Give its file, which tfc.second_stage(fitted).save writes: --stack stage.json",
        )
    if rule != STACK and stage is not None:
        raise UsageError(
            "--stack is read with --ensemble stack only",
            fix="Add --ensemble stack, or leave --stack out",
        )
    if rule == STACK and normalize is not None:
        raise UsageError(
            "--normalize is not read with --ensemble stack: the second stage says what it reads",
            fix="Leave --normalize out, and choose with tfc.second_stage(fitted, reads='logits')",
        )


def _check_together(name: str, values: Sequence[float] | None, option: str, chosen: bool) -> None:
    """A list of numbers belongs to the option that reads it, and that option needs the list."""
    if chosen and values is None:
        raise UsageError(
            f"{option} needs a number for each member",
            fix=f"Give them in the order of the checkpoints, with commas: --{name} 0.5,0.3,0.2",
        )
    if not chosen and values is not None:
        raise UsageError(
            f"--{name} is read with {option} only",
            fix=f"Add {option}, or leave --{name} out",
        )


def _numbers(name: str, values: Sequence[float] | None, members: int) -> tuple[float, ...]:
    """A number for each member; 1 where none were given."""
    if values is None:
        return (1.0,) * members
    if len(values) != members:
        raise UsageError(
            f"there are {members} members, and --{name} has a number for {len(values)}",
            fix="Give one for each checkpoint, in their order",
        )
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise UsageError(
                f"--{name} has {value:g}, and each is to be a number above 0",
                fix="Leave a checkpoint out that is not to count",
            )
    return tuple(float(value) for value in values)
