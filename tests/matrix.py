"""Every family and task that README's table of support lists: a tiny random checkpoint of each.

`tests/test_matrix.py` takes each from checkpoint to compiled kernels and compares what it found
with `tests/support.json`; README's table is made of that file (`python tests/matrix.py`).
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from checkpoints import TOKENIZER_FOLDER, VOCABULARY, save_tiny_checkpoint
from generators import CAUSAL, SEQ2SEQ, SPEECH, tiny_generator
from tokenizers_made import byte_level

SUPPORT = Path(__file__).parent / "support.json"
README = Path(__file__).resolve().parents[1] / "README.md"
NOT_FUSED = " (not wholly fused)"
_BEGIN, _END = "<!-- support table: python tests/matrix.py -->\n", "<!-- end -->\n"

_IDS = {"pad_token_id": 0, "bos_token_id": 101, "eos_token_id": 102}
# As large as TensorRT's fused attention wants: heads of 16 at least.
_WIDE: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 64, **_IDS}
_WIDE_SEQ2SEQ: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "decoder_start_token_id": 101,
    "forced_eos_token_id": None,
    **_IDS,
}
_OWN_WIDE: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 64, **_IDS},
    "opt": {**_WIDE, "word_embed_proj_dim": 64},
    # Their tokenizers add tokens of their own.
    "qwen2": {**_WIDE, "vocab_size": VOCABULARY + 8},
    "qwen3": {**_WIDE, "vocab_size": VOCABULARY + 8},
    # transformers' generate sizes the decoder's cache by the encoder's layers.
    "t5": {"vocab_size": VOCABULARY, "d_kv": 16, "num_layers": 2},
    "mt5": {"vocab_size": VOCABULARY, "d_kv": 16, "num_layers": 2},
    "whisper": {**_WIDE_SEQ2SEQ, "num_mel_bins": 80, "max_source_positions": 50},
}
# What takes long to trace, and has two layers in another task or in a family that is built alike.
_ONE_LAYER: dict[str, dict[str, int]] = {
    **{f: {"num_hidden_layers": 1} for f in ("opt", "mistral", "qwen2", "qwen3", "gemma", "phi")},
    **{f: {"decoder_layers": 1} for f in ("mbart", "marian", "pegasus", "m2m_100")},
    "bloom": {"n_layer": 1},
}
_VIT: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}
_SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 64,
    "depths": [1, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
_CONVNEXT: dict[str, Any] = {
    "hidden_sizes": [16, 32],
    "depths": [1, 1],
    "num_stages": 2,
    "image_size": 32,
}
_SQUARE = {"size": {"height": 32, "width": 32}}
_CROPPED = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


@dataclass(frozen=True)
class Case:
    """One family with one task; `save` writes its checkpoint into a folder.

    With `asked` the task is not told by the checkpoint, and export is asked for it.
    """

    family: str
    task: str
    save: Callable[[Path], object] = field(repr=False)
    asked: bool = False

    @property
    def name(self) -> str:
        """Its key in support.json."""
        return f"{self.task}/{self.family}"


def _text(task: str, head: str, *families: str, **config: Any) -> list[Case]:
    save = partial(save_tiny_checkpoint, head=head, **config)
    return [Case(family, task, partial(save, family=family)) for family in families]


def _generating(task: str, families: dict[str, dict[str, Any]]) -> list[Case]:
    return [Case(f, task, partial(save_generator, family=f)) for f in families]


def save_generator(folder: Path, family: str) -> None:
    """A model that generates, with the tokenizer of the demo's model."""
    import transformers

    wide = _OWN_WIDE.get(family, _WIDE if family in CAUSAL else _WIDE_SEQ2SEQ)
    tiny_generator(family, **wide, **_ONE_LAYER.get(family, {})).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER_FOLDER)
    tokenizer.model_max_length = 48
    tokenizer.save_pretrained(folder)
    if family in SPEECH:
        transformers.WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)


def save_image_model(folder: Path, model: str, config: dict[str, Any], steps: Any) -> None:
    """A model that reads images, and how they become tensors."""
    import torch
    import transformers

    kind = getattr(transformers, model)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = kind(kind.config_class(**config)).eval()
        for parameter in made.parameters():
            with torch.no_grad():
                parameter += 0.1 * torch.randn(parameter.shape)
        made.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(steps), encoding="utf-8")


def _image(family: str, task: str, model: str, config: dict[str, Any], **steps: Any) -> Case:
    labels = {"num_labels": 3} if task == "image-classification" else {}
    save = partial(save_image_model, model=model, config={**config, **labels}, steps=steps)
    return Case(family, task, save)


def save_clip_text(folder: Path) -> None:
    """The text tower of CLIP with its projection."""
    import torch
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=32,
        eos_token_id=102,
        bos_token_id=101,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    transformers.CLIPTextModelWithProjection(config).eval().save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(TOKENIZER_FOLDER).save_pretrained(folder)


def save_small_fill_mask(family: str, folder: Path) -> None:
    """With a vocabulary that is small, because each of a text's positions scores all of it."""
    tokenizer = byte_level()
    ids = {"bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2}
    save_tiny_checkpoint(folder, family, "MaskedLM", tokenizer=tokenizer, **ids)


CLASSIFICATION, FEATURES = "text-classification", "feature-extraction"
IMAGES, IMAGE_FEATURES = "image-classification", "image-feature-extraction"
CASES: tuple[Case, ...] = (
    *_text(
        CLASSIFICATION,
        "SequenceClassification",
        "albert",
        "bart",
        "bert",
        "bloom",
        "camembert",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "gpt2",
        "layoutlm",
        "llama",
        "mistral",
        "modernbert",
        "mpnet",
        "nomic_bert",
        "opt",
        "phi",
        "qwen2",
        "roberta",
        "roformer",
        "t5",
        "xlm-roberta",
    ),
    Case(
        "bert",
        "zero-shot-classification",
        partial(
            save_tiny_checkpoint,
            family="bert",
            id2label={0: "contradiction", 1: "neutral", 2: "entailment"},
        ),
        asked=True,
    ),
    *_text("token-classification", "TokenClassification", "bert", "xlm-roberta"),
    *_text("token-classification", "TokenClassification", "deberta-v2", num_hidden_layers=1),
    *_text(
        "question-answering",
        "QuestionAnswering",
        "bert",
        "deberta-v2",
        "roberta",
        id2label={0: "start", 1: "end"},
    ),
    *_text("fill-mask", "MaskedLM", "bert"),
    *(Case(f, "fill-mask", partial(save_small_fill_mask, f)) for f in ("distilbert", "modernbert")),
    *_text(FEATURES, "", "bert", "gemma", "gpt2", "qwen3", "t5"),
    Case("clip", FEATURES, save_clip_text),
    *_generating("text-generation", CAUSAL),
    *_generating("text2text-generation", SEQ2SEQ),
    *_generating("automatic-speech-recognition", SPEECH),
    _image(
        "beit",
        IMAGES,
        "BeitForImageClassification",
        _VIT,
        image_processor_type="BeitImageProcessor",
        **_SQUARE,
        crop_size=_SQUARE["size"],
    ),
    _image(
        "convnext",
        IMAGES,
        "ConvNextForImageClassification",
        _CONVNEXT,
        image_processor_type="ConvNextImageProcessor",
        size={"shortest_edge": 32},
    ),
    _image(
        "deit",
        IMAGES,
        "DeiTForImageClassification",
        _VIT,
        image_processor_type="DeiTImageProcessor",
        **_SQUARE,
        crop_size=_SQUARE["size"],
    ),
    _image(
        "dinov2",
        IMAGES,
        "Dinov2ForImageClassification",
        _VIT,
        image_processor_type="BitImageProcessor",
        **_CROPPED,
    ),
    _image(
        "swin",
        IMAGES,
        "SwinForImageClassification",
        _SWIN,
        image_processor_type="ViTImageProcessor",
        **_SQUARE,
    ),
    _image(
        "vit",
        IMAGES,
        "ViTForImageClassification",
        _VIT,
        image_processor_type="ViTImageProcessor",
        **_SQUARE,
    ),
    _image(
        "clip",
        IMAGE_FEATURES,
        "CLIPVisionModelWithProjection",
        {**_VIT, "projection_dim": 32},
        image_processor_type="CLIPImageProcessor",
        **_CROPPED,
    ),
    _image(
        "siglip",
        IMAGE_FEATURES,
        "SiglipVisionModel",
        _VIT,
        image_processor_type="SiglipImageProcessor",
        **_SQUARE,
    ),
    _image(
        "vit",
        IMAGE_FEATURES,
        "ViTModel",
        _VIT,
        image_processor_type="ViTImageProcessor",
        **_SQUARE,
    ),
)


def recorded() -> dict[str, dict[str, str]]:
    """What support.json says of each case."""
    found: dict[str, dict[str, str]] = json.loads(SUPPORT.read_text(encoding="utf-8"))
    return found


def table() -> str:
    """README's table: for each task the families, and those that are not wholly fused."""
    rows: dict[str, list[str]] = {}
    for name, row in sorted(recorded().items()):
        task, _, family = name.partition("/")
        rows.setdefault(task, []).append(family + ("" if row["fused"] == "yes" else NOT_FUSED))
    lines = ["| Task | Families |", "|---|---|"]
    order = list(dict.fromkeys(case.task for case in CASES))
    lines += [f"| {task} | {', '.join(rows[task])} |" for task in order if task in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table into README.md."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    README.write_text(before + _BEGIN + "\n" + table() + "\n" + _END + after, encoding="utf-8")


def table_in_readme() -> str:
    """What stands in README.md between the marks."""
    text = README.read_text(encoding="utf-8")
    return text.partition(_BEGIN)[2].partition(_END)[0].strip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
