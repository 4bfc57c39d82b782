"""Every TensorRT and CUDA member that the backend touches exists in every version it is for.

`tests/data/tensorrt_api` holds the API surfaces of TensorRT 10.13, 10.16 and 11.4 and of
TensorRT-RTX 1.7: classes, members and signatures, read off the published bindings. The backend
names the variables that hold TensorRT's objects after their class, which makes its source
decidable: this test walks it, resolves each attribute to a class, and looks the member up.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import Cudart

from tfc.runtime.backends import tensorrt
from tfc.runtime.backends.tensorrt_flavors import FLAVORS, HARDWARE_LEVELS

SURFACES = {
    path.stem: json.loads(path.read_text())["surface"]
    for path in sorted((Path(__file__).parent.parent / "data" / "tensorrt_api").glob("*.json"))
}
SOURCES = sorted(Path(tensorrt.__file__).parent.glob("tensorrt*.py"))
CUDA_CALLS = Path(tensorrt.__file__).parent / "cuda_calls.py"

Surface = dict[str, Any]  # class, enum or function → its kind and members
MODULE = "trt"
VARIABLES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "config": "IBuilderConfig",
    "shapes": "IOptimizationProfile",
    "tensor": "ITensor",
    "layer": "ILayer",
    "boundary": "IAttentionInputLayer",
    "attention": "IAttention",
    "memory": "IHostMemory",
    "timing": "ITimingCache",
    "other_timing": "ITimingCache",
    "refitter": "Refitter",
    "parser_refitter": "OnnxParserRefitter",
    "runtime": "Runtime",
    "runtime_config": "IRuntimeConfig",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}
CPP_NAMES = {"IParserError": "ParserError"}  # a binding that gives the C++ name of its result
ENUM_INSTANCE = frozenset({"name", "value"})  # of every pybind11 enum
FROM_DATA = "<from data>"  # the member that getattr takes from a table


@dataclass(frozen=True)
class Use:
    """A member of the API in the source: `owner` is a class, or "" for the module itself."""

    function: str
    owner: str
    member: str
    arguments: int | None = None


@dataclass(frozen=True)
class Value:
    """What an expression is: an instance of `owner`, the class itself, or its `member`."""

    owner: str
    member: str = ""
    is_class: bool = False


class Walker:
    """Collects the uses in one source, and the results that no tracked variable holds."""

    def __init__(self, source: str, surface: Surface) -> None:
        self.surface = surface
        self.uses: list[Use] = []
        self.untracked: list[str] = []
        self.function = ""
        self.visit(ast.parse(source))

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef):
            self.function = node.name
        if isinstance(node, ast.Attribute | ast.Call):
            self.value_of(node)
        elif isinstance(node, ast.Assign | ast.NamedExpr):
            self.visit_assignment(node)
        else:
            for child in ast.iter_child_nodes(node):
                self.visit(child)

    def visit_assignment(self, node: ast.Assign | ast.NamedExpr) -> None:
        value = self.value_of(node.value)
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            self.visit(target)
            name = ast.unparse(target).removeprefix("self.").lstrip("_")
            held = self.class_of(value)
            if held and VARIABLES.get(name) != held:
                self.untracked.append(f"{name} holds {held}")

    def value_of(self, node: ast.AST) -> Value | None:
        if isinstance(node, ast.Name):
            return self.of_name(node.id)
        if isinstance(node, ast.Attribute):
            return self.of_attribute(node)
        if isinstance(node, ast.Call):
            return self.of_call(node)
        for child in ast.iter_child_nodes(node):
            self.visit(child)
        return None

    def of_name(self, name: str) -> Value | None:
        if name == MODULE:
            return Value("", is_class=True)
        return Value(VARIABLES[name]) if name in VARIABLES else None

    def of_attribute(self, node: ast.Attribute) -> Value | None:
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return self.of_name(node.attr.lstrip("_"))
        base = self.value_of(node.value)
        if base is None or base.member:
            return None
        if self.is_enum(base.owner) and node.attr in ENUM_INSTANCE:
            return None
        self.uses.append(Use(self.function, base.owner, node.attr))
        if base.owner == "":
            return Value(node.attr, is_class=True)
        return Value(base.owner, node.attr)

    def of_call(self, node: ast.Call) -> Value | None:
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.visit(argument)
        if isinstance(node.func, ast.Name) and node.func.id == "getattr":
            return self.of_getattr(node)
        called = self.value_of(node.func)
        if called is None:
            return None
        if called.is_class:
            return Value(called.owner)
        arguments = None if node.keywords else len(node.args)
        self.uses.append(Use(self.function, called.owner, called.member, arguments))
        return self.result(called)

    def of_getattr(self, node: ast.Call) -> Value | None:
        base = self.value_of(node.args[0])
        if base is not None:
            name = node.args[1]
            member = str(name.value) if isinstance(name, ast.Constant) else FROM_DATA
            self.uses.append(Use(self.function, base.owner, member))
        return None

    def result(self, called: Value) -> Value | None:
        for signature in signatures_of(self.surface, called.owner, called.member):
            if match := re.search(r"-> (?:\w+(?:\.|::))*(\w+)$", signature):
                name = CPP_NAMES.get(match[1], match[1])
                if name in self.surface:
                    return Value(name)
        return None

    def class_of(self, value: Value | None) -> str:
        """The class of an object; "" for a member, for a class itself, and for an enum's."""
        if value is None or value.member or value.is_class or self.is_enum(value.owner):
            return ""
        return value.owner

    def is_enum(self, owner: str) -> bool:
        return bool(self.surface.get(owner, {}).get("kind") == "enum")


def signatures_of(surface: Surface, owner: str, member: str) -> list[str]:
    members = surface.get(owner, {}).get("members", {})
    found = members.get(member) if isinstance(members, dict) else None
    return found if isinstance(found, list) else []


def takes(signature: str, arguments: int) -> bool:
    """Whether a method of this signature can be called with so many arguments after self."""
    inside = signature[signature.index("(") + 1 : signature.rindex(")")]
    parameters = [part for part in re.split(r",(?![^<\[]*[>\]])", inside) if part.strip()][1:]
    required = [part for part in parameters if "=" not in part]
    return len(required) <= arguments <= len(parameters)


def problem_of_use(use: Use, version: str) -> str:
    surface = SURFACES[version]
    if use.owner and use.owner not in surface:
        return f"{version} has no {use.owner}"
    members = surface[use.owner]["members"] if use.owner else surface
    if use.member != FROM_DATA and use.member not in members:
        return f"{version} has no {use.owner}.{use.member} (in {use.function})"
    plain = [
        signature
        for signature in signatures_of(surface, use.owner, use.member)
        if "*args" not in signature
    ]
    if use.arguments is None or not plain:
        return ""
    if any(takes(signature, use.arguments) for signature in plain):
        return ""
    return f"{version}: {use.owner}.{use.member} does not take {use.arguments} (in {use.function})"


def versions_of_flavor(module: str) -> list[str]:
    return [version for version in SURFACES if version.rpartition("-")[0] == module]


# Functions that are called only where the API has this class.
NEEDS = {"_let_attention_be_decomposed": "IAttention"}


def versions_for(function: str) -> list[str]:
    """All versions, but those of its flavor for a function that a row of FLAVORS names."""
    if function in NEEDS:
        return [version for version in SURFACES if NEEDS[function] in SURFACES[version]]
    modules = [
        flavor.module
        for flavor in FLAVORS.values()
        if function in (flavor.target_hardware.__name__, flavor.create_context.__name__)
    ]
    return [v for module in modules for v in versions_of_flavor(module)] or list(SURFACES)


def problems_of_source(source: str) -> Iterator[str]:
    for version, surface in SURFACES.items():
        walker = Walker(source, surface)
        yield from walker.untracked
        for use in walker.uses:
            if version in versions_for(use.function) and (problem := problem_of_use(use, version)):
                yield problem


def test_there_is_a_surface_for_each_flavor() -> None:
    assert {flavor.module: versions_of_flavor(flavor.module) for flavor in FLAVORS.values()} == {
        "tensorrt": ["tensorrt-10.13.3", "tensorrt-10.16.1", "tensorrt-11.4.0"],
        "tensorrt_rtx": ["tensorrt_rtx-1.7.1"],
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_member_exists_in_every_version(path: Path) -> None:
    assert sorted(set(problems_of_source(path.read_text()))) == []


def test_the_walk_finds_the_members_that_are_known_to_be_used() -> None:
    used = {
        f"{use.owner}.{use.member}"
        for path in SOURCES
        for use in Walker(path.read_text(), SURFACES["tensorrt_rtx-1.7.1"]).uses
    }
    assert used >= {
        "Builder.build_serialized_network",
        "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
        "EngineInspector.get_engine_information",
        "IBuilderConfig.profiling_verbosity",
        "IBuilderConfig.set_compute_capability",
        "IBuilderConfig.set_timing_cache",
        "ITimingCache.combine",
        "OnnxParserRefitter.refit_from_file",
        "Runtime.engine_host_code_allowed",
        "ICudaEngine.create_execution_context",
        "ICudaEngine.device_memory_size_v2",
        "ICudaEngine.get_tensor_profile_shape",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_device_memory",
        "IExecutionContext.set_optimization_profile_async",
        "IOptimizationProfile.set_shape",
        "LayerInformationFormat.JSON",
        "ParserError.node_name",
        "Runtime.deserialize_cuda_engine",
    }


def test_members_taken_from_the_flavor_table_exist_in_its_versions() -> None:
    from_data = {
        use.owner
        for path in SOURCES
        for use in Walker(path.read_text(), SURFACES["tensorrt-11.4.0"]).uses
        if use.member == FROM_DATA
    }
    assert from_data == {"NetworkDefinitionCreationFlag", "HardwareCompatibilityLevel"}
    for surface in SURFACES.values():
        levels = {member for member, _ in HARDWARE_LEVELS.values()}
        assert levels <= set(surface["HardwareCompatibilityLevel"]["members"])
    for flavor in FLAVORS.values():
        for major, flags in flavor.network_flags.items():
            versions = [
                version
                for version in versions_of_flavor(flavor.module)
                if version.rpartition("-")[2].startswith(f"{major}.")
            ]
            assert versions
            for version in versions:
                assert set(flags) <= set(
                    SURFACES[version]["NetworkDefinitionCreationFlag"]["members"]
                )


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ("config.max_workspace_size = 1", "has no IBuilderConfig.max_workspace_size"),
        ("builder.platform_has_fast_fp16", "tensorrt-11.4.0 has no Builder.platform_has_fast_fp16"),
        ("config.set_flag(trt.BuilderFlag.FP16)", "tensorrt-11.4.0 has no BuilderFlag.FP16"),
        ("self._context.execute_async_v2(1)", "has no IExecutionContext.execute_async_v2"),
        ("config.num_compute_capabilities = 1", "tensorrt-10.13.3 has no"),
        ("context.set_tensor_address('x')", "IExecutionContext.set_tensor_address does not take 1"),
        ("trt.OnnxParsers(network, logger)", "has no .OnnxParsers"),
        ("made = builder.create_builder_config()", "made holds IBuilderConfig"),
        ("parser.get_error(0).nodes()", "has no ParserError.nodes"),
        ("print([engine.num_bindings])", "has no ICudaEngine.num_bindings"),
    ],
)
def test_a_wrong_member_is_found(planted: str, expected: str) -> None:
    source = f"def planted(self, trt, builder, config, context, engine, parser):\n    {planted}\n"
    assert any(expected in problem for problem in problems_of_source(source))


def test_a_member_of_one_flavor_passes_in_the_function_its_row_names() -> None:
    body = "(trt, config):\n    config.set_compute_capability(trt.ComputeCapability.SM75, 0)\n"
    assert list(problems_of_source(f"def target_rtx_gpus{body}")) == []
    assert list(problems_of_source(f"def target_this_gpu{body}")) != []


def test_every_cuda_call_exists_and_takes_its_arguments() -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime")
    called = set()
    for node in ast.walk(ast.parse(CUDA_CALLS.read_text())):
        if name := name_in_cudart(node):
            assert hasattr(cudart, name), name
        if isinstance(node, ast.Attribute) and (enum := name_in_cudart(node.value)):
            assert hasattr(getattr(cudart, enum), node.attr), f"{enum}.{node.attr}"
        if isinstance(node, ast.Call) and (name := name_in_cudart(node.func)):
            assert not node.keywords
            assert len(node.args) == arguments_of_cuda(getattr(cudart, name)), name
            called.add(name)
    assert called == {name for name in dir(Cudart) if name.startswith("cuda")}


def test_nothing_else_calls_cuda() -> None:
    for path in CUDA_CALLS.parent.glob("*.py"):
        names = {name_in_cudart(node) for node in ast.walk(ast.parse(path.read_text()))}
        assert names <= {""} or path == CUDA_CALLS, path.name


def name_in_cudart(node: ast.AST) -> str:
    """``cudaFree`` of ``cudart.cudaFree`` and of ``self._cudart.cudaFree``; else nothing."""
    if not isinstance(node, ast.Attribute):
        return ""
    module = ast.unparse(node.value).removeprefix("self.").lstrip("_")
    return node.attr if module == "cudart" else ""


def arguments_of_cuda(function: object) -> int:
    """The arguments in the first line of a CUDA binding's documentation: its signature."""
    first = (function.__doc__ or "").strip().splitlines()[0]
    inside = first[first.index("(") + 1 : first.rindex(")")]
    return len([part for part in inside.split(",") if part.strip()])


def test_importing_the_backends_loads_no_native_library() -> None:
    code = (
        "import sys, tfc.runtime.backends.tensorrt as t;"
        "[backend.availability() for backend in (t.TENSORRT, t.TENSORRT_RTX)];"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    native = {"tensorrt", "tensorrt_rtx", "torch", "onnx", "onnxruntime", "cuda.bindings.runtime"}
    assert native.isdisjoint(done.stdout.split())
