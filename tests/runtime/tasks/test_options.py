"""Options are read strictly, in Python and as text, and help lists all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from tfc.errors import UsageError
from tfc.runtime.tasks import EVERY_TASK
from tfc.runtime.tasks.options import (
    described_options,
    option,
    options_from_values,
    values_from_settings,
)


@dataclass(frozen=True)
class Options:
    needed: tuple[str, ...] = option("a list")
    count: int | None = option("a count", None)
    text: str = option("a text", "{}")
    flag: bool = option("a flag", False)
    kind: Literal["a", "b"] = option("a kind", "a")


def made(**values: Any) -> Any:
    return options_from_values("the-task", Options, values)


def test_defaults_and_values() -> None:
    assert made(needed=["x"]) == Options(("x",))
    assert made(needed=("x",), count=3, text="t", flag=True, kind="b") == Options(
        ("x",), 3, "t", True, "b"
    )


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"cuont": 3}, "the-task has no option 'cuont'. Did you mean 'count'.* needed, count, te"),
        ({"zzz": 3}, "no option 'zzz'. It has: needed"),
        ({"count": "3"}, "'count' is '3', not a whole number or null. It is: a count"),
        ({"count": True}, "'count' is True, not a whole number"),
        ({"count": 3.0}, "'count' is 3.0, not"),
        ({"flag": 1}, "'flag' is 1, not true or false"),
        ({"text": None}, "'text' is None, not a text"),
        ({"kind": "c"}, "'kind' is 'c', not one of a, b"),
        ({"needed": "x"}, "'needed' is 'x', not a list of texts"),
        ({"needed": ["x", 3]}, "'needed' is list, not a list of texts"),
        ({}, "the-task needs the option 'needed': a list. .*--set needed="),
    ],
)
def test_refuses_what_does_not_fit(values: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        made(**values)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("count=3", 3),
        ("count=null", None),
        ("count=x", "x"),
        ("flag=true", True),
        ("text=3", "3"),
        ("text=true", "true"),
        ('text="a, b"', "a, b"),
        ("text=a=b, c", "a=b, c"),
        ("text=", ""),
        ("kind=b", "b"),
        ("needed=a, b,", ["a", "b"]),
        ("needed=3", ["3"]),
        ('needed=["a, b", "c"]', ["a, b", "c"]),
    ],
)
def test_settings_are_read_as_their_type_asks(setting: str, value: Any) -> None:
    name = setting.partition("=")[0]
    found = values_from_settings("the-task", Options, [setting])
    assert found == {name: value}
    assert type(found[name]) is type(value)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["count"], "'count' is not NAME=VALUE"),
        (["=3"], "not NAME=VALUE"),
        (["count=3", "count=4"], "'count' is set twice"),
        (["batch_size=4"], "the-task has no option 'batch_size'"),
    ],
)
def test_settings_that_make_no_sense(settings: list[str], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        values_from_settings("the-task", Options, settings)


def test_described() -> None:
    assert described_options(Options) == [
        ("needed", "a list  [required]"),
        ("count", "a count"),
        ("text", "a text  [default: {}]"),
        ("flag", "a flag  [default: false]"),
        ("kind", "a kind  [default: a]"),
    ]


@pytest.mark.parametrize("name", list(EVERY_TASK))
def test_every_option_says_what_it_is(name: str) -> None:
    rows = described_options(EVERY_TASK[name].options)
    assert all(text.partition("  [")[0] for _, text in rows)
