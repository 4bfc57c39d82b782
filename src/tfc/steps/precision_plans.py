"""Which values another checkpoint of the same architecture had to keep in fp32.

The architecture is the graph without the values of its weights. What helped one checkpoint is only
where the search for the next begins: the gate measures it on that checkpoint's own weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.build_cache import BuildCache
    from tfc.optimizers.precision.repair import Pin


@dataclass(frozen=True)
class PrecisionPlans:
    """The plan of one graph in one precision; there is none without a cache."""

    cache: BuildCache | None
    model: ir.Model
    precision: str

    def first(self) -> list[Pin]:
        """The pins to begin with, of values that the graph has."""
        from tfc.optimizers.precision.repair import Pin

        if self.cache is None:
            return []
        values = {value.name for node in self.model.graph for value in node.outputs}
        fields = set(Pin.__dataclass_fields__)
        return [
            Pin(**found)
            for found in self.cache.plan(self._key())
            if isinstance(found, dict) and set(found) == fields and found["value"] in values
        ]

    def keep(self, pins: Sequence[dict[str, Any]]) -> None:
        """Keep what this checkpoint needed, for the next one."""
        if self.cache is not None and pins:
            self.cache.keep_plan(self._key(), list(pins))

    def _key(self) -> str:
        return f"{architecture_of(self.model)}-{self.precision}"


def architecture_of(model: ir.Model) -> str:
    """SHA-256 of a graph's operators, names, attributes, and types and shapes of its weights.

    Of integers, and of single numbers, the values too: they are sizes, axes, scales.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.graph.initializers.items()):
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        tensor = value.const_value
        if tensor is not None and (tensor.size == 1 or tensor.dtype.is_integer()):
            digest.update(tensor.numpy().tobytes())
    for node in model.graph:
        attributes = {
            name: "a tensor" if "TENSOR" in attribute.type.name else repr(attribute.value)
            for name, attribute in sorted(node.attributes.items())
        }
        names = [value.name if value is not None else "" for value in (*node.inputs, *node.outputs)]
        digest.update(f"{node.domain} {node.op_type} {names} {attributes}\n".encode())
    return digest.hexdigest()
