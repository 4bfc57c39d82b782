"""Take units out of a site: its matrices, constants and shapes shrink.

The matrix that reads the units is given anew (`fitting`). A site without any unit left becomes the
constant vector that it is on average.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from tfc.optimizers.graph import add_constant, attribute, constant, is_op
from tfc.optimizers.simplification.lanes import ELEMENTWISE, CannotCut, Lane, weight_of
from tfc.optimizers.simplification.sites import Site, bias_input, bias_of, output_of, sites_of

Array = npt.NDArray[Any]
_SIZES = 1  # the input of Reshape, and of Split, with sizes


@dataclass(frozen=True)
class Kept:
    """What stays of a site: its units, and the matrix and bias that read them.

    `matrix` is [channels that stay, out]; `bias` is None where the site has none.
    """

    units: tuple[int, ...]
    matrix: Array
    bias: Array | None


def simplified(model: ir.Model, kept: Mapping[str, Kept]) -> ir.Model:
    """A copy of the graph in which the sites of these names have what is kept only.

    Raises:
        CannotCut: a size in the graph is computed where it should be known.
    """
    copy = model.clone()
    for site in sites_of(copy)[0]:
        if site.name in kept:
            _reduce(copy, site, kept[site.name])
    RemoveUnusedNodesPass()(copy)
    ShapeInferencePass()(copy)
    return copy


def _reduce(model: ir.Model, site: Site, kept: Kept) -> None:
    if not kept.units:
        _drop(model, site, kept)
        return
    units = np.array(kept.units)
    for node in site.region.makers:
        _cut_maker(model, node, site.region.lanes[node.outputs[0]], units)
    for node in site.region.nodes:
        if node is not site.reader and node not in site.region.makers:
            _cut_between(model, site, node, units)
    for value, lane in site.region.lanes.items():
        sizes = list(value.shape or ())
        sizes[lane.axis] = int(_stay(lane, units).sum())
        value.shape = ir.Shape(sizes)
    _new_reader(model, site, kept)


def _stay(lane: Lane, units: Array) -> npt.NDArray[np.bool_]:
    return np.isin(np.array(lane.units), units)


def _cut_maker(model: ir.Model, node: ir.Node, lane: Lane, units: Array) -> None:
    stay = _stay(lane, units)
    matrix = weight_of(node)
    assert matrix is not None
    _set_matrix(model, node, matrix[:, stay])
    if is_op(node, "Gemm") and bias_of(node) is not None:
        _replace(model, node, bias_input(node), _array(node, bias_input(node))[stay])


def _set_matrix(model: ir.Model, node: ir.Node, matrix: Array) -> None:
    flipped = is_op(node, "Gemm") and attribute(node, "transB", 0)
    _replace(model, node, 1, np.ascontiguousarray(matrix.T if flipped else matrix))


def _array(node: ir.Node, place: int) -> Array:
    array = constant(node.inputs[place])
    assert array is not None
    return array


def _replace(model: ir.Model, node: ir.Node, place: int, array: Array) -> None:
    """Give a node another constant; other nodes that read the old one keep it."""
    old = node.inputs[place]
    assert old is not None
    made = add_constant(
        model, f"{old.name}.of.{node.name}", array.astype(_array(node, place).dtype)
    )
    node.replace_input_with(place, made)


def _cut_between(model: ir.Model, site: Site, node: ir.Node, units: Array) -> None:
    if node.op_type in ELEMENTWISE:
        _cut_operands(model, site, node, units)
    elif node.op_type in ("Reshape", "Expand"):
        lane = site.region.lane(node.outputs[0])
        assert lane is not None
        _set_size(model, node, lane.axis, int(_stay(lane, units).sum()))
    elif node.op_type == "Split" and len(node.inputs) > _SIZES and node.inputs[_SIZES] is not None:
        given = node.inputs[0]
        axis = attribute(node, "axis", 0)
        lane = site.region.lane(node.outputs[0])
        assert given is not None
        assert lane is not None
        if axis % len(given.shape or ()) == lane.axis:
            size = int(_stay(lane, units).sum())
            _replace(model, node, _SIZES, np.array([size] * len(node.outputs)))


def _cut_operands(model: ir.Model, site: Site, node: ir.Node, units: Array) -> None:
    """The constants that an elementwise operator has for each unit."""
    output = node.outputs[0]
    lane = site.region.lanes[output]
    from_right = lane.axis - len(output.shape or ())
    stay = _stay(lane, units)
    for place, given in enumerate(node.inputs):
        array = constant(given)
        if array is None or array.ndim < -from_right or array.shape[from_right] == 1:
            continue
        _replace(model, node, place, np.compress(stay, array, axis=array.ndim + from_right))


def _set_size(model: ir.Model, node: ir.Node, axis: int, size: int) -> None:
    """Write a size into the shape that a node reads, unless it is found from the others."""
    target = constant(node.inputs[_SIZES])
    if target is not None:
        if target[axis] > 0:
            changed = target.copy()
            changed[axis] = size
            _replace(model, node, _SIZES, changed)
        return
    given = node.inputs[_SIZES]
    joined = given.producer() if given is not None else None
    parts = [constant(each) for each in joined.inputs] if is_op(joined, "Concat") and joined else []
    if joined is None or len(parts) != len(node.outputs[0].shape or ()):
        raise CannotCut(f"the shape that {node.name} reads is computed")
    part = parts[axis]
    if part is None:
        raise CannotCut(f"the size of axis {axis} that {node.name} reads is computed")
    if part[0] > 0:
        _own_sizes(model, node, joined, axis, np.array([size]))


def _own_sizes(model: ir.Model, node: ir.Node, joined: ir.Node, axis: int, size: Array) -> None:
    """Join the sizes anew for one Reshape: others may read the same."""
    inputs = list(joined.inputs)
    inputs[axis] = add_constant(model, f"{node.name}.size", size.astype(np.int64))
    own = ir.node("Concat", inputs, {"axis": 0})
    own.name = f"{node.name}.sizes"
    own.outputs[0].name = f"{node.name}.sizes"
    own.outputs[0].type = joined.outputs[0].type
    own.outputs[0].shape = joined.outputs[0].shape
    assert node.graph is not None
    node.graph.insert_before(node, own)
    node.replace_input_with(_SIZES, own.outputs[0])


def _new_reader(model: ir.Model, site: Site, kept: Kept) -> None:
    _set_matrix(model, site.reader, kept.matrix)
    added = bias_of(site.reader)
    if added is not None and kept.bias is not None:
        _replace(model, added, bias_input(added), kept.bias)


def _drop(model: ir.Model, site: Site, kept: Kept) -> None:
    """What is left is added to the stream that the site was added to."""
    output = output_of(site.reader)
    for use in list(output.uses()):
        node = use.node
        others = [each for each in node.inputs if each is not output]
        if kept.bias is None and others and others[0] is not None:
            ir.convenience.replace_all_uses_with(
                node.outputs[0], others[0], replace_graph_outputs=True
            )
            continue
        bias = kept.bias if kept.bias is not None else np.zeros(kept.matrix.shape[1])
        dtype = output.dtype.numpy() if output.dtype is not None else np.float32
        vector = add_constant(model, f"{site.name}.mean", bias.astype(dtype))
        node.replace_input_with(use.idx, vector)
