"""A `tokenizer.json` with fewer tokens: what must stay with those that are wanted, and new ids.

Ids keep their order, so that token `kept[i]` becomes token i. Why the same text still gives the
same tokens, if all that it gave are kept:

1. WordPiece takes the longest piece that matches; a longer one than it took was not there before
   and is not there now. A word that no pieces cover is unknown: the pieces that match before it
   fails are kept too, so that it fails in the same place.
2. BPE makes the merge of the lowest rank that it can. All merges between kept tokens stay, and
   with a token its parts, whatever merge makes it: so each merge that was made is there, and no
   other of a lower rank.
3. Unigram takes the best of all ways to cut a text; one that was best among more is best still.
   An unknown character costs a fixed amount more than the worst piece: that piece stays.
4. WordLevel knows a word or does not.

Text that nobody saw can give other tokens, but is not unknown where it was known: the tokens of
one character stay (and the bytes, for tokenizers that fall back on them), and each piece that has
a character without such a token. Only WordLevel has nothing to fall back on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tfc.errors import UsageError

Json = dict[str, Any]
_FIX = "Leave --trim-vocab out: this tokenizer cannot be trimmed"
_BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))


class TokenizerFile:
    """A parsed `tokenizer.json`: what of it must stay, and the same with some tokens only.

    Raises:
        UsageError: its model is of another kind than those above.
    """

    def __init__(self, content: Json, where: str) -> None:
        self._content = content
        self._model: Json = content["model"]
        self.kind: str = self._model.get("type") or ""
        if self.kind not in _STRUCTURAL:
            raise UsageError(
                f"a tokenizer of the kind '{self.kind or 'unknown'}' cannot be trimmed",
                where=where,
                fix=_FIX,
            )
        self.ids: dict[str, int] = _ids_of(self._model)
        added: list[Json] = content.get("added_tokens") or []
        self._added = {str(token["content"]): int(token["id"]) for token in added}

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max([*self.ids.values(), *self._added.values()]) + 1

    @property
    def unknown_id(self) -> int | None:
        """The token of what cannot be encoded."""
        if self.kind == "Unigram":
            unknown: int | None = self._model.get("unk_id")
            return unknown
        return self.ids.get(self._model.get("unk_token") or "")

    @property
    def prefix(self) -> str:
        """What pieces inside of a word begin with."""
        return self._model.get("continuing_subword_prefix") or ""

    def structural(self) -> set[int]:
        """The tokens that stay whatever the corpus: special, added, templates', characters."""
        found = {*self._added.values(), *_ids_in_templates(self._content.get("post_processor"))}
        unknown = self.unknown_id
        found |= set() if unknown is None else {unknown}
        return found | {self.ids[token] for token in _STRUCTURAL[self.kind](self._model, self.ids)}

    def closed(self, kept: Iterable[int]) -> set[int]:
        """The tokens, and for BPE what they are merged from."""
        found = set(kept)
        if self.kind != "BPE":
            return found
        parts: dict[int, list[int]] = {}
        for left, right, whole in self._merges():
            parts.setdefault(whole, []).extend((left, right))
        waiting = list(found)
        while waiting:
            new = set(parts.get(waiting.pop(), ())) - found
            found |= new
            waiting += new
        return found

    def trimmed(self, new_ids: Mapping[int, int]) -> Json:
        """The file with the tokens of `new_ids` only, under their new ids."""
        content, model = dict(self._content), dict(self._model)
        if self.kind == "Unigram":
            pieces = model["vocab"]
            model["vocab"] = [pieces[i] for i in sorted(new_ids) if i < len(pieces)]
            unknown = self.unknown_id
            model["unk_id"] = None if unknown is None else new_ids[unknown]
        else:
            tokens = sorted((new_ids[i], token) for token, i in self.ids.items() if i in new_ids)
            model["vocab"] = {token: i for i, token in tokens}
        if self.kind == "BPE":
            model["merges"] = [
                merge
                for merge, ids in zip(self._model["merges"], self._merges(), strict=True)
                if all(i in new_ids for i in ids)
            ]
        content["model"] = model
        added = self._content.get("added_tokens") or []
        content["added_tokens"] = [{**token, "id": new_ids[token["id"]]} for token in added]
        content["post_processor"] = _with_new_ids(self._content.get("post_processor"), new_ids)
        content["padding"] = None  # the batches are padded by what `preprocess` says
        return content

    def _merges(self) -> Iterator[tuple[int, int, int]]:
        """Left, right and result of each merge, in their order."""
        skipped = len(self.prefix)
        for merge in self._model["merges"]:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            yield self.ids[left], self.ids[right], self.ids[left + right[skipped:]]


def pieces_before_failure(word: str, ids: Mapping[str, int], prefix: str) -> Iterator[int]:
    """What WordPiece matches of a word, up to where nothing does."""
    start = 0
    while start < len(word):
        lead = prefix if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if lead + word[start:end] in ids), None)
        if end is None:
            return
        yield ids[lead + word[start:end]]
        start = end


def _ids_of(model: Json) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        return {str(token): int(i) for token, i in vocabulary.items()}
    return {str(piece): i for i, (piece, _) in enumerate(vocabulary)}


def _of_wordpiece(model: Json, ids: Mapping[str, int]) -> Iterator[str]:
    prefix = model.get("continuing_subword_prefix") or ""
    for token in ids:
        inner = token.removeprefix(prefix)
        starts = "" if inner == token else prefix
        singles = [f"{prefix if i else starts}{c}" for i, c in enumerate(inner)]
        if len(inner) <= 1 or any(single not in ids for single in singles):
            yield token


def _of_bpe(model: Json, ids: Mapping[str, int]) -> Iterator[str]:
    prefix, suffix = (
        model.get(name) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix")
    )
    for token in ids:
        if len(token.removeprefix(prefix).removesuffix(suffix)) <= 1 or token in _BYTE_TOKENS:
            yield token


def _of_unigram(model: Json, ids: Mapping[str, int]) -> Iterator[str]:
    worst = min(model["vocab"], key=lambda piece: piece[1], default=None)
    if worst is not None:
        yield str(worst[0])
    for token in ids:
        if len(token) <= 1 or token in _BYTE_TOKENS or any(c not in ids for c in token):
            yield token


def _of_wordlevel(model: Json, ids: Mapping[str, int]) -> Iterator[str]:
    return (token for token in ids if len(token) <= 1)


_STRUCTURAL: dict[str, Callable[[Json, Mapping[str, int]], Iterator[str]]] = {
    "WordPiece": _of_wordpiece,
    "BPE": _of_bpe,
    "Unigram": _of_unigram,
    "WordLevel": _of_wordlevel,
}


def _ids_in_templates(part: Json | None) -> Iterator[int]:
    """The token ids in a post-processor."""
    if part is None:
        return
    for name in _PAIRS.get(part["type"], ()):
        yield int(part[name][1])
    for special in part.get("special_tokens", {}).values():
        yield from map(int, special["ids"])
    for inner in part.get("processors", ()):
        yield from _ids_in_templates(inner)


def _with_new_ids(part: Json | None, new_ids: Mapping[int, int]) -> Json | None:
    """A post-processor with new ids in the places of the old."""
    if part is None:
        return None
    changed = dict(part)
    for name in _PAIRS.get(part["type"], ()):
        changed[name] = [part[name][0], new_ids[part[name][1]]]
    if "special_tokens" in part:
        changed["special_tokens"] = {
            name: {**special, "ids": [new_ids[i] for i in special["ids"]]}
            for name, special in part["special_tokens"].items()
        }
    if "processors" in part:
        changed["processors"] = [_with_new_ids(inner, new_ids) for inner in part["processors"]]
    return changed


# Post-processors that name their tokens so: ["[SEP]", 102].
_PAIRS = dict.fromkeys(("BertProcessing", "RobertaProcessing"), ("sep", "cls"))
