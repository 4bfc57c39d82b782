"""Graphs written as ONNX text, and the questions that every fusion test asks of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from tfc.optimizers.executor import outputs_of, relative_difference
from tfc.optimizers.passes import FusionPass

SIZES = {"batch": 2, "sequence": 5}


class Graphs:
    """Builds, runs and compares small graphs. All numbers come from one seeded generator."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(7)

    def model(self, body: str, *, opset: int = 23, **constants: Any) -> ir.Model:
        """A model from ONNX text; inputs named in `constants` become initializers.

        A constant is an array, or a shape to fill with random numbers.
        """
        opsets = f'"" : {opset}, "com.microsoft" : 1'
        text = f"<ir_version: 10, opset_import: [{opsets}]>\n{body}"
        model = ir.from_proto(onnx.parser.parse_model(text))
        for name, given in constants.items():
            array = self.normal(*given) if isinstance(given, tuple) else np.asarray(given)
            value = next(v for v in model.graph.inputs if v.name == name)
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(array, name=name)
            model.graph.register_initializer(value)
        ShapeInferencePass()(model)
        return model

    def normal(self, *shape: int) -> np.ndarray:
        """Random numbers in fp32."""
        return self.rng.normal(size=shape).astype(np.float32)

    def feed(self, model: ir.Model) -> dict[str, np.ndarray]:
        """Random inputs; int64 inputs get zeros and ones, with no row of zeros only."""
        feed = {}
        for value in model.graph.inputs:
            shape = [d if isinstance(d, int) else SIZES[str(d.value)] for d in value.shape]
            if value.dtype == ir.DataType.INT64:
                array = self.rng.integers(0, 2, shape)
                array[..., 1] = 1
            elif value.dtype == ir.DataType.BOOL:
                array = self.rng.integers(0, 2, shape).astype(bool)
                array[..., 1] = True
            else:
                array = self.normal(*shape)
            feed[str(value.name)] = array
        return feed

    def ops(self, model: ir.Model) -> list[str]:
        """The operators of the graph, in order."""
        return [f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in model.graph]

    def attributes(self, model: ir.Model, op_type: str, name: str) -> list[Any]:
        """An attribute of every node of one operator."""
        return [n.attributes[name].value for n in model.graph if n.op_type == op_type]

    def fuse(self, model: ir.Model, fusion: Any) -> tuple[ir.Model, Any]:
        """The model after one fusion, and what the pass reports; the numbers must not move."""
        fused = model.clone()
        result = FusionPass(fusion).apply(fused)
        feeds = [self.feed(model) for _ in range(2)]
        assert relative_difference(outputs_of(model, feeds), outputs_of(fused, feeds)) < 2e-6
        assert [v.name for v in model.graph.inputs] == [v.name for v in fused.graph.inputs]
        return fused, result

    def refusal(self, model: ir.Model, fusion: Any) -> str:
        """The reason for which the fusion left its one site alone."""
        before = self.ops(model)
        result = FusionPass(fusion).apply(model)
        assert result.changed == 0
        assert self.ops(model) == before
        (refused,) = result.refusals
        return str(refused.reason)

    def is_no_site(self, model: ir.Model, fusion: Any) -> bool:
        """Whether the fusion neither fires nor complains."""
        result = FusionPass(fusion).apply(model.clone())
        return result.changed == 0 and not result.refusals


@pytest.fixture
def graphs() -> Graphs:
    return Graphs()
