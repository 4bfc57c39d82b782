"""Any opset → 23, where attention and the norms are single operators.

ONNX's own version converter does the work. What it leaves behind is tidied:

1. ONNX Runtime knows `LayerNormalization` below opset 17 too, and writes it into graphs of any
   opset. It is set aside while the rest is converted; its definition is that of opset 17.
2. Below opset 13 Softmax flattened its input to two axes. The converter writes that out as
   `Flatten`, `Softmax`, `Reshape`; over the last axis it is the same as one `Softmax`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import onnx
import onnx.external_data_helper
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass

from tfc.errors import BadInput, first_line
from tfc.optimizers.graph import MODULE_KEY, attribute, is_op, nodes_of, only_user, replace_value
from tfc.optimizers.passes import PassResult

OPSET = 23
_NORM, _NORM_OPSET = "LayerNormalization", 17
_ASIDE = "tfc.onnxruntime"
_SCOPES, _SCOPE = "pkg.torch.onnx.name_scopes", re.compile(r"'([^']*)'")


def set_norms_aside(model: onnx.ModelProto) -> bool:
    """Case 1 of the module's docstring: whether there are such norms; they get their own domain."""
    norms = [n for n in model.graph.node if n.op_type == _NORM and n.domain in ("", "ai.onnx")]
    if not norms or _version(model) >= _NORM_OPSET:
        return False
    for node in norms:
        node.domain = _ASIDE
    model.opset_import.append(onnx.helper.make_opsetid(_ASIDE, 1))
    return True


def _take_norms_back(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.domain == _ASIDE:
            node.domain = ""
    kept = [opset for opset in model.opset_import if opset.domain != _ASIDE]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _version(model: onnx.ModelProto) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def _modules(model: onnx.ModelProto) -> dict[str, str]:
    """The module path of each node, by its name, as torch's exporters tell it.

    The dynamo exporter writes the scopes of a node as a list, from the outermost module to the
    operation; TorchScript names a node by its path, `/encoder/layer.0/Softmax`.
    """
    found = {}
    for node in model.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), "")
        path = _SCOPE.findall(scopes)[-2:-1]
        if not path and node.name.startswith("/"):
            path = [".".join(node.name.split("/")[1:-1])]
        if path and path[0]:
            found[node.name] = path[0]
    return found


def with_current_opset(model: onnx.ModelProto) -> ir.Model:
    """The model at opset 23, or as it is if it is newer; every node and value has its own name, and
    nodes know the module that they came from where the exporter says so.

    Raises:
        BadInput: an operator has no form at opset 23.
    """
    version, modules = _version(model), _modules(model)
    if version < OPSET:
        set_norms_aside(model)
        try:
            model = _converted(model)
        except Exception as error:  # the converter's C++ errors have no common root
            raise BadInput(
                f"the graph is at opset {version} and cannot be converted to {OPSET} "
                f"({first_line(error)})",
                fix="Export it again at opset 17 or newer",
            ) from error
    _take_norms_back(model)
    converted = ir.from_proto(model)
    for node in converted.graph:
        if node.name in modules:
            node.metadata_props.setdefault(MODULE_KEY, modules[node.name])
        node.name = node.name or None  # "" is no name, though many nodes may share it
    NameFixPass()(converted)
    return converted


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at opset 23. The converter would drop where weights are that it does not load."""
    outside = [
        w for w in model.graph.initializer if onnx.external_data_helper.uses_external_data(w)
    ]
    if not outside:
        return onnx.version_converter.convert_version(model, OPSET)
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    names = {weight.name for weight in outside}
    inside = [weight for weight in model.graph.initializer if weight.name not in names]
    given = [value for value in model.graph.input if value.name not in names]
    typed = [
        onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
        for weight in outside
    ]
    _replace(bare.graph.initializer, inside)
    _replace(bare.graph.input, [*given, *typed])
    converted = onnx.version_converter.convert_version(bare, OPSET)
    _replace(converted.graph.input, given)
    converted.graph.initializer.extend(outside)
    return converted


def _replace(field: Any, items: Sequence[Any]) -> None:
    del field[:]
    field.extend(items)


class UnwrapSoftmax:
    """Tidies case 2 of the module's docstring."""

    name = "unwrap softmax"

    def apply(self, model: ir.Model) -> PassResult:
        """Put one Softmax over the last axis in place of the wrapped ones."""
        changed = 0
        for node in nodes_of(model, "Softmax"):
            wrapped = _wrapping(node)
            if wrapped is None:
                continue
            source, reshape = wrapped
            node.replace_input_with(0, source)
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
            replace_value(reshape.outputs[0], node.outputs[0])
            node.outputs[0].shape = source.shape
            changed += 1
        if changed:
            RemoveUnusedNodesPass()(model)
        return PassResult(changed)


def _wrapping(softmax: ir.Node) -> tuple[ir.Value, ir.Node] | None:
    """The value that was flattened for this Softmax, and the Reshape that undoes it."""
    flat = softmax.inputs[0]
    flatten = flat.producer() if flat is not None else None
    reshape = only_user(softmax.outputs[0])
    if flatten is None or not is_op(flatten, "Flatten") or not is_op(reshape, "Reshape"):
        return None
    source = flatten.inputs[0]
    if source is None or source.shape is None or reshape is None:
        return None
    if attribute(flatten, "axis", 1) not in (-1, len(source.shape) - 1):
        return None
    shape = reshape.inputs[1].producer() if reshape.inputs[1] is not None else None
    back = shape is not None and is_op(shape, "Shape") and shape.inputs[0] is source
    return (source, reshape) if back else None
