"""Text generation: decoding loops in numpy that give the tokens of transformers' `generate`.

The parts: what decides the tokens (`settings`), what runs the model (`decoder`), the rules for
the scores (`constraints`, `warpers`, in the order of `processors`), and the searches (`search`,
over `single` and `beams`). Nothing here imports torch or transformers.
"""

from tfc.runtime.generation.decoder import Decoder, GraphDecoder, encoded
from tfc.runtime.generation.search import generate, start_tokens
from tfc.runtime.generation.settings import (
    GenerationSettings,
    config_from_settings,
    settings_from_config,
)

__all__ = [
    "Decoder",
    "GenerationSettings",
    "GraphDecoder",
    "config_from_settings",
    "encoded",
    "generate",
    "settings_from_config",
    "start_tokens",
]
