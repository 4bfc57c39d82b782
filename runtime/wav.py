"""WAV files → mono float32 samples, with the standard library alone."""

from __future__ import annotations

import wave
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tfc.errors import BadData, first_line

Floats = npt.NDArray[np.float32]

_SAMPLE_BYTES = (1, 2, 3, 4)


def samples_of_wav(stream: BinaryIO, sampling_rate: int, most: int, where: str) -> Floats:
    """The first `most` samples of a PCM WAV file: `[samples]`, from -1 to 1, channels averaged.

    Args:
        stream: the file; 8 (unsigned), 16, 24 or 32 bits a sample.
        sampling_rate: what the model takes, in Hz.
        most: read no further than this.
        where: the file, for messages.

    Raises:
        BadData: it is no such file, is cut short, or has another sampling rate.
    """
    try:
        with wave.open(stream) as file:
            header = file.getparams()
            wanted = min(header.nframes, most)
            data = file.readframes(wanted)
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: a seek out of a chunk
        raise BadData(
            f"this is not a WAV file of PCM samples ({first_line(error)})",
            where=where,
            fix=_conversion(sampling_rate),
        ) from error
    if header.sampwidth not in _SAMPLE_BYTES:
        raise BadData(
            f"the samples have {header.sampwidth * 8} bits, and tfc reads up to 32",
            where=where,
            fix=_conversion(sampling_rate),
        )
    if header.framerate != sampling_rate:
        raise BadData(
            f"the recording has {header.framerate} samples a second, and the model was trained"
            f" with {sampling_rate}",
            where=where,
            fix=_conversion(sampling_rate),
        )
    found = len(data) // (header.sampwidth * header.nchannels)
    if found < wanted:
        raise BadData(
            f"the recording is cut short: {found} of its {header.nframes} samples are there",
            where=where,
            fix="Get it again from its source",
        )
    channels = _floats(data, header.sampwidth).reshape(-1, header.nchannels)
    mono: Floats = channels.mean(axis=1)
    return mono


def _floats(data: bytes, width: int) -> Floats:
    """Little-endian samples of `width` bytes as float32, full scale being 1."""
    raw = np.frombuffer(data, np.uint8).reshape(-1, width)
    # In the upper bytes of 32 bits, so that the sign bit is where int32 has it.
    words = np.zeros((len(raw), 4), np.uint8)
    words[:, 4 - width :] = raw
    if width == 1:
        words[:, 3] ^= 128  # 8 bits are stored with an offset of 128, the others signed
    return (words.view("<i4")[:, 0] / 2.0**31).astype(np.float32)


def _conversion(sampling_rate: int) -> str:
    return (
        f"Convert it, for instance with: ffmpeg -i INPUT -ar {sampling_rate} -ac 1"
        " -c:a pcm_s16le OUTPUT.wav"
    )
