"""Which tokens stay: what the corpus, the manifest, the graphs and the tokenizer itself need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfc.artifact import Artifact
from tfc.manifest import Preprocess
from tfc.runtime.tokenization import INPUT_IDS, tokenizer_from_file
from tfc.steps.vocabulary.corpus import Corpus
from tfc.steps.vocabulary.ids import ids_in_use
from tfc.steps.vocabulary.tokenizer_file import TokenizerFile
from tfc.steps.vocabulary.tokens import (
    NewText,
    check_same_tokens,
    on_new_text,
    used_ids,
    whole,
)
from tfc.vocabulary import Vocabulary


@dataclass(frozen=True)
class Choice:
    """The trimmed vocabulary and its tokenizer.

    `tokenizer` is the text of its `tokenizer.json`, `kind` its model's. `proven` tokens of the
    corpus are the same with both. `new_text` is what the vocabulary of the corpus without its last
    texts makes of those; None where there is one text only.
    """

    vocabulary: Vocabulary
    tokenizer: str
    kind: str
    proven: int
    new_text: NewText | None


def chosen_tokens(
    artifact: Artifact, corpus: Corpus, models: Sequence[Any], first: int = 0
) -> Choice:
    """Choose the tokens, cut the tokenizer, and compare it with the whole one.

    The `first` tokens of the vocabulary stay too.

    Raises:
        UsageError: the tokenizer, or a graph, is of a kind that cannot be cut.
        CheckFailed: a text of the corpus gives other tokens.
    """
    from tfc.optimizers.vocabulary import compared_ids

    preprocess, task = artifact.manifest.preprocess, artifact.manifest.task
    assert preprocess is not None
    path = artifact.file(preprocess.tokenizer)
    file = TokenizerFile(json.loads(path.read_text(encoding="utf-8")), str(path))
    before = whole(tokenizer_from_file(path))
    prompts = _prompts(preprocess)
    needed = file.structural() | ids_in_use(preprocess, task) | used_ids(before, file, prompts)
    for model in models:
        needed |= {i for i in compared_ids(model, [INPUT_IDS]) if 0 <= i < file.size}
    needed.update(i for i in file.ids.values() if i < first)
    seen = len(corpus.texts) - corpus.held_out
    of_first = used_ids(before, file, corpus.texts[:seen])
    of_rest = used_ids(before, file, corpus.texts[seen:])
    new_text = None
    if corpus.held_out:
        vocabulary, after, _ = _cut_tokenizer(file, needed | of_first)
        new_text = on_new_text(
            before, after, vocabulary.new_ids, file.unknown_id, corpus.texts[seen:]
        )
    vocabulary, after, text = _cut_tokenizer(file, needed | of_first | of_rest)
    texts = [*corpus.texts, *prompts]
    proven = check_same_tokens(before, after, vocabulary.new_ids, texts)
    return Choice(vocabulary, text, file.kind, proven, new_text)


def _cut_tokenizer(file: TokenizerFile, wanted: set[int]) -> tuple[Vocabulary, Any, str]:
    """The vocabulary with these tokens, its tokenizer, and the text of its file."""
    from tokenizers import Tokenizer

    vocabulary = Vocabulary(file.size, sorted(file.closed(wanted)))
    tokenizer = Tokenizer.from_str(json.dumps(file.trimmed(vocabulary.new_ids)))
    return vocabulary, whole(tokenizer), tokenizer.to_str(pretty=True)


def _prompts(preprocess: Preprocess) -> list[str]:
    """What is put before a text counts as text of the corpus."""
    return list(preprocess.prompts.values())
