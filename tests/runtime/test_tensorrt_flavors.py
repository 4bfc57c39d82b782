"""What differs between TensorRT and TensorRT-RTX: packages, network flags, target hardware."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfc.errors import MissingPackage, UsageError
from tfc.runtime.backends.base import Inputs, Profile
from tfc.runtime.backends.tensorrt import TENSORRT, TENSORRT_RTX
from tfc.runtime.backends.tensorrt_flavors import (
    FLAVORS,
    PORTABLE,
    Flavor,
    numbers_of_version,
    target_rtx_gpus,
    target_this_gpu,
)
from tfc.runtime.gpu import Gpu, gpus

IDS = Inputs({"input_ids": ("int64", ("batch", "sequence"))})
without_gpu = pytest.mark.skipif(bool(gpus()), reason="is about a machine without a GPU")


def installed(monkeypatch: pytest.MonkeyPatch, version: str, *, cuda_python: bool = True) -> None:
    monkeypatch.setattr(Flavor, "version", lambda self: version)
    monkeypatch.setattr("tfc.runtime.backends.tensorrt.cudart_installed", lambda: cuda_python)


class Config:
    """A builder config that records the compute capabilities it is given."""

    num_compute_capabilities = 0

    def __init__(self) -> None:
        self.capabilities: list[tuple[str, int]] = []

    def set_compute_capability(self, capability: str, index: int) -> None:
        self.capabilities.append((capability, index))


class Module:
    class ComputeCapability:
        CURRENT = "CURRENT"
        SM120 = "SM120"
        SM75 = "SM75"
        SM89 = "SM89"


TURING, ADA = Gpu("NVIDIA T4", "7.5", "13.0"), Gpu("NVIDIA L4", "8.9", "13.0")


@pytest.mark.parametrize(
    ("present", "hardware", "capabilities"),
    [
        ((), PORTABLE, []),
        ((ADA,), PORTABLE, []),
        ((TURING, ADA), PORTABLE, []),
        ((TURING,), "compute capability 7.5", [("SM75", 0)]),
    ],
)
def test_an_rtx_plan_is_portable_but_on_a_turing_machine(
    present: tuple[Gpu, ...], hardware: str, capabilities: list[tuple[str, int]]
) -> None:
    config = Config()
    assert target_rtx_gpus(Module, config, present) == hardware
    assert config.capabilities == capabilities
    assert config.num_compute_capabilities == len(capabilities)


def test_a_tensorrt_plan_is_for_the_gpu_it_is_built_on() -> None:
    assert target_this_gpu(None, Config(), [ADA]) == "NVIDIA L4 (compute capability 8.9)"


def test_an_rtx_plan_for_chosen_gpus() -> None:
    config = Config()
    hardware = target_rtx_gpus(Module, config, (TURING,), ("8.9", "12.0"))
    assert hardware == "compute capability 8.9, 12.0"
    assert config.num_compute_capabilities == 2
    assert config.capabilities == [("SM89", 0), ("SM120", 1)]
    with pytest.raises(UsageError) as raised:
        target_rtx_gpus(Module, Config(), (), ("8.9", "9.0"))
    assert str(raised.value) == (
        "TensorRT-RTX cannot build for compute capability 9.0. Choose among: 7.5, 8.9, 12.0"
    )
    with pytest.raises(UsageError, match="for the backend tensorrt-rtx only: TensorRT builds for"):
        target_this_gpu(None, Config(), [ADA], ("8.9",))


@without_gpu
def test_availability_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "11.4.0.106")
    tensorrt, rtx = TENSORRT.availability(), TENSORRT_RTX.availability()
    assert "builds on the GPU that the engine is for" in tensorrt.why_not_build
    assert (rtx.why_not_build, rtx.hardware) == ("", "")
    assert "TensorRT runs on NVIDIA GPUs only" in tensorrt.why_not_run
    assert "TensorRT-RTX runs on NVIDIA GPUs only" in rtx.why_not_run


@pytest.mark.parametrize(
    ("version", "what"),
    [
        ("", "the package 'tensorrt' is not installed"),
        ("10.3.0", "TensorRT 10.3.0 is older than 10.13"),
    ],
)
def test_availability_without_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, what: str
) -> None:
    installed(monkeypatch, version)
    sentence = f"{what}. Install it with: pip install 'tfc[tensorrt]'"
    available = TENSORRT.availability()
    assert (available.why_not_build, available.why_not_run) == (sentence, sentence)
    with pytest.raises(MissingPackage, match=what):
        TENSORRT.build(tmp_path / "a.onnx", tmp_path / "a.plan", IDS, Profile())
    with pytest.raises(MissingPackage, match=what):
        TENSORRT.load(tmp_path / "a.plan")


def test_availability_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "1.7.1.116", cuda_python=False)
    assert TENSORRT_RTX.availability().why_not_run == (
        "the package 'cuda-python' is not installed. Install it with: pip install 'tfc[rtx]'"
    )


def test_only_tensorrt_10_is_told_to_be_strongly_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trt:
        class NetworkDefinitionCreationFlag:
            STRONGLY_TYPED = 1

    for version, flags in (("10.13.3.9", 2), ("10.16.1.11", 2), ("11.4.0.106", 0)):
        installed(monkeypatch, version)
        assert FLAVORS["tensorrt"].creation_flags(Trt) == flags


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("10.13.3.9", (10, 13)), ("11.4rc1", (11, 4)), ("1.7.1.116", (1, 7)), ("nightly", (0, 0))],
)
def test_numbers_of_version(version: str, numbers: tuple[int, int]) -> None:
    assert numbers_of_version(version) == numbers
