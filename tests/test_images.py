"""Models that read images, from checkpoint to labels: what transformers says of the same image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matrix import CASES

import tfc
from tfc.cli import cli as group
from tfc.errors import BadCheckpoint, UsageError

pytestmark = pytest.mark.ort
pytest.importorskip("PIL")


def made(folder: Path, name: str) -> tfc.Artifact:
    case = next(case for case in CASES if case.name == name)
    case.save(folder / "checkpoint")
    artifact = tfc.export(folder / "checkpoint", folder / "artifact").artifact
    tfc.build_engine(artifact, backend="onnxruntime")
    return artifact


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tfc.Artifact:
    """A tiny ViT with three labels. Do not change it: copy it."""
    return made(tmp_path_factory.mktemp("vit"), "image-classification/vit")


def reference(artifact: tfc.Artifact, kind: str, images: list[Any]) -> Any:
    import torch
    import transformers

    folder = artifact.path.parent / "checkpoint"
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**processor(images, return_tensors="pt"))


def images() -> list[np.ndarray]:
    random = np.random.default_rng(5)
    return [random.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in ((40, 60), (90, 33))]


def test_labels_are_those_of_transformers(vit: tfc.Artifact) -> None:
    logits = reference(vit, "ViTForImageClassification", images()).logits
    expected = logits.double().softmax(-1).numpy()
    with tfc.Session.load(vit.path) as session:
        found = session.predict(images())
        (best,) = session.predict(images()[:1], top_k=1)
    names = vit.manifest.task.labels
    for prediction, row in zip(found, expected, strict=True):
        assert prediction["label"] == names[row.argmax()]
        assert list(prediction["scores"].values()) == pytest.approx(row.tolist(), abs=1e-6)
    assert list(best["scores"]) == [found[0]["label"]]


@pytest.mark.parametrize(
    ("case", "kind", "field"),
    [
        ("clip", "CLIPVisionModelWithProjection", "image_embeds"),
        ("vit", "ViTModel", "pooler_output"),
    ],
)
def test_embeddings_are_those_of_transformers(
    tmp_path: Path, case: str, kind: str, field: str
) -> None:
    artifact = made(tmp_path, f"image-feature-extraction/{case}")
    expected = reference(artifact, kind, images())[field].numpy()
    with tfc.Session.load(artifact.path) as session:
        found = [prediction["embedding"] for prediction in session.predict(images())]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_a_job_reads_files_beside_its_rows(
    vit: tfc.Artifact, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for number, pixels in enumerate(images()):
        Image.fromarray(pixels).save(tmp_path / f"pictures/{number}.png")
    (tmp_path / "pictures/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    rows = [{"image": f"pictures/{name}.png"} for name in ("0", "broken", "1", "none")]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    done = cli("run", vit.path, source, "-o", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    with tfc.Session.load(vit.path) as session:
        expected = session.predict([tmp_path / "pictures/0.png", tmp_path / "pictures/1.png"])
    assert [row["prediction"] for row in found] == expected
    bad = (tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in bad] == [2, 4]
    assert "No such file or directory" in json.loads(bad[1])["error"]


def test_a_checkpoint_that_does_not_say_how_to_read_images(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "image-classification/vit")
    case.save(tmp_path / "c")
    (tmp_path / "c/preprocessor_config.json").unlink()
    with pytest.raises(BadCheckpoint) as caught:
        tfc.export(tmp_path / "c", tmp_path / "a")
    assert caught.value.what == (
        "this folder has no preprocessor_config.json, which says how images become tensors"
    )
    assert not (tmp_path / "a").exists()


def test_verify_and_inspect_speak_of_images(
    vit: tfc.Artifact, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    folder = shutil.copytree(vit.path, tmp_path / "a")
    done = cli("verify", folder)
    assert done.returncode == 0, done.stderr
    assert "Output logits on 8 images of the samples kept at export" in done.stdout
    assert "pixel_values" in cli("inspect", folder).stdout
    with pytest.raises(UsageError, match="verified on its own samples"):
        tfc.verify(tfc.Artifact.open(folder), data=tmp_path / "x.jsonl")


@pytest.mark.parametrize("sizes", [(1, 2, 2), (4, 4, 8)])
def test_batches_keep_to_the_sizes_of_the_engine(
    vit: tfc.Artifact, tmp_path: Path, sizes: tuple[int, int, int]
) -> None:
    """Five images in batches of at most two; two images where the smallest batch is four."""
    folder = Path(shutil.copytree(vit.path, tmp_path / "a"))
    with tfc.Session.load(folder) as session:
        expected = session.predict(images() * 2 + images()[:1])
    tfc.build_engine(tfc.Artifact.open(folder), backend="onnxruntime", batch=sizes)
    with tfc.Session.load(folder) as session:
        runner = session._runners["model"]
        rows: list[int] = []

        class Recorder:
            def run(self, inputs: Any) -> Any:
                rows.append(len(inputs["pixel_values"]))
                return runner.run(inputs)

            def close(self) -> None:
                runner.close()

        session._runners = {"model": Recorder()}
        found = session.predict(images() * 2 + images()[:1])
    assert set(rows) <= set(range(sizes[0], sizes[2] + 1))
    for one, other in zip(found, expected, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-6)


def test_images_are_measured_by_batch_size(
    vit: tfc.Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfc.steps.benchmark.bench.usable_cores", lambda: 1)
    folder = Path(shutil.copytree(vit.path, tmp_path / "a"))
    result = tfc.bench(folder, batches=(1, 3, 10**6), seconds=0.02, start=False)
    assert [cell.workload.name for cell in result.cells] == ["1", "3"]
    assert list(result.cells[0].timings) == ["pytorch", "onnxruntime-fp32"]
    assert all(t.sequences_per_second > 0 for c in result.cells for t in c.timings.values())
    done = CliRunner().invoke(
        group, ["bench", str(folder), "--batch", "2", "--no-pytorch", "--no-start"]
    )
    assert done.exit_code == 0, done.output
    assert "images/s" in done.stdout
    assert "8 is a batch of 8 images" in done.stdout
    with pytest.raises(UsageError, match="image-classification are measured on a grid"):
        tfc.bench(folder, data="x.jsonl")
