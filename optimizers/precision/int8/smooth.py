"""SmoothQuant: outliers move from activations, where one range holds all channels, into weights.

A few channels of a transformer's activations are ten times as large as the others, and one range
for all of them leaves the others few levels. Dividing channel j of the activation by s_j and
multiplying row j of the weights by it changes no product::

    x · W  =  (x / s) · (diag(s) · W),      s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)

(G. Xiao et al., "SmoothQuant", 2023). `alpha` shares the difficulty out; it is searched for each
activation, on real vectors: the one whose quantised product is nearest to the exact one, or none
where that does not gain enough.

The division is folded into the scale and shift of a normalization that nothing else reads, or else
written as a `Mul` in front of the products: a residual that reads the same activation needs it as
it was. TensorRT computes that `Mul` in the kernel that quantises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.optimizers.executor import Feed, runner_of
from tfc.optimizers.graph import add_weight, constant, insert_before, set_type
from tfc.optimizers.precision.int8.narrow import INT8, NarrowType
from tfc.optimizers.precision.int8.observe import real_vectors, values_model
from tfc.optimizers.precision.int8.sites import Site
from tfc.optimizers.precision.int8.weights import quantized_weight, scale_of

ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# The square of the error has to fall by this factor: a `Mul` is not free everywhere, and less is
# within what another sample of vectors would give.
_WORTH = 0.7
# Channels are scaled by no more than this, so that fp16 weights keep their bits.
_MOST = 64.0
# Vectors of each activation that alphas are tried on: 130 MB of all of BERT-base's.
VECTORS = 512
_NORMS = ("LayerNormalization", "RMSNormalization")
_FLOAT = ir.DataType.FLOAT

Array = npt.NDArray[Any]


def groups_of(sites: Sequence[Site]) -> dict[str, list[Site]]:
    """The sites that read the same activation, by its name: they share one scaling."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.activation, []).append(site)
    return groups


def sample_vectors(
    model: ir.Model, sites: Sequence[Site], feeds: Sequence[Feed]
) -> dict[str, Array]:
    """Some vectors of each activation, `[vectors, channels]`, without padding."""
    names = list(groups_of(sites))
    run = runner_of(values_model(model, names))
    found: dict[str, list[Array]] = {name: [] for name in names}
    each = -(-VECTORS // max(1, len(feeds)))
    for feed in feeds:
        values = run(feed)
        for name in names:
            vectors = real_vectors(values[name], feed)
            places = np.unique(np.linspace(0, len(vectors) - 1, each).astype(int))
            found[name].append(vectors[places])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def searched_alphas(
    model: ir.Model,
    sites: Sequence[Site],
    channels: Mapping[str, Array],
    vectors: Mapping[str, Array],
    narrow: NarrowType = INT8,
) -> dict[str, float]:
    """The best alpha of each activation that gains from one.

    Args:
        model: the optimized fp32 graph.
        sites: its sites.
        channels: the largest magnitude of each channel, by activation.
        vectors: some vectors of it, by activation.
        narrow: what the products are quantised to.
    """
    found = {}
    for name, group in groups_of(sites).items():
        weight = np.concatenate([_rows(model, site) for site in group], axis=1)
        product = _Product(vectors[name], weight, channels[name], vectors[name] @ weight, narrow)
        plain = product.error(np.ones(len(weight), np.float32))
        rows = np.abs(weight).max(axis=1)
        errors = {alpha: product.error(scales_of(channels[name], rows, alpha)) for alpha in ALPHAS}
        best = min(errors, key=lambda alpha: errors[alpha])
        if errors[best] < _WORTH * plain:
            found[name] = best
    return found


def scales_of(activation: Array, weight: Array, alpha: float) -> Array:
    """The s of each channel, from its largest magnitudes; 1 on (geometric) average."""
    used = (activation > 0) & (weight > 0)
    scales = np.ones(len(activation), np.float64)
    scales[used] = activation[used] ** alpha / weight[used] ** (1 - alpha)
    if used.any():
        scales[used] /= np.exp(np.log(scales[used]).mean())
    return np.clip(scales, 1 / _MOST, _MOST).astype(np.float32)


def smooth(
    model: ir.Model,
    sites: Sequence[Site],
    channels: Mapping[str, Array],
    alphas: Mapping[str, float],
) -> None:
    """Scale activations and weights, in place.

    Args:
        model: the optimized fp32 graph.
        sites: its sites.
        channels: the largest magnitude of each channel, by activation.
        alphas: by activation; others stay as they are.
    """
    nodes = {node.name: node for node in model.graph}
    for name, group in groups_of(sites).items():
        if name not in alphas:
            continue
        largest = np.max([np.abs(_rows(model, site)).max(axis=1) for site in group], axis=0)
        scales = scales_of(channels[name], largest, alphas[name])
        readers = [nodes[site.node] for site in group]
        value = readers[0].inputs[0]
        assert value is not None
        for site, node in zip(group, readers, strict=True):
            _scale_weight(model, site, node, scales)
        if not _fold(model, value, readers, scales):
            scaled = _multiplied(model, value, readers[0], scales)
            for node in readers:
                node.replace_input_with(0, scaled)
    for name in [n for n, v in model.graph.initializers.items() if not v.uses()]:
        del model.graph.initializers[name]


def _rows(model: ir.Model, site: Site) -> Array:
    """The weight as `[in, out]`."""
    array = constant(model.graph.initializers[site.weight])
    assert array is not None
    return array.T if site.transposed else array


@dataclass(frozen=True)
class _Product:
    """Vectors, the matrix that they are multiplied with, each channel's largest magnitude, and the
    exact products."""

    vectors: Array
    weight: Array
    largest: Array
    exact: Array
    narrow: NarrowType

    def error(self, scales: Array) -> float:
        """The squared error of the quantised product, with the activation in its whole range."""
        amax = float((self.largest / scales).max())
        step = scale_of(amax, np.float32, self.narrow)
        levels = self.narrow.rounded(self.vectors / scales / step).astype(np.float32)
        scaled = quantized_weight(self.weight * scales[:, None], 1, np.float32, self.narrow)
        wrong = (levels * step) @ scaled.dequantized() - self.exact
        return float((wrong**2).sum())


def _scale_weight(model: ir.Model, site: Site, node: ir.Node, scales: Array) -> None:
    array = constant(node.inputs[1])
    assert array is not None
    wide = scales[None, :] if site.transposed else scales[:, None]
    scaled = ir.tensor((array * wide).astype(np.float32))
    node.replace_input_with(1, add_weight(model, f"{site.weight}.smooth", scaled))


def _fold(model: ir.Model, value: ir.Value, readers: list[ir.Node], scales: Array) -> bool:
    """Scale the normalization that gives the value, if nothing but the products reads it."""
    norm = value.producer()
    others = any(use.node not in readers for use in value.uses()) or value.is_graph_output()
    if norm is None or norm.op_type not in _NORMS or others:
        return False
    arrays = [constant(given) for given in norm.inputs[1:]]
    if any(array is None or array.shape != scales.shape for array in arrays):
        return False
    for place, array in enumerate(arrays, start=1):
        assert array is not None
        folded = ir.tensor((array / scales).astype(np.float32))
        norm.replace_input_with(place, add_weight(model, f"{value.name}.smooth_{place}", folded))
    return True


def _multiplied(model: ir.Model, value: ir.Value, before: ir.Node, scales: Array) -> ir.Value:
    factors = add_weight(model, f"{value.name}.smooth", ir.tensor((1 / scales).astype(np.float32)))
    multiply = ir.node("Mul", [value, factors], name=f"{value.name}_smooth")
    out = multiply.outputs[0]
    out.name = f"{value.name}_smoothed"
    set_type(out, _FLOAT, value.shape)
    insert_before(before, [multiply])
    return out
