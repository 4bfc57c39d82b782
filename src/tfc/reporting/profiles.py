"""The texts that engines were built for, and what their optimization profiles make of them."""

from __future__ import annotations

from tfc.artifact import Artifact
from tfc.cli.traffic_display import batches_of, cost_rows, memory_of, texts_of
from tfc.manifest import Engine, Traffic
from tfc.reporting.blocks import Block, Chart, Note, Section, Table
from tfc.reporting.charts import histogram


def profile_sections(artifact: Artifact) -> list[Section]:
    """A section for each engine that was built for texts of the user's own."""
    return [
        Section(f"Texts that {name} was built for", tuple(_blocks(engine, engine.traffic)))
        for name, engine in artifact.manifest.engines.items()
        if engine.traffic is not None
    ]


def _blocks(engine: Engine, traffic: Traffic) -> list[Block]:
    lengths = {int(length): rows for length, rows in traffic.lengths.items()}
    costs = ". ".join(f"{name}: {text}" for name, text in cost_rows(traffic).items())
    blocks: list[Block] = [
        Chart(histogram(lengths, "tokens"), f"Lengths of {texts_of(traffic)}"),
        Note(f"Batches {batches_of(traffic)}. {costs}".replace("\n", ", ")),
    ]
    if engine.profiles:
        rows = tuple(_row(lengths, profile) for profile in engine.profiles)
        blocks.append(Table(("batch (min:opt:max)", "tokens (min:opt:max)", ">texts"), rows))
    if engine.memory:
        blocks.append(Note(memory_of(engine.memory)))
    return blocks


def _row(lengths: dict[int, int], profile: dict[str, list[int]]) -> tuple[str, str, str]:
    least, _, most = profile["sequence"]
    texts = sum(rows for length, rows in lengths.items() if least <= length <= most)
    sizes = (":".join(map(str, profile[axis])) for axis in ("batch", "sequence"))
    return (*sizes, str(texts))  # type: ignore[return-value]  # two axes, one number
