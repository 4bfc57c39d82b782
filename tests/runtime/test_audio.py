"""`input_features` equal Whisper's in transformers, and bad recordings say so in one sentence."""

from __future__ import annotations

import dataclasses
import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfc.errors import BadArtifact, BadCheckpoint, BadData, BadInput
from tfc.manifest import AudioPreprocess
from tfc.runtime.audio import AudioEncoder
from tfc.runtime.audio_steps import audio_steps_from_config

WHERE = "preprocessor_config.json"
RATE = 16000
CONVERT = "Convert it, for instance with: ffmpeg -i INPUT -ar 16000 -ac 1 -c:a pcm_s16le OUTPUT.wav"
# Without torch, transformers works in float64 as tfc does, and rounds the spectrum to complex64:
# 2.4e-7 at most here, two units in the last place of float32.
NUMPY_DIFFERENCE = 5e-7
# With torch it works in float32, where the quietest bands that are kept, 80 dB under the loudest,
# have 1e-4 of its amplitude and so 6e-4 of relative error: 5.3e-5 at most here, after the log.
TORCH_DIFFERENCE = 1e-4


def whisper(**values: Any) -> dict[str, Any]:
    return {"feature_extractor_type": "WhisperFeatureExtractor", **values}


CONFIGS: dict[str, dict[str, Any]] = {
    "nothing said": whisper(),
    "large-v3": whisper(
        feature_size=128,
        sampling_rate=16000,
        hop_length=160,
        chunk_length=30,
        n_fft=400,
        padding_value=0.0,
        padding_side="right",
        dither=0.0,
        return_attention_mask=False,
        n_samples=480000,
        nb_max_frames=3000,
    ),
    "short chunks": whisper(chunk_length=2, padding_value=0.25, do_normalize=True),
    "an odd frame": whisper(chunk_length=3, n_fft=401, hop_length=163, feature_size=40),
    "another rate": whisper(chunk_length=2, sampling_rate=24000, n_fft=1024, hop_length=256),
    "filters kept in the file": whisper(chunk_length=2, mel_filters=[[0.0]]),
}


def tone(seconds: float, rate: int = RATE) -> np.ndarray:
    """A rising tone under a slow swell."""
    time = np.arange(int(seconds * rate)) / rate
    wave_form = np.sin(2 * np.pi * (200 + 400 * time) * time) * np.sin(np.pi * time / 2) ** 2
    samples: np.ndarray = (0.7 * wave_form).astype(np.float32)
    return samples


def noise(seconds: float) -> np.ndarray:
    samples = np.random.default_rng(0).standard_normal(int(seconds * RATE)) * 0.1
    return samples.astype(np.float32)


RECORDINGS = {
    "tone": tone(1.7),
    "noise": noise(1.3),
    "longer than a chunk": noise(31),
    "silence": np.zeros(RATE, np.float32),
    "empty": np.zeros(0, np.float32),
    "one click": np.eye(1, 4000, 1234, dtype=np.float32)[0],
    "very quiet": tone(1) * 1e-6,
    "float64": tone(1).astype(np.float64),
    "clipped": np.clip(tone(1) * 50, -1, 1),
}


def extractor(config: dict[str, Any], folder: Path) -> Any:
    """transformers' own, as it loads it from a checkpoint's folder."""
    transformers = pytest.importorskip("transformers")
    (folder / WHERE).write_text(json.dumps(config), encoding="utf-8")
    return transformers.AutoFeatureExtractor.from_pretrained(folder)


def encoder(**values: Any) -> AudioEncoder:
    return AudioEncoder(audio_steps_from_config(whisper(chunk_length=1, **values)))


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    """A WAV file of integers `[frames, channels]` or `[frames]`; int64 stands for 24 bits."""
    width = {"uint8": 1, "int16": 2, "int64": 3, "int32": 4}[samples.dtype.name]
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(samples.shape[1] if samples.ndim == 2 else 1)
        file.setsampwidth(width)
        file.setframerate(rate)
        words = samples.astype("<i8").reshape(-1, 1).view(np.uint8)[:, :width]
        file.writeframes(words.tobytes())
    return stream.getvalue()


@pytest.mark.parametrize("torch", [True, False], ids=["torch path", "numpy path"])
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers(
    name: str, torch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = extractor(CONFIGS[name], tmp_path)
    module = "transformers.models.whisper.feature_extraction_whisper.is_torch_available"
    monkeypatch.setattr(module, lambda: torch)
    ours = AudioEncoder(audio_steps_from_config(CONFIGS[name]))

    found = ours.encode(list(RECORDINGS.values()))

    allowed = TORCH_DIFFERENCE if torch else NUMPY_DIFFERENCE
    for (recording, samples), features in zip(RECORDINGS.items(), found, strict=True):
        expected = theirs(samples, sampling_rate=theirs.sampling_rate, return_tensors="np")
        np.testing.assert_allclose(
            features, expected["input_features"][0], rtol=0, atol=allowed, err_msg=recording
        )
        assert features.dtype == np.float32


def test_a_batch_is_one_tensor() -> None:
    made = encoder()
    batch = made.batch(made.encode([tone(0.2), noise(2)]))
    assert list(batch) == ["input_features"]
    assert batch["input_features"].shape == (2, 80, 100)


@pytest.mark.parametrize(
    ("dtype", "bits"), [("uint8", 8), ("int16", 16), ("int64", 24), ("int32", 32)]
)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_reads_wav_files(dtype: str, bits: int, channels: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(bits)
    scale = 2 ** (bits - 1)
    whole = rng.integers(-scale, scale, (RATE // 2, channels))
    whole[0], whole[1] = -scale, scale - 1
    stored = (whole + 128 if bits == 8 else whole).astype(dtype)
    data = wav(stored)
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    expected = encoder().encode([(whole / scale).mean(axis=1)])[0]
    for item in (path, str(path), data):
        (found,) = encoder().encode([item])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_long_file_is_read_no_further_than_needed(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    samples = (noise(3) * 20000).astype(np.int16)
    # Cut after the first second, which is all that this model hears.
    path.write_bytes(wav(samples)[: 44 + 2 * RATE])
    expected = encoder().encode([samples[:RATE] / 32768])
    np.testing.assert_allclose(encoder().encode([path]), expected, rtol=0, atol=1e-6)


def test_the_values_are_plain() -> None:
    assert json.loads(json.dumps(dataclasses.asdict(audio_steps_from_config(whisper())))) == {
        "feature_size": 80,
        "sampling_rate": 16000,
        "hop_length": 160,
        "chunk_length": 30,
        "n_fft": 400,
        "padding_value": 0.0,
    }


def test_the_newest_files_nest_the_values_and_old_ones_go_by_the_model() -> None:
    plain = audio_steps_from_config(whisper())
    assert audio_steps_from_config({"feature_extractor": whisper()}) == plain
    assert audio_steps_from_config({}, "whisper") == plain


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            {"feature_extractor_type": "ASTFeatureExtractor"},
            "the feature extractor 'ASTFeatureExtractor' is not one that tfc knows",
        ),
        ({}, "the feature extractor 'of no name' is not one that tfc knows"),
        (
            whisper(dither=1e-4),
            "'dither' adds random noise, so that a recording would never give one result",
        ),
        (whisper(padding_side="left"), "'padding_side' is not right, where tfc pads recordings"),
        (whisper(n_fft=0), "'n_fft' is 0, not a whole number from 1 on"),
        (whisper(hop_length=None), "'hop_length' is None, not a whole number from 1 on"),
        (whisper(padding_value="0"), "'padding_value' is '0', not a number"),
    ],
)
def test_refuses_what_it_cannot_do(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadCheckpoint) as caught:
        audio_steps_from_config(config)
    fix = "Give the model tensors instead of audio, or correct the file"
    assert str(caught.value) == f"{WHERE}: {reason}. {fix}"


SHORT = wav((noise(0.5) * 20000).astype(np.int16))
SENTENCES: list[tuple[object, type[Exception], str]] = [
    (
        b"no recording",
        BadData,
        "item 0: this is not a WAV file of PCM samples (file does not start with RIFF id). "
        + CONVERT,
    ),
    (b"", BadData, f"item 0: this is not a WAV file of PCM samples (EOFError). {CONVERT}"),
    (
        SHORT[:20] + b"\x03" + SHORT[21:],
        BadData,
        f"item 0: this is not a WAV file of PCM samples (unknown format: 3). {CONVERT}",
    ),
    (
        SHORT[:1044],
        BadData,
        "item 0: the recording is cut short: 500 of its 8000 samples are there."
        " Get it again from its source",
    ),
    (
        wav(np.zeros(9, np.int16), 44100),
        BadData,
        "item 0: the recording has 44100 samples a second, and the model was trained with 16000. "
        + CONVERT,
    ),
    (
        np.array([0.0, np.nan], np.float32),
        BadData,
        "item 0: sample 1 is not a finite number. Leave the recording out, or repair it",
    ),
    (
        np.zeros(9, np.int16),
        BadInput,
        "item 0: samples are floats from -1 to 1, and this array holds int16."
        " Divide by full scale: 32768 for int16",
    ),
    (
        np.zeros((2, 9), np.float32),
        BadInput,
        "item 0: an array of shape [2, 9] is not one mono recording."
        " Give [samples]; average the channels",
    ),
    (
        [0.0, 0.1],
        BadInput,
        "item 0: this is a list, not a recording."
        " Give an array of samples, the path of a WAV file, or the bytes of one",
    ),
    (
        "missing.wav",
        BadInput,
        "missing.wav: this file cannot be read: No such file or directory. Check the path; a"
        " relative one starts at the folder that the program runs in",
    ),
]


@pytest.mark.parametrize(("item", "error", "sentence"), SENTENCES, ids=range(len(SENTENCES)))
def test_says_what_is_wrong_with_an_item(
    item: object, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error) as caught:
        encoder().encode([item])
    assert str(caught.value) == sentence
    assert type(caught.value) is error


def test_every_damaged_file_gives_a_tfc_error() -> None:
    made = encoder()
    rng = np.random.default_rng(0)
    data = np.frombuffer(wav(np.zeros((20, 2), np.int16)), np.uint8)
    refused = 0
    for _ in range(400):
        damaged = data[: rng.integers(1, len(data) + 1)].copy()
        places = rng.integers(0, min(44, len(damaged)), 3)
        damaged[places] = rng.integers(0, 256, 3)
        try:
            made.encode([damaged.tobytes()])
        except BadData:  # no other error is right
            refused += 1
    assert 0 < refused < 400, "some damage only changes the sound"


def test_values_that_do_not_fit_are_a_bad_artifact() -> None:
    good = AudioPreprocess(80, 16000, 160, 30, 400, 0.0)
    for bad in ({"n_fft": 1}, {"n_fft": 480000}, {"hop_length": 0}, {"chunk_length": 0}):
        with pytest.raises(BadArtifact) as caught:
            AudioEncoder(dataclasses.replace(good, **bad))
        assert str(caught.value) == (
            "the values for audio do not fit together."
            " Export the checkpoint again with: tfc export --overwrite"
        )
