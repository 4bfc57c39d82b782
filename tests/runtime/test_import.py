"""What a batch job loads: the runtime works where the compiler's packages are not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HEAVY = [
    *("torch", "transformers", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx"),
    *("numpy", "pyarrow", "PIL"),
]

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def output_of(code: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_the_runtime_loads_no_library() -> None:
    code = f"""
import sys, json, tfc.runtime
print(json.dumps([m for m in {HEAVY} if m in sys.modules]))
"""
    assert output_of(code) == []


def test_importing_the_session_loads_no_backend() -> None:
    heavy = [name for name in HEAVY if name != "numpy"]
    code = f"""
import sys, json
from tfc.runtime import Session
import tfc.runtime.jobs, tfc.runtime.backends, tfc.runtime.images, tfc.runtime.audio
print(json.dumps([m for m in {heavy} if m in sys.modules]))
"""
    assert output_of(code) == []


def test_reads_images_and_audio_without_the_compilers_packages() -> None:
    pytest.importorskip("PIL")
    code = BLOCKER.format(blocked={"torch", "transformers", "torchvision", "scipy"})
    code += """
import json
import numpy as np
from tfc.runtime.audio import AudioEncoder
from tfc.runtime.audio_steps import audio_steps_from_config
from tfc.runtime.images import ImageEncoder
from tfc.runtime.image_steps import image_steps_from_config
images = ImageEncoder(image_steps_from_config({}, "vit"))
audio = AudioEncoder(audio_steps_from_config({}, "whisper"))
(pixels,), (features,) = images.encode([np.zeros((4, 4), np.uint8)]), audio.encode([np.zeros(9)])
print(json.dumps([pixels.shape, features.shape]))
"""
    assert output_of(code) == [[3, 224, 224], [80, 3000]]


def test_importing_generation_loads_no_library() -> None:
    heavy = [name for name in HEAVY if name != "numpy"]
    code = f"""
import sys, json
import tfc.runtime.generation
print(json.dumps([m for m in {heavy} if m in sys.modules]))
"""
    assert output_of(code) == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    import tfc.runtime

    with pytest.raises(AttributeError, match="Sesion"):
        tfc.runtime.Sesion  # noqa: B018


@pytest.mark.ort
def test_predicts_without_the_compilers_packages(tiny: Any, tmp_path: Path) -> None:
    texts = ["I was charged twice", "", "Refund please " * 30]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    code = BLOCKER.format(blocked={"torch", "transformers", "onnx", "onnxscript", "onnx_ir"})
    code += """
import json
from pathlib import Path
from tfc.runtime import Session
from tfc.runtime.jobs import run_job
with Session.load(sys.argv[1]) as session:
    summary = run_job(session, Path(sys.argv[2]), Path(sys.argv[3]))
    found = session.predict([json.loads(l)["text"] for l in open(sys.argv[2], encoding="utf-8")])
assert summary.rows == 3
assert not {"torch", "transformers", "onnx"} & set(sys.modules)
print(json.dumps(found))
"""
    found = output_of(code, str(tiny.path), str(source), str(tmp_path / "out.jsonl"))
    for row, expected in zip(found, tiny.probabilities(texts), strict=True):
        assert list(row["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
