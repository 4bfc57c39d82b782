"""Models that generate, from checkpoint to text: the same tokens as transformers' `generate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from matrix import save_generator

import tfc
import tfc.exporter.generation.export as module
from tfc.errors import BadInput, CheckFailed, UsageError

pytestmark = pytest.mark.ort
TEXTS = [
    "Where is my order?",
    "ok",
    "The battery died after two days, and nobody answers my e-mails.",
    "¿Dónde está mi paquete?",
]
SETTINGS: list[dict[str, Any]] = [
    {"max_new_tokens": 6},
    {"max_new_tokens": 6, "num_beams": 3},
    {"max_new_tokens": 7, "num_beams": 4, "num_return_sequences": 2, "no_repeat_ngram_size": 2},
    {"max_new_tokens": 6, "repetition_penalty": 1.4, "min_new_tokens": 4},
]


GRAPHS: dict[str, dict[str, ir.Model]] = {}


@pytest.fixture
def exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's exporter sees each kind of model once; all that export does besides is done.

    The checkpoints of a kind have the same weights, and graphs say nothing of how to generate.
    """
    original = module.graphs_from_model

    def graphs_from_model(model: Any) -> dict[str, ir.Model]:
        kind = type(model).__name__
        if kind not in GRAPHS:
            GRAPHS[kind] = original(model)
        return {name: graph.clone() for name, graph in GRAPHS[kind].items()}

    monkeypatch.setattr(module, "graphs_from_model", graphs_from_model)


def said_by_transformers(folder: Path, text: str, settings: dict[str, Any]) -> list[str]:
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    kind = "Seq2SeqLM" if config.is_encoder_decoder else "CausalLM"
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    feed = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        found = model.generate(**feed, **settings)
    prompt = ""
    if kind == "CausalLM":
        prompt = tokenizer.decode(feed.input_ids[0], skip_special_tokens=True)
    return [tokenizer.decode(ids, skip_special_tokens=True)[len(prompt) :] for ids in found]


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart"])
def test_a_batch_says_what_transformers_says_of_each_text(
    generator: Callable[[str], Path], family: str
) -> None:
    folder = generator(family)
    with tfc.Session.load(folder / "artifact") as session:
        for settings in SETTINGS:
            for text, found in zip(TEXTS, session.predict(TEXTS, **settings), strict=True):
                expected = said_by_transformers(folder / "checkpoint", text, settings)
                assert found.get("texts", [found["text"]]) == expected, settings
                assert found["text"] == expected[0]


def test_a_recording_is_transcribed_as_by_transformers(generator: Callable[[str], Path]) -> None:
    import torch
    import transformers

    folder = generator("whisper")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder / "checkpoint")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "checkpoint")
    extract = transformers.WhisperFeatureExtractor.from_pretrained(folder / "checkpoint")
    random = np.random.default_rng(0)
    recordings = [
        np.sin(np.arange(16000) * 0.05).astype(np.float32),
        0.1 * random.standard_normal(9000).astype(np.float32),
    ]
    with tfc.Session.load(folder / "artifact") as session:
        found = session.predict(recordings, max_new_tokens=6, num_beams=2)
        (file,) = session.predict([folder / "artifact/samples/chord.wav"], max_new_tokens=3)
    features = extract(recordings, sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        # Whisper's own generate needs the tables of a published model to make its prompt.
        tokens = transformers.GenerationMixin.generate(
            model, input_features=features, max_new_tokens=6, num_beams=2
        )
    expected = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert [prediction["text"] for prediction in found] == expected
    assert file["text"]


LANGUAGES = {"<|en|>": 200, "<|de|>": 201, "<|fr|>": 202}
TABLES = {
    "lang_to_id": LANGUAGES,
    "task_to_id": {"transcribe": 300, "translate": 301},
    "no_timestamps_token_id": 302,
    "is_multilingual": True,
    "return_timestamps": False,
}


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({}, {}),
        ({}, {"language": "de"}),
        ({}, {"language": "fr", "task": "translate"}),
        ({"language": "en", "task": "translate"}, {}),
        ({"forced_decoder_ids": [[1, 202], [2, 300], [3, 302]]}, {}),
        ({"forced_decoder_ids": [[1, None], [2, 301]]}, {}),
    ],
)
@pytest.mark.usefixtures("exported_once")
def test_a_transcript_begins_as_whispers_own(
    tmp_path: Path, config: dict[str, Any], options: dict[str, str]
) -> None:
    """Against Whisper's generate with the tables that published multilingual models have."""
    import torch
    import transformers

    save_generator(tmp_path / "c", "whisper")
    file = tmp_path / "c/generation_config.json"
    settings = {**json.loads(file.read_text()), **TABLES, **config, "_from_model_config": False}
    file.write_text(json.dumps(settings))
    artifact = tfc.export(tmp_path / "c", tmp_path / "a").artifact
    tfc.build_engine(artifact, backend="onnxruntime", allow_missed=True)
    random = np.random.default_rng(1)
    recordings = [0.3 * random.standard_normal(n).astype(np.float32) for n in (16000, 5000, 11000)]
    with tfc.Session.load(tmp_path / "a") as session:
        found = session.predict(recordings, max_new_tokens=6, **options)
        with pytest.raises(UsageError, match="this model knows no language 'tlh'"):
            session.predict(recordings, language="tlh")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "c").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "c")
    extract = transformers.WhisperFeatureExtractor.from_pretrained(tmp_path / "c")
    features = extract(recordings, sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        tokens = model.generate(features, max_new_tokens=6, **options)
    expected = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert [prediction["text"] for prediction in found] == expected


def test_a_draw_depends_on_the_seed_and_the_text_alone(generator: Callable[[str], Path]) -> None:
    options = {"max_new_tokens": 5, "do_sample": True, "top_k": 0, "seed": 7}
    with tfc.Session.load(generator("gpt2") / "artifact") as session:
        together = session.predict(TEXTS, **options)
        backwards = session.predict(TEXTS[::-1], batch_size=1, **options)
        assert together == backwards[::-1]
        assert together != session.predict(TEXTS, **{**options, "seed": 8})


def test_what_has_no_room_concerns_its_text_only(generator: Callable[[str], Path]) -> None:
    with tfc.Session.load(generator("gpt2") / "artifact") as session:
        long = "word " * 45
        good, bad = session.outcomes(["hello", long], max_new_tokens=4)
        assert good.prediction["text"]
        assert isinstance(bad.error, BadInput)
        assert str(bad.error) == (
            "item 1: the text has 47 tokens, and the model reads 48: there is no room for 4 more. "
            "Give a shorter text, or a smaller max_new_tokens"
        )
        with pytest.raises(UsageError, match="the option 'num_beams' is 'three', not a whole"):
            session.predict(["hello"], num_beams="three")


def test_a_job_generates(
    generator: Callable[[str], Path], tmp_path: Path, cli: Callable[..., Any]
) -> None:
    folder = generator("t5")
    rows = [json.dumps({"id": i, "text": text}) for i, text in enumerate(TEXTS)]
    (tmp_path / "in.jsonl").write_text("\n".join(rows), encoding="utf-8")
    arguments = ["--set", "max_new_tokens=4", "--set", "num_beams=2"]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    done = cli("run", folder / "artifact", source, "-o", output, *arguments)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in output.read_text().splitlines()]
    with tfc.Session.load(folder / "artifact") as session:
        expected = session.predict(TEXTS, max_new_tokens=4, num_beams=2)
    assert [row["prediction"] for row in found] == expected
    assert [row["id"] for row in found] == [0, 1, 2, 3]


def test_a_wrong_decoder_fails_verification(
    generator: Callable[[str], Path], tmp_path: Path
) -> None:
    """The cache's second layer is given back as the first: one step later the scores differ."""
    import shutil

    folder = Path(shutil.copytree(generator("llama"), tmp_path / "llama"))
    artifact = tfc.Artifact.open(folder / "artifact")
    file = artifact.manifest.engines["onnxruntime-fp32"].files["decoder"]
    model = ir.load(artifact.file(file))
    outputs = {str(value.name): value for value in model.graph.outputs}
    first, second = (outputs[f"present_key_values.{layer}.value"] for layer in (0, 1))
    first.name, second.name = "swapped", str(first.name)
    first.name = "present_key_values.1.value"
    with artifact.change() as change:
        ir.save(model, change.path(file))
    found = tfc.verify(artifact, checkpoint=str(folder / "checkpoint"))
    assert found.failed == ["onnxruntime-fp32"]
    assert found.rows == 23
    (verdict,) = found.verdicts
    assert "largest difference" in verdict.reason


def test_half_weights_and_the_command_line(
    generator: Callable[[str], Path], tmp_path: Path, cli: Callable[..., Any]
) -> None:
    import shutil

    folder = Path(shutil.copytree(generator("bart") / "artifact", tmp_path / "a"))
    for command in (
        ["build-engine", folder, "--fp16", "--backend", "onnxruntime"],
        ["verify", folder, "--engine", "onnxruntime-fp16"],
        ["inspect", folder],
    ):
        done = cli(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "decoder in" in done.stdout
    assert "past_key_values × 4" in done.stdout


@pytest.mark.parametrize(
    ("family", "graph", "weight"),
    [
        ("gpt2", "decoder", "transformer.h.1.mlp.c_fc.bias"),
        ("bart", "encoder", "model.decoder.layers.1.encoder_attn.v_proj.bias"),
        ("bart", "decoder", "model.decoder.layers.0.fc1.bias"),
    ],
)
@pytest.mark.usefixtures("exported_once")
def test_a_wrong_graph_leaves_evidence_that_names_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, graph: str, weight: str
) -> None:
    original = module.graphs_from_model

    def sabotaged(model: Any) -> dict[str, ir.Model]:
        graphs = original(model)
        value = graphs[graph].graph.initializers[weight]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() + 0.5, name=value.name)
        return graphs

    monkeypatch.setattr(module, "graphs_from_model", sabotaged)
    save_generator(tmp_path / "c", family)
    with pytest.raises(CheckFailed) as caught:
        tfc.export(tmp_path / "c", tmp_path / "a")
    part = weight.rpartition(".")[0]
    assert f"the first module whose output differs is {part} (" in caught.value.what
    assert f"and {graph}.onnx does" in caught.value.what
    report = json.loads((tmp_path / "a.failed/report.json").read_text())
    assert report["first_difference"]["module"] == part
    assert not (tmp_path / "a").exists()
