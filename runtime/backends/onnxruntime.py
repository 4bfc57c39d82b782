"""The ONNX Runtime backend: its engine is the lowered ONNX graph, which it optimises on loading.

It runs on the GPU through the CUDA execution provider where that works, and on the CPU anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tfc.errors import (
    BackendUnavailable,
    BadArtifact,
    BadInput,
    EnvironmentProblem,
    TfcError,
    UsageError,
    first_line,
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
from tfc.runtime.backends.device_tensor import DeviceTensor, on_device
from tfc.runtime.backends.onnxruntime_binding import (
    CPU_PLACE,
    CUDA_PLACE,
    LEGACY_STREAM,
    Place,
    outputs_where_they_are,
)
from tfc.runtime.backends.onnxruntime_provider import CPU, best_provider
from tfc.runtime.backends.onnxruntime_sessions import SessionSettings, shared_session
from tfc.runtime.cores import usable_cores
from tfc.runtime.gpu import DriverError, wait_for_gpu

REBUILD = "Build the engine again with: tfc build-engine"
UPGRADE = "Upgrade it with: pip install -U onnxruntime-gpu (onnxruntime on machines without a GPU)"
# ONNX Runtime's texts for a graph that is whole but newer than the installed version.
_TOO_NEW = ("not a registered function/op", "is under development", "Unsupported model IR version")
_OUT_OF_MEMORY = ("Failed to allocate memory", "out of memory", "bad_alloc", "bad allocation")
_MOST_TEXT = 300  # characters of ONNX Runtime's own text in one of our sentences
# What comes before the part of ONNX Runtime's text that tells: its code, the file or node.
_PREAMBLE = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:|.* Status Message: )?"
)
_FATAL = 4  # a severity of ONNX Runtime's log


class OnnxRuntimeBackend:
    """Runs ONNX graphs on ONNX Runtime. See `Backend`."""

    name = "onnxruntime"
    suffix = ".onnx"

    @property
    def target(self) -> str:
        """The form of graphs that the provider used here runs fastest."""
        return "onnxruntime" if best_provider().name == CPU else "onnxruntime-cuda"

    def availability(self) -> Availability:
        """What this backend can do here. Never raises."""
        try:
            version = _library().__version__
        except EnvironmentProblem as problem:
            return Availability(self.name, "", str(problem), str(problem))
        return Availability(self.name, version, hardware=best_provider().hardware)

    def build(
        self,
        model: Path,
        engine: Path,
        inputs: Inputs,
        profile: Profile,
        options: BuildOptions = DEFAULTS,
    ) -> Built:
        """Check that the ONNX file `model` loads and runs here; `engine` is then that file.

        One batch of the profile's smallest sizes is run, from the place where the engine will
        be, so that a graph whose weights are not beside it is refused too.

        Raises:
            BadArtifact: the file is not a whole ONNX graph.
            BadInput: the graph does not run at the smallest sizes.
            BackendUnavailable: this ONNX Runtime has no kernel for an operator of the graph.
            UsageError: compute capabilities are asked for.
        """
        if options.compute_capabilities:
            raise no_capabilities("ONNX Runtime runs the graph as it is")
        ort = _library()
        link_or_copy(model, engine)
        try:
            runner = self.load(engine)
            runner.run(smallest_batch(inputs, profile))
            runner.close()
        except TfcError:
            engine.unlink(missing_ok=True)
            raise
        return Built({"onnxruntime": ort.__version__}, runner.hardware)

    def load(self, engine: Path, threads: int | None = None, streams: int = 1) -> OnnxRuntimeRunner:
        """Load the file `engine`, to run on `threads` CPU threads (default: every usable core).

        With several `streams` each batch gets its share of them: of one, the thread that calls.

        Raises:
            BadArtifact: the file is missing or is not a whole ONNX graph.
            BackendUnavailable: this ONNX Runtime has no kernel for an operator of the graph.
        """
        ort = _library()
        provider = best_provider()
        on_cpu = provider.name == CPU
        # On a GPU the CPU only computes shapes; its threads are the caller's, who tokenises.
        count = max(1, (threads or (usable_cores() if on_cpu else 1)) // streams)
        with _loading(engine, ort):
            session = shared_session(ort, engine, SessionSettings(tuple(provider.names), count))
        place = CPU_PLACE if on_cpu else CUDA_PLACE
        return OnnxRuntimeRunner(session, provider.hardware, place)


class OnnxRuntimeRunner:
    """A loaded graph. `run` may be called from several threads. See `Runner`."""

    def __init__(self, session: Any, hardware: str, place: Place = CPU_PLACE) -> None:
        self.hardware = hardware
        self._place = place
        self._session: Any = session
        self._outputs = [output.name for output in session.get_outputs()]
        self._options = _library().RunOptions()
        self._options.log_severity_level = _FATAL  # an error is raised; it need not be printed too

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one batch.

        Raises:
            BadInput: an input is missing, or its type or shape does not fit the graph.
            EnvironmentProblem: the memory is too small for this batch.
        """
        session = self._opened()
        with _running():
            arrays = session.run(self._outputs, as_contiguous(inputs), self._options)
        return dict(zip(self._outputs, arrays, strict=True))

    def run_on_device(self, inputs: Mapping[str, Any]) -> dict[str, DeviceTensor]:
        """Run one batch of tensors where they are, by DLPack; the outputs stay on the device.

        Some inputs may be arrays. Raises as `run`.
        """
        session = self._opened()
        tensors = {
            name: DeviceTensor.of(name, each, LEGACY_STREAM) if on_device(each) else each
            for name, each in inputs.items()
        }
        if self._place is not CPU_PLACE:
            wait_for_device(self._place.number)
        with _running():
            return outputs_where_they_are(
                session, self._outputs, tensors, self._place, self._options
            )

    def _opened(self) -> Any:
        if self._session is None:
            raise UsageError("this engine was closed", fix="Load it again")
        return self._session

    def close(self) -> None:
        """Let go of the graph; calls that are running finish."""
        self._session = None


def wait_for_device(index: int) -> None:
    """Wait for what other libraries have queued, whose streams ONNX Runtime does not know.

    Raises:
        BackendUnavailable: something of it has failed.
    """
    try:
        wait_for_gpu(index)
    except DriverError as error:
        raise BackendUnavailable(
            f"the GPU cannot be waited for: {error}", fix="Check the GPU: tfc doctor"
        ) from error


def _library() -> Any:
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            f"ONNX Runtime cannot be imported: {error}",
            fix="Install it with: pip install onnxruntime-gpu (onnxruntime on other platforms)",
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise BackendUnavailable(
            "ONNX Runtime is installed in part only",
            fix="Install it again with: pip install --force-reinstall onnxruntime-gpu",
        )
    return onnxruntime


@contextmanager
def _loading(engine: Path, ort: Any) -> Iterator[None]:
    """Translate what ONNX Runtime raises while it loads `engine`."""
    try:
        yield
    except Exception as error:
        text = _clean(error)
        if _says(error, _OUT_OF_MEMORY):
            raise EnvironmentProblem(
                f"there is not enough memory to load the engine: {text}",
                where=str(engine),
                fix="Free memory, or build a smaller precision",
            ) from error
        if type(error).__name__ == "NotImplemented" or _says(error, _TOO_NEW):
            raise BackendUnavailable(
                f"ONNX Runtime {ort.__version__} cannot run this graph here: {text}",
                where=str(engine),
                fix=UPGRADE,
            ) from error
        raise BadArtifact(
            f"ONNX Runtime cannot read this engine: {text}", where=str(engine), fix=REBUILD
        ) from error


@contextmanager
def _running() -> Iterator[None]:
    """Translate what ONNX Runtime raises while it runs a batch."""
    try:
        yield
    except Exception as error:
        if _says(error, _OUT_OF_MEMORY):
            raise EnvironmentProblem(
                f"there is not enough memory for this batch: {_clean(error)}",
                fix="Free memory, or use smaller batches: Session.predict(texts, batch_size=…)",
            ) from error
        raise BadInput(
            f"the engine does not take these inputs: {_clean(error)}",
            fix="Give arrays of the names, types and shapes in the artifact's signature",
        ) from error


def _says(error: Exception, texts: tuple[str, ...]) -> bool:
    return any(text in str(error) for text in texts)


def _clean(error: Exception) -> str:
    """The first line of ONNX Runtime's text, cut to what tells, without its final full stop."""
    line = first_line(error)
    text = _PREAMBLE.sub("", line).strip(" .")
    return text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT].rstrip() + " …"
