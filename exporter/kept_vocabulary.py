"""PyTorch's model as an artifact with a trimmed vocabulary is compared with it.

The model keeps all of its tokens. What it is given are the artifact's ids, which become its own
before it runs; of its scores over the vocabulary those of the kept tokens are taken afterwards.
So the reference shares nothing with the cut graphs but the table of ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tfc.exporter.generation.forced import start_token
from tfc.runtime.tokenization import INPUT_IDS
from tfc.vocabulary import Vocabulary

_IDS = (INPUT_IDS, "decoder_input_ids")


def use_kept_tokens(
    module: Any, vocabulary: Vocabulary, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Let a module take and give the ids of a trimmed vocabulary, in place.

    Args:
        module: called with the graph's inputs by position, or with ids by name.
        vocabulary: the trimmed one.
        inputs: the graph's inputs, in order.
        outputs: the outputs that have the vocabulary as their last axis.
    """
    old = torch.from_numpy(vocabulary.old)
    place = list(inputs).index(INPUT_IDS)

    def before(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        whole = {n: old[value] if n in _IDS else value for n, value in named.items()}
        return tuple(old[a] if n == place else a for n, a in enumerate(args)), whole

    module.register_forward_pre_hook(before, with_kwargs=True)
    if outputs:
        module.register_forward_hook(lambda _, args, output: _at_kept(output, old))
    if getattr(module, "generation_config", None) is not None and _has_start(module):
        # It is among the ids that the hook maps.
        module.generation_config.decoder_start_token_id = vocabulary.new_ids[start_token(module)]


def _has_start(module: Any) -> bool:
    return bool(module.config.is_encoder_decoder)


def _at_kept(output: Any, old: torch.Tensor) -> Any:
    """The scores of the kept tokens: of a model's output, or of a graph's, which are all scores."""
    if isinstance(output, torch.Tensor):
        return output[..., old[old < output.shape[-1]]]
    if isinstance(output, tuple):
        return tuple(_at_kept(each, old) for each in output)
    output.logits = _at_kept(output.logits, old)
    return output
