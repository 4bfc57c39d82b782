"""A part of a graph: cut at values that are given, not computed, up to values that are wanted.

Cut at every value that a reference knows, each part computes on exact inputs: what it gets wrong
is its own doing, and no error of an earlier node. All parts run in one session.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tfc.optimizers.executor import Feed, Outputs, runner_of
from tfc.optimizers.graph import set_type

Run = Callable[[ir.Model, Feed], Outputs]
_FLOAT = ir.DataType.FLOAT
# What fp32 holds without loss. Integers are sizes and positions, which are left to the graph.
_NUMBERS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.BOOL}
)
# How the outputs of a cut graph are called: their own names may be those of inputs by now.
SUFFIX = ".computed"
_INNER = ".inner"


def cut(model: ir.Model, at: Collection[str], outputs: Collection[str]) -> ir.Model:
    """A copy that reads the values `at` as fp32 inputs and gives `outputs` in fp32.

    Outputs are called by their names and `SUFFIX`. Inputs that are not needed are left out. The
    model is not changed.

    Args:
        model: a graph whose values have types.
        at: names of values that nodes give.
        outputs: names of such values; they are computed even where they are in `at`.
    """
    copy = model.clone()
    graph = copy.graph
    graph.outputs.clear()
    made = {str(v.name): v for node in graph for v in node.outputs if v.dtype in _NUMBERS}
    wanted = [value for name, value in made.items() if name in outputs]
    given = [value for name, value in made.items() if name in at]
    for value in given:
        _give(graph, value)
    for value in wanted:
        name = str(value.name).removesuffix(_INNER)
        _append_output(graph, value, f"{name}{SUFFIX}")
    RemoveUnusedNodesPass()(copy)
    for value in [v for v in graph.inputs if not v.uses()]:
        graph.inputs.remove(value)
    graph.sort()
    return copy


def executed(model: ir.Model, feed: Feed) -> Outputs:
    """What a graph gives on the executor, which keeps to the standard and fuses nothing."""
    return runner_of(model)(feed)


def computed(
    model: ir.Model,
    feed: Feed,
    outputs: Collection[str],
    given: Outputs | None = None,
    run: Run = executed,
) -> Outputs:
    """The values `outputs` in fp32 by name, where those `given` are not computed but fed.

    Raises:
        whatever `run` does of a graph that it cannot run.
    """
    part = cut(model, given or {}, outputs)
    found = run(part, {**feed, **(given or {})})
    return {name.removesuffix(SUFFIX): array for name, array in found.items()}


def names_of_values(model: ir.Model) -> list[str]:
    """The floats and booleans that nodes of the graph give, in its order."""
    return [str(v.name) for n in model.graph for v in n.outputs if v.dtype in _NUMBERS and v.name]


def nodes_of_part(model: ir.Model, at: Collection[str], output: str) -> list[ir.Node]:
    """The nodes that compute `output` from the values `at`, in the graph's order."""
    order = {node: place for place, node in enumerate(model.graph)}
    start = next(v for node in order for v in node.outputs if v.name == output)
    found: set[ir.Node] = set()
    todo = [start.producer()]
    while todo:
        node = todo.pop()
        if node is None or node in found:
            continue
        found.add(node)
        todo += [v.producer() for v in node.inputs if v is not None and v.name not in at]
    return sorted((node for node in found if node in order), key=order.__getitem__)


def _give(graph: ir.Graph, value: ir.Value) -> None:
    """Let the readers of a value read an input of its name, in its type."""
    uses = list(value.uses())
    name, dtype = str(value.name), value.dtype
    value.name = f"{name}{_INNER}"
    source = ir.Value(name=name, type=ir.TensorType(_FLOAT), shape=value.shape)
    graph.inputs.append(source)
    read = source
    if dtype != _FLOAT:
        assert dtype is not None
        cast = ir.node("Cast", [source], {"to": dtype})
        read = cast.outputs[0]
        set_type(read, dtype, value.shape)
        graph.insert_before(graph[0], [cast])
    for use in uses:
        use.node.replace_input_with(use.idx, read)


def _append_output(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Give a value in fp32 as an output of this name; one that is fp32 as it is."""
    if value.dtype == _FLOAT:
        value.name = name
        graph.outputs.append(value)
        return
    cast = ir.node("Cast", [value], {"to": _FLOAT})
    result = cast.outputs[0]
    set_type(result, _FLOAT, value.shape)
    result.name = name
    graph.append(cast)
    graph.outputs.append(result)
