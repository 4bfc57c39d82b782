"""Images on which parity is checked: drawn here, so that they are the same everywhere.

They stand in for a user's data until there is some. Shapes and sizes differ, so that every step
of the preprocessing has something to do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tfc.artifact import SAMPLE_FILES

_Bytes = npt.NDArray[np.uint8]


def write_sample_images(folder: Path) -> list[Path]:
    """Write the images as PNG files into the artifact's folder of samples."""
    from PIL import Image

    target = folder / SAMPLE_FILES
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, pixels in _images().items():
        path = target / f"{name}.png"
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths


def _images() -> dict[str, _Bytes]:
    random = np.random.default_rng(7)
    return {
        "gradient": _gradient(240, 320),
        "stripes": _stripes(300, 200),
        "disc": _disc(256, 256),
        "noise": random.integers(0, 256, (180, 260, 3)).astype(np.uint8),
        "small": _gradient(20, 31),
        "dark": np.full((224, 224, 3), 3, np.uint8),
    }


def _gradient(height: int, width: int) -> _Bytes:
    rows = np.linspace(0, 255, height)[:, None] * np.ones(width)
    columns = np.ones(height)[:, None] * np.linspace(255, 0, width)
    return np.stack([rows, columns, (rows + columns) / 2], axis=-1).astype(np.uint8)


def _stripes(height: int, width: int) -> _Bytes:
    places = np.add.outer(np.arange(height), 2 * np.arange(width)) // 16
    return np.stack([places % 2 * 255, places % 3 * 127, places % 5 * 63], axis=-1).astype(np.uint8)


def _disc(height: int, width: int) -> _Bytes:
    rows, columns = np.ogrid[:height, :width]
    inside = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (height / 3) ** 2
    return np.where(inside[..., None], [220, 60, 20], [30, 90, 200]).astype(np.uint8)
