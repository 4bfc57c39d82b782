"""The values that two graphs both compute, and how far each is off: by itself, and in all.

The errors of a deep graph grow although every node is right, so a difference in the middle of it
accuses nobody. Each value is therefore compared twice:

1. accumulated: as the two graphs compute it from their inputs;
2. local: as the second graph computes it from the first one's values. That is the error of the few
   nodes in between, and what rounding explains of it is measured in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tfc.optimizers.bisection.cutting import (
    Run,
    computed,
    executed,
    names_of_values,
    nodes_of_part,
)
from tfc.optimizers.bisection.fused import Segment
from tfc.optimizers.bisection.gap import FP32_SHARE, Array, Gap, gap_of, rounded
from tfc.optimizers.executor import Feed, Outputs
from tfc.optimizers.graph import constant, module_of
from tfc.optimizers.precision.noise import rounded_products
from tfc.optimizers.precision.types import HALF_TYPES, HalfType
from tfc.runtime.parity import FP32_TOLERANCE

_MASK = "attention_mask"


@dataclass(frozen=True)
class Place:
    """A value of the second graph that the first one has too.

    `node`, `op_type` and `module` are of the node that gives it, or of the first one of those that
    compute it from other such values and are not in the first graph: `nodes`. `changed` says in
    what the node differs from that of the same name, where there is one.
    """

    value: str
    node: str
    op_type: str
    module: str
    accumulated: Gap
    local: Gap
    nodes: tuple[str, ...] = ()
    changed: str = ""


def shared_values(before: ir.Model, after: ir.Model) -> list[str]:
    """Values of one name that nodes of one name give in both graphs, in the order of `after`.

    Passes name what they make anew, and a free name may be taken again; so both must be the same.
    The graph's outputs are among them, whichever node gives them.
    """
    known = {str(v.name): str(n.name) for n in before.graph for v in n.outputs}
    outputs = {str(v.name) for v in after.graph.outputs} & {
        str(v.name) for v in before.graph.outputs
    }
    numbers = set(names_of_values(before))
    found = []
    for node in after.graph:
        for value in node.outputs:
            name = str(value.name)
            same = known.get(name) == node.name or name in outputs
            if same and name in numbers:
                found.append(name)
    there = set(names_of_values(after))
    return [name for name in found if name in there]


def compared(
    after: ir.Model,
    feed: Feed,
    expected: Outputs,
    accumulated: Outputs,
    *,
    reference: ir.Model | None = None,
    run: Run = executed,
) -> list[Place]:
    """The places of `after` where a value is expected.

    Args:
        after: the graph.
        feed: its inputs.
        expected: values by name.
        accumulated: the same as `after` computes them.
        reference: the graph that gives `expected`: its own rounding in half tells what is allowed
            where `after` is in half precision.
        run: what runs `after`.
    """
    half = half_of(after)
    local = computed(after, feed, expected, expected, run)
    floors: tuple[Outputs, Outputs] = {}, {}
    if half is not None and reference is not None and half_of(reference) is None:
        floors = _floors(reference, feed, expected, half)
    share, share_of_all = (2.0**-half.bits,) * 2 if half else (FP32_SHARE, FP32_TOLERANCE)
    twins = {str(n.name): n for n in reference.graph} if reference is not None else {}
    # What tells padding from tokens is compared where padding is, too.
    masks = {v.name for n in after.graph for v in n.outputs if v.dtype == ir.DataType.BOOL}
    places = []
    for name in [n for n in names_of_values(after) if n in expected]:
        tokens = {} if name in masks else feed
        exact = real_tokens(expected[name], tokens)
        in_all, alone = (real_tokens(found[name], tokens) for found in (accumulated, local))
        noise = [real_tokens(found[name], tokens) if name in found else None for found in floors]
        gaps = (
            gap_of(exact, in_all, noise[0], share_of_all),
            gap_of(exact, alone, noise[1], share),
        )
        if gaps[1].beyond:
            places.append(_place(after, name, gaps, set(expected), twins, half))
        else:
            places.append(_plain_place(after, name, gaps))
    return places


def first_beyond(places: Sequence[Place]) -> Place | None:
    """The first place that is off by itself."""
    return next((place for place in places if place.local.beyond), None)


def half_of(model: ir.Model) -> HalfType | None:
    """The half-precision type that the graph computes in, or stores its weights in, if any."""
    types = {v.dtype for n in model.graph for v in n.outputs}
    types |= {weight.dtype for weight in model.graph.initializers.values()}
    return next((half for half in HALF_TYPES.values() if half.dtype in types), None)


def _floors(
    reference: ir.Model, feed: Feed, expected: Outputs, half: HalfType
) -> tuple[Outputs, Outputs]:
    """What the fp32 graph, and each part of it, gives if products round to the half type's bits."""
    noisy = rounded_products(reference, half)
    given = {name: rounded(array, half.bits) for name, array in expected.items()}
    found = (computed(noisy, feed, given), computed(noisy, feed, given, given))
    in_all, alone = ({n: rounded(a, half.bits) for n, a in each.items()} for each in found)
    return in_all, alone


def real_tokens(array: Array, feed: Feed) -> Array:
    """Of a value per token, those of real tokens: what padding gives may be anything."""
    mask = feed.get(_MASK)
    if mask is None or array.ndim < 2 or array.shape[:2] != mask.shape:
        return array
    return np.asarray(array[mask.astype(bool)])


def place_of_segment(segment: Segment) -> Place:
    """The first node of a sub-graph that an engine gets wrong, for all of its nodes."""
    first = segment.nodes[0]
    module = next((module_of(node) for node in segment.nodes if module_of(node)), "")
    names = tuple(str(node.name) for node in segment.nodes)
    gap = segment.gap
    return Place(segment.value, str(first.name), first.op_type, module, gap, gap, names)


def _plain_place(model: ir.Model, name: str, gaps: tuple[Gap, Gap]) -> Place:
    node = next(n for n in model.graph for v in n.outputs if v.name == name)
    return Place(name, str(node.name), node.op_type, module_of(node), gaps[0], gaps[1])


def _place(
    model: ir.Model,
    name: str,
    gaps: tuple[Gap, Gap],
    at: Collection[str],
    twins: Mapping[str, ir.Node],
    half: HalfType | None,
) -> Place:
    """A place that is off, with the nodes that may be to blame: those that are new or changed."""
    nodes = nodes_of_part(model, at, name)
    if not twins:  # nothing tells which changed; sizes are computed once for several layers
        numbers = set(names_of_values(model))
        nodes = [node for node in nodes if any(v.name in numbers for v in node.outputs)]
    changes = {node: _change(twins.get(str(node.name)), node, half) for node in nodes}
    suspects = [node for node in nodes if changes[node]] or nodes
    first = suspects[0]
    module = next((module_of(n) for n in [*suspects, *reversed(nodes)] if module_of(n)), "")
    plain = _plain_place(model, name, gaps)
    return dataclasses.replace(
        plain,
        node=str(first.name),
        op_type=first.op_type,
        module=module,
        nodes=tuple(str(node.name) for node in suspects),
        changed=changes[first] if twins else "",
    )


def _change(twin: ir.Node | None, node: ir.Node, half: HalfType | None) -> str:
    """In what a node differs from its twin in the other graph; empty if in nothing that counts."""
    if twin is None:
        return "it is not in the graph before"
    if twin.op_type != node.op_type:
        return f"it was a {twin.op_type}"
    for key in sorted({*twin.attributes, *node.attributes}):
        old, new = (_attribute(each, key) for each in (twin, node))
        if old != new:
            return f"its {key} was {old} and is {new}"
    for old_input, new_input in zip(twin.inputs, node.inputs, strict=False):
        old_array, new_array = constant(old_input), constant(new_input)
        if old_array is None or new_array is None or new_input is None:
            continue
        if not _same_weight(old_array, new_array, half):
            return f"the weight {new_input.name} has other values"
    return "" if len(twin.inputs) == len(node.inputs) else "it has another number of inputs"


def _attribute(node: ir.Node, key: str) -> Any:
    found = node.attributes.get(key)
    return None if found is None else found.value


def _same_weight(old: Array, new: Array, half: HalfType | None) -> bool:
    if old.dtype != new.dtype and half is not None:
        with np.errstate(over="ignore"):
            old = old.astype(half.dtype.numpy())
    return old.shape == new.shape and np.array_equal(
        old.astype(np.float64), new.astype(np.float64), equal_nan=True
    )
