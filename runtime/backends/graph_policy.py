"""When to capture a CUDA graph, when to launch it, and which one to give up. No call of CUDA."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum

from tfc.runtime.backends.shape_profiles import Shape

# A graph saves the launches, some 2.5 µs for each of a BERT-base's 110 kernels: 0.3 ms. From 4096
# tokens on (0.7 TFLOP: 1.4 ms at 500 TFLOP/s) the launches are done while the GPU still computes.
MOST_ELEMENTS = 4096
# Each graph has a context of its own (a few MB of host memory): shapes of a service repeat, those
# of a batch job hardly do.
MOST_GRAPHS = 16
# A shape that comes again is worth the capture, which costs about two runs.
CALLS_BEFORE = 2


@dataclass(frozen=True)
class GraphKey:
    """What a graph is captured for: the profile, and the shapes of the inputs in their order."""

    profile: int
    shapes: tuple[Shape, ...]

    @property
    def elements(self) -> int:
        """The elements of the largest input: tokens, where it is a batch of them."""
        largest = 0
        for shape in self.shapes:
            count = 1
            for size in shape:
                count *= size
            largest = max(largest, count)
        return largest


class Decision(Enum):
    """What to do with a batch."""

    RUN = "run"
    CAPTURE = "run, then capture"
    LAUNCH = "launch"


@dataclass
class GraphPolicy:
    """Decides for one lane. Off for good after a failed capture: the engine has what forbids it."""

    enabled: bool = True
    most_elements: int = MOST_ELEMENTS
    most_graphs: int = MOST_GRAPHS
    calls_before: int = CALLS_BEFORE
    _calls: OrderedDict[GraphKey, int] = field(default_factory=OrderedDict)
    _captured: OrderedDict[GraphKey, None] = field(default_factory=OrderedDict)

    def decide(self, key: GraphKey) -> Decision:
        """What to do with a batch of this key; counts the call."""
        if not self.enabled or key.elements > self.most_elements:
            return Decision.RUN
        if key in self._captured:
            self._captured.move_to_end(key)
            return Decision.LAUNCH
        calls = self._calls.pop(key, 0) + 1
        if calls >= self.calls_before:
            return Decision.CAPTURE
        self._calls[key] = calls
        if len(self._calls) > self.most_graphs:
            self._calls.popitem(last=False)
        return Decision.RUN

    def captured(self, key: GraphKey) -> GraphKey | None:
        """Note a graph; returns the key of the one to give up for it, the longest unused."""
        self._captured[key] = None
        if len(self._captured) <= self.most_graphs:
            return None
        return self._captured.popitem(last=False)[0]

    def failed(self) -> None:
        """Note that a capture failed: no further one is tried."""
        self.enabled = False

    def forget(self) -> None:
        """Note that every graph is gone: the buffers that they were captured with have moved."""
        self._captured.clear()
