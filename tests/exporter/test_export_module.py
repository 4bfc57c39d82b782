"""Any module becomes an artifact that is optimized, built, verified and run like the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import run_tfc
from handwritten import Encoder, TorchEncoder, TorchSeq2Seq, WrittenNorm
from torch import Tensor, nn

import tfc
from tfc.errors import BadArtifact, BadCheckpoint, CheckFailed, UsageError
from tfc.exporter.module_inputs import inputs_of_module, resized
from tfc.tensor_samples import tensor_samples_from

pytestmark = pytest.mark.ort
IDS = torch.arange(14).view(2, 7)
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
AXES = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tfc.Artifact:
    module = Encoder(style="fill").train()
    folder = tmp_path_factory.mktemp("module") / "a"
    result = tfc.export(module, (IDS, MASK), folder, output_names=["logits"], dynamic_axes=AXES)
    assert module.training
    assert all(part.training for part in module.modules())
    tfc.build_engine(result.artifact, backend="onnxruntime")
    return result.artifact


def test_what_the_artifact_says(artifact: tfc.Artifact) -> None:
    manifest = artifact.manifest
    assert (manifest.task.name, manifest.preprocess) == ("tensors", None)
    assert [spec.name for spec in manifest.signature.inputs] == ["input_ids", "attention_mask"]
    output = manifest.signature.outputs[0]
    assert (output.name, output.shape) == ("logits", ["batch", "sequence", 3])
    assert manifest.checkpoint.source == "handwritten.Encoder"
    parity = manifest.steps[0].result["parity"]
    assert 0 < parity["relative"] < 1e-5
    fusions = manifest.step("optimize:onnxruntime").result["fusions"]
    assert fusions["attention"] == {"found": 2, "expected": 2}


def test_samples_have_many_sizes_and_their_kind(artifact: tfc.Artifact) -> None:
    samples = tensor_samples_from(artifact.file("samples.npz"))
    shapes = [sample.inputs["input_ids"].shape for sample in samples]
    assert shapes == [(2, 7), (1, 1), (2, 3), (6, 5), (1, 17), (17, 3)]
    for sample in samples:
        assert set(np.unique(sample.inputs["attention_mask"])) <= {0, 1}
        assert sample.inputs["attention_mask"][:, 0].all()
        assert sample.inputs["input_ids"].max() <= 13
        assert set(sample.outputs) == {"fp32", "fp16", "bf16"}


def test_a_session_runs_it(artifact: tfc.Artifact) -> None:
    module = Encoder(style="fill").eval()
    ids = torch.randint(0, 100, (5, 11), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    with tfc.Session.load(artifact.path) as session:
        got = session.run({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})["logits"]
        with pytest.raises(UsageError, match="takes tensors, not text"):
            session.predict(["a text"])
    with torch.no_grad():
        assert np.abs(got - module(ids, mask).numpy()).max() < 1e-5


def test_verify_compares_with_what_pytorch_gave(artifact: tfc.Artifact) -> None:
    tfc.build_engine(artifact, backend="onnxruntime", precision="fp16")
    done = run_tfc("verify", artifact.path)
    assert done.returncode == 0, done.stderr
    assert "on 6 inputs of the samples kept at export" in done.stdout.replace("\n", " ")
    report = json.loads((artifact.path / "reports" / "verify.json").read_text())
    assert report["reference"] == "what PyTorch gave at export"
    assert {e["verdict"] for e in report["engines"].values()} == {"verified"}
    with pytest.raises(UsageError, match="takes tensors, not text"):
        tfc.verify(artifact, data=artifact.path / "tfc.json")
    with pytest.raises(UsageError, match="models for tensors are not measured"):
        tfc.bench(artifact)
    assert run_tfc("inspect", artifact.path).returncode == 0


def test_samples_that_are_no_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", **{"0/inputs/x": np.array([{}], dtype=object)})
    with pytest.raises(BadArtifact, match="does not hold samples"):
        tensor_samples_from(tmp_path / "samples.npz")
    (tmp_path / "samples.npz").write_bytes(b"PK")
    with pytest.raises(BadArtifact, match="does not hold samples"):
        tensor_samples_from(tmp_path / "samples.npz")


def test_torchs_own_encoder_with_a_mask_of_booleans(tmp_path: Path) -> None:
    """A dict of inputs, a boolean mask, an axis of another name, several outputs."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = TorchEncoder(pre_norm=False).encoder

        def forward(self, x: Tensor, scale: float = 2.0, padding: Tensor | None = None) -> Any:
            y = self.encoder(x, src_key_padding_mask=padding)
            return {"states": y * scale, "pooled": (y.mean(1), y.argmax(-1)), "none": None}

    examples = {"padding": MASK == 0, "x": torch.randn(2, 7, 32)}
    axes = {"x": {0: "rows", 1: "time"}, "padding": {0: "rows", 1: "time"}}
    done = tfc.export_module(Both(), examples, tmp_path / "a", dynamic_axes=axes)
    signature = done.artifact.manifest.signature
    assert [(s.name, s.dtype, s.shape) for s in signature.outputs] == [
        ("states", "float32", ["rows", "time", 32]),
        ("pooled_0", "float32", ["rows", 32]),
        ("pooled_1", "int64", ["rows", "time"]),
    ]
    assert [spec.name for spec in signature.inputs] == ["padding", "x"]
    tfc.build_engine(done.artifact, backend="onnxruntime", allow_missed=True)
    assert tfc.verify(done.artifact).failed == []


def fused(artifact: tfc.Artifact, target: str) -> dict[str, tuple[int, int]]:
    """(found, expected) of each kind."""
    counts = tfc.optimize(artifact, target).report["fusions"]
    return {kind: (count["found"], count["expected"]) for kind, count in counts.items()}


def test_torchs_own_encoder_and_decoder_as_they_are_by_default(tmp_path: Path) -> None:
    """A mask that is looked at for being causal, and one that two kinds of blocks share."""
    module = TorchSeq2Seq()
    axes = {name: {0: "batch", 1: "sequence"} for name in ("source", "mask")}
    axes["target"] = {0: "batch", 1: "target"}
    given = (IDS, MASK, IDS[:, :5])
    artifact = tfc.export(module, given, tmp_path / "a", dynamic_axes=axes).artifact
    assert fused(artifact, "tensorrt") == {"attention": (3, 3), "add_layernorm": (5, 5)}
    assert module.encoder.use_nested_tensor  # as it was


def test_a_written_norm_and_a_mask_for_each_head(tmp_path: Path) -> None:
    module = Encoder(style="a mask for each head", norm=WrittenNorm)
    artifact = tfc.export(module, (IDS, MASK), tmp_path / "a", dynamic_axes=AXES).artifact
    assert fused(artifact, "onnxruntime") == {"attention": (2, 2), "add_layernorm": (4, 4)}


class Limited(nn.Module):
    """As many hand-written models: a table of positions, and an assertion."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] <= 12
        return x + self.positions(torch.arange(x.shape[1]))


def test_a_limit_that_the_module_tells(tmp_path: Path) -> None:
    done = tfc.export(
        Limited(), torch.randn(1, 4, 8), tmp_path / "a", dynamic_axes={"x": {1: "sequence"}}
    )
    assert done.artifact.manifest.steps[0].result["longest"] == {"sequence": 12}
    engine = tfc.build_engine(done.artifact, backend="onnxruntime").engine
    assert engine.profile["sequence"] == [1, 12, 12]
    assert tfc.verify(done.artifact).failed == []


def test_fixed_sizes(tmp_path: Path) -> None:
    done = tfc.export_module(nn.Linear(4, 2), torch.randn(3, 4), tmp_path / "a")
    assert done.artifact.manifest.signature.inputs[0].shape == [3, 4]
    assert len(tensor_samples_from(done.artifact.file("samples.npz"))) == 1


def test_a_place_is_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tfc.export(nn.Linear(4, 2), torch.randn(3, 4), dynamic_axes={"input": [0]})
    assert tfc.Artifact.open("Linear").manifest.signature.inputs[0].shape == ["input_0", 4]
    with pytest.raises(UsageError, match="an artifact here already"):
        tfc.export(nn.Linear(4, 2), torch.randn(3, 4))
    tfc.export(nn.Linear(4, 2), torch.randn(3, 4), overwrite=True)


def test_the_same_module_gives_the_same_bytes(tmp_path: Path) -> None:
    module = Encoder(style="einsum")
    first = tfc.export(module, (IDS, MASK), tmp_path / "a", dynamic_axes=AXES).artifact
    second = tfc.export(module, (IDS, MASK), tmp_path / "b", dynamic_axes=AXES).artifact
    assert first.manifest.files == second.manifest.files


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dynamic_axes": {"y": {0: "batch"}}}, "dynamic_axes names 'y', which is no input"),
        ({"dynamic_axes": {"x": {2: "batch"}}}, "dynamic_axes has axis 2 of 'x'"),
        ({"dynamic_axes": {"x": {0: "my batch"}}}, "'my batch' cannot be the name of an axis"),
        ({"dynamic_axes": {"x": {0: "a", 1: "a"}}}, "the axis 'a' has size 4 in one example"),
        ({"input_names": ["a", "b"]}, "there are 1 example inputs"),
        ({"output_names": ["a", "b"]}, "the module gives 1 tensors"),
        ({"output_names": ["x"]}, "the module gives 1 tensors"),
    ],
)
def test_calls_that_are_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    options = {"input_names": ["x"], **options}
    with pytest.raises(UsageError) as caught:
        tfc.export_module(nn.Linear(4, 2), torch.randn(3, 4), tmp_path / "a", **options)
    assert caught.value.what.startswith(sentence)
    assert caught.value.fix
    assert not (tmp_path / "a").exists()


def test_examples_that_are_no_tensors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the example of 'input' is of type list"):
        tfc.export_module(nn.Linear(4, 2), ([1.0],), tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="neither the place of a checkpoint nor a module: int"):
        tfc.export(3, torch.randn(1), tmp_path / "a")  # type: ignore[arg-type]


def test_other_sizes_that_the_module_does_not_take(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(1, 4)

    with pytest.raises(BadCheckpoint) as caught:
        tfc.export(Fixed(), torch.randn(3, 4), tmp_path / "a", dynamic_axes={"x": {1: "width"}})
    assert caught.value.what == "torch.onnx cannot export Fixed: width of x becomes 4"
    assert "leave the axis out of dynamic_axes" in caught.value.fix


def test_a_module_that_gives_no_tensors(tmp_path: Path) -> None:
    class Text(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {"x": x, "name": "text"}

    with pytest.raises(BadCheckpoint, match="the module gives a str, and a graph gives tensors"):
        tfc.export(Text(), torch.randn(3, 4), tmp_path / "a")


def test_a_random_module_is_noticed(tmp_path: Path) -> None:
    """Dropout that stays on: no graph says what it says."""

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, training=True)

    with pytest.raises(CheckFailed):
        tfc.export(Noisy(), torch.randn(30, 40), tmp_path / "a")


def test_inputs_of_other_sizes_keep_their_kind() -> None:
    causal = torch.ones(5, 5).tril()
    bias = torch.where(causal == 1, 0.0, float("-inf"))
    examples = (causal.bool(), bias, torch.arange(10, 15), torch.full((5,), 3))
    axes = {f"input_{i}": {0: "n"} for i in range(4)}
    module = nn.Sequential()
    module.forward = lambda *given: given  # type: ignore[assignment]
    inputs = inputs_of_module(module, examples, None, axes)
    found = resized(inputs, {"n": 9}, seed=0)
    assert [tuple(t.shape) for t in found.values()] == [(9, 5), (9, 5), (9,), (9,)]
    assert found["input_0"].dtype == torch.bool
    assert set(found["input_1"].unique().tolist()) == {0.0, float("-inf")}
    assert 10 <= int(found["input_2"].min()) <= int(found["input_2"].max()) <= 14
    assert found["input_3"].eq(3).all()
