"""The combination of several classifiers' logits, inside the graph.

Its output is of the form of one classifier, so that predictions are read as ever: the softmax (for
models of several labels the sigmoid) of the combined logits is the combined probability.

With x the logits of a member, in the labels' common order, divided by its temperature, w its
weight (they sum to 1) and p = softmax(x):

1. one label, ``softmax`` and ``temperature``. mean and weighted: log Σ w·p. max: log max p, of
   which the softmax is max p divided by the sum of all labels' max p. vote: log of (v + ε·mean
   p) / (1 + ε), with v the share of the members whose largest logit is the label's.
2. one label, ``zscore``: z = (x - mean) / standard deviation over the labels of one text. mean and
   weighted: Σ w·z. max: max z. vote: as above, with softmax(z) for p.
3. several labels, p = sigmoid(x): the same P of each label for itself, and the logit
   log P - log (1 - P). A member votes for a label where its logit is at least 0.
4. numbers: Σ w·x, or max x.

All are computed from logarithms, the largest term first: no probability underflows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tfc.ensemble import MAX, VOTE, ZSCORE
from tfc.manifest import Ensemble
from tfc.runtime.tasks.classification import LEAST_LOGIT, MULTI_LABEL, REGRESSION

# What the mean probability weighs beside votes: enough to decide ties, too little to decide more
# (a vote of one of ten members weighs 100 times as much).
TIE_BREAKER = 1e-3


class Combined(torch.nn.Module):
    """Logits `[batch, …, labels]` of each member → logits of the ensemble, of the same shape.

    Args:
        ensemble: the rule, and the members' weights and temperatures.
        problem: how the logits are read: ``single_label``, ``multi_label`` or ``regression``.
        orders: for each member, where each label of the ensemble stands among its own.
    """

    def __init__(self, ensemble: Ensemble, problem: str, orders: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self._rule, self._normalize = ensemble.rule, ensemble.normalize
        self._weights = [member.weight for member in ensemble.members]
        self._temperatures = [member.temperature for member in ensemble.members]
        self._problem = problem
        self._moved = [list(order) != sorted(order) for order in orders]
        for number, order in enumerate(orders):
            self.register_buffer(f"order_{number}", torch.tensor(order), persistent=False)

    def forward(self, *outputs: Tensor) -> Tensor:
        """The combined logits."""
        logits = [self._form(number, each) for number, each in enumerate(outputs)]
        rule, weights = self._rule, self._weights
        if rule == MAX:
            return functools.reduce(torch.maximum, logits)
        if self._problem == MULTI_LABEL:
            return _log_odds(logits, weights, rule == VOTE)
        if rule == VOTE:
            given = [_chosen(each) for each in logits]
            return _voted(given, _log_mean([_log_p(each) for each in logits], weights))
        if self._problem == REGRESSION or self._normalize == ZSCORE:
            return _sum([weight * each for weight, each in zip(weights, logits, strict=True)])
        return _log_mean(logits, weights)

    def _form(self, number: int, logits: Tensor) -> Tensor:
        """A member's logits in the form that the rule reads."""
        if self._moved[number]:
            logits = logits.index_select(-1, self.get_buffer(f"order_{number}"))
        temperature = self._temperatures[number]
        if temperature != 1:
            logits = logits / temperature
        if self._normalize == ZSCORE:
            return functional.layer_norm(logits, logits.shape[-1:])
        if self._problem in (MULTI_LABEL, REGRESSION):
            return logits
        return _log_p(logits)


def _log_p(logits: Tensor) -> Tensor:
    return functional.log_softmax(logits, dim=-1)


def _log_mean(logs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """log Σ w·exp(log): the mean of what is given as logarithms."""
    largest = functools.reduce(torch.maximum, logs)
    terms = zip(weights, logs, strict=True)
    return largest + torch.log(_sum([w * torch.exp(log - largest) for w, log in terms]))


def _log_odds(logits: Sequence[Tensor], weights: Sequence[float], vote: bool) -> Tensor:
    """log P - log (1 - P), of each label for itself."""
    yes = _log_mean([functional.logsigmoid(each) for each in logits], weights)
    no = _log_mean([functional.logsigmoid(-each) for each in logits], weights)
    if vote:
        for_it = [(each >= LEAST_LOGIT).to(each.dtype) for each in logits]
        yes, no = _voted(for_it, yes), _voted([1 - each for each in for_it], no)
    return yes - no


def _chosen(logits: Tensor) -> Tensor:
    """1 for the label with the largest logit, the first of several, and 0 for the others."""
    labels = torch.arange(logits.shape[-1], device=logits.device)
    return (logits.argmax(dim=-1, keepdim=True) == labels).to(logits.dtype)


def _voted(given: Sequence[Tensor], log_mean: Tensor) -> Tensor:
    """log of (the share of the votes + ε·mean p) / (1 + ε)."""
    share = _sum(given) / len(given)
    tie = math.log(TIE_BREAKER) + log_mean
    # Where there is no vote, log(0 + ε·p) is written as a sum: ε·p may be too small for a number.
    some = torch.log(torch.clamp(share, min=1 / len(given)) + torch.exp(tie))
    return torch.where(share > 0, some, tie) - math.log1p(TIE_BREAKER)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    add: Callable[[Tensor, Tensor], Tensor] = torch.add
    return functools.reduce(add, terms)
