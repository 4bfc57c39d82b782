"""`tfc doctor`: the real command on this machine, and machines made up for the test."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import tfc.doctor
import tfc.runtime.backends
from tfc.cli import cli
from tfc.doctor import Advice, Diagnosis, Package, diagnose
from tfc.runtime.backends.base import Availability

HEAVY = ("torch", "transformers", "onnx", "onnxscript")


def doctor(*options):
    """Run the real command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tfc", "doctor", *options],
        capture_output=True,
        text=True,
        check=False,
    )


@dataclasses.dataclass
class FakeBackend:
    """Says what the test wants."""

    answer: Availability

    def availability(self):
        return self.answer


@pytest.fixture
def with_backends(monkeypatch):
    """Replaces the table of backends; call it with what each answers."""

    def replace(*answers):
        table = {answer.name: FakeBackend(answer) for answer in answers}
        monkeypatch.setattr(tfc.runtime.backends, "backends", lambda: table)

    return replace


def test_json_holds_the_machine_and_every_backend():
    ended = doctor("--json")
    found = json.loads(ended.stdout)
    assert set(found) == {field.name for field in dataclasses.fields(Diagnosis)}
    assert [b["name"] for b in found["backends"]] == list(tfc.runtime.backends.BACKEND_NAMES)
    for backend in found["backends"]:
        assert backend["can_build"] is not bool(backend["why_not_build"])
        assert backend["can_run"] is not bool(backend["why_not_run"])
    assert found["python"]["version"] == sys.version.split()[0]
    assert found["cpu"]["cores"] >= 1
    assert found["cpu"]["threads"] >= 1
    assert 0 < found["memory"]["available"] <= found["memory"]["total"]
    assert bool(found["gpus"]) is not bool(found["why_no_gpu"])
    assert {"numpy", "click", "torch", "tensorrt"} <= {p["name"] for p in found["packages"]}
    assert ended.returncode == (0 if any(b["can_run"] for b in found["backends"]) else 4)


def test_text_fits_80_columns_and_says_what_can_be_done():
    ended = doctor()
    text = ended.stdout
    free = [line for line in text.splitlines() if not line.startswith("Python")]
    assert max(map(len, free)) <= 80
    for title in ("Machine", "Backends", "Packages"):
        assert f"\n{title}" in f"\n{text}"
    for name in tfc.runtime.backends.BACKEND_NAMES:
        assert f"\n{name} " in text
    assert "Engines can be run with" in text


def test_looking_imports_no_compiler():
    code = "import sys\nfrom tfc.doctor import diagnose\ndiagnose()\nprint(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in ended.stdout.split()} & set(HEAVY)


def test_no_backend_that_runs_here_exits_4(with_backends):
    reason = "the package 'tensorrt' is not installed. Install it with: pip install 'tfc[tensorrt]'"
    with_backends(
        Availability("tensorrt", "", reason, reason),
        Availability("tensorrt-rtx", "1.7.1", "", "it needs an NVIDIA GPU"),
    )
    ended = CliRunner().invoke(cli, ["doctor"])
    assert ended.exit_code == 4
    assert "Engines can be built for tensorrt-rtx here.\n" in ended.stdout
    assert "Engines can be run with no backend here.\n" in ended.stdout
    assert ended.stdout.count("is not installed") == 1  # one reason for both is said once
    assert "tensorrt-rtx  run: it needs an NVIDIA GPU" in ended.stdout


def test_a_machine_where_everything_runs_gives_no_reasons(with_backends):
    with_backends(Availability("onnxruntime", "1.31.1", hardware="NVIDIA L4"))
    ended = CliRunner().invoke(cli, ["doctor"])
    assert ended.exit_code == 0
    assert "Why not" not in ended.stdout
    assert "NVIDIA L4" in ended.stdout


REQUIREMENTS = [
    "numpy>=1.26",
    "rich",
    "onnxruntime-gpu>=1.23; sys_platform == 'linux' and platform_machine == 'x86_64'",
    "onnxruntime>=1.23; sys_platform != 'linux' or platform_machine != 'x86_64'",
    'torch>=2.9; extra == "compile"',
    "onnx-ir>=0.1.12; extra == 'compile'",
    'openvino>=2025.0; extra == "openvino"',
    'pytest>=8; extra == "dev"',
]


def test_packages_come_from_the_metadata(monkeypatch):
    there = {"numpy": "1.26.4", "onnxruntime-gpu": "1.31.1", "torch": "2.8.0", "onnx-ir": "0.2.0"}
    monkeypatch.setattr(tfc.doctor, "_installed", lambda name: there.get(name, ""))
    packages = tfc.doctor._packages(REQUIREMENTS)
    assert packages == (
        Package("numpy", "", "1.26", "1.26.4"),
        Package("rich", "", "", ""),
        Package("onnxruntime-gpu", "", "1.23", "1.31.1"),
        Package("torch", "compile", "2.9", "2.8.0"),
        Package("onnx-ir", "compile", "0.1.12", "0.2.0"),
        Package("openvino", "openvino", "2025.0", ""),
    )
    assert [p.name for p in packages if not p.fits] == ["rich", "torch", "openvino"]
    assert tfc.doctor._advice(packages) == (
        Advice("pip install rich", "what every batch job needs"),
        Advice("pip install 'tfc[compile]'", tfc.doctor.PURPOSES["compile"]),
        Advice("pip install 'tfc[openvino]'", tfc.doctor.PURPOSES["openvino"]),
    )


@pytest.mark.parametrize(
    ("installed", "minimum", "fits"),
    [
        ("2.9", "2.9.0", True),
        ("2.10.0+cpu", "2.9", True),
        ("2.9.0rc1", "2.9", True),
        ("2.8.9", "2.9", False),
        ("1.0", "", True),
        ("", "", False),
    ],
)
def test_versions_are_compared_as_numbers(installed, minimum, fits):
    assert Package("p", "", minimum, installed).fits is fits


CPUINFO = """processor : 0
model name : A CPU
physical id : 0
core id : {0}
flags : fpu avx2 avx512f avx512_vnni avx512_bf16 amx_int8

processor : 1
model name : A CPU
physical id : 0
core id : {1}
flags : fpu avx2
"""


@pytest.mark.parametrize(("ids", "cores"), [((0, 1), 2), ((0, 0), 1)])
def test_cores_are_physical(monkeypatch, ids, cores):
    files = {"/proc/cpuinfo": CPUINFO.format(*ids)}
    monkeypatch.setattr(tfc.doctor, "_read", lambda path: files.get(path, ""))
    cpu = tfc.doctor._cpu()
    assert (cpu.model, cpu.cores) == ("A CPU", cores)
    assert cpu.features == ("AVX2", "AVX-512", "AVX-512 VNNI", "AVX-512 BF16", "AMX int8")


def test_the_limits_of_a_container_count(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 1000000 kB\nMemAvailable: 900000 kB\n",
        "/sys/fs/cgroup/memory.max": "512000000\n",
        "/sys/fs/cgroup/cpu.max": "150000 100000\n",
    }
    monkeypatch.setattr(tfc.doctor, "_read", lambda path: files.get(path, ""))
    assert tfc.doctor.memory_here() == tfc.doctor.Memory(512_000_000, 512_000_000)
    assert tfc.doctor._threads() == 1
    files["/sys/fs/cgroup/memory.max"] = files["/sys/fs/cgroup/cpu.max"] = "max\n"
    assert tfc.doctor.memory_here() == tfc.doctor.Memory(1_024_000_000, 921_600_000)


def test_a_system_without_proc_is_described_too(monkeypatch):
    monkeypatch.setattr(tfc.doctor, "_read", lambda path: "")
    found = diagnose()
    assert found.cpu.model
    assert found.cpu.cores >= 1
    assert found.memory.total > 0
