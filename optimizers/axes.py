"""What the dynamic axes of a graph's inputs are, told by running it.

Exporters name an axis as they like: one axis under two names (`unk__1`, `unk__2`) or under none,
the sum of two axes under a name of its own (`total_seq_len`), and an axis that the trace has fixed
under a name although the graph runs at one size only (TorchScript writes the traced length into
the reshapes of `nn.MultiheadAttention`). Passes that reason about shapes need the truth, so the
inputs' axes are tried in turn:

1. each name is a size of its own (a name such as `past + sequence` is the sum that it says);
2. one axis is the sum of two others;
3. the axes at one place of inputs of one rank are one axis (the caches first, then all);
4. some axes are fixed to the sizes at which the graph runs.

The first that runs is written into the inputs' shapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_ir as ir

from tfc.errors import first_line
from tfc.optimizers.executor import runner_of
from tfc.optimizers.graph import known_shape
from tfc.optimizers.passes import Refusal, refusal
from tfc.optimizers.probes import dynamic_axes, feed_of_sizes, sizes_of_probe, with_sums

KIND = "shapes"
# Sizes that traces are made with, and at which an axis may be fixed.
_TRACED = tuple(itertools.product((2, 1, 4, 8), (7, 8, 16, 128, 3, 32, 64)))
# Inputs of which a decoder has two for each layer, and all inputs: their ranks.
_CACHES, _ALL = range(4, 6), range(1, 9)
# With more names than this, sums are not guessed.
_MAX_NAMES = 5
# Two probes, so that sizes that fit by chance do not count.
_PROBES = 2

Sizes = Mapping[str, int]
# The axis → what it is: a name (its own or another's), a sum of two names, or a size.
Meaning = dict[str, int | str]


def settle_axes(model: ir.Model) -> tuple[Refusal, ...]:
    """Write into the inputs' shapes what their axes are; says which are fixed.

    A graph that runs at no size that was tried is left as it is.

    Raises:
        onnxruntime's own exceptions, for a graph that is not valid.
    """
    _name_axes(model)
    axes = dynamic_axes(model)
    if not axes:
        return ()
    why_not = _runner(model)
    for meaning in _guesses(model, axes):
        if not any(why_not(_sizes(meaning, number)) for number in range(_PROBES)):
            _write(model, meaning)
            return ()
    fixed = _fixed(axes, why_not)
    if not fixed:
        return ()
    reason = first_line(RuntimeError(why_not(_sizes({axis: axis for axis in axes}, 0))))
    _write(model, fixed)
    return tuple(
        refusal(
            KIND,
            model.graph[0],
            f"the axis '{axis}' is fixed to {size}: the graph does not run at other sizes "
            f"({reason})",
        )
        for axis, size in fixed.items()
    )


def _guesses(model: ir.Model, axes: Sequence[str]) -> Iterator[Meaning]:
    """Cases 1 to 3 of the module's docstring."""
    own: Meaning = {axis: axis for axis in axes}
    bases = [own, *(_by_place(model, ranks) for ranks in (_CACHES, _ALL))]
    for base in [b for i, b in enumerate(bases) if b not in bases[:i]]:
        yield base
        names = [name for name in dict.fromkeys(base.values()) if name not in _batches(model)]
        if len(names) > _MAX_NAMES:
            continue
        for total in names:
            others = [str(name) for name in names if name != total]
            for pair in itertools.combinations(others, 2):
                summed = " + ".join(pair)
                yield {a: summed if name == total else name for a, name in base.items()}


def _batches(model: ir.Model) -> set[str]:
    """The names of leading axes, which are no sum."""
    leading = (shape[0] for v in model.graph.inputs if (shape := known_shape(v)))
    return {dim for dim in leading if isinstance(dim, str)}


def _by_place(model: ir.Model, ranks: range) -> Meaning:
    """Each axis of inputs of these ranks as the first that stands at its place in such an input."""
    first: dict[tuple[int, int], str] = {}
    meaning: Meaning = {}
    for value in model.graph.inputs:
        shape = known_shape(value) or ()
        for place, dim in enumerate(shape):
            if isinstance(dim, str):
                alike = (len(shape), place) if place else (0, 0)
                same = first.setdefault(alike, dim) if len(shape) in ranks else dim
                meaning[dim] = meaning.get(dim, same)
    return meaning


def _fixed(axes: Sequence[str], why_not: Callable[[Sizes], str]) -> dict[str, int]:
    """Case 4: the axes that have one size only; none if the graph runs nowhere."""
    rest = sizes_of_probe(list(axes), 0)
    for pair in _TRACED:
        base = with_sums(rest | dict(zip(axes, pair, strict=False)))
        if not why_not(base):
            break
    else:
        return {}
    other = {axis: size + 3 for axis, size in base.items()}
    return {axis: base[axis] for axis in axes if why_not(with_sums(base | {axis: other[axis]}))}


def _runner(model: ir.Model) -> Callable[[Sizes], str]:
    """Tells why the graph does not run at some sizes; empty if it does."""
    run = runner_of(model)

    def why_not(sizes: Sizes) -> str:
        feed = feed_of_sizes(model, sizes, seed=0)
        try:
            run(feed)
        except Exception as error:  # ONNX Runtime's errors have no common root
            return first_line(error)
        return ""

    return why_not


def _sizes(meaning: Meaning, number: int) -> dict[str, int]:
    """Sizes for the axes, other ones in every probe."""
    names = [name for name in dict.fromkeys(meaning.values()) if isinstance(name, str)]
    sizes = with_sums(sizes_of_probe(sorted({*names, *_summands(names)}), number))
    return {axis: sizes[name] for axis, name in meaning.items() if isinstance(name, str)}


def _summands(names: Sequence[str]) -> list[str]:
    parts = [part.strip() for name in names for part in name.split("+") if "+" in name]
    return [part for part in parts if not part.isdigit()]


def _name_axes(model: ir.Model) -> None:
    """Call an axis without a name by its place."""
    for value in model.graph.inputs:
        if value.shape is None:
            continue
        for place, dim in enumerate(value.shape):
            if not isinstance(dim, int) and not dim.value:
                value.shape[place] = f"{value.name}.{place}"


def _write(model: ir.Model, meaning: Mapping[str, int | str]) -> None:
    """Say in every shape of the graph what its axes are."""
    changed = {axis: what for axis, what in meaning.items() if axis != what}
    if not changed:
        return
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    for value in values:
        if value.shape is not None:
            dims = [d if isinstance(d, int) else d.value for d in value.shape]
            value.shape = ir.Shape([changed.get(str(d), d) for d in dims])
