"""What a model's config says that its graph must contain.

Encoders with one self-attention block and two residual additions, each with its normalisation,
per layer. A family that is not in the table has no expectation from its config, and the graph's
own structure is counted instead (tfc.optimizers.contract).
"""

from __future__ import annotations

from typing import Any

# Per layer one attention block and two residual add + LayerNorm, whether the norm comes after
# the addition (BERT) or the next block's norm follows it.
_POST_LN_ENCODERS = frozenset(
    {
        "albert",
        "bert",
        "camembert",
        "data2vec-text",
        "distilbert",
        "electra",
        "ernie",
        "mpnet",
        "roberta",
        "xlm-roberta",
    }
)
_LAYER_KEYS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")


def fusion_sites_of(config: Any) -> dict[str, int]:
    """`{"attention": n, "add_layernorm": m}` for the known families, empty for the others."""
    if config.model_type not in _POST_LN_ENCODERS:
        return {}
    layers = next(
        (int(getattr(config, k)) for k in _LAYER_KEYS if getattr(config, k, None) is not None), 0
    )
    return {"attention": layers, "add_layernorm": 2 * layers}
