"""The results of the stages → a short page, with the throughput bars of the project."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from results import found_by

# fp16, tokens/s on an H200, mixed lengths as a job sorts them; half of the chip's peak.
BARS = {"bert-base": 2.8e6, "bert-large": 0.8e6}
RATIO_BAR = 1.5  # against PyTorch SDPA with torch.compile, measured in the same cell
_TORCH = "torch-"
_WRONG = ("failure", "error")


def summary(results: Path) -> str:
    """What ran, the fastest of tfc's engines in each cell, and which bars are reached."""
    lines = ["# GPU campaign", ""]
    peaks = [each["flops_per_second"] for each in found_by(results, "peak").values()]
    lines.append(f"Matrix products: {max(peaks) / 1e12:.0f} TFLOP/s" if peaks else "No peak yet.")
    lines += _working(results) + _tests(results)
    for stage in ("throughput", "mixed", "concurrency", "graphs"):
        cells = found_by(results, stage)
        if cells:
            lines += ["", f"## {stage}", "", *_table(cells)]
    lines += ["", "## Bars", "", *_bars(found_by(results, "mixed"))]
    return "\n".join(lines) + "\n"


def _working(results: Path) -> list[str]:
    found = found_by(results, "rtx")
    if not found:
        return ["", "No TensorRT plan has run."]
    right = sum(bool(each["right"]) for each in found.values())
    wrong = [name for name, each in found.items() if not each["right"]]
    told = f"; wrong: {', '.join(wrong)}" if wrong else ""
    return ["", f"TensorRT plans that ran: {len(found)}, right: {right}{told}"]


def _tests(results: Path) -> list[str]:
    cases = [c for each in found_by(results, "tests").values() for c in each["cases"]]
    if not cases:
        return ["", "No GPU test has run."]
    counts = Counter(case["outcome"] for case in cases)
    told = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
    wrong = [f"- {c['name']}: {c['reason']}" for c in cases if c["outcome"] in _WRONG]
    return ["", f"GPU tests: {told}", *wrong]


def _table(cells: dict[str, dict[str, Any]]) -> list[str]:
    rows = ["| cell | contestant | tokens/s | p50 ms | of the peak | ratio |"]
    rows.append("|---|---|--:|--:|--:|--:|")
    for name, cell in cells.items():
        for who, timing in cell["timings"].items():
            ratio = cell["ratios"].get(who)
            rows.append(
                f"| {name} | {who} | {timing['tokens_per_second']:,.0f}"
                f" | {timing['p50'] * 1e3:.3f} | {cell['share_of_peak'][who]:.1%}"
                f" | {'' if ratio is None else f'{ratio:.2f}'} |"
            )
    return rows


def _bars(cells: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for name, bar in BARS.items():
        timings = cells.get(name, {}).get("timings", {})
        own = {who: t["tokens_per_second"] for who, t in timings.items() if _TORCH not in who}
        if not own:
            lines.append(f"- {name}: not measured")
            continue
        best = max(own, key=lambda who: own[who])
        verdict = "reached" if own[best] >= bar else "missed"
        ratio = cells[name]["ratios"].get(best)
        told = _ratio_verdict(ratio, cells[name]["baseline"])
        lines.append(f"- {name}: {own[best]:,.0f} of {bar:,.0f} tokens/s ({best}), {verdict}{told}")
    return lines


def _ratio_verdict(ratio: float | None, baseline: str | None) -> str:
    if ratio is None:
        return "; no PyTorch in this cell"
    verdict = "reached" if ratio >= RATIO_BAR else "missed"
    return f"; {ratio:.2f} × {baseline}, {verdict} (bar {RATIO_BAR})"
