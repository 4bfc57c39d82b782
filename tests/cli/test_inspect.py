"""`tfc inspect` on artifacts made by hand."""

from __future__ import annotations

import dataclasses
import re
import shutil

from click.testing import CliRunner

from tfc.artifact import MANIFEST
from tfc.cli import cli
from tfc.manifest import Step


def inspect(artifact, *options):
    """What `tfc inspect` prints."""
    ended = CliRunner().invoke(cli, ["inspect", str(artifact.path), *options])
    assert ended.exit_code == 0, ended.stderr
    return ended.stdout


def lines(text):
    """The printed lines, with runs of spaces made one."""
    return [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]


def engine_of(artifact, **changes):
    name, engine = next(iter(artifact.manifest.engines.items()))
    return {name: dataclasses.replace(engine, **changes)}


def test_everything_is_there_within_80_columns(make_artifact):
    artifact = make_artifact()
    text = inspect(artifact)
    found = lines(text)
    for line in [
        "checkpoint ./support-intents",
        "model BertModel (bert), 22.7 M parameters",
        "task text-classification, single label",
        "text at most 256 tokens, padded on the right",
        "reports reports/verify.json",
        "in input_ids int64 [batch, sequence]",
        "out logits float32 [batch, 151]",
        "model.onnx 8.0 kB",
        "export 1.5 s",
        "found attention 5/6, add+LayerNorm 12/12",
        "passes 2 of 4 changed the graph, the numbers by at most 2.4e-06 (attention)",
        "nodes 402 before, 171 after",
        "reverted rms_norm",
        "attention encoder.layer.5.attention.self the scale is not a constant",
        "Engine onnxruntime-fp32",
        "versions onnxruntime 1.31.1",
        "state runnable",
        "built for CPU",
        "profile batch 1 to 256, best at 32; sequence 1 to 512, best at 128",
        "audit kernels 71, fused attention 6",
        "wanted fused attention 6",
        "verdict verified",
        "logits: max abs 2.4e-06 (limit 0.0001)",
    ]:
        assert line in found
    outside = [line for line in text.splitlines() if str(artifact.path) not in line]
    assert max(map(len, outside)) <= 80
    assert len(found) < 60


def test_json_is_the_manifest_as_it_stands(make_artifact):
    artifact = make_artifact()
    assert inspect(artifact, "--json") == (artifact.path / MANIFEST).read_text(encoding="utf-8")


def test_many_labels_are_shortened(make_artifact):
    found = lines(inspect(make_artifact()))
    start = found.index(
        "labels 151: intent_0, intent_1, intent_2, intent_3, intent_4, intent_5 and"
    )
    assert found[start + 1] == "145 more"


def test_damage_that_can_be_seen_without_hashing_is_shown(make_artifact):
    artifact = make_artifact()
    (artifact.path / "model.onnx").write_bytes(b"half")
    shutil.rmtree(artifact.path / "reports")
    found = lines(inspect(artifact))
    assert "model.onnx 8.0 kB has 4 B: damaged" in found
    assert "reports/verify.json 2 B missing" in found


def test_an_engine_that_was_not_run_says_why(make_artifact):
    artifact = make_artifact()
    engines = engine_of(artifact, state="built, not run", state_reason="no GPU here")
    found = lines(inspect(make_artifact(engines=engines, verdicts={})))
    assert "state built, not run: no GPU here" in found
    assert "verdict not verified yet" in found


def test_a_verdict_on_an_earlier_build_does_not_count(make_artifact):
    verdicts = {
        name: dataclasses.replace(verdict, engine_sha256="0" * 64)
        for name, verdict in make_artifact().manifest.verdicts.items()
    }
    found = lines(inspect(make_artifact(verdicts=verdicts)))
    assert "verdict not verified since it was built again" in found


def test_only_the_first_misses_are_shown(make_artifact):
    missed = [
        {"kind": "attention", "node": f"n{i}", "module": "", "reason": "no scale"} for i in range(9)
    ]
    step = Step("optimize:tensorrt", {"precision": "fp16"}, {}, [], {}, 2.0, {"missed": missed})
    found = lines(inspect(make_artifact(steps=[step])))
    assert "Missed for tensorrt, the first 5 of 9" in found
    assert "attention n4 no scale" in found
    assert "attention n5 no scale" not in found
    assert "optimize:tensorrt 2.0 s precision=fp16" in found


def test_options_stay_on_one_line(make_artifact):
    step = Step("export", {"note": "a long note " * 20, "none": None}, {}, [], {}, 2.0)
    (line,) = [s for s in lines(inspect(make_artifact(steps=[step]))) if s.startswith("export")]
    assert line.startswith("export 2.0 s note=a long note")
    assert line.endswith("…")


def test_a_result_of_another_shape_is_no_error(make_artifact):
    results = [
        {"fusions": [1], "passes": "x", "missed": 3, "reverted": None},
        {"fusions": {"attention": 3}, "passes": [1, None], "missed": [1], "reverted": [2, {}]},
        {"passes": [{"changed": 1, "difference": None}], "missed": [{"reason": ["a", 1]}]},
        {"passes": [{"changed": 1, "difference": "x"}], "nodes": [1]},
    ]
    steps = [
        Step(f"optimize:target{i}", {}, {}, [], {}, 0.0, result) for i, result in enumerate(results)
    ]
    found = lines(inspect(make_artifact(steps=steps)))
    assert "found attention 3" in found
    assert "Fusions for target2" in found


def test_a_manifest_does_not_steer_the_terminal_or_the_markup(make_artifact):
    artifact = make_artifact()
    manifest = artifact.manifest
    evil = "\x1b[2J[red]x[/red]\x07"
    text = inspect(
        make_artifact(
            checkpoint=dataclasses.replace(manifest.checkpoint, source=evil),
            task=dataclasses.replace(manifest.task, labels=[evil], name=evil),
            steps=[Step(evil, {evil: evil}, {}, [], {}, 1.0)],
            engines=engine_of(artifact, state=evil, profile={evil: [1, 2, 3]}, audit={evil: evil}),
        )
    )
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "checkpoint \\x1b[2J[red]x[/red]\\x07" in lines(text)


def test_not_an_artifact(tmp_path):
    ended = CliRunner().invoke(cli, ["inspect", str(tmp_path)])
    assert ended.exit_code == 5
    assert "it has no tfc.json" in ended.stderr
    assert "tfc export CHECKPOINT -o ARTIFACT" in ended.stderr
