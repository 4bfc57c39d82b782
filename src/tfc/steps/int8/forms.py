"""The forms of int8 that a target can run, as functions from sites to a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfc.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.optimizers.precision.int8.ranges import Ranges
    from tfc.optimizers.precision.int8.sites import Site

QDQ, STATIC, DYNAMIC = "qdq", "static", "dynamic"
AUTO = "auto"
CPU_FORMS = (DYNAMIC, STATIC)
_CPU_TARGET = "onnxruntime"


@dataclass(frozen=True)
class Form:
    """One form: the graph that it starts from, and what it makes of the sites in a copy of it."""

    name: str
    base: ir.Model
    rewrite: Callable[[ir.Model, Sequence[Site]], None]

    def graph(self, sites: Sequence[Site]) -> ir.Model:
        """A graph with these sites in int8."""
        model = self.base.clone()
        self.rewrite(model, sites)
        return model


def forms_of(target: str, asked: str, model: ir.Model, ranges: Ranges) -> list[Form]:
    """The forms to choose from.

    Args:
        target: which runtimes the graph was optimized for.
        asked: `auto`, `static` or `dynamic`.
        model: the optimized fp32 graph.
        ranges: of what its sites read.

    Raises:
        UsageError: the target has no such form.
    """
    if target != _CPU_TARGET:
        if asked == DYNAMIC:
            raise UsageError(
                "TensorRT takes the ranges of activations from the graph, not from each batch",
                fix="Leave --int8-form out, or build for the CPU: --backend onnxruntime",
            )
        return [qdq(model, ranges)]
    names = CPU_FORMS if asked == AUTO else (asked,)
    return [_cpu(name, model, ranges) for name in names]


def qdq(model: ir.Model, ranges: Ranges) -> Form:
    """QuantizeLinear and DequantizeLinear around each product."""
    from tfc.optimizers.precision.int8.qdq import quantize_dequantize

    return Form(QDQ, model, lambda graph, sites: quantize_dequantize(graph, sites, ranges))


def _cpu(name: str, model: ir.Model, ranges: Ranges) -> Form:
    from tfc.optimizers.precision.int8.cpu_dynamic import cpu_dynamic
    from tfc.optimizers.precision.int8.cpu_static import cpu_static

    def dynamic(graph: ir.Model, sites: Sequence[Site]) -> None:
        cpu_dynamic(graph, [site.node for site in sites])

    def static(graph: ir.Model, sites: Sequence[Site]) -> None:
        cpu_static(graph, [site.node for site in sites], ranges)

    return Form(name, model, dynamic if name == DYNAMIC else static)
