"""Parts of a tokenised text: cut to a length, in windows that overlap, or bare of its offsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenizers import Encoding


class Tokens(Protocol):
    """What padding needs of a row: a `tokenizers.Encoding`, or what `bare` leaves of one."""

    @property
    def ids(self) -> list[int]:
        """Token ids."""

    @property
    def type_ids(self) -> list[int]:
        """0 for the first text of a pair, 1 for the second."""

    @property
    def attention_mask(self) -> list[int]:
        """1 for every token."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class BareTokens:
    """A row without its offsets and words."""

    ids: list[int]
    type_ids: list[int]
    attention_mask: list[int]

    def __len__(self) -> int:
        return len(self.ids)


def bare(encoding: Encoding) -> BareTokens:
    """The row alone. An encoding that was cut keeps what was cut off, for as long as it lives."""
    return BareTokens(encoding.ids, encoding.type_ids, encoding.attention_mask)


def cut(encoding: Encoding, room: int, direction: str = "right") -> Encoding:
    """The first `room` tokens, or with direction ``left`` the last; the encoding stays as it is."""
    if len(encoding) <= room:
        return encoding
    shorter = _copy(encoding)
    shorter.truncate(room, direction=direction)
    return shorter


def windows_of(encoding: Encoding, room: int, stride: int) -> list[Encoding]:
    """Pieces of `room` tokens, each beginning `stride` tokens before the end of the one before."""
    if len(encoding) <= room:
        return [encoding]
    first = _copy(encoding)
    first.truncate(room, stride=stride)
    return [first, *first.overflowing]


def _copy(encoding: Encoding) -> Encoding:
    from tokenizers import Encoding

    return Encoding.merge([encoding], growing_offsets=False)
