"""Integer products are exact on every CPU: sessions ask for it where VNNI is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tfc.runtime.backends import onnxruntime_sessions as module
from tfc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from tfc.runtime.backends.onnxruntime_provider import IDENTITY_MODEL
from tfc.vnni import integer_products_saturate

HASWELL = "processor\t: 0\nmodel name\t: Intel\nflags\t\t: fpu sse4_2 avx avx2 fma\n"
ICE_LAKE = HASWELL.replace("fma", "fma avx512f avx512_vnni")
ALDER_LAKE = HASWELL.replace("fma", "fma avx_vnni")


@pytest.mark.parametrize(
    ("text", "machine", "saturates"),
    [
        (HASWELL, "x86_64", True),
        (ICE_LAKE, "x86_64", False),
        (ALDER_LAKE, "AMD64", False),
        ("processor\t: 0\n", "x86_64", True),
        ("", "x86_64", True),
        ("Features\t: asimd asimddp\n", "aarch64", False),
        (None, "AMD64", True),
        (None, "arm64", False),
    ],
)
def test_where_products_saturate(
    tmp_path: Path, monkeypatch: Any, text: str | None, machine: str, saturates: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert integer_products_saturate(cpuinfo) == saturates


@pytest.mark.ort
@pytest.mark.parametrize("saturates", [True, False])
def test_a_session_is_told(tmp_path: Path, monkeypatch: Any, saturates: bool) -> None:
    import onnxruntime

    made = []

    class Recorded(onnxruntime.InferenceSession):
        def __init__(self, path: str, options: Any, **others: Any) -> None:
            made.append(options)
            super().__init__(path, options, **others)

    monkeypatch.setattr(module, "integer_products_saturate", lambda: saturates)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    engine = tmp_path / "engine.onnx"
    engine.write_bytes(IDENTITY_MODEL)
    OnnxRuntimeBackend().load(engine, threads=1).close()
    entry = "session.x64quantprecision"
    if saturates:
        assert made[-1].get_session_config_entry(entry) == "1"
    else:
        with pytest.raises(RuntimeError):
            made[-1].get_session_config_entry(entry)
