"""A forward that depends on data is refused with its file, line and text."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import TOKENIZER_FOLDER, run_tfc
from torch import Tensor, nn

import tfc
from tfc.errors import BadCheckpoint


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        if y.sum() > 0:
            return y
        return x


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1


class Counts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x[0, 0])):
            x = x + 1
        return x


class Looks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        weights = [value / 2 for value in x[0].tolist()]
        return x * max(weights)


def line_of(kind: type, text: str) -> int:
    lines, first = inspect.getsourcelines(kind)
    return first + next(i for i, line in enumerate(lines) if text in line)


@pytest.mark.parametrize(
    ("module", "kind", "text"),
    [
        (Outer(), Inner, "if y.sum() > 0:"),
        (Counts(), Counts, "for _ in range(int(x[0, 0])):"),
        (Looks(), Looks, "return x * max(weights)"),
    ],
)
def test_the_line_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], module: Any, kind: type, text: str
) -> None:
    with pytest.raises(BadCheckpoint) as caught:
        tfc.export(module, torch.ones(3, 4), tmp_path / "a", dynamic_axes={"x": {0: "batch"}})
    assert caught.value.where == f"{__file__}:{line_of(kind, text)}"
    name = type(module).__name__
    assert caught.value.what.startswith(f"torch.onnx cannot export {name}, at `{text}` in forward:")
    assert "torch.where" in caught.value.fix
    assert not (tmp_path / "a").exists()
    assert capfd.readouterr() == ("", "")


MODELING = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

class TinyConfig(PretrainedConfig):
    model_type = "tiny-choosy"

class TinyForSequenceClassification(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding = torch.nn.Embedding(30522, 3)
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask=None, return_dict=True):
        x = self.embedding(input_ids)
        if x.mean() > 0:
            x = x * 2
        return SequenceClassifierOutput(logits=x.mean(1))
"""


def test_a_checkpoint_with_code_of_its_own(tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import save_file

    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "modeling.py").write_text(MODELING)
    save_file(
        {"embedding.weight": torch.randn(30522, 3)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = {
        "model_type": "tiny-choosy",
        "architectures": ["TinyForSequenceClassification"],
        "num_labels": 3,
        "auto_map": {
            "AutoConfig": "modeling.TinyConfig",
            "AutoModelForSequenceClassification": "modeling.TinyForSequenceClassification",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER_FOLDER / name, folder)
    done = run_tfc(
        "export", folder, "-o", tmp_path / "a", "--trust-remote-code", HF_HOME=str(tmp_path / "hf")
    )
    assert done.returncode == 5
    error = done.stderr.replace("\n", " ")
    assert "cannot export TinyForSequenceClassification, at `if x.mean() > 0:` in forward" in error
    assert "modeling.py:22" in error
    assert "Traceback" not in error
