"""A second stage in PyTorch: over the members' logits, and from a module without its code."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from tfc.errors import UsageError
from tfc.runtime.tasks.classification import MULTI_LABEL, REGRESSION
from tfc.stage import LINEAR, LOGITS, Layer, SecondStage, fault_of

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
}
_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
}
_CALLS: dict[Any, str] = {
    functional.relu: "relu",
    torch.relu: "relu",
    torch.tanh: "tanh",
    functional.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    functional.sigmoid: "sigmoid",
    functional.silu: "silu",
    "relu": "relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}
# They do nothing in evaluation mode.
_NOTHING = (nn.Dropout, nn.Identity)
# Rows on which a module is compared with its layers, and how far they may be apart, of the
# largest value: rounding in fp32.
_ROWS, _TOLERANCE = 16, 1e-5


class Features(nn.Module):
    """Logits `[batch, labels]` of each member → what a stage reads, `[batch, members·labels]`.

    Args:
        reads: `probabilities` or `logits` (`tfc.stage`).
        problem: how the logits are read.
        orders: for each member, where each label of the first member stands among its own.
    """

    def __init__(self, reads: str, problem: str, orders: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self._as_they_are = reads == LOGITS or problem == REGRESSION
        self._several = problem == MULTI_LABEL
        self._moved = [list(order) != sorted(order) for order in orders]
        for number, order in enumerate(orders):
            self.register_buffer(f"order_{number}", torch.tensor(order), persistent=False)

    def forward(self, *outputs: Tensor) -> Tensor:
        """The features of all members, the first one's first."""
        return torch.cat([self._of(n, each) for n, each in enumerate(outputs)], dim=-1)

    def _of(self, number: int, logits: Tensor) -> Tensor:
        if self._moved[number]:
            logits = logits.index_select(-1, self.get_buffer(f"order_{number}"))
        if self._as_they_are:
            return logits
        return torch.sigmoid(logits) if self._several else torch.softmax(logits, dim=-1)


class Stacked(nn.Module):
    """Logits of each member → those of the second stage, in the order of the ensemble's labels.

    Args:
        features: what the stage reads.
        stage: its layers.
        order: where each label of the ensemble stands among the stage's outputs.
    """

    def __init__(self, features: Features, stage: SecondStage, order: Sequence[int]) -> None:
        super().__init__()
        self.features = features
        self.stage = module_from_layers(stage.layers)
        self._moved = list(order) != sorted(order)
        self.register_buffer("order", torch.tensor(order), persistent=False)

    def forward(self, *outputs: Tensor) -> Tensor:
        """The stage's logits `[batch, labels]`."""
        logits: Tensor = self.stage(self.features(*outputs))
        return logits.index_select(-1, self.get_buffer("order")) if self._moved else logits


def module_from_layers(layers: Sequence[Layer]) -> nn.Sequential:
    """The layers as a module in fp32."""
    return nn.Sequential(*(_module(layer) for layer in layers))


def stage_from_module(module: nn.Module, reads: str) -> SecondStage:
    """A module's layers, in the order in which its forward calls them.

    Raises:
        UsageError: it does something else than linear layers and activations, one after another.
    """
    kind = type(module).__name__
    training = module.training
    module.eval()
    try:
        stage = SecondStage(kind, reads, _layers_of(module, kind))
        wrong = fault_of(stage)
        if wrong:
            raise UsageError(wrong, fix="Give a module that ends in an nn.Linear for the labels")
        _check_same(module, stage, kind)
    finally:
        module.train(training)
    return stage


def _module(layer: Layer) -> nn.Module:
    if layer.op != LINEAR:
        return _ACTIVATIONS[layer.op]()
    linear = nn.Linear(len(layer.weight[0]), len(layer.weight))
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(layer.weight))
        linear.bias.copy_(torch.tensor(layer.bias))
    return linear


def _layers_of(module: nn.Module, kind: str) -> list[Layer]:
    # What is outermost is traced into, and what is inside and torch's own is not.
    outer = nn.Sequential(module)
    try:
        graph = fx.symbolic_trace(outer).graph
    except Exception as error:  # the module's own code may raise anything
        raise UsageError(
            f"the layers of the second stage {kind} cannot be told: {error}",
            fix="Give an nn.Sequential of nn.Linear and activations",
        ) from error
    layers: list[Layer] = []
    last: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "placeholder" and last is None:
            last = node
            continue
        if node.all_input_nodes != [last]:
            raise _unknown(kind, str(getattr(node.target, "__name__", node.target)))
        if node.op != "output":
            layers += _layers_of_node(outer, node, kind)
        last = node
    return layers


def _layers_of_node(outer: nn.Module, node: fx.Node, kind: str) -> list[Layer]:
    if node.op != "call_module":
        if node.target is functional.dropout and _is_off(node):
            return []
        if node.target is functional.gelu:
            return [Layer(_gelu(str(node.kwargs.get("approximate", "none"))))]
        if node.target not in _CALLS:
            raise _unknown(kind, str(getattr(node.target, "__name__", node.target)))
        return [Layer(_CALLS[node.target])]
    called = operator.attrgetter(str(node.target))(outer)
    if isinstance(called, _NOTHING):
        return []
    if type(called) is nn.Linear:
        weight = called.weight.detach().double()
        bias = torch.zeros(len(weight)) if called.bias is None else called.bias.detach()
        return [Layer(LINEAR, weight.tolist(), bias.double().tolist())]
    if isinstance(called, nn.GELU):
        return [Layer(_gelu(called.approximate))]
    if type(called) not in _MODULES:
        raise _unknown(kind, type(called).__name__)
    return [Layer(_MODULES[type(called)])]


def _is_off(dropout: fx.Node) -> bool:
    """As in `dropout(x, p, self.training)`, traced in evaluation mode."""
    given = dropout.args[2] if len(dropout.args) > 2 else dropout.kwargs.get("training", True)
    return given is False


def _gelu(approximate: str) -> str:
    return "gelu_tanh" if approximate == "tanh" else "gelu"


def _unknown(kind: str, what: str) -> UsageError:
    return UsageError(
        f"the second stage {kind} has '{what}', and only linear layers and activations, one "
        "after another, can be kept without its code",
        fix=f"Use nn.Linear, and of activations: {', '.join(_ACTIVATIONS)}",
    )


def _check_same(module: nn.Module, stage: SecondStage, kind: str) -> None:
    """The layers say what the module says: its forward may hide what a trace does not show."""
    rows = torch.randn(_ROWS, stage.inputs, generator=torch.Generator().manual_seed(0))
    given = rows.to(next(module.parameters()))
    with torch.no_grad():
        own, rebuilt = module(given).to(rows), module_from_layers(stage.layers)(rows)
    allowed = _TOLERANCE * float(rebuilt.abs().max())
    if own.shape != rebuilt.shape or not bool(((own - rebuilt).abs() <= allowed).all()):
        raise UsageError(
            f"the second stage {kind} does not say what its layers say one after another",
            fix="Give an nn.Sequential of nn.Linear and activations",
        )
