"""Models that amplify rounding: their graphs may differ by what PyTorch itself rounds, not more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tfc.errors import CheckFailed
from tfc.exporter.comparison import RELATIVE_TOLERANCE, check_outputs
from tfc.exporter.rounding import MOST_TOLERANCE, tolerance_from_rounding

FEEDS = [{"x": np.random.default_rng(n).normal(size=(4, 32)).astype(np.float32)} for n in (0, 1)]


class Amplifier(torch.nn.Module):
    """`gain · (x·W − x·W')`, W' equal to W but for its last bits: rounding is all there is."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inside = torch.nn.Linear(32, 512)
        self.gain = gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.inside(x)
        return x[:, :4] + self.gain * (wide.cumsum(-1)[:, -1:] - wide.sum(-1, keepdim=True))


def exported(module: torch.nn.Module, path: Path) -> Path:
    x = torch.from_numpy(FEEDS[0]["x"])
    torch.onnx.export(module.eval(), (x,), path, dynamo=True, verbose=False)
    return path


def test_a_model_that_amplifies_rounding_gets_the_tolerance_that_it_needs(tmp_path: Path) -> None:
    module = Amplifier(30.0)
    before = [tensor.clone() for tensor in module.parameters()]
    parity = check_outputs(module, exported(module, tmp_path / "m.onnx"), FEEDS, "here")
    assert RELATIVE_TOLERANCE < parity.relative <= parity.tolerance <= MOST_TOLERANCE
    assert parity.as_json()["from_rounding"] is True
    for tensor, kept in zip(module.parameters(), before, strict=True):
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, kept)


def test_a_stable_model_keeps_the_fixed_tolerance(tmp_path: Path) -> None:
    module = Amplifier(0.0)
    parity = check_outputs(module, exported(module, tmp_path / "m.onnx"), FEEDS, "here")
    assert parity.tolerance == RELATIVE_TOLERANCE
    assert parity.as_json()["from_rounding"] is False


def test_a_wrong_graph_of_a_stable_model_is_refused(tmp_path: Path) -> None:
    """Off by 1e-4 of its scale, which its rounding does not explain."""
    graph = exported(Amplifier(0.0), tmp_path / "m.onnx")

    class Other(Amplifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1.0001

    with pytest.raises(CheckFailed, match="and 1e-05 of that is allowed"):
        check_outputs(Other(0.0), graph, FEEDS, "here")


def test_what_cannot_compute_in_fp64_has_no_measured_tolerance() -> None:
    class Insists(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) @ torch.ones(4, 4)

    module = Insists()
    assert tolerance_from_rounding(module, FEEDS, 1.0) is None
    assert module.layer.weight.dtype == torch.float32
    assert tolerance_from_rounding(module.half(), FEEDS, 1.0) is None
