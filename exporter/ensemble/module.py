"""Several models and what combines them, as one module: what is exported, and the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tfc.ensemble import FEATURES, HEADS
from tfc.exporter.ensemble.combine import Combined
from tfc.exporter.ensemble.stacked import Features, Stacked
from tfc.exporter.tasks import FEATURE_EXTRACTION
from tfc.manifest import Ensemble, Member, Task
from tfc.runtime.tasks.classification import SINGLE_LABEL
from tfc.stage import SecondStage, stage_order


class EnsembleOf(torch.nn.Module):
    """Models that each take some of the inputs, and the combination of their outputs.

    Args:
        members: each takes int64 tensors `[batch, sequence]`, and gives one tensor.
        takes: for each member the names of its inputs.
        names: the names of all inputs, in the order in which `forward` takes them.
        combination: takes what the members give, in their order.
    """

    def __init__(
        self,
        members: Sequence[torch.nn.Module],
        takes: Sequence[Sequence[str]],
        names: Sequence[str],
        combination: torch.nn.Module,
    ) -> None:
        super().__init__()
        self.members = torch.nn.ModuleList(members)
        self.combination = combination
        self._takes = [tuple(each) for each in takes]
        self._names = tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The combined output, or each member's own."""
        given = dict(zip(self._names, inputs, strict=True))
        outputs = []
        for member, names in zip(self.members, self._takes, strict=True):
            found = member(*(given[name] for name in names))
            outputs.append(found[0] if isinstance(found, tuple) else found)
        combined = self.combination(*outputs)
        return combined if isinstance(combined, tuple) else (combined,)


class Listed(torch.nn.Module):
    """A module that takes its inputs as one list: torch's exporter wants named arguments."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """What the module gives for them."""
        outputs: tuple[Tensor, ...] = self.model(*inputs)
        return outputs


class SideBySide(torch.nn.Module):
    """Logits of each member, as they are."""

    def forward(self, *outputs: Tensor) -> tuple[Tensor, ...]:
        """All of them, in their order."""
        return outputs


class Concatenated(torch.nn.Module):
    """Embeddings `[batch, hidden]` of each member → one, as long as all of them together.

    Each is scaled to the length √w, so that the product of two such embeddings is the weighted
    mean of the members' cosines. (Embeddings of different models are in different spaces: their
    sum would mean nothing.)
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self._scales = [weight**0.5 for weight in weights]

    def forward(self, *embeddings: Tensor) -> Tensor:
        """The joined embedding, of length 1."""
        pairs = zip(self._scales, embeddings, strict=True)
        return torch.cat([scale * functional.normalize(each) for scale, each in pairs], dim=-1)


def ensemble_module(
    ensemble: Ensemble,
    task: Task,
    members: Sequence[torch.nn.Module],
    names: Sequence[str],
    stage: SecondStage | None = None,
) -> EnsembleOf:
    """The ensemble that a manifest describes.

    Args:
        ensemble: the rule, and what each member reads.
        task: the labels of the whole.
        members: the models, in the order of `ensemble.members`.
        names: the graph's inputs, in order.
        stage: the second stage, with the rule `stack`.
    """
    combination: torch.nn.Module
    if ensemble.rule == HEADS:
        combination = SideBySide()
    elif task.name == FEATURE_EXTRACTION:
        combination = Concatenated([m.weight for m in ensemble.members])
    else:
        labels, problem = ensemble.members[0].labels, task.problem or SINGLE_LABEL
        orders = [_order(labels, member) for member in ensemble.members]
        if stage is not None:
            order = stage_order(stage, len(members), labels, problem)
            combination = Stacked(Features(stage.reads, problem, orders), stage, order)
        elif ensemble.rule == FEATURES:
            combination = Features(ensemble.normalize, problem, orders)
        else:
            combination = Combined(ensemble, problem, orders)
    takes = [member.inputs for member in ensemble.members]
    module = EnsembleOf(members, takes, names, combination)
    module.eval()
    return module


def _order(labels: Sequence[str], member: Member) -> list[int]:
    """Where each label of the ensemble stands among a member's; a lone one needs no name."""
    if len(labels) < 2:
        return list(range(len(labels)))
    return [member.labels.index(label) for label in labels]
