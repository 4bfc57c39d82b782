"""Recordings → Whisper's log-mel `input_features`, equal to transformers' feature extractor.

1. Cut, or filled up, to the model's `chunk_length`; mirrored at both ends by half a frame, so that
   frame t is centred on sample t x `hop_length`.
2. Power spectrum of frames of `n_fft` samples under a periodic Hann window; the last frame is
   dropped.
3. Mel bands by triangles on Slaney's scale, each of unit area (M. Slaney, Auditory Toolbox, 1998).
4. log10, no lower than 8 below the loudest band, then (x + 4) / 4: `log_mel_spectrogram` of
   github.com/openai/whisper.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tfc.errors import BadArtifact, BadData, BadInput
from tfc.manifest import AudioPreprocess
from tfc.runtime.media_files import opened_file
from tfc.runtime.wav import Floats, samples_of_wav

Doubles = npt.NDArray[np.float64]

INPUT_FEATURES = "input_features"

_SMALLEST_POWER = 1e-10  # the floor under the logarithm
_RANGE = 8.0  # powers of ten below the loudest band: 80 dB
_TOP_FREQUENCY = 8000.0  # Hz, whatever the sampling rate
# Slaney's scale is linear up to 1000 Hz, 3 mels each 200 Hz, and then logarithmic.
_LINEAR_HERTZ = 1000.0
_HERTZ_PER_MEL = 200.0 / 3.0
_LINEAR_MELS = _LINEAR_HERTZ / _HERTZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


class AudioEncoder:
    """Turns recordings into the model's input. Safe to call from several threads.

    Args:
        preprocess: the values, from `audio_steps_from_config`.

    Raises:
        BadArtifact: a value of `preprocess` is not one that `audio_steps_from_config` gives.
    """

    def __init__(self, preprocess: AudioPreprocess) -> None:
        _check(preprocess)
        self.preprocess = preprocess
        self._filters = mel_filters(preprocess)
        self._window = np.hanning(preprocess.n_fft + 1)[:-1]

    def encode(self, items: Sequence[object]) -> list[Floats]:
        """One float32 array `[mels, frames]` per item, all of one size.

        Args:
            items: each a mono array `[samples]` of floats from -1 to 1 at the model's sampling
                rate, the path of a PCM WAV file, or the bytes of one. What is longer than the
                model's chunk is cut, as a text is at `max_length`.

        Raises:
            BadInput: an item is none of these, or a file that cannot be read.
            BadData: a file is no PCM WAV or of another sampling rate; a sample is not finite.
        """
        return [self.encode_one(item, f"item {index}") for index, item in enumerate(items)]

    def encode_one(self, item: object, where: str) -> Floats:
        """`encode` of one item; its errors name `where`, or its path if it is one."""
        samples = self._samples(item, where)[: self.preprocess.samples]
        if not np.isfinite(samples).all():
            raise BadData(
                f"sample {int(np.argmin(np.isfinite(samples)))} is not a finite number",
                where=where,
                fix="Leave the recording out, or repair it",
            )
        whole = np.full(self.preprocess.samples, self.preprocess.padding_value, np.float32)
        whole[: len(samples)] = samples
        return self._log_mel(whole)

    def batch(self, arrays: Sequence[Floats]) -> dict[str, Floats]:
        """The graph's input by name: `[batch, mels, frames]`."""
        return {INPUT_FEATURES: np.stack(arrays)}

    def _samples(self, item: object, where: str) -> Floats:
        rate, most = self.preprocess.sampling_rate, self.preprocess.samples
        if isinstance(item, np.ndarray):
            return _checked_array(item, where)
        if isinstance(item, (bytes, bytearray)):
            return samples_of_wav(io.BytesIO(item), rate, most, where)
        if isinstance(item, (str, Path)):
            with opened_file(item) as file:
                return samples_of_wav(file, rate, most, str(item))
        raise BadInput(
            f"this is a {type(item).__name__}, not a recording",
            where=where,
            fix="Give an array of samples, the path of a WAV file, or the bytes of one",
        )

    def _log_mel(self, samples: Floats) -> Floats:
        """`[samples]` → `[mels, frames]`; in float64 until the logarithm, as transformers does."""
        n_fft, hop = self.preprocess.n_fft, self.preprocess.hop_length
        mirrored = np.pad(samples.astype(np.float64), n_fft // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(mirrored, n_fft)[::hop][:-1]
        spectrum = np.fft.rfft(frames * self._window)
        mels = self._filters @ (spectrum.real**2 + spectrum.imag**2).T
        logs = np.log10(np.maximum(mels, _SMALLEST_POWER)).astype(np.float32)
        features: Floats = (np.maximum(logs, logs.max() - _RANGE) + 4.0) / 4.0
        return features


def mel_filters(preprocess: AudioPreprocess) -> Doubles:
    """The weight of each frequency in each band: [feature_size, n_fft // 2 + 1]."""
    top = _LINEAR_MELS + np.log(_TOP_FREQUENCY / _LINEAR_HERTZ) / _LOG_STEP
    corners = _hertz(np.linspace(0.0, top, preprocess.feature_size + 2))
    bins = np.linspace(0, preprocess.sampling_rate // 2, preprocess.n_fft // 2 + 1)
    left, centre, right = (corners[start:][: preprocess.feature_size, None] for start in range(3))
    rising = (bins - left) / (centre - left)
    falling = (right - bins) / (right - centre)
    filters: Doubles = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (right - left))
    return filters


def _hertz(mels: Doubles) -> Doubles:
    above = _LINEAR_HERTZ * np.exp(_LOG_STEP * (mels - _LINEAR_MELS))
    return np.where(mels < _LINEAR_MELS, mels * _HERTZ_PER_MEL, above)


def _checked_array(array: npt.NDArray[np.generic], where: str) -> Floats:
    if not np.issubdtype(array.dtype, np.floating):
        raise BadInput(
            f"samples are floats from -1 to 1, and this array holds {array.dtype}",
            where=where,
            fix="Divide by full scale: 32768 for int16",
        )
    if array.ndim != 1:
        raise BadInput(
            f"an array of shape {list(array.shape)} is not one mono recording",
            where=where,
            fix="Give [samples]; average the channels",
        )
    return array.astype(np.float32)


def _check(preprocess: AudioPreprocess) -> None:
    counts = (
        preprocess.feature_size,
        preprocess.sampling_rate,
        preprocess.hop_length,
        preprocess.chunk_length,
    )
    # Mirroring takes half a frame from the recording, and one frame is dropped.
    if min(counts) < 1 or not 1 < preprocess.n_fft < preprocess.samples - preprocess.hop_length:
        raise BadArtifact(
            "the values for audio do not fit together",
            fix="Export the checkpoint again with: tfc export --overwrite",
        )
