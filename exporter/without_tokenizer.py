"""Export a text model without its tokenizer: tensors in, tensors out.

Token ids are then the caller's business. Parity is checked on random ids from the whole
vocabulary, with masks; these and PyTorch's outputs are kept, as for any module.
"""

from __future__ import annotations

import dataclasses
import inspect

import torch

from tfc.errors import UsageError
from tfc.exporter.custom import export_custom
from tfc.exporter.exported import Exported, Loaded, identity_of
from tfc.exporter.fusion_sites import fusion_sites_of
from tfc.exporter.module_inputs import inputs_of_module
from tfc.exporter.tasks import TEXT
from tfc.exporter.text import INPUTS, head_of, output_names, task_record, text_module
from tfc.manifest import BATCH, MODEL, SEQUENCE, Graph

_ROWS, _TOKENS = 3, 11


def export_without_tokenizer(loaded: Loaded) -> Exported:
    """Write the graph and samples of tensors, and compare the graph with the checkpoint.

    Raises:
        UsageError: the model writes text, or reads something else.
        BadCheckpoint: the model cannot be exported.
        CheckFailed: the graph does not say what the checkpoint says.
    """
    source, spec, model = loaded.source, loaded.spec, loaded.model
    if spec.reads != TEXT or spec.generates:
        raise UsageError(
            f"a model for {spec.name} is not exported without its tokenizer",
            fix="Leave --no-tokenizer out",
        )
    head = head_of(source, spec)
    module = text_module(source, spec, model)
    examples = _examples(model)
    axes = {name: {0: BATCH, 1: SEQUENCE} for name in examples}
    inputs = inputs_of_module(module, examples, None, axes)
    names = output_names(spec, model, head)
    exported = export_custom(module, inputs, loaded.folder, names, loaded.on_stage)
    signature = exported.graphs[MODEL].signature
    return dataclasses.replace(
        exported,
        checkpoint=identity_of(source, model),
        task=task_record(spec, model, head),
        graphs={MODEL: Graph(signature, fusion_sites_of(model.config))},
    )


def _examples(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random ids up to the last one, masks with padding, one text of a pair after the other."""
    taken = inspect.signature(model.forward).parameters
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (_ROWS, _TOKENS), generator=generator)
    ids[0, 0], ids[0, 1] = 0, vocabulary - 1  # other sizes are drawn from the examples' range
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    mask[2, 4] = 0
    types = torch.zeros_like(ids)
    types[:, _TOKENS // 2 :] = 1
    values = dict(zip(INPUTS, (ids, mask, types), strict=True))
    kinds = getattr(model.config, "type_vocab_size", 0)
    return {
        name: tensor
        for name, tensor in values.items()
        if name in taken and (name != "token_type_ids" or (kinds or 0) > 1)
    }
