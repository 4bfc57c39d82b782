"""Values in the middle of a graph, as it computes them on given inputs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tfc.optimizers.executor import Feed, Outputs, outputs_of
from tfc.optimizers.graph import set_type

_FLOAT = ir.DataType.FLOAT
_SUFFIX = "_probed"


def values_of(model: ir.Model, names: Collection[str], feeds: Sequence[Feed]) -> list[Outputs]:
    """For each feed, the values of these names that nodes give, in fp32; all are in memory."""
    probe = model.clone()
    probe.graph.outputs.clear()
    for value in [v for node in probe.graph for v in node.outputs if v.name in names]:
        cast = ir.node("Cast", [value], {"to": _FLOAT})
        set_type(cast.outputs[0], _FLOAT, value.shape)
        cast.outputs[0].name = f"{value.name}{_SUFFIX}"
        producer = value.producer()
        assert producer is not None
        probe.graph.insert_after(producer, [cast])
        probe.graph.outputs.append(cast.outputs[0])
    if not probe.graph.outputs:
        return [{} for _ in feeds]
    RemoveUnusedNodesPass()(probe)
    found = outputs_of(probe, feeds)
    return [{key.removesuffix(_SUFFIX): a for key, a in outputs.items()} for outputs in found]
