"""Which optimization profile of a plan a batch runs with. Pure functions of shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class ShapeProfile:
    """The shapes of one optimization profile: input → (smallest, best, largest)."""

    inputs: Mapping[str, tuple[Shape, Shape, Shape]]

    def refused(self, shapes: Shapes) -> str:
        """The first input whose shape is outside of the profile; empty where all are within."""
        for name, (smallest, _, largest) in self.inputs.items():
            shape = shapes[name]
            if len(shape) != len(smallest):
                return name
            for size, least, most in zip(shape, smallest, largest, strict=True):
                if not least <= size <= most:
                    return name
        return ""

    def distance(self, shapes: Shapes) -> float:
        """How far the shapes are from those that its kernels were chosen for.

        The kernels depend on ratios of sizes: the sum of |log(size / best size)| over all axes.
        """
        total = 0.0
        for name, (_, best, _) in self.inputs.items():
            for size, wanted in zip(shapes[name], best, strict=True):
                total += abs(math.log(max(size, 1) / max(wanted, 1)))
        return total


def chosen_profile(profiles: Sequence[ShapeProfile], shapes: Shapes) -> int | None:
    """The profile that takes the shapes and is nearest to them; the first of equals; or None."""
    fitting = [index for index, each in enumerate(profiles) if not each.refused(shapes)]
    if not fitting:
        return None
    return min(fitting, key=lambda index: (profiles[index].distance(shapes), index))


def ranges_of_input(profiles: Sequence[ShapeProfile], name: str) -> str:
    """What a plan takes for an input, as words: `(1, 1) to (4, 8)`, of each profile once."""
    ranges = [f"{each.inputs[name][0]} to {each.inputs[name][2]}" for each in profiles]
    return ", or ".join(dict.fromkeys(ranges))
