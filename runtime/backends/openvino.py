"""The OpenVINO backend: the graph of ONNX Runtime's CPU provider, run by OpenVINO on the CPU.

OpenVINO compiles the graph when it loads it. It computes in the precision that the graph is
written in: fp32, bf16 where the CPU has it, int8 with fixed ranges. Left alone, it would compute
an fp32 graph in bf16.
"""

from __future__ import annotations

import importlib.metadata
import mmap
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.errors import (
    BackendUnavailable,
    BadArtifact,
    BadInput,
    EnvironmentProblem,
    TfcError,
    UsageError,
)
from tfc.files import link_or_copy
from tfc.runtime.backends.base import (
    DEFAULTS,
    Arrays,
    Availability,
    BuildOptions,
    Built,
    Inputs,
    Profile,
    as_contiguous,
    no_capabilities,
    smallest_batch,
)
from tfc.runtime.cores import usable_cores
from tfc.vnni import integer_products_saturate

_NAME, _CPU = "openvino", "CPU"
_INSTALL = "Install it with: pip install 'tfc[openvino]'"
_REBUILD = "Build the engine again with: tfc build-engine --backend openvino"
_OTHER = "Use the backend onnxruntime"
# Element types of a graph, and OpenVINO's name for kernels that compute in them.
_HALF = {"bf16": "BF16", "f16": "FP16"}
_INTEGERS = frozenset({"u8", "i8"})
_DYNAMIC = b"DynamicQuantizeLinear"
_GIVE = "Give arrays of the names, types and shapes in the artifact's signature"


class OpenVinoBackend:
    """Runs ONNX graphs on OpenVINO. See `Backend`."""

    name = _NAME
    suffix = ".onnx"
    target = "onnxruntime"

    def availability(self) -> Availability:
        """What this backend can do here. Never raises."""
        try:
            _library()
        except EnvironmentProblem as problem:
            return Availability(self.name, "", str(problem), str(problem))
        return Availability(self.name, _version(), hardware=_CPU)

    def build(
        self,
        model: Path,
        engine: Path,
        inputs: Inputs,
        profile: Profile,
        options: BuildOptions = DEFAULTS,
    ) -> Built:
        """Check that the ONNX file `model` loads and runs here; `engine` is then that file.

        Raises:
            BadArtifact: the file is not a whole ONNX graph.
            BadInput: the graph does not run at the smallest sizes.
            BackendUnavailable: OpenVINO cannot run the graph in its precision on this CPU.
            UsageError: compute capabilities are asked for.
        """
        if options.compute_capabilities:
            raise no_capabilities("OpenVINO runs the graph on the CPU")
        link_or_copy(model, engine)
        try:
            runner = self.load(engine)
            runner.run(smallest_batch(inputs, profile))
            runner.close()
        except TfcError:
            engine.unlink(missing_ok=True)
            raise
        return Built({_NAME: _version()}, _CPU, notes=_notes(engine))

    def load(self, engine: Path, threads: int | None = None, streams: int = 1) -> OpenVinoRunner:
        """Load the file `engine`, to run on `threads` CPU threads (default: every usable core).

        They are shared among `streams` batches at once, each of a request of its own.

        Raises:
            BadArtifact: the file is missing or is not a whole ONNX graph.
            BackendUnavailable: OpenVINO cannot run the graph in its precision on this CPU.
        """
        core = _library().Core()
        if not engine.is_file():
            raise BadArtifact("the engine is missing", where=str(engine), fix=_REBUILD)
        try:
            model = core.read_model(str(engine))
        except RuntimeError as error:
            raise BadArtifact(
                f"OpenVINO cannot read this engine: {_last_line(error)}",
                where=str(engine),
                fix=_REBUILD,
            ) from error
        _check_precision(model, core.get_property(_CPU, "OPTIMIZATION_CAPABILITIES"), engine)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
            "NUM_STREAMS": streams,
        }
        try:
            compiled = core.compile_model(model, _CPU, settings)
        except RuntimeError as error:
            raise BackendUnavailable(
                f"OpenVINO cannot compile this graph: {_last_line(error)}",
                where=str(engine),
                fix=_OTHER,
            ) from error
        return OpenVinoRunner(compiled)


class OpenVinoRunner:
    """A compiled graph. `run` may be called from several threads. See `Runner`."""

    hardware = _CPU

    def __init__(self, compiled: Any) -> None:
        self._compiled: Any = compiled
        self._requests = threading.local()
        self._inputs = {port.get_any_name(): _Port.of(port) for port in compiled.inputs}
        self._outputs = [port.get_any_name() for port in compiled.outputs]

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one batch.

        Raises:
            BadInput: an input is missing, or its type or shape does not fit the graph.
        """
        compiled = self._compiled
        if compiled is None:
            raise UsageError("this engine was closed", fix="Load it again")
        self._check(inputs)
        request = getattr(self._requests, "request", None) or compiled.create_infer_request()
        # A request that has failed fails on good inputs too, so it is kept only afterwards.
        self._requests.request = None
        try:
            found = request.infer(as_contiguous(inputs), share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise BadInput(_refused(_last_line(error)), fix=_GIVE) from error
        self._requests.request = request
        return dict(zip(self._outputs, found.values(), strict=True))

    def close(self) -> None:
        """Let go of the graph; calls that are running finish."""
        self._compiled = None
        self._requests = threading.local()

    def _check(self, inputs: Arrays) -> None:
        """OpenVINO computes with an old array where one is missing, and casts wrong types."""
        for name in inputs:
            if name not in self._inputs:
                raise BadInput(_refused(f"it has no input '{name}'"), fix=_GIVE)
        for name, port in self._inputs.items():
            array = inputs.get(name)
            if array is None:
                raise BadInput(_refused(f"the input '{name}' is missing"), fix=_GIVE)
            if (array.dtype, array.ndim) != (port.dtype, port.rank):
                raise BadInput(
                    _refused(
                        f"'{name}' is {array.dtype} of {array.ndim} axes, and has to be"
                        f" {port.dtype} of {port.rank}"
                    ),
                    fix=_GIVE,
                )


@dataclass(frozen=True)
class _Port:
    """What an input takes."""

    dtype: np.dtype[Any]
    rank: int

    @classmethod
    def of(cls, port: Any) -> _Port:
        """Of one of OpenVINO's input ports."""
        rank = port.get_partial_shape().rank.get_length()
        return cls(np.dtype(port.get_element_type().to_dtype()), rank)


def _check_precision(model: Any, kernels: Collection[str], engine: Path) -> None:
    """Refuse a graph that would run in another precision than it is written in, or wrongly."""
    types = {out.get_element_type().to_string() for op in model.get_ops() for out in op.outputs()}
    for half, name in _HALF.items():
        if half in types and name not in kernels:
            raise BackendUnavailable(
                f"OpenVINO has no {name.lower()} kernels on this CPU",
                where=str(engine),
                fix="Build for it in another precision; in fp32 without a flag",
            )
    if _INTEGERS & types and integer_products_saturate():
        raise BackendUnavailable(
            "integer products saturate on this CPU, which has no VNNI",
            where=str(engine),
            fix="Use the backend onnxruntime, which computes them exactly",
        )


def _notes(engine: Path) -> tuple[str, ...]:
    """What the user should know of a graph that scales activations in every batch."""
    with (
        engine.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        is_dynamic = content.find(_DYNAMIC) >= 0
    if not is_dynamic:
        return ()
    return ("OpenVINO is slow where activations are scaled anew: --int8-form static is faster",)


def _version() -> str:
    return importlib.metadata.version(_NAME)


def _library() -> Any:
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise BackendUnavailable(f"OpenVINO cannot be imported: {error}", fix=_INSTALL) from error
    return openvino


def _refused(why: str) -> str:
    return f"the engine does not take these inputs: {why}"


def _last_line(error: Exception) -> str:
    """The last line of OpenVINO's text: those before it name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip(" .") if lines else type(error).__name__
