"""The report's drawings, as SVG that stands in the page and needs nothing else.

The same numbers give the same bytes: no dates, no random names.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tfc.errors import require

# Told apart by readers who do not see all colours, and in print: Okabe and Ito's palette.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
GREY = "#999999"
PRECISION_COLOURS = {
    "fp32": "#D55E00",
    "fp16": "#0072B2",
    "bf16": "#56B4E9",
    "int8": "#009E73",
    "fp8": "#CC79A7",
}
_WIDTH = 7.2  # inches of 72 points: what fits a phone when scaled down, and still reads
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tfc",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e5e5e5",
    "figure.constrained_layout.use": True,
}
# The prolog and the document type are of a file of its own; in a page they are errors.
_GROUP = re.compile(r'<g id="[^"]+">')  # the same names in every drawing; nothing refers to them
_PROLOG = re.compile(r"^.*?(?=<svg)", re.DOTALL)


@contextmanager
def _drawing(height: float) -> Iterator[tuple[Any, Any, io.StringIO]]:
    """A figure, its axes, and where its SVG will be when the block ends."""
    require("matplotlib", "report")
    import matplotlib
    from matplotlib.figure import Figure

    written = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height))
        yield figure, figure.subplots(), written
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})


def _svg(written: io.StringIO) -> str:
    """The drawing alone, as wide as the page allows."""
    text = _PROLOG.sub("", written.getvalue()).strip()
    text = _GROUP.sub("<g>", text)
    return re.sub(r'^<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img">', text)


def grouped_bars(groups: Sequence[str], values: Mapping[str, Sequence[float]], label: str) -> str:
    """A group of bars for each of `groups`, in it one bar for each name of `values`."""
    with _drawing(2.8) as (figure, axes, written):
        width = 0.8 / max(1, len(values))
        for number, (name, heights) in enumerate(values.items()):
            places = [group + (number + 0.5) * width - 0.4 for group in range(len(groups))]
            colour = COLOURS[number % len(COLOURS)]
            axes.bar(places, heights, width * 0.92, label=name, color=colour)
        axes.set_xticks(range(len(groups)), groups)
        axes.set_ylabel(label)
        figure.legend(loc="outside upper left", ncols=min(3, len(values)), frameon=False)
    return _svg(written)


def latency_ranges(
    groups: Sequence[str], ranges: Mapping[str, Sequence[tuple[float, float]]], label: str
) -> str:
    """For each of `groups` and each name a line from one value to another, on a log scale."""
    with _drawing(2.8) as (figure, axes, written):
        step = 0.7 / max(1, len(ranges))
        for number, (name, pairs) in enumerate(ranges.items()):
            colour = COLOURS[number % len(COLOURS)]
            places = [group + (number + 0.5) * step - 0.35 for group in range(len(groups))]
            low, high = zip(*pairs, strict=True)
            axes.vlines(places, low, high, color=colour, linewidth=2)
            axes.plot(places, low, "o", color=colour, label=name, markersize=5)
            axes.plot(places, high, "_", color=colour, markersize=8)
        axes.set_xticks(range(len(groups)), groups)
        axes.set_yscale("log")
        axes.set_ylabel(label)
        figure.legend(loc="outside upper left", ncols=min(3, len(ranges)), frameon=False)
    return _svg(written)


def bars(values: Sequence[float], label: str, of: str) -> str:
    """A bar for each value, in their order, on a log scale."""
    with _drawing(2.2) as (_, axes, written):
        axes.bar(range(len(values)), values, color=COLOURS[0])
        axes.set_yscale("log")
        axes.set_xlabel(of)
        axes.set_ylabel(label)
    return _svg(written)


def histogram(counts: Mapping[int, int], label: str) -> str:
    """How often each number stands, as bars of equal width."""
    with _drawing(2.2) as (_, axes, written):
        bins = min(40, max(1, len(counts)))
        axes.hist(list(counts), bins=bins, weights=list(counts.values()), color=COLOURS[0])
        axes.set_xlabel(label)
        axes.set_ylabel("texts")
    return _svg(written)


def errors(found: Mapping[str, tuple[float, float]]) -> str:
    """For each name a value and the limit that it is held against, on a log scale."""
    with _drawing(0.8 + 0.45 * len(found)) as (figure, axes, written):
        smallest = min(min(pair) for pair in found.values() if min(pair) > 0)
        for place, (value, limit) in enumerate(list(found.values())[::-1]):
            good = value <= limit
            shown = max(value, smallest / 10)
            axes.plot([shown, limit], [place, place], color=GREY, linewidth=1)
            axes.plot(shown, place, "o", color=COLOURS[2] if good else COLOURS[5], label="error")
            axes.plot(limit, place, "|", color="black", markersize=12, label="allowed")
        axes.set_yticks(range(len(found)), list(found)[::-1])
        axes.set_ylim(-0.6, len(found) - 0.4)
        axes.set_xscale("log")
        axes.grid(axis="x")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[:2], labels[:2], loc="outside upper left", ncols=2, frameon=False)
    return _svg(written)


def errors_along(places: Sequence[str], found: Sequence[tuple[float, float]], label: str) -> str:
    """A value and its limit at each of `places` in their order, on a log scale.

    Places that are not named share the name of the one before them.
    """
    with _drawing(2.6) as (figure, axes, written):
        values, limits = zip(*found, strict=True)
        smallest = min((value for value in (*values, *limits) if value > 0), default=1.0)
        shown = [max(value, smallest) for value in values]
        axes.plot(limits, color="black", linewidth=1, label="allowed")
        axes.plot(shown, ".-", color=COLOURS[0], linewidth=1, markersize=4, label="error")
        named = [place for place, name in enumerate(places) if name]
        axes.set_xticks(named, [places[place] for place in named])
        axes.set_yscale("log")
        axes.set_ylabel(label)
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return _svg(written)


def coloured_grid(
    rows: Sequence[str], cells: Sequence[Sequence[tuple[str, str]]], colours: Mapping[str, str]
) -> str:
    """Rows of (word, key) cells, each in the colour of its key."""
    with _drawing(0.7 + 0.28 * len(rows)) as (figure, axes, written):
        from matplotlib.patches import Patch

        for row, line in enumerate(cells):
            for column, (word, key) in enumerate(line):
                axes.barh(row, 0.96, left=column, height=0.88, color=colours.get(key, GREY))
                axes.text(column + 0.48, row, word, ha="center", va="center", color="white", size=6)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks([])
        axes.grid(visible=False)
        for side in ("bottom", "left"):
            axes.spines[side].set_visible(False)
        keys = dict.fromkeys(key for line in cells for _, key in line)
        patches = [Patch(color=colours.get(key, GREY), label=key) for key in keys]
        figure.legend(handles=patches, loc="outside upper left", ncols=6, frameon=False)
    return _svg(written)
