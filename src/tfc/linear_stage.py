"""A fitted linear model of scikit-learn as a second stage: its coefficients, and a check of them.

scikit-learn itself is not imported: what counts is `coef_`, `intercept_` and `classes_`, and that
the model says what these say.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.errors import UsageError
from tfc.stage import LINEAR, Layer, SecondStage

_Matrix = npt.NDArray[np.float64]
# Rows on which a model's own answers are compared with those of its coefficients, and how far
# probabilities may be apart: both are computed in fp64, of numbers near 1.
_ROWS, _TOLERANCE = 64, 1e-6
_WHICH = (
    "Give a fitted LogisticRegression, RidgeClassifier, LinearRegression or the like, a "
    "OneVsRestClassifier of them for several labels, or an nn.Module"
)


def linear_stage(model: Any, reads: str) -> SecondStage:
    """The stage of a fitted linear model.

    Raises:
        UsageError: it is not linear, not fitted, or does not say what its coefficients say.
    """
    kind = type(model).__name__
    several = bool(getattr(model, "multilabel_", False))
    weight, bias = _several(model) if several else _coefficients(model)
    classes = getattr(model, "classes_", None)
    labels = [] if classes is None else [str(each) for each in np.asarray(classes).tolist()]
    if len(labels) == 2 and len(weight) == 1:
        # One logit for two classes: the softmax of (0, x) is (1 - sigmoid(x), sigmoid(x)).
        weight, bias = np.vstack([0 * weight, weight]), np.append(0.0, bias)
    problem = ("multi_label" if several else "single_label") if labels else "regression"
    _check(model, weight, bias, problem)
    layer = Layer(LINEAR, weight.tolist(), bias.tolist())
    return SecondStage(kind, reads, [layer], problem, labels)


def _several(model: Any) -> tuple[_Matrix, _Matrix]:
    """One row for each label, of which any may be right."""
    rows = [_coefficients(each) for each in getattr(model, "estimators_", ())]
    if not rows:
        raise UsageError(f"a second stage is linear, and {type(model).__name__} is not", fix=_WHICH)
    return np.vstack([weight for weight, _ in rows]), np.concatenate([bias for _, bias in rows])


def _coefficients(model: Any) -> tuple[_Matrix, _Matrix]:
    """`[outputs, features]`, `[outputs]`."""
    found = getattr(model, "coef_", None)
    if found is None:
        raise UsageError(
            f"a second stage is linear and fitted, and {type(model).__name__} has no coef_",
            fix=_WHICH,
        )
    given = found.toarray() if hasattr(found, "toarray") else found
    weight = np.atleast_2d(np.asarray(given, dtype=np.float64))
    intercept = np.asarray(model.intercept_, dtype=np.float64).reshape(-1)
    return weight, np.broadcast_to(intercept, (len(weight),)).copy()


def _check(model: Any, weight: _Matrix, bias: _Matrix, problem: str) -> None:
    """Its own answers on some rows are those that the logits give."""
    rows = np.random.default_rng(0).standard_normal((_ROWS, weight.shape[1]))
    logits = rows @ weight.T + bias
    with warnings.catch_warnings():
        # It may have been fitted on columns with names.
        warnings.simplefilter("ignore", UserWarning)
        if problem == "regression":
            own, expected = np.asarray(model.predict(rows)).reshape(logits.shape), logits
        elif hasattr(model, "predict_proba"):
            own, expected = np.asarray(model.predict_proba(rows)), _probabilities(logits, problem)
        else:
            own, expected = np.asarray(model.predict(rows)), _chosen(model, logits, problem)
    same = own.shape == expected.shape and (
        np.allclose(own, expected, atol=_TOLERANCE)
        if own.dtype.kind == "f"
        else bool((own == expected).all())
    )
    if not same:
        raise UsageError(
            f"this {type(model).__name__} does not say what its coefficients say: for one label "
            "their softmax, for several their sigmoid, for numbers their values",
            fix="Fit a LogisticRegression with the solver lbfgs, or a LinearRegression on numbers",
        )


def _probabilities(logits: _Matrix, problem: str) -> _Matrix:
    """Softmax over the labels, or the sigmoid of each."""
    from tfc.runtime.tasks.scores import sigmoid, softmax

    found: _Matrix = sigmoid(logits) if problem == "multi_label" else softmax(logits)
    return found


def _chosen(model: Any, logits: _Matrix, problem: str) -> npt.NDArray[Any]:
    if problem == "multi_label":
        return (logits > 0).astype(np.int64)
    chosen: npt.NDArray[Any] = np.asarray(model.classes_)[logits.argmax(axis=1)]
    return chosen
