"""Put an adapter (LoRA and its kin) into the weights of its base model, with peft.

An adapter's folder holds `adapter_config.json` and the weights that were trained: the low-rank
matrices, and whole modules (`modules_to_save`), of which a classifier's head is one. The number
of labels stands nowhere but in the shape of that head.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tfc.errors import BadCheckpoint, first_line, require
from tfc.exporter.checkpoint_files import json_object
from tfc.exporter.source import Source

_PREFIX = "base_model.model."
# peft writes resized embeddings three times: as they are, and under these names.
_COPIES = (".modules_to_save.", ".original_module.")
_WEIGHTS, _PICKLE = "adapter_model.safetensors", "adapter_model.bin"
# A number of labels that no real size equals: what has it in its shape follows the labels.
_PROBE_LABELS = 7919
_MERGE_ERRORS = (
    AttributeError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    ImportError,
)


def config_for_adapter(source: Source, loader: Any, trust_remote_code: bool) -> Any:
    """The base's config with the labels of the adapter's head.

    The names are those of a `config.json` beside the adapter, else the base's where it has as
    many, else LABEL_0, LABEL_1, …

    Raises:
        MissingPackage: peft is not installed.
        BadCheckpoint: the adapter is of a kind that cannot be merged.
    """
    _check_kind(source)
    import transformers

    assert source.base is not None
    config = transformers.AutoConfig.from_pretrained(
        str(source.base.folder), trust_remote_code=trust_remote_code, local_files_only=True
    )
    own = source.folder / "config.json"
    named = json_object(own).get("id2label") if own.is_file() else None
    if named:
        config.id2label = {int(number): name for number, name in named.items()}
    labels = _labels_of_head(config, loader, saved_weights(source), trust_remote_code)
    if labels is not None and labels != config.num_labels:
        config.num_labels = labels
    return config


def saved_weights(source: Source) -> dict[str, torch.Tensor]:
    """What the adapter's file holds, under the names that the base has for it."""
    path = source.folder / _WEIGHTS
    if path.is_file():
        found = load_file(path)
    else:  # permission for the pickle was checked when the checkpoint was located
        found = torch.load(source.folder / _PICKLE, map_location="cpu", weights_only=True)
    return {name.removeprefix(_PREFIX): tensor for name, tensor in found.items()}


def with_adapter(source: Source, model: Any) -> Any:
    """The base `model` with the adapter merged into its weights.

    Raises:
        BadCheckpoint: the two do not belong together, or the adapter cannot be merged.
    """
    from peft import PeftModel

    _resize_embeddings(model, saved_weights(source))
    try:
        adapted = PeftModel.from_pretrained(model, str(source.folder), torch_device="cpu")
        # from_pretrained keeps to itself what did not fit; loading once more tells.
        result = adapted.load_adapter(str(source.folder), "default", torch_device="cpu")
        _check_fit(source, result)
        return adapted.merge_and_unload(safe_merge=True)
    except _MERGE_ERRORS as error:
        raise BadCheckpoint(
            f"peft cannot merge this adapter into its base model ({first_line(error)})",
            where=source.given,
            fix="Check that the base model, told by adapter_config.json or --base, is the one "
            "that the adapter was trained on",
        ) from error


def _check_kind(source: Source) -> None:
    require("peft", "lora")
    from peft import PeftConfig

    kind = str(source.adapter.get("peft_type"))
    try:
        config = PeftConfig.from_pretrained(str(source.folder))
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(
            f"peft cannot read the adapter's config ({first_line(error)})",
            where=source.given,
            fix="Upgrade peft, or save the adapter again with save_pretrained()",
        ) from error
    if config.is_prompt_learning:
        raise BadCheckpoint(
            f"an adapter of the kind {kind} cannot be merged into a model's weights",
            where=source.given,
            fix="tfc takes adapters that change weights: LoRA, DoRA, IA3, LoHa, LoKr, OFT",
        )


def _labels_of_head(
    config: Any, loader: Any, saved: dict[str, torch.Tensor], trust_remote_code: bool
) -> int | None:
    """How many labels the saved head has; None where the adapter holds no head.

    The model is built without memory and with a telling number of labels.
    """
    import copy

    probe = copy.deepcopy(config)
    probe.num_labels = _PROBE_LABELS
    with torch.device("meta"):
        if issubclass(loader, PreTrainedModel):  # a class of its own, no auto class
            model = loader(probe)
        else:
            model = loader.from_config(probe, trust_remote_code=trust_remote_code)
    for name, parameter in model.named_parameters():
        if name in saved and _PROBE_LABELS in parameter.shape:
            return int(saved[name].shape[list(parameter.shape).index(_PROBE_LABELS)])
    return None


def _resize_embeddings(model: Any, saved: dict[str, torch.Tensor]) -> None:
    """Give the base as many embeddings as the adapter brings, where tokens were added."""
    table = model.get_input_embeddings()
    name = next((n for n, module in model.named_modules() if module is table), "")
    rows = saved.get(f"{name}.weight")
    if rows is not None and rows.shape[0] != table.weight.shape[0]:
        model.resize_token_embeddings(rows.shape[0], mean_resizing=False)


def _check_fit(source: Source, result: Any) -> None:
    unexpected = [n for n in result.unexpected_keys if not any(copy in n for copy in _COPIES)]
    for problem, names in (
        ("lacks weights", result.missing_keys),
        ("has weights for which its base model has no place", unexpected),
    ):
        if names:
            raise BadCheckpoint(
                f"this adapter {problem}: {names[0].removeprefix(_PREFIX)}",
                where=source.given,
                fix="Give the base model that it was trained on with --base",
            )
