"""The smallest sub-graph that shows a difference, with its inputs, for Polygraphy."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import BISECT_FOLDER
from tfc.errors import first_line

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.optimizers.bisection.gap import Gap

Array = npt.NDArray[Any]
GRAPH, INPUTS, EXPECTED = "subgraph.onnx", "inputs.json", "expected.json"
_RUNNER = "reference"


@dataclass(frozen=True)
class Reproducer:
    """A sub-graph, its inputs, what its output should be, and how far that may be off.

    `shown` says whether ONNX Runtime's own session, which Polygraphy uses, shows the difference;
    `why_not` says why it does not, where it does not even run. `folder` is in the artifact.
    """

    folder: str
    graph: ir.Model
    inputs: dict[str, Array]
    expected: dict[str, Array]
    allowed: float
    shown: bool
    max_abs: float
    why_not: str = ""

    @property
    def files(self) -> list[str]:
        """The names of its files in the artifact."""
        return [f"{self.folder}/{name}" for name in (GRAPH, INPUTS, EXPECTED)]

    @property
    def command(self) -> str:
        """What to run in its folder; exit code 1 shows the difference."""
        return (
            f"polygraphy run {GRAPH} --onnxrt --load-inputs {INPUTS} "
            f"--load-outputs {EXPECTED} --atol {self.allowed:.3g} --rtol 0"
        )

    def write(self, folder: Path) -> None:
        """Write its files.

        Raises:
            MissingPackage: polygraphy is not installed.
        """
        from polygraphy.comparator import RunResults
        from polygraphy.json import save_json
        from polygraphy.logger import G_LOGGER

        from tfc.onnx_files import save_onnx

        folder.mkdir(parents=True, exist_ok=True)
        save_onnx(self.graph, folder / GRAPH)
        results = RunResults()
        results.add([self.expected], runner_name=_RUNNER)
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            save_json([self.inputs], str(folder / INPUTS))
            results.save(str(folder / EXPECTED))

    def as_json(self) -> dict[str, Any]:
        """As reports/verify.json holds it."""
        return {
            "folder": self.folder,
            "files": self.files,
            "command": self.command,
            "nodes": [f"{node.op_type} {node.name}" for node in self.graph.graph],
            "shown": self.shown,
            "max_abs": self.max_abs,
            "why_not": self.why_not,
        }


def reproducer_of(
    engine: str,
    model: ir.Model,
    feed: dict[str, Array],
    known: dict[str, Array],
    value: str,
    gap: Gap,
) -> Reproducer:
    """Cut the graph at the known values, up to `value`.

    In half precision ONNX Runtime's CPU provider leaves out roundings between operations. Where it
    does not show the difference, the sub-graph with the roundings written out is kept instead.

    Args:
        engine: the engine's name.
        model: the graph that is wrong.
        feed: its inputs.
        known: right values in it, by name; that of `value` among them.
        value: the one that is wrong.
        gap: how far it is off, and how far it may be.
    """
    from tfc.optimizers.bisection.cutting import SUFFIX, cut
    from tfc.optimizers.precision.simulation import has_half, simulate_half

    at = {name for name in known if name != value}
    part = cut(model, at, [value])
    given = {**feed, **known}
    inputs = {str(v.name): given[str(v.name)] for v in part.graph.inputs}
    expected = {f"{value}{SUFFIX}": known[value]}
    found = _on_onnxruntime(part, inputs, expected, gap.allowed_max)
    if not found[0] and has_half(part):
        simulated = part.clone()
        simulate_half(simulated)
        again = _on_onnxruntime(simulated, inputs, expected, gap.allowed_max)
        part, found = (simulated, again) if again[0] else (part, found)
    folder = f"{BISECT_FOLDER}/{engine}"
    return Reproducer(folder, part, inputs, expected, gap.allowed_max, *found)


def _on_onnxruntime(
    part: ir.Model, inputs: dict[str, Array], expected: dict[str, Array], allowed: float
) -> tuple[bool, float, str]:
    """Whether ONNX Runtime with its own options shows it; how far off it is; why it fails."""
    import onnxruntime

    from tfc.onnx_files import save_onnx

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / GRAPH
        save_onnx(part, path)
        try:
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            (got,) = session.run(list(expected), inputs)
        except Exception as error:  # ONNX Runtime's errors have no common root
            return False, 0.0, first_line(error)
    (right,) = expected.values()
    if got.shape != right.shape or not np.array_equal(np.isfinite(got), np.isfinite(right)):
        return True, float("inf"), ""
    finite = np.isfinite(right)
    largest = float(np.abs(got[finite].astype(np.float64) - right[finite]).max(initial=0.0))
    return largest > allowed, largest, ""
