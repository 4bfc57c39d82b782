"""The error tree: the sentences, the exit codes, the translation of what the system says."""

from __future__ import annotations

import errno
import pickle
import sys
from pathlib import Path

import pytest

from tfc import errors
from tfc.errors import (
    BadArtifact,
    EnvironmentProblem,
    MissingPackage,
    NoSpace,
    TfcError,
    disk_errors,
    is_installed,
    require,
)

TREE = {
    "TfcError": 1,
    "CheckFailed": 1,
    "UsageError": 2,
    "ContractNotReached": 3,
    "EnvironmentProblem": 4,
    "MissingPackage": 4,
    "BackendUnavailable": 4,
    "NoSpace": 4,
    "BadInput": 5,
    "BadCheckpoint": 5,
    "BadArtifact": 5,
    "BadData": 5,
    "JobStopped": 130,
}


def test_every_error_stands_in_the_tree_with_its_exit_code():
    found = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, TfcError)
    }
    assert found == TREE
    assert all(name in errors.__doc__ for name in TREE)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "it broke"),
        ({"where": "a.onnx"}, "a.onnx: it broke"),
        ({"fix": "Mend it"}, "it broke. Mend it"),
        ({"where": "a.onnx", "fix": "Mend it"}, "a.onnx: it broke. Mend it"),
    ],
)
def test_the_text_says_where_what_and_what_to_do(fields, text):
    assert str(TfcError("it broke", **fields)) == text


@pytest.mark.parametrize("name", TREE)
def test_errors_cross_process_borders(name):
    kind = getattr(errors, name)
    copy = pickle.loads(pickle.dumps(kind("it broke", fix="Mend it", where="a.onnx")))
    assert type(copy) is kind
    assert (copy.what, copy.fix, copy.where) == ("it broke", "Mend it", "a.onnx")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EACCES, EnvironmentProblem),
        (errno.EPERM, EnvironmentProblem),
        (errno.EROFS, EnvironmentProblem),
    ],
)
def test_complaints_of_the_system_are_translated(code, kind):
    cause = OSError(code, "the system's words")
    with pytest.raises(kind) as caught, disk_errors(Path("out")):
        raise cause
    assert type(caught.value) is kind
    assert caught.value.where == "out"
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("error", [OSError(errno.EISDIR, "x"), ValueError("x"), BadArtifact("x")])
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as caught, disk_errors(Path("out")):
        raise error
    assert caught.value is error


def test_a_missing_package_names_the_extra():
    with pytest.raises(MissingPackage, match=r"pip install 'tfc\[compile\]'"):
        require("no_such_package_of_tfc", "compile")
    require("json", "compile")


def test_is_installed_answers_where_importlib_raises(monkeypatch):
    assert not is_installed("no_such_package_of_tfc.part")
    monkeypatch.setitem(sys.modules, "blocked_package", None)
    assert not is_installed("blocked_package")
    assert is_installed("json.decoder")


def test_the_first_line_of_any_error() -> None:
    from tfc.errors import first_line

    assert first_line(ValueError("\n  it broke.\nlong story")) == "it broke"
    assert first_line(KeyError()) == "KeyError"
