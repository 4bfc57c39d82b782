"""`samples.npz`: the tensors on which a module was compared with its graph, and what it gave.

One array per entry, called `<case>/inputs/<name>` or `<case>/<precision>/<name>`: the inputs, and
the outputs of PyTorch in `fp32` and, where it can, in `fp16` and `bf16`. Nothing is pickled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.errors import BadArtifact

TENSOR_SAMPLES = "samples.npz"
_INPUTS = "inputs"

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TensorSample:
    """One batch of inputs by name, and PyTorch's outputs by precision and name."""

    inputs: Arrays = field(default_factory=dict)
    outputs: dict[str, Arrays] = field(default_factory=dict)


def save_tensor_samples(samples: Sequence[TensorSample], path: Path) -> None:
    """Write the samples; the same samples give the same bytes."""
    arrays: Arrays = {}
    for number, sample in enumerate(samples):
        for kind, given in ((_INPUTS, sample.inputs), *sample.outputs.items()):
            arrays |= {f"{number}/{kind}/{name}": array for name, array in given.items()}
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def tensor_samples_from(path: Path) -> list[TensorSample]:
    """Read the samples.

    Raises:
        BadArtifact: the file is no archive of plain arrays, or an entry has another name.
    """
    samples: dict[int, TensorSample] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for entry in archive.files:
                number, kind, name = entry.split("/", 2)
                sample = samples.setdefault(int(number), TensorSample())
                place = sample.inputs if kind == _INPUTS else sample.outputs.setdefault(kind, {})
                place[name] = archive[entry]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BadArtifact(
            f"the file does not hold samples ({error})",
            where=str(path),
            fix="Export the module again",
        ) from error
    return [samples[number] for number in sorted(samples)]
