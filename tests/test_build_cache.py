"""The user's cache: what a build leaves there is taken by a later one, and never trusted."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tfc
from tfc.build_cache import BuildCache, Timings, cache_of_user
from tfc.errors import BackendUnavailable, UsageError
from tfc.onnx_files import save_onnx
from tfc.runtime.backends import backend, tensorrt_refit
from tfc.runtime.backends.base import (
    Availability,
    BuildOptions,
    Built,
    Inputs,
    Kernel,
    KernelTensor,
    Profile,
    Range,
)
from tfc.runtime.backends.tensorrt_flavors import FLAVORS, check_plan_options
from tfc.runtime.backends.tensorrt_network import (
    _keep_timings,
    _set_plan_options,
    _used_timings,
)
from tfc.runtime.backends.tensorrt_refit import refit_plan
from tfc.runtime.gpu import Gpu
from tfc.steps.cached_build import Builder

TENSOR = KernelTensor("x", "Half", (-1, 384))
BUILT = Built(
    {"tensorrt": "10.13.3"},
    "NVIDIA L4 (compute capability 8.9)",
    (Kernel("_gemm_mha_v2", "kgen", (TENSOR,), (replace(TENSOR, dims=None),), (), ("a", "b")),),
    ("a note",),
    (1 << 20,),
)


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    return BuildCache(tmp_path / "cache", 10_000)


def kept(cache: BuildCache, key: str, data: bytes = b"engine" * 100) -> Path:
    engine = cache.folder.parent / f"built-{key}"
    engine.write_bytes(data)
    assert cache.keep(key, engine, BUILT) == ""
    return engine


def test_what_is_kept_comes_back(cache: BuildCache, tmp_path: Path) -> None:
    engine = kept(cache, "k")
    target = tmp_path / "in" / "model.plan"
    assert cache.restore("k", target) == BUILT
    assert target.read_bytes() == engine.read_bytes()
    assert cache.restore("another", tmp_path / "no") is None
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "engine").write_bytes(b"other"),
        lambda entry: (entry / "entry.json").write_text("{"),
        lambda entry: (entry / "entry.json").write_text('{"sha256": 1, "built": {"versions": 3}}'),
    ],
)
def test_a_damaged_entry_is_dropped(
    cache: BuildCache, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    kept(cache, "k")
    entry = cache.folder / "engines" / "k"
    damage(entry)
    assert cache.restore("k", tmp_path / "target") is None
    assert not (tmp_path / "target").exists()
    assert not entry.exists()
    kept(cache, "k")
    assert cache.restore("k", tmp_path / "target") == BUILT


def test_two_builds_at_once_leave_one_whole_entry(cache: BuildCache, tmp_path: Path) -> None:
    engines = [tmp_path / str(number) for number in range(4)]
    for engine in engines:
        engine.write_bytes(engine.name.encode() * 1000)
    threads = [threading.Thread(target=cache.keep, args=("k", e, BUILT)) for e in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.restore("k", tmp_path / "target") == BUILT
    assert [place.name for place in (cache.folder / "engines").iterdir()] == ["k"]


def test_the_entries_used_longest_ago_go_first(cache: BuildCache, tmp_path: Path) -> None:
    for number, key in enumerate("abc"):
        kept(cache, key, bytes(2500))
        os.utime(cache.folder / "engines" / key, (number, number))
    assert cache.restore("a", tmp_path / "target") is not None
    kept(cache, "d", bytes(2500))
    assert sorted(p.name for p in (cache.folder / "engines").iterdir()) == ["a", "c", "d"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    engine = tmp_path / "engine"
    engine.write_bytes(b"x")
    said = BuildCache(tmp_path / "file", 100).keep("k", engine, BUILT)
    assert said.startswith("the engine was not kept for later builds: ")


def test_where_it_is(tmp_path: Path) -> None:
    assert cache_of_user({"TFC_CACHE_DIR": "/a", "TFC_CACHE_GB": "2"}) == BuildCache(
        Path("/a"), 2 * 10**9
    )
    assert cache_of_user({"XDG_CACHE_HOME": "/b"}).folder == Path("/b/tfc")
    with pytest.raises(UsageError, match="TFC_CACHE_GB is 'much'"):
        cache_of_user({"TFC_CACHE_GB": "much"})


class Compiler:
    """A backend whose engines are a line that says what they were built for."""

    name, suffix, target = "tensorrt", ".plan", "tensorrt"

    def __init__(self) -> None:
        self.built: list[BuildOptions] = []

    def availability(self) -> Availability:
        return Availability(self.name, "10.13.3", hardware="NVIDIA L4 (8.9)")

    def build(
        self, model: Path, engine: Path, inputs: Inputs, profile: Profile, options: BuildOptions
    ) -> Built:
        self.built.append(options)
        engine.parent.mkdir(parents=True, exist_ok=True)
        engine.write_text(f"{profile}")
        return BUILT

    def load(self, engine: Path, threads: int | None = None) -> Any:
        raise NotImplementedError


def test_only_the_same_build_is_taken(
    make_artifact: Callable[..., tfc.Artifact], cache: BuildCache, tmp_path: Path
) -> None:
    artifact, compiler = make_artifact(), Compiler()
    there = compiler.availability()
    inputs = Inputs({"input_ids": ("int64", ("batch", "sequence"))})
    places = (tmp_path / f"target-{number}" for number in range(99))

    def build(
        inputs: Inputs = inputs,
        profile: Profile | None = None,
        available: Availability = there,
        **options: Any,
    ) -> str:
        builder = Builder(artifact, compiler, available, cache)
        sizes = profile or Profile()
        return builder.build("model.onnx", next(places), inputs, sizes, BuildOptions(**options))[1]

    assert build() == f"kept in {cache.folder} for the next build; all kernels timed"
    assert build().startswith("taken from ")
    assert build(on_progress=lambda *_: None).startswith("taken from ")
    other = [
        build(profile=Profile(batch=Range(1, 2, 3))),
        build(profiles=(Profile(), Profile(sequence=Range(1, 2, 3)))),
        build(compute_capabilities=("8.9",)),
        build(inputs=Inputs({"input_ids": ("int32", ("batch", "sequence"))})),
        build(available=replace(there, version="10.14")),
        build(available=replace(there, hardware="NVIDIA L40 (8.9)")),
    ]
    assert all(said.startswith("kept in ") for said in other)
    assert len(compiler.built) == 7
    timings = compiler.built[0].timings
    assert isinstance(timings, Timings)
    assert timings.path.name == "tensorrt-10.13.3-NVIDIA-L4-8.9-"


def test_a_refittable_engine_is_given_the_weights_of_the_next_checkpoint(
    tiny_artifact: Path, cache: BuildCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, compiler = tfc.Artifact.open(tiny_artifact), Compiler()
    builder = Builder(artifact, compiler, compiler.availability(), cache)
    inputs, sizes, refit = Inputs({}), Profile(), BuildOptions(refit=True)
    builder.build("model.onnx", tmp_path / "first", inputs, sizes, refit)
    tune(artifact)
    given: list[bytes] = []

    def refitted(flavor: object, plan: Path, model: Path, target: Path) -> None:
        given.append(plan.read_bytes())
        target.write_text("refitted")

    monkeypatch.setattr("tfc.steps.cached_build.refit_plan", refitted)
    built, said = builder.build("model.onnx", tmp_path / "second", inputs, sizes, refit)
    assert (built, said) == (BUILT, "an engine of this architecture, with the weights replaced")
    assert given == [(tmp_path / "first").read_bytes()]
    assert len(compiler.built) == 1

    def refused(*_: object) -> None:
        raise BackendUnavailable("it does not take them")

    monkeypatch.setattr("tfc.steps.cached_build.refit_plan", refused)
    tune(artifact)
    builder.build("model.onnx", tmp_path / "third", inputs, sizes, refit)
    tune(artifact)
    builder.build("model.onnx", tmp_path / "fourth", inputs, sizes, BuildOptions())
    assert len(compiler.built) == 3


def tune(artifact: tfc.Artifact) -> None:
    """Other weights in the same graph."""
    import onnx_ir as ir

    model = ir.load(artifact.file("model.onnx"))
    weights = model.graph.initializers.values()
    value = next(v for v in weights if v.shape is not None and len(v.shape) > 1)
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * 1.5, name=value.name)
    with artifact.change() as change:
        save_onnx(model, change.path("model.onnx"))


class Engine:
    """A deserialized plan, as far as refitting goes."""

    def serialize(self) -> bytes:
        return b"with new weights"


@pytest.mark.parametrize("missing", [[], ["w"]])
def test_refitting_through_the_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: list[str]
) -> None:
    calls: list[str] = []
    trt = SimpleNamespace(
        ILogger=FakeLogger,
        Refitter=lambda engine, logger: SimpleNamespace(
            get_missing_weights=lambda: missing,
            refit_cuda_engine=lambda: calls.append("refit") or True,
        ),
        OnnxParserRefitter=lambda refitter, logger: SimpleNamespace(
            refit_from_file=lambda file: calls.append(file) or True
        ),
    )
    flavor: Any = SimpleNamespace(load=lambda: trt, label="TensorRT")
    monkeypatch.setattr(tensorrt_refit, "engine_from_plan", lambda *_: Engine())
    model, target = tmp_path / "m.onnx", tmp_path / "target"
    if missing:
        with pytest.raises(BackendUnavailable, match="cannot put these weights"):
            refit_plan(flavor, tmp_path / "p", model, target)
        assert calls == [str(model)]
        assert not target.exists()
        return
    refit_plan(flavor, tmp_path / "p", model, target)
    assert calls == [str(model), "refit"]
    assert target.read_bytes() == b"with new weights"


class FakeLogger:
    """The severities that are looked for."""

    ERROR, INTERNAL_ERROR = "ERROR", "INTERNAL_ERROR"


def test_options_that_a_backend_does_not_have(tiny_artifact: Path) -> None:
    for backend_name, options, says in (
        ("tensorrt-rtx", {"refit": True}, "builds in seconds, and a refittable plan on a machine"),
        ("tensorrt-rtx", {"version_compatible": True}, "runs with the version that built it"),
        ("tensorrt-rtx", {"hardware_compatible": "ampere+"}, "runs on every GPU of the compute"),
        ("onnxruntime", {"refit": True}, "--refit is for TensorRT, and the backend is onnxrun"),
    ):
        with pytest.raises(UsageError, match=says):
            check_plan_options(backend_name, BuildOptions(**options))
    every = BuildOptions(refit=True, version_compatible=True, hardware_compatible="ampere+")
    check_plan_options("tensorrt", every)


def test_what_a_plan_for_other_gpus_and_versions_asks_of_the_builder() -> None:
    said: list[str] = []
    trt = SimpleNamespace(
        BuilderFlag=SimpleNamespace(REFIT="REFIT", VERSION_COMPATIBLE="VERSION_COMPATIBLE"),
        HardwareCompatibilityLevel=SimpleNamespace(
            AMPERE_PLUS="AMPERE_PLUS", SAME_COMPUTE_CAPABILITY="SAME_COMPUTE_CAPABILITY"
        ),
    )
    config = SimpleNamespace(set_flag=said.append, hardware_compatibility_level="NONE")
    every = BuildOptions(refit=True, version_compatible=True, hardware_compatible="ampere+")
    ada, turing = (Gpu(name, which, "13.0") for name, which in (("L4", "8.9"), ("T4", "7.5")))
    assert _set_plan_options(trt, config, every, [ada]) == "compute capability 8.0 and later"
    assert said == ["REFIT", "VERSION_COMPATIBLE"]
    assert config.hardware_compatibility_level == "AMPERE_PLUS"
    same = BuildOptions(hardware_compatible="same-capability")
    assert _set_plan_options(trt, config, same, [turing]) == "GPUs of compute capability 7.5"
    with pytest.raises(UsageError, match="cannot be built on T4, which has"):
        _set_plan_options(trt, config, every, [turing])
    assert _set_plan_options(trt, config, BuildOptions(), [ada]) == ""


def test_times_of_several_builds_are_put_together(tmp_path: Path) -> None:
    timings = Timings(tmp_path / "timing" / "t")
    assert timings.read() == b""
    threads = [
        threading.Thread(target=timings.update, args=(lambda kept, n=n: kept + bytes([n]),))
        for n in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(timings.read()) == [0, 1, 2, 3, 4]
    timings.path.write_bytes(timings.path.read_bytes()[:-1])
    assert timings.read() == b""


class TimingCache:
    """TensorRT's own, as far as it is used: entries are bytes, times of version 9 do not fit."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.data = bytes(sorted({*self.data, *other.data}))
        return True

    def serialize(self) -> bytes:
        return self.data


class Config:
    """A builder's config that keeps the timing cache it is given."""

    timing: TimingCache | None = None

    def create_timing_cache(self, data: bytes) -> TimingCache:
        return TimingCache(data)

    def set_timing_cache(self, timing: TimingCache, ignore_mismatch: bool) -> bool:
        if b"9" in timing.data:
            return False
        self.timing = timing
        return True


@pytest.mark.parametrize(("before", "used"), [(b"", b""), (b"12", b"12"), (b"9", b"")])
def test_the_builder_is_given_the_times_that_fit(
    tmp_path: Path, before: bytes, used: bytes
) -> None:
    timings = Timings(tmp_path / "t")
    timings.update(lambda _: before)
    config = Config()
    timing = _used_timings(config, timings)
    assert config.timing is timing
    assert timing.data == used
    timing.data += b"3"
    timings.update(lambda kept: kept + b"4")  # another build ends
    _keep_timings(config, timing, timings)
    assert timings.read() == bytes(sorted({*used, *before, *b"34"}))


def test_only_tensorrt_itself_times_kernels() -> None:
    assert {f.name: f.times_kernels for f in FLAVORS.values()} == {
        "tensorrt": True,
        "tensorrt-rtx": False,
    }


@pytest.mark.ort
@pytest.mark.rtx
def test_the_same_artifact_elsewhere_is_not_built_again(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    other = shutil.copytree(tiny_artifact, tmp_path / "other")
    how: dict[str, Any] = {"precision": "fp16", "backend": "tensorrt-rtx"}
    first = tfc.build_engine(tiny_artifact, **how)
    assert first.cache.endswith("; TensorRT-RTX times no kernels while it builds")
    rtx = backend("tensorrt-rtx")
    with monkeypatch.context() as patch:
        patch.setattr(rtx, "build", None)
        second = tfc.build_engine(other, **how)
    assert second.cache.startswith("taken from ")
    assert second.engine == first.engine
    assert second.notes == first.notes
    artifacts = [tfc.Artifact.open(folder) for folder in (tiny_artifact, other)]
    hashes = [artifact.engine_sha256(first.engine) for artifact in artifacts]
    assert hashes[0] == hashes[1]
    again = tfc.build_engine(other, **how, batch=(1, 2, 4), cache=False)
    assert again.cache == ""
