"""What is asked of a machine before a build: each answer that stops one, in its exact words."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tfc
from tfc import matrix_check
from tfc.cli import cli
from tfc.errors import BackendUnavailable
from tfc.matrix_check import Machine, Wanted, check_before_build, cuda_of_flavor, matrix
from tfc.runtime import gpu
from tfc.runtime.backends import tensorrt_flavors
from tfc.runtime.backends.tensorrt_flavors import FLAVORS
from tfc.runtime.gpu import Gpu

L4 = Gpu("NVIDIA L4", "8.9", "13.0")
ROOM = 10**12
SMALL = Wanted(opset=23, weights=400_000_000)


def machine(*gpus: Gpu, memory: int = ROOM, disk: int = ROOM, free: int = ROOM) -> Machine:
    return Machine(gpus, memory, disk, free if gpus else None)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT 10.16 for CUDA 13, and TensorRT-RTX."""
    versions = {"tensorrt": "10.16.1", "tensorrt-cu13": "10.16.1", "tensorrt-rtx-cu13": "1.7.1"}

    def version(name: str) -> str:
        if name not in versions:
            raise tensorrt_flavors.importlib.metadata.PackageNotFoundError
        return versions[name]

    monkeypatch.setattr(tensorrt_flavors.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr("importlib.metadata.version", version)


@pytest.mark.parametrize(
    ("where", "what", "fix"),
    [
        (machine(), "TensorRT needs a GPU, and there is none", "Build on a machine with the GPU"),
        (
            machine(Gpu("NVIDIA L4", "8.9", "12.4")),
            "TensorRT needs a driver for CUDA 13, and the driver serves CUDA 12.4",
            "Update the NVIDIA driver, or install the package for CUDA 12: pip install"
            " tensorrt-cu12",
        ),
        (
            machine(Gpu("Tesla V100", "7.0", "13.0")),
            "TensorRT needs compute capability 7.5 or later, and Tesla V100 has 7.0",
            "Use the backend onnxruntime, which runs on older GPUs and on CPUs",
        ),
        (
            machine(L4, disk=10**8),
            "TensorRT needs some 1.0 GB of disk, and 100 MB are free",
            "Free some, or move the artifact to another disk",
        ),
        (
            machine(L4, memory=10**9),
            "TensorRT needs some 1.6 GB of memory, and 1.0 GB are free",
            "End other programs, or use a larger machine",
        ),
        (
            machine(L4, free=5 * 10**8),
            "TensorRT needs some 800 MB of GPU memory, and 500 MB are free",
            "End other programs on the GPU: nvidia-smi lists them",
        ),
    ],
)
def test_what_stops_a_build(installed: None, where: Machine, what: str, fix: str) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        check_before_build("tensorrt", where, SMALL)
    assert caught.value.what == what
    assert caught.value.fix.startswith(fix)


def test_what_may_go_wrong_is_a_note(installed: None) -> None:
    assert check_before_build("tensorrt", machine(L4), SMALL) == ()
    assert check_before_build("tensorrt", machine(L4), Wanted(25, 1)) == (
        "TensorRT needs ONNX opset 9 to 24, and this graph has opset 25. If it refuses an "
        "operator, update it",
    )
    assert check_before_build("tensorrt-rtx", machine(), Wanted(25, 1)) == ()


class Driver:
    """A driver with one GPU, of which 3 GB are free; it keeps what was called."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.called = failing, [""]

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name == "cuMemGetInfo_v2":
                arguments[0]._obj.value = 3_000_000_000
            return 2 if name == self.failing else 0

        call.__name__ = name
        return call


def test_the_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(gpu, "_driver", lambda: driver)
    assert gpu.free_memory(0) == 3_000_000_000
    assert driver.called[-2:] == ["cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRelease_v2"]
    driver = Driver("cuMemGetInfo_v2")
    assert gpu.free_memory(0) is None
    assert driver.called[-2:] == ["cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRelease_v2"]


def test_ahead_of_time_no_gpu_is_needed(installed: None) -> None:
    states = {check.what: check.state for check in matrix(FLAVORS["tensorrt-rtx"], machine())}
    assert states == {"version": "ok", "GPU": "not needed"}
    assert cuda_of_flavor(FLAVORS["tensorrt-rtx"]) == 13


def test_a_package_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_flavors.Flavor, "version", lambda self: "10.9.0")
    (first, *_) = matrix(FLAVORS["tensorrt"], machine(L4))
    assert first.sentence == "TensorRT needs TensorRT 10.13 or later, and 10.9.0 is installed"
    assert first.fix == "Install it with: pip install 'tfc[tensorrt]'"


@pytest.mark.ort
@pytest.mark.rtx
def test_a_build_is_refused_before_it_begins(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(matrix_check.shutil, "disk_usage", lambda path: usage(9, 8, 1))
    before = tfc.Artifact.open(tiny_artifact).manifest
    with pytest.raises(BackendUnavailable, match="of disk, and 0 MB are free"):
        tfc.build_engine(tiny_artifact, precision="fp16", backend="tensorrt-rtx")
    assert tfc.Artifact.open(tiny_artifact).manifest == before


def test_doctor_shows_what_a_build_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    shown = CliRunner().invoke(cli, ["doctor"]).output
    assert "Before a build" in shown
    assert "TensorRT-RTX 1.7 or later" in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if "/" not in line)
    found = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)["matrix"]
    assert {"TensorRT-RTX"} == {check["backend"] for check in found}
