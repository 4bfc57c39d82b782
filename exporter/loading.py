"""Load a checkpoint's model and tokenizer with transformers, and refuse what is incomplete."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from tfc.errors import BadCheckpoint, first_line, require
from tfc.exporter.adapters import config_for_adapter, saved_weights, with_adapter
from tfc.exporter.modules import (
    EmbeddingOf,
    EosLogitsOf,
    ImageEmbeddingOf,
    ImageOutputsOf,
    ScoresOf,
    TextOutputsOf,
    classifies_at_eos,
)
from tfc.exporter.portable_tokenizer import check_portable, portable_from_tokenizer
from tfc.exporter.sentence_embedding import IDENTITY, EmbeddingHead
from tfc.exporter.source import Source
from tfc.exporter.tasks import FEATURE_EXTRACTION, IMAGE, IMAGE_FEATURE_EXTRACTION, TaskSpec

# Tokenizers without a limit report 10^30.
_NO_LIMIT = 1_000_000
_DEFAULT_MAX_LENGTH = 512
_OWN_CLASS = ("EncoderModel", "WithProjection")
# Encoder-decoders of which transformers has the encoder as a model of its own (T5EncoderModel).
_HAS_ENCODER_MODEL = frozenset({"mt5", "t5", "umt5"})
_LOADING_ERRORS = (ValueError, KeyError, OSError, RuntimeError, ImportError, SafetensorError)
# What a tokenizer is saved as. Without any of them transformers makes up an empty one.
_TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "merges.txt")


def model_from_source(
    source: Source, task: TaskSpec, *, trust_remote_code: bool, allow_pickle: bool
) -> Any:
    """The checkpoint's model in fp32, in evaluation mode, with every weight that it needs.

    Raises:
        BadCheckpoint: the model type is unknown, or weights are missing or of the wrong shape.
    """
    loader = _loader_of(source, task)
    options: dict[str, Any] = {
        "dtype": torch.float32,
        "output_loading_info": True,
        "trust_remote_code": trust_remote_code,
        "use_safetensors": None if allow_pickle else True,
        "local_files_only": True,
        "ignore_mismatched_sizes": True,  # reported, and refused below with the weights' names
    }
    with _quiet():
        try:
            if source.base is not None:
                options["config"] = config_for_adapter(source, loader, trust_remote_code)
            model, info = _load(loader, source.base or source, options)
        except _LOADING_ERRORS as error:
            raise _loading_failed(source, task, error) from error
        if source.base is None:
            _check_complete(source, task, info)
            return model.eval()
        _check_complete(source, task, info, brought=frozenset(saved_weights(source)))
        return with_adapter(source, model).eval()


def wrapped(
    model: Any, task: TaskSpec, head: EmbeddingHead, score: str = IDENTITY
) -> torch.nn.Module:
    """The model behind the named outputs of its task; `score` is what becomes of a lone logit."""
    module: torch.nn.Module
    if task.generates:
        return model
    if task.name == FEATURE_EXTRACTION:
        module = EmbeddingOf(model, head)
    elif task.name == IMAGE_FEATURE_EXTRACTION:
        module = ImageEmbeddingOf(model)
    elif task.reads == IMAGE:
        module = ImageOutputsOf(model, task.outputs)
    elif score != IDENTITY and model.config.num_labels == 1:
        module = ScoresOf(model, score)
    elif classifies_at_eos(model):
        module = EosLogitsOf(model)
    else:
        module = TextOutputsOf(model, task.outputs)
    return module.eval()


def tokenizer_from_source(
    source: Source, *, trust_remote_code: bool, writes_text: bool = False
) -> Any:
    """The checkpoint's tokenizer, of which `portable_from_tokenizer` gives the form without Python.

    Where the model `writes_text`, that form is checked to decode as the tokenizer does.

    Raises:
        BadCheckpoint: there is none, or that form is not known or gives other tokens.
        MissingPackage: that form takes a package that is not installed.
    """
    folders = [source.folder] if source.base is None else [source.folder, source.base.folder]
    folder = next((f for f in folders if any(map(any, map(f.glob, _TOKENIZER_FILES)))), None)
    if folder is None:
        raise BadCheckpoint(
            "this folder has no tokenizer",
            where=source.given,
            fix="Save it into the folder with tokenizer.save_pretrained(), or export the model "
            "for tensors with --no-tokenizer",
        )
    try:
        with _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=trust_remote_code, local_files_only=True
            )
    except (*_LOADING_ERRORS, AttributeError, TypeError) as error:
        if "sentencepiece" in str(error).lower():
            require("sentencepiece", "compile")
        raise BadCheckpoint(
            f"the tokenizer cannot be loaded ({first_line(error)})",
            where=source.given,
            fix="Save it into the folder with tokenizer.save_pretrained()",
        ) from error
    with _quiet():  # of texts that are longer than the model takes
        portable = portable_from_tokenizer(tokenizer, source.given)
        check_portable(tokenizer, portable, source.given, writes_text=writes_text)
    return tokenizer


def check_vocabulary(source: Source, model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that gives ids beyond the model's embedding table.

    Raises:
        BadCheckpoint: the two do not belong together.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= highest < rows:
        raise BadCheckpoint(
            f"the tokenizer gives ids up to {highest}, and the model has {rows} embeddings",
            where=source.given,
            fix="Save the tokenizer that the model was trained with into the folder",
        )


def max_length_of(model: Any, tokenizer: Any, head: EmbeddingHead, asked: int | None) -> int:
    """How many tokens a text may have: the least of what model, tokenizer and folder say."""
    positions = max_positions_of(model)
    limits = [asked, head.max_length, tokenizer.model_max_length, positions]
    known = [int(n) for n in limits if n is not None and 0 < n < _NO_LIMIT]
    return min(known) if known else _DEFAULT_MAX_LENGTH


def max_positions_of(model: Any) -> int | None:
    """The longest sequence that the position embeddings reach, or None where nothing limits it.

    RoBERTa-like models count positions from `padding_idx + 1`, which costs as many positions.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None or limit <= 0:
        return None
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings) - offset
    return int(limit)


def _loader_of(source: Source, task: TaskSpec) -> Any:
    """The auto class of the task; the checkpoint's own class where that would load another one.

    AutoModel gives the whole of T5 for its encoder, and CLIP's towers without their projections.
    """
    if task.auto_class == "AutoModel" and source.architecture.endswith(_OWN_CLASS):
        return getattr(transformers, source.architecture)
    if task.name == FEATURE_EXTRACTION and source.model_type in _HAS_ENCODER_MODEL:
        return transformers.AutoModelForTextEncoding
    return getattr(transformers, task.auto_class)


def _load(loader: Any, source: Source, options: dict[str, Any]) -> Any:
    try:
        return loader.from_pretrained(str(source.folder), attn_implementation="sdpa", **options)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return loader.from_pretrained(str(source.folder), attn_implementation="eager", **options)


def _loading_failed(source: Source, task: TaskSpec, error: Exception) -> BadCheckpoint:
    if source.model_type not in transformers.CONFIG_MAPPING:
        return BadCheckpoint(
            f"transformers {transformers.__version__} does not know "
            f"the model type '{source.model_type}'",
            where=source.given,
            fix="Upgrade transformers, or correct model_type in config.json",
        )
    if "Unrecognized configuration class" in str(error):  # what an auto class says of a model
        return BadCheckpoint(
            f"transformers has no model for {task.name} of the type '{source.model_type}'",
            where=source.given,
            fix="Choose another --task, or leave it out: the architecture tells it",
        )
    return BadCheckpoint(
        f"transformers cannot load the checkpoint ({first_line(error)})",
        where=source.given,
        fix="Check that its weights and config.json belong together",
    )


def _check_complete(
    source: Source, task: TaskSpec, info: dict[str, Any], brought: frozenset[str] = frozenset()
) -> None:
    """Refuse missing weights and wrong shapes, but for the weights that an adapter brings."""
    # A pooler is not part of token embeddings, and many checkpoints do not carry it.
    unused = "pooler." if task.name == FEATURE_EXTRACTION else "\0"
    missing = {k for k in info["missing_keys"] if not k.startswith(unused)}
    mismatched = {str(k[0]) if isinstance(k, tuple) else str(k) for k in info["mismatched_keys"]}
    for problem, found in (("are missing", missing), ("have another shape", mismatched)):
        keys = sorted(found - brought)
        if keys:
            shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise BadCheckpoint(
                f"weights that {task.name} needs {problem}: {shown}",
                where=source.given,
                fix="Give the fine-tuned checkpoint, or the --task that it was trained for",
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' advice and progress bars off the terminal while loading."""
    logger = logging.getLogger("transformers")
    level = logger.level
    bars = transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
