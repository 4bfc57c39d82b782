"""`tfc report`: it says what is in the artifact and what is missing, and a browser reads it."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import tfc
from tfc.errors import MissingPackage, UsageError

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
HEADLESS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr",
)  # fmt: skip
has_rtx = importlib.util.find_spec("tensorrt_rtx") is not None


def headings(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def test_nothing_was_run_yet(tiny_artifact: Path, tmp_path: Path) -> None:
    """What was not checked or measured is said, with the command that does it."""
    text = tfc.report(tiny_artifact, tmp_path / "report.md").read_text()
    assert headings(text) == [
        "Engines", "Parity", "Speed", "Fusions", "Precision", "Pipeline", "Environment",
    ]  # fmt: skip
    assert "**Parity was not checked. Do it with: tfc verify tiny**" in text
    assert "**Speed was not measured. Do it with: tfc bench tiny**" in text
    assert "| onnxruntime-fp32 | fp32 | not run | runnable |" in text
    assert "| add+LayerNorm | 4 | 4 |" in text
    assert "Every engine computes in fp32" in text


@pytest.fixture(scope="module")
def measured(_tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with engines, a verdict on labelled rows, and measurements."""
    folder = tmp_path_factory.mktemp("report")
    artifact = tfc.Artifact.open(shutil.copytree(_tiny_artifact, folder / "tickets"))
    if has_rtx:
        tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx")
    labels = ("cancel", "refund", "other")
    rows = [{"text": f"order {i} " * (1 + i % 9), "label": labels[i % 3]} for i in range(60)]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tfc.build_engine(artifact, precision="int8", backend="onnxruntime", calib=data)
    tfc.verify(artifact, data=data, label_column="label", bisect=True)
    tfc.bench(artifact, data=data, pytorch=False, seconds=0.05)
    return artifact.path


@pytest.mark.ort
def test_numbers_are_those_of_the_reports(measured: Path, tmp_path: Path) -> None:
    text = tfc.report(measured, tmp_path / "report.md").read_text()
    verified = json.loads((measured / "reports/verify.json").read_text())
    benched = json.loads((measured / "reports/bench.json").read_text())
    error = verified["engines"]["onnxruntime-fp32"]["outputs"]["logits"]["max_abs"]
    accuracy = verified["metrics"]["pytorch"]["values"]["accuracy"]
    (cell,) = benched["cells"]
    assert f"| onnxruntime-fp32 | verified | {error:.1e} |" in text
    assert f"| accuracy | {accuracy:.2%} | {accuracy:.2%} | 0.00 |" in text
    assert f"{cell['tokens']} tokens in all" in text
    assert f"{cell['padding']:.1%} of what ran was padding" in text
    passed = sum(one["outcome"] == "passed" for one in verified["relations"]["onnxruntime-fp32"])
    assert text.count("| passed |") == 2 * 11 <= 2 * passed
    modules = verified["bisect"]["onnxruntime-fp32"]["modules"]
    compared = sum(not one["beyond"] for one in modules)
    assert 0 < compared < len(modules)
    assert f"after each of {compared} modules of onnxruntime-fp32" in text
    assert f"{len(modules) - compared} more are left out: a fusion moved a part" in text
    step = tfc.Artifact.open(measured).manifest.step(
        "precision:optimized/onnxruntime.int8/model.onnx"
    )
    assert (
        f"The largest magnitude that int8 holds of each of {len(step.result['ranges'])} act" in text
    )
    assert "| bert.pooler.dense | once for each text | - |" in text
    if has_rtx:
        assert "**tensorrt-rtx-fp16 not run: TensorRT-RTX runs on NVIDIA GPUs only" in text
        assert re.search(
            r"Kernels of tensorrt-rtx-fp16 by layer, in their order: \d+, \d+ ker", text
        )
        assert re.search(r"\| fp16 \| 99\.\d % \|", text)


@pytest.mark.ort
def test_the_page_needs_nothing_else(measured: Path, cli: Callable[..., Any]) -> None:
    """One file without scripts or addresses, in the artifact; the same artifact, the same bytes."""
    done = cli("report", measured)
    assert done.returncode == 0, done.stderr
    page = measured / "reports/report.html"
    assert done.stdout.strip() == f"written to {page}"
    first = page.read_bytes()
    assert tfc.report(measured).read_bytes() == first
    assert "reports/report.html" in tfc.Artifact.open(measured).manifest.files
    text = first.decode()
    assert "<script" not in text
    assert "<link" not in text.replace('<link rel="icon" href="data:,">', "")
    addresses = set(re.findall(r'(?:src|href)="([^"#][^"]*)"', text))
    assert addresses == {"data:,"}
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 7 + 2 * has_rtx
    for drawing in drawings:
        named = drawing.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)
        ElementTree.fromstring(named)
    ids = re.findall(r'\bid="([^"]+)"', re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))
    assert len(ids) == len(set(ids))


@pytest.mark.ort
def test_strings_are_data(tiny_artifact: Path, tmp_path: Path) -> None:
    """A label can neither run in the page nor break a table."""
    manifest = tiny_artifact / "tfc.json"
    manifest.write_text(manifest.read_text().replace('"refund"', '"<script>x|y*z"'))
    page = tfc.report(tiny_artifact, tmp_path / "report.html").read_text()
    assert "cancel, &lt;script&gt;x|y*z, other" in page
    text = tfc.report(tiny_artifact, tmp_path / "report.md").read_text()
    assert r"cancel, \<script>x\|y\*z, other" in text


def test_errors(tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="HTML or Markdown, and this name says neither"):
        tfc.report(tiny_artifact, tmp_path / "report.pdf")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda n, *p: None if n == "jinja2" else find(n, *p)
    )
    with pytest.raises(MissingPackage) as raised:
        tfc.report(tiny_artifact)
    assert raised.value.fix == "Install it with: pip install 'tfc[report]'"


def console_of(page: Path, profile: Path) -> list[str]:
    """What a browser writes to its console while it shows a page."""
    command = [BROWSER, *HEADLESS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "</html>" in done.stdout
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.ort
@pytest.mark.skipif(not BROWSER, reason="there is no Chromium here")
def test_a_browser_shows_it_without_errors(measured: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<!DOCTYPE html><html><script>console.error('seen')</script></html>")
    assert "seen" in console_of(bad, tmp_path / "profile")[0]
    page = tfc.report(measured, tmp_path / "report.html")
    assert console_of(page, tmp_path / "profile") == []
