"""The TensorRT backends: one class for TensorRT 10 and 11 and for TensorRT-RTX.

What is different between them is data, in `tensorrt_flavors`. TensorRT builds on the GPU it
builds for. TensorRT-RTX builds on any machine, ahead of time, and finishes the kernels on the GPU
when the engine is loaded.
"""

from __future__ import annotations

from pathlib import Path

from tfc.errors import BackendUnavailable, EnvironmentProblem, MissingPackage
from tfc.files import write_atomically
from tfc.runtime.backends.base import (
    DEFAULTS,
    Availability,
    BuildOptions,
    Built,
    Inputs,
    Profile,
)
from tfc.runtime.backends.cuda_calls import cudart_installed
from tfc.runtime.backends.tensorrt_flavors import FLAVORS, Flavor
from tfc.runtime.backends.tensorrt_network import plan_from_onnx
from tfc.runtime.backends.tensorrt_runner import TensorRTRunner, runner_from_plan
from tfc.runtime.gpu import gpus, why_no_gpu


class TensorRTBackend:
    """Builds plans from strongly typed ONNX graphs, and runs them. See `Backend`."""

    target = "tensorrt"
    suffix = ".plan"

    def __init__(self, flavor: Flavor) -> None:
        self.name = flavor.name
        self._flavor = flavor

    def availability(self) -> Availability:
        """What this backend can do here. Imports nothing of TensorRT; never raises."""
        cannot_build, cannot_run = self._cannot_build(), self._cannot_run()
        return Availability(
            name=self.name,
            version=self._flavor.version(),
            why_not_build=str(cannot_build) if cannot_build else "",
            why_not_run=str(cannot_run) if cannot_run else "",
            hardware=", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in gpus()),
        )

    def build(
        self,
        model: Path,
        engine: Path,
        inputs: Inputs,
        profile: Profile,
        options: BuildOptions = DEFAULTS,
    ) -> Built:
        """Compile the ONNX file `model` into the plan `engine`, for the sizes in `profile`.

        Raises:
            MissingPackage: TensorRT is not installed.
            BadInput: TensorRT cannot read the file, or cannot build the graph.
            ContractNotReached: an Attention has no fused kernel.
            BackendUnavailable: TensorRT cannot build on this machine.
            UsageError: the profile does not fit the graph, or the backend cannot build for the
                GPUs that are asked for.
        """
        if problem := self._cannot_build():
            raise problem
        plan = plan_from_onnx(self._flavor, model, inputs, profile, gpus(), options)
        write_atomically(engine, plan.data)
        versions = {self._flavor.module: self._flavor.version()}
        return Built(versions, plan.hardware, plan.kernels, plan.notes, plan.memory)

    def load(self, engine: Path, threads: int | None = None, streams: int = 1) -> TensorRTRunner:
        """Load the plan `engine` on this machine's GPU. `threads`, `streams` are for the CPU.

        Raises:
            MissingPackage: TensorRT or cuda-python is not installed.
            BackendUnavailable: there is no GPU here, or the plan is for another one.
            BadArtifact: the file is absent, cut short, or not a plan.
        """
        if problem := self._cannot_run():
            raise problem
        return runner_from_plan(self._flavor, engine)

    def _cannot_build(self) -> EnvironmentProblem | None:
        problem = self._flavor.missing()
        if problem or self._flavor.builds_without_gpu:
            return problem
        if reason := why_no_gpu():
            return BackendUnavailable(
                f"{self._flavor.label} builds on the GPU that the engine is for: {reason}",
                fix="Build on a machine with that GPU, or ahead of time with the backend"
                " tensorrt-rtx",
            )
        return None

    def _cannot_run(self) -> EnvironmentProblem | None:
        if problem := self._flavor.missing():
            return problem
        if not cudart_installed():
            return MissingPackage(
                "the package 'cuda-python' is not installed",
                fix=f"Install it with: pip install 'tfc[{self._flavor.extra}]'",
            )
        if reason := why_no_gpu():
            return BackendUnavailable(
                f"{self._flavor.label} runs on NVIDIA GPUs only: {reason}",
                fix="Run it on a machine with one, or use the backend onnxruntime",
            )
        return None


TENSORRT = TensorRTBackend(FLAVORS["tensorrt"])
TENSORRT_RTX = TensorRTBackend(FLAVORS["tensorrt-rtx"])
