"""The lines about optimization profiles, and the texts that they were made for."""

from __future__ import annotations

from collections.abc import Mapping

from tfc.cli.console import human_bytes, human_count
from tfc.manifest import Engine, Traffic
from tfc.steps.traffic.plan import BUCKETS, LONGEST, ONE

_WAYS = {
    BUCKETS: "padded to the next width",
    LONGEST: "one profile, each batch padded to its longest text",
    ONE: "one width for all",
}


def profile_rows(engine: Engine) -> dict[str, str]:
    """What is worth saying of an engine's profiles; nothing of a single one without data."""
    rows = {"texts": "", "profiles": _profiles(engine), "batches": "", "padding": "", "cost": ""}
    if engine.traffic is not None:
        rows["texts"] = texts_of(engine.traffic)
        rows["batches"] = batches_of(engine.traffic)
        rows |= cost_rows(engine.traffic)
    if engine.memory:
        rows["memory"] = memory_of(engine.memory)
    return {name: value for name, value in rows.items() if value}


def texts_of(traffic: Traffic) -> str:
    """`3000 of tickets.jsonl, 79 tokens on average, 256 at most`."""
    counts = {int(length): rows for length, rows in traffic.lengths.items()}
    rows = sum(counts.values())
    mean = sum(length * number for length, number in counts.items()) / rows
    refused = f"; {traffic.refused} cannot be read" if traffic.refused else ""
    return (
        f"{traffic.texts} of {traffic.data}, {mean:.0f} tokens on average, {max(counts)} at most"
        f"{refused}"
    )


def batches_of(traffic: Traffic) -> str:
    """How they run."""
    width = (
        f"padded to {', '.join(map(str, traffic.widths))}"
        if traffic.widths
        else "as wide as the longest text: any width runs at no cost here"
    )
    return (
        f"of at most {human_count(traffic.tokens)} tokens and {traffic.rows} texts, {width}; sorted"
        f" {human_count(traffic.window)} texts at a time"
    )


def cost_rows(traffic: Traffic) -> dict[str, str]:
    """The expected padding of each way, and its cost beside that of one width."""
    ways: Mapping[str, Mapping[str, float]] = traffic.cost.get("ways", {})
    if not ways:
        return {}
    one = ways[ONE]["cost_per_text"]
    curve = traffic.cost["curve"]
    saves = traffic.cost.get("last_bucket_saves")
    last = f"; the last bucket saves {saves:.1%}" if saves else ""
    return {
        "padding": "\n".join(f"{way['padding']:.1%} {_WAYS[name]}" for name, way in ways.items()),
        "cost": ", ".join(
            f"{way['cost_per_text'] / one:.2f} {name}" if one else name
            for name, way in ways.items()
            if name != ONE
        )
        + f" (one width is 1; {curve['unit']}){last}",
    }


def memory_of(memory: list[int]) -> str:
    """`33.4 MB of activations`, of several profiles the largest, which one context needs."""
    of = f", the largest of {len(memory)} profiles" if len(memory) > 1 else ""
    return f"{human_bytes(max(memory))} of activations on the GPU for each context{of}"


def _profiles(engine: Engine) -> str:
    return "\n".join(
        ", ".join(f"{axis} {':'.join(map(str, sizes))}" for axis, sizes in profile.items())
        for profile in engine.profiles
    )
