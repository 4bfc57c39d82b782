"""What several tests share: artifacts made by hand, tiny checkpoints, and the real CLI."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import gc
import hashlib
import importlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import run_tfc, save_tiny_checkpoint
from matrix import save_generator

from tfc.artifact import MANIFEST, Artifact, new_manifest_files
from tfc.build_cache import FOLDER_VARIABLE
from tfc.manifest import (
    Checkpoint,
    Engine,
    Graph,
    Manifest,
    Preprocess,
    Signature,
    Step,
    Task,
    TensorSpec,
    Verdict,
)
from tfc.manifest_json import manifest_to_json

FILES = {
    "model.onnx": b"a model " * 1000,
    "tokenizer/tokenizer.json": b"{}",
    "optimized/onnxruntime/model.onnx": b"a fused model",
    "engines/onnxruntime-fp32/model.onnx": b"an engine",
    "reports/verify.json": b"{}",
}
ENGINE = "onnxruntime-fp32"

OPTIMIZED: dict[str, Any] = {
    "fusions": {
        "attention": {"found": 5, "expected": 6},
        "add_layernorm": {"found": 12, "expected": 12},
    },
    "passes": [
        {"name": "fold", "changed": 9, "difference": 0.0, "reverted": False, "error": ""},
        {"name": "attention", "changed": 5, "difference": 2.4e-6, "reverted": False, "error": ""},
        {"name": "pack_qkv", "changed": 0, "difference": 0.0, "reverted": False, "error": ""},
        {"name": "rms_norm", "changed": 3, "difference": 0.3, "reverted": True, "error": ""},
    ],
    "missed": [
        {
            "kind": "attention",
            "node": "node_softmax_5",
            "module": "encoder.layer.5.attention.self",
            "reason": "the scale is not a constant",
        }
    ],
    "reverted": ["rms_norm"],
    "nodes": {"before": 402, "after": 171},
}


def step(name: str, **changes: Any) -> Step:
    """The record of a step that took 1.5 s."""
    values: dict[str, Any] = {
        "options": {},
        "inputs": {},
        "outputs": [],
        "versions": {"tfc": "0.1.0"},
        "seconds": 1.5,
    }
    return Step(name=name, **{**values, **changes})


def manifest(folder: Path) -> Manifest:
    """A manifest that names every file of `folder`; an encoder of six layers, one engine."""
    files = new_manifest_files(folder)
    batch: list[int | str] = ["batch", "sequence"]
    engine = Engine(
        backend="onnxruntime",
        precision="fp32",
        files={"model": f"engines/{ENGINE}/model.onnx"},
        state="runnable",
        state_reason="",
        profile={"batch": [1, 32, 256], "sequence": [1, 128, 512]},
        versions={"onnxruntime": "1.31.1"},
        hardware="CPU",
        audit={
            "kernels": 71,
            "fused_attention": 6,
            "rmsnorm": 0,
            "datatypes": {"Half": 71},
            "wanted": {"fused_attention": 6},
        },
    )
    verdict = Verdict(
        verdict="verified",
        reason="",
        engine_sha256=files[engine.files["model"]].sha256,
        data_sha256="0" * 64,
        tolerance={"max_abs": 1e-4},
        outputs={"logits": {"max_abs": 2.4e-6}},
        versions={"torch": "2.13.0"},
        hardware="CPU",
    )
    return Manifest(
        tfc="0.1.0",
        checkpoint=Checkpoint("./support-intents", "a" * 64, "bert", "BertModel", 22_713_216),
        task=Task("text-classification", "single_label", [f"intent_{i}" for i in range(151)]),
        graphs={
            "model": Graph(
                Signature(
                    [TensorSpec("input_ids", "int64", batch)],
                    [TensorSpec("logits", "float32", ["batch", 151])],
                ),
                {"attention": 6, "add_layernorm": 12},
            )
        },
        preprocess=Preprocess("tokenizer/tokenizer.json", 256, 0, 0, "right"),
        files=files,
        steps=[step("export"), step("optimize:onnxruntime", result=OPTIMIZED)],
        engines={ENGINE: engine},
        verdicts={ENGINE: verdict},
    )


# Torch's exporter makes objects by the hundred thousand and little garbage: collecting as often
# as Python does by default takes a tenth of an export's time.
OBJECTS_BETWEEN_COLLECTIONS = 100_000
# One test each that goes through whole pipelines of a real model.
LONGEST = ("tests/test_demo.py", "tests/test_readme.py")


def pytest_configure() -> None:
    """Collect garbage less often; keep out of the user's own cache, before any fixture runs."""
    os.environ[FOLDER_VARIABLE] = tempfile.mkdtemp(prefix="tfc-test-cache-")
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS, *gc.get_threshold()[1:])


def pytest_unconfigure() -> None:
    """Remove the cache."""
    shutil.rmtree(os.environ.pop(FOLDER_VARIABLE), ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_build_cache(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No test is given what another one built."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    monkeypatch.setenv(FOLDER_VARIABLE, str(Path(os.environ[FOLDER_VARIABLE]) / name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: the other workers have something to do meanwhile."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.fixture
def make_artifact(tmp_path: Path) -> Callable[..., Artifact]:
    """Writes an artifact into `tmp_path / "artifact"`; arguments replace fields of its manifest."""

    def make(**changes: Any) -> Artifact:
        folder = tmp_path / "artifact"
        for name, content in FILES.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        text = manifest_to_json(dataclasses.replace(manifest(folder), **changes))
        (folder / MANIFEST).write_text(text, encoding="utf-8")
        return Artifact.open(folder)

    return make


@pytest.fixture(scope="session", autouse=True)
def _operators_listed_once() -> None:
    """Torch's exporter makes the list of onnxscript's operators anew in every export (0.25 s)."""
    with contextlib.suppress(ImportError, AttributeError):
        module = importlib.import_module("onnxscript._framework_apis.torch_2_11")
        module.get_torchlib_ops = functools.cache(module.get_torchlib_ops)


Made = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Made:
    """`made_once(name, make)` is a folder that `make(folder)` filled, once for all processes.

    Do not change what is in it: copy it.
    """
    root = tmp_path_factory.getbasetemp()
    root = (root if worker_id == "master" else root.parent) / "made-once"
    root.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, ready = root / name, root / f"{name}.ready"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not ready.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                ready.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def tiny_checkpoint(made_once: Made) -> Path:
    """A tiny random BERT classifier. Do not change it: copy it."""
    return made_once("tiny-checkpoint", save_tiny_checkpoint)


@pytest.fixture(scope="session")
def _tiny_artifact(tiny_checkpoint: Path, made_once: Made) -> Path:
    import tfc

    def make(folder: Path) -> None:
        artifact = tfc.export(tiny_checkpoint, folder / "artifact").artifact
        tfc.build_engine(artifact, backend="onnxruntime")

    return made_once("tiny", make) / "artifact"


@pytest.fixture(scope="session")
def generator(made_once: Made) -> Callable[[str], Path]:
    """`generator("gpt2")` is a folder with `checkpoint` and `artifact`, which has one engine.

    Do not change what is in it: copy it.
    """

    def make(family: str, folder: Path) -> None:
        import tfc

        save_generator(folder / "checkpoint", family)
        artifact = tfc.export(folder / "checkpoint", folder / "artifact").artifact
        tfc.build_engine(artifact, backend="onnxruntime", allow_missed=True)

    return lambda family: made_once(f"generator-{family}", functools.partial(make, family))


@pytest.fixture
def tiny_artifact(_tiny_artifact: Path, tmp_path: Path) -> Path:
    """A copy of the tiny classifier's artifact, with one engine: onnxruntime-fp32."""
    return Path(shutil.copytree(_tiny_artifact, tmp_path / "tiny"))


@pytest.fixture
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`cli("verify", folder)` runs `tfc verify FOLDER`."""
    return run_tfc
