"""The second stage of a stack: what it reads, its layers, and its file.

A stage reads for each text one row of features, and gives one logit for each label (or the number
that the members give). The features are those of the first member, then those of the second, and
so on; of each member one for each label, in the order of the first member's labels. A feature is

- with `reads` ``probabilities`` the softmax of the member's logits over the labels, or where a
  text has several labels the sigmoid of each logit;
- with `reads` ``logits`` the logit itself;
- the number, where members give numbers.

A file is one JSON object with the fields of `SecondStage`. Reading it runs no code.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tfc.errors import BadData, UsageError, disk_errors
from tfc.files import sha256_of_json, write_atomically
from tfc.manifest_json import decode

READS = PROBABILITIES, LOGITS = ("probabilities", "logits")
LINEAR = "linear"
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "tanh", "sigmoid", "silu")
SCHEMA = 1
_PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin")
# Two bytes that begin a pickle of protocol 2 and later, and a zip of torch.save.
_PICKLED = (b"\x80", b"PK")
_WRITE = "Write it in Python with: tfc.second_stage(fitted).save('stage.json')"


@dataclass(frozen=True)
class Layer:
    """One step: `linear` (x · weightᵀ + bias, `weight` is `[outputs, inputs]`) or an activation."""

    op: str
    weight: list[list[float]] = field(default_factory=list)
    bias: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class SecondStage:
    """A model over the members' outputs, without its code.

    `kind` is the class that it was made from. `problem` is `single_label`, `multi_label` or
    `regression`, or empty where it fits whatever the members give. `labels[i]` names the i-th
    output: a label, or its number among the members' labels; none means their order.
    """

    kind: str
    reads: str
    layers: list[Layer]
    problem: str = ""
    labels: list[str] = field(default_factory=list)
    schema: int = SCHEMA

    @property
    def inputs(self) -> int:
        """How many features it reads."""
        return len(self._matrices[0].weight[0])

    @property
    def outputs(self) -> int:
        """How many logits it gives."""
        return len(self._matrices[-1].weight)

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return sum(
            len(each.weight) * len(each.weight[0]) + len(each.bias) for each in self._matrices
        )

    @property
    def sha256(self) -> str:
        """A hash over all of it."""
        return sha256_of_json(dataclasses.asdict(self))

    def save(self, path: str | Path) -> None:
        """Write it as JSON, for `tfc export --stack`."""
        text = json.dumps(dataclasses.asdict(self), ensure_ascii=False)
        write_atomically(Path(path), f"{text}\n".encode())

    @property
    def _matrices(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.op == LINEAR]


def stage_from_file(path: str | Path) -> SecondStage:
    """Read what `SecondStage.save` wrote.

    Raises:
        BadData: it is a pickle, no JSON, or no second stage.
    """
    place = Path(path)
    with disk_errors(place):
        try:
            content = place.read_bytes()
        except FileNotFoundError as error:
            raise BadData("there is no such file", where=str(path), fix=_WRITE) from error
    if place.suffix in _PICKLES or content.startswith(_PICKLED):
        raise BadData(
            "this is a pickle, which can run code when it is read, and is not opened",
            where=str(path),
            fix=_WRITE,
        )
    try:
        data = json.loads(content)
        stage: SecondStage = decode(SecondStage, data, "the stage")
    except (ValueError, TypeError, RecursionError) as error:
        raise BadData(
            f"this is not the JSON of a second stage ({error})", where=str(path), fix=_WRITE
        ) from error
    wrong = fault_of(stage)
    if wrong:
        raise BadData(wrong, where=str(path), fix=_WRITE)
    return stage


def fault_of(stage: SecondStage) -> str:
    """What is wrong with a stage whatever its members are; empty where nothing is."""
    if stage.schema != SCHEMA:
        return f"this second stage has schema {stage.schema}, and this tfc reads {SCHEMA}"
    if stage.reads not in READS:
        return f"a second stage reads {' or '.join(READS)}, and this one '{stage.reads}'"
    width: int | None = None
    for number, layer in enumerate(stage.layers, start=1):
        if layer.op in ACTIVATIONS:
            continue
        if layer.op != LINEAR:
            return f"layer {number} of the second stage is '{layer.op}', which tfc does not know"
        widths = {len(row) for row in layer.weight}
        if len(widths) != 1 or 0 in widths or len(layer.bias) != len(layer.weight):
            return f"layer {number} of the second stage has no matrix with a bias for each row"
        if width is not None and widths != {width}:
            return (
                f"layer {number} of the second stage reads {widths.pop()} values, and the one "
                f"before gives {width}"
            )
        if not all(map(math.isfinite, [*layer.bias, *(w for row in layer.weight for w in row)])):
            return f"layer {number} of the second stage has weights that are no finite numbers"
        width = len(layer.weight)
    if width is None:
        return "this second stage has no linear layer"
    if stage.labels and (len(stage.labels) != width or len(set(stage.labels)) != width):
        return f"this second stage gives {width} values, and has other than so many labels"
    return ""


def stage_order(stage: SecondStage, members: int, labels: Sequence[str], problem: str) -> list[int]:
    """Where each label of the ensemble stands among the stage's outputs.

    Args:
        stage: a stage without a fault of its own.
        members: how many members there are.
        labels: those of the first member; one, or none, where they give a number.
        problem: how the members' logits are read.

    Raises:
        UsageError: the stage does not fit the members.
    """
    each = max(len(labels), 1)
    if stage.inputs != members * each:
        raise UsageError(
            f"the second stage reads {stage.inputs} features, and {members} members give "
            f"{members * each}: {each} each",
            fix="Fit it on what tfc.stack_features gives for these members",
        )
    if stage.problem and stage.problem != problem:
        raise UsageError(
            f"the second stage is for {stage.problem}, and the members' logits are read as "
            f"{problem}",
            fix="Fit a classifier on members that give labels, and a regression on numbers",
        )
    if stage.outputs != each:
        raise UsageError(
            f"the second stage gives {stage.outputs} logits, and the members have {each} labels",
            fix="Fit it on rows with every label",
        )
    names = stage.labels or [str(number) for number in range(each)]
    if not set(names) <= set(labels):
        labels = _numbered(names, labels)
    return [names.index(label) for label in labels]


def _numbered(names: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The labels' numbers, where the stage's classes are these."""
    numbers = [str(number) for number in range(max(len(labels), 1))]
    unknown = next((name for name in names if name not in numbers), None)
    if unknown is not None:
        raise UsageError(
            f"the second stage has a class '{unknown}', which is no label of the members and "
            "no number of one",
            fix=f"Fit it with these classes, or their numbers from 0 on: {', '.join(labels)}",
        )
    return numbers
