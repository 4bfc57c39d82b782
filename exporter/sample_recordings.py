"""Recordings on which graphs are checked: made here, so that they are the same everywhere.

They stand in for a user's data. They differ in loudness, pitch and length, and one is silent.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tfc.artifact import SAMPLE_FILES

_LOUDEST = (1 << 15) - 1


def write_sample_recordings(folder: Path, sampling_rate: int) -> list[Path]:
    """Write the recordings as 16-bit mono WAV files into the artifact's folder of samples."""
    target = folder / SAMPLE_FILES
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, samples in _recordings(sampling_rate).items():
        path = target / f"{name}.wav"
        with wave.open(str(path), "wb") as stream:
            stream.setnchannels(1)
            stream.setsampwidth(2)
            stream.setframerate(sampling_rate)
            stream.writeframes((samples * _LOUDEST).astype("<i2").tobytes())
        paths.append(path)
    return paths


def _recordings(rate: int) -> dict[str, npt.NDArray[np.float64]]:
    random = np.random.default_rng(3)
    seconds = np.arange(2 * rate) / rate
    return {
        "chirp": 0.6 * np.sin(2 * np.pi * (200 + 600 * seconds) * seconds),
        "chord": 0.2 * np.sin(2 * np.pi * np.outer([220, 277, 330], seconds[:rate])).sum(axis=0),
        "noise": 0.1 * random.standard_normal(rate // 2).clip(-3, 3),
        "silence": np.zeros(rate // 4),
    }
