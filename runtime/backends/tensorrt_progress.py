"""A build of TensorRT that shows how far it is, and that can be stopped.

The build runs in a thread of its own: Python tells the main thread of Ctrl-C only between its own
instructions, and a build is one call into a library for seconds to minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tfc.runtime.backends.base import OnProgress

_PARTS = 100  # the whole build, as the progress bar counts it


def build_with_progress(
    trt: Any, builder: Any, network: Any, config: Any, on_progress: OnProgress
) -> Any:
    """`builder.build_serialized_network(network, config)`; an interruption ends it.

    What `on_progress` raises is raised here, too. TensorRT stops at the next step that it reports;
    it reports none while it compiles one large region.
    """
    monitor = _monitor(trt, on_progress)
    config.progress_monitor = monitor
    with ThreadPoolExecutor(1, "tfc-build") as pool:
        build = pool.submit(builder.build_serialized_network, network, config)
        try:
            memory = build.result()
        except BaseException:
            monitor.stop()
            raise
    monitor.reraise()
    return memory


def _monitor(trt: Any, on_progress: OnProgress) -> Any:
    """TensorRT calls its methods by name; an exception must not leave them."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self._levels = _Levels()
            self._stopped = False
            self._raised: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            self._levels.begin(phase_name, num_steps)
            self._guarded(self._show)

        def phase_finish(self, phase_name: str) -> None:
            self._levels.end(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._levels.step(phase_name, step)
            self._guarded(self._show)
            return not self._stopped

        def stop(self) -> None:
            """End the build at the next step."""
            self._stopped = True

        def reraise(self) -> None:
            """Raise what `on_progress` raised."""
            if self._raised is not None:
                raise self._raised

        def _show(self) -> None:
            on_progress(f"compiling: {self._levels.name}", self._levels.parts(_PARTS), _PARTS)

        def _guarded(self, call: Callable[[], None]) -> None:
            try:
                call()
            except BaseException as error:  # raised again when the build has ended
                self._raised = self._raised or error
                self._stopped = True

    return Monitor()


class _Levels:
    """Phases inside phases: how far each is."""

    def __init__(self) -> None:
        self._open: list[list[Any]] = []  # [name, steps done, steps]
        self._most = 0.0

    def begin(self, name: str, steps: int) -> None:
        """A phase begins inside those that are open."""
        self._open.append([name, 0, max(1, steps)])

    def step(self, name: str, step: int) -> None:
        """Step number `step` of a phase is done."""
        for level in self._open:
            if level[0] == name:
                level[1] = min(step + 1, level[2])

    def end(self, name: str) -> None:
        """A phase is over, and what is still open inside it."""
        names = [level[0] for level in self._open]
        if name in names:
            del self._open[names.index(name) :]

    @property
    def name(self) -> str:
        """The innermost phase, as the builder calls it."""
        return str(self._open[-1][0]).lower() if self._open else "done"

    def parts(self, whole: int) -> int:
        """How many of `whole` parts are done: never fewer than before, although TensorRT's phases
        may end before their last step.
        """
        share, size = 0.0, 1.0
        for _, done, steps in self._open:
            share += size * done / steps
            size /= steps
        self._most = max(self._most, min(1.0, share))
        return int(whole * self._most)
