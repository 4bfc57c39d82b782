"""`tfc build-engine --profile-from`: profiles and batches from the lengths of texts."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tfc
from tfc.cli import cli
from tfc.errors import BadData, BadInput, UsageError
from tfc.manifest import Engine
from tfc.manifest_json import manifest_from_json, manifest_to_json
from tfc.runtime.backends.base import Profile, Range
from tfc.runtime.batching import GPU_PLAN, Limits, batches
from tfc.runtime.tensors import check_tensors, profiles_of
from tfc.runtime.traffic import plan_of_engine
from tfc.steps.traffic.buckets import SAVES, chosen_widths
from tfc.steps.traffic.costs import Curve, measured_curve
from tfc.steps.traffic.lengths import Lengths, lengths_of_data
from tfc.steps.traffic.plan import bucketed

pytestmark = pytest.mark.ort
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)

CURVE = Curve(launch=500.0, token=1.0, pair=0.01, unit="tokens")
LIMITS = Limits(rows=64, tokens=1024)


def cost_by_hand(
    counts: dict[int, int], widths: Sequence[int], windows: float, limits: Limits = LIMITS
) -> float:
    total = 0.0
    for below, width in itertools.pairwise([0, *widths]):
        texts = sum(n for length, n in counts.items() if below < length <= width)
        rows = limits.most_rows(width)
        total += texts * CURVE.batch(rows, width) / rows + (windows / 2 * CURVE.launch) * (
            texts > 0
        )
    return total


@pytest.mark.parametrize("seed", range(4))
def test_no_other_widths_cost_less(seed: int) -> None:
    rng = random.Random(seed)
    counts = {length: rng.randrange(1, 50) for length in rng.sample(range(1, 80), 20)}
    candidates = range(8, 89, 8)
    for number in (1, 2, 3):
        found = chosen_widths(counts, 88, CURVE, LIMITS, windows=2.0, buckets=number)
        assert len(found.widths) == number
        assert found.widths[-1] == 88
        least = min(
            cost_by_hand(counts, [*below, 88], 2.0)
            for below in itertools.combinations(candidates[:-1], number - 1)
        )
        assert found.cost == pytest.approx(least)
        assert cost_by_hand(counts, found.widths, 2.0) == pytest.approx(found.cost)


def test_a_bucket_more_has_to_save_its_share() -> None:
    counts = {16: 1000, 120: 300, 500: 20}
    found = chosen_widths(counts, 512, CURVE, LIMITS, windows=0.1)
    assert found.widths == (16, 120, 512)
    assert found.saved >= SAVES
    assert chosen_widths({16: 10}, 16, CURVE, LIMITS, windows=0.1).widths == (16,)


def test_the_texts_of_a_width_run_together() -> None:
    limits = Limits(rows=4, tokens=256, widths=(16, 64))
    assert [(b.indices, b.width) for b in batches([3, 60, 17, 64, 16, 1], limits)] == [
        ((3, 1, 2), 64),
        ((4, 0, 5), 16),
    ]
    joined = dataclasses.replace(limits, launch_tokens=256)
    assert [b.indices for b in batches([3, 60, 17, 64, 16, 1], joined)] == [(3, 1, 2, 4), (0, 5)]
    assert limits.of_rows(1000) == limits
    assert limits.of_rows(2).rows == 2
    assert Limits(32, 512).of_rows(64) == Limits(64)


@pytest.mark.parametrize("seed", range(3))
def test_every_batch_of_a_plan_fits_one_of_its_profiles(seed: int) -> None:
    rng = random.Random(seed)
    found = Lengths("d", 3000, 0, {n: rng.randrange(1, 99) for n in rng.sample(range(1, 500), 60)})
    sizes = Profile(Range(1, 8, 1024), Range(1, 128, 512))
    draft = bucketed(found, sizes, GPU_PLAN, Curve(2e6, 170.0, 0.04, "FLOPs"), None)
    assert [p.sequence.max for p in draft.profiles] == draft.traffic.widths
    assert draft.profiles[-1].sequence.max == draft.profile.sequence.max == 512
    limits = Limits(draft.traffic.rows, draft.traffic.tokens, tuple(draft.traffic.widths), 5000)
    texts = [length for length, rows in found.counts.items() for _ in range(rows)]
    for batch in batches(texts, limits):
        fits = [
            p
            for p in draft.profiles
            if p.batch.min <= len(batch.indices) <= p.batch.max
            and p.sequence.opt == p.sequence.max == batch.width
        ]
        assert len(fits) == 1


def test_a_sample_keeps_the_shares() -> None:
    found = Lengths("d", 1000, 0, {5: 500, 9: 300, 40: 200})
    assert found.sample(10) == [5] * 5 + [9] * 3 + [40] * 2
    assert len(found.sample(5000)) == 1000


def test_the_curve_is_found_again(monkeypatch: pytest.MonkeyPatch, tiny_artifact: Path) -> None:
    def seconds(_artifact: object, _runner: object, rows: int, width: int) -> float:
        return 2e-4 + rows * (1e-6 * width + 1e-8 * width * width)

    monkeypatch.setattr("tfc.steps.traffic.costs._fastest", seconds)
    artifact = tfc.Artifact.open(tiny_artifact)
    runner: Any = None  # the time of a run is given
    curve = measured_curve(artifact, runner, Limits(32, 512), [4, 9, 20, 40, 90, 128])
    assert (curve.launch, curve.token, curve.pair) == pytest.approx((2e-4, 1e-6, 1e-8), rel=1e-3)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """200 texts of three kinds of lengths, and two rows that cannot be used."""
    words = ["refund"] * 5, ["where"] * 20, ["order"] * 55
    rows = [{"text": " ".join(words[i % 10 // 6 + i % 10 // 9])} for i in range(200)]
    path = tmp_path / "tickets.jsonl"
    lines = [*map(json.dumps, [*rows, {"nothing": 1}]), "no json"]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_lengths_are_those_that_the_model_reads(tiny_artifact: Path, texts: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    found = lengths_of_data(artifact, texts)
    assert (found.texts, found.refused, found.rows) == (202, 2, 200)
    with tfc.Session.load(tiny_artifact) as session:
        ran: list[int] = []
        good = [json.loads(line)["text"] for line in texts.read_text().splitlines()[:200]]
        list(session.outcomes(good, on_batch=lambda tokens, padded: ran.append(tokens)))
    assert sum(ran) == found.tokens
    csv = texts.with_suffix(".csv")
    csv.write_text("text\n" + "\n".join(good) + "\n")
    assert lengths_of_data(artifact, csv).sha256() == found.sha256()
    with pytest.raises(BadData, match="none of 202 texts can be read: no field 'body'"):
        lengths_of_data(artifact, texts, "body")
    csv.write_text("text\n")
    with pytest.raises(BadData, match="there is no text in it"):
        lengths_of_data(artifact, csv)


def test_on_a_cpu_each_batch_is_as_wide_as_its_longest_text(
    tiny_artifact: Path, texts: Path
) -> None:
    shown = run_cli("build-engine", tiny_artifact, "--backend=onnxruntime", "--profile-from", texts)
    assert "padding" in shown
    assert "seconds, measured" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    engine = tfc.Artifact.open(tiny_artifact).manifest.engines["onnxruntime-fp32"]
    assert engine.traffic is not None
    assert engine.traffic.widths == []
    assert engine.profiles == []
    assert engine.traffic.cost["ways"]["longest"]["padding"] < 0.1
    assert "2 cannot be read" in " ".join(shown.split())
    again = tfc.build_engine(tiny_artifact, backend="onnxruntime", profile_from=texts)
    assert again.skipped
    assert "tickets.jsonl" in run_cli("inspect", tiny_artifact)
    report = tiny_artifact.parent / "report.md"
    run_cli("report", tiny_artifact, "-o", report)
    assert "Texts that onnxruntime-fp32 was built for" in report.read_text()
    with pytest.raises(UsageError, match="buckets would only add padding"):
        tfc.build_engine(tiny_artifact, backend="onnxruntime", profile_from=texts, buckets=2)
    with pytest.raises(UsageError, match="both say which lengths"):
        tfc.build_engine(tiny_artifact, profile_from=texts, sequence=(1, 8, 16))
    with pytest.raises(UsageError, match="there are none"):
        tfc.build_engine(tiny_artifact, buckets=3)


@needs_rtx
@pytest.mark.rtx
def test_one_plan_has_a_profile_for_each_bucket(tiny_artifact: Path, texts: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    built = tfc.build_engine(
        artifact, precision="fp16", backend="tensorrt-rtx", profile_from=texts, buckets=3
    ).engine
    assert built.traffic is not None
    widths = built.traffic.widths
    assert len(built.profiles) == len(built.memory) == len(widths) == 3
    assert [profile["sequence"][2] for profile in built.profiles] == widths
    assert built.audit["fused_attention"] == built.audit["wanted"]["fused_attention"] == 2
    text = manifest_to_json(tfc.Artifact.open(tiny_artifact).manifest)
    assert manifest_from_json(text, "here").engines["tensorrt-rtx-fp16"] == built
    check_that_rows_are_padded_to_the_widths(artifact, built)


def check_that_rows_are_padded_to_the_widths(artifact: tfc.Artifact, engine: Engine) -> None:
    from tfc.runtime.assembly import assembly_of

    assembly = assembly_of(artifact, engine)
    assert assembly is not None
    assert engine.traffic is not None
    rows = assembly.model.encoder.encode(["refund"])
    assert assembly.feeder.feed(rows).width == engine.traffic.widths[0]
    limits = plan_of_engine(engine, "a GPU").limits
    assert limits.widths == tuple(engine.traffic.widths)
    signature = artifact.manifest.signature
    most = limits.most_rows(limits.widths[-1])
    names = [spec.name for spec in signature.inputs]
    check_tensors(signature, profiles_of(engine), feeds(names, most, limits.widths[-1]))
    with pytest.raises(BadInput, match="axis 'batch'"):
        check_tensors(signature, profiles_of(engine), feeds(names, most + 1, limits.widths[-1]))


def run_cli(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def feeds(names: Sequence[str], rows: int, width: int) -> dict[str, np.ndarray]:
    return {name: np.ones((rows, width), np.int64) for name in names}
