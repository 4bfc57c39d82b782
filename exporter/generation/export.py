"""Export a model that generates: its graphs, how it reads and writes text, how it decodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfc.artifact import graph_file
from tfc.errors import BadCheckpoint, CheckFailed, UsageError
from tfc.exporter.exported import Exported, Loaded, identity_of
from tfc.exporter.generation.blame import with_evidence
from tfc.exporter.generation.graphs import graphs_from_model
from tfc.exporter.generation.parity import check_generation
from tfc.exporter.generation.speech import PROMPT_FIELDS, speech_of
from tfc.exporter.loading import check_vocabulary, max_length_of, tokenizer_from_source
from tfc.exporter.processor_config import processor_config_of
from tfc.exporter.sample_recordings import write_sample_recordings
from tfc.exporter.sentence_embedding import EmbeddingHead
from tfc.exporter.source import Source
from tfc.exporter.tasks import SPEECH, TEXT_GENERATION
from tfc.exporter.text import write_samples, write_tokenizer
from tfc.exporter.to_onnx import signature_of
from tfc.manifest import AudioPreprocess, Graph, Preprocess, Task
from tfc.onnx_files import save_onnx
from tfc.runtime.audio_steps import audio_steps_from_config
from tfc.runtime.generation import config_from_settings, settings_from_config


def export_generation(loaded: Loaded) -> Exported:
    """Write the graphs and the tokenizer, and compare the graphs with the checkpoint.

    Raises:
        BadCheckpoint: the tokenizer is missing, or the model cannot be exported.
        UsageError: the checkpoint's generation config asks for what tfc does not honour.
        CheckFailed: the graphs do not say what the checkpoint says.
    """
    source, spec, model = loaded.source, loaded.spec, loaded.model
    tokenizer = tokenizer_from_source(
        source, trust_remote_code=loaded.trust_remote_code, writes_text=True
    )
    check_vocabulary(source, model, tokenizer)
    config = dict(model.generation_config.to_diff_dict())
    speech = None
    if spec.reads == SPEECH:
        # Older checkpoints keep them in the model's config.
        config.setdefault("forced_decoder_ids", getattr(model.config, "forced_decoder_ids", None))
        speech = speech_of(config, source.given)
        config = {name: value for name, value in config.items() if name not in PROMPT_FIELDS}
    generation = _generation_of(config, source)
    audio = _audio_of(source) if spec.reads == SPEECH else None

    loaded.on_stage("exporting to ONNX")
    graphs = graphs_from_model(model)
    files: dict[str, Path] = {}
    records = {}
    for name, graph in graphs.items():
        path = loaded.folder / graph_file(name)
        save_onnx(graph, path)
        files[name] = path
        records[name] = Graph(signature_of(graph))
    preprocess = _preprocess(loaded, tokenizer)
    write_samples(loaded.folder)
    if audio is not None:
        write_sample_recordings(loaded.folder, audio.sampling_rate)

    loaded.on_stage("checking parity with the checkpoint")
    try:
        parity = check_generation(model, files, where=source.given)
    except CheckFailed as error:
        raise with_evidence(model, files, error, source.given) from error
    return Exported(
        checkpoint=identity_of(source, model),
        task=Task(spec.name, generation=generation, speech=speech),
        graphs=records,
        parity=parity,
        preprocess=preprocess,
        audio=audio,
    )


def _preprocess(loaded: Loaded, tokenizer: Any) -> Preprocess:
    """Prompts of a decoder are padded on the left: their last token is read on from."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked, so that any token would do
    tokenizer.padding_side = "left" if loaded.spec.name == TEXT_GENERATION else "right"
    limit = max_length_of(loaded.model, tokenizer, EmbeddingHead(), loaded.max_length)
    prompts, default = _prompts_of(loaded.model.config)
    return write_tokenizer(tokenizer, loaded.folder, limit, prompts, default)


def _prompts_of(config: Any) -> tuple[dict[str, str], str]:
    """What T5-like models read before their input: a prefix for each task that they know."""
    specific = getattr(config, "task_specific_params", None) or {}
    prompts = {
        str(task): str(values["prefix"])
        for task, values in specific.items()
        if isinstance(values, dict) and values.get("prefix")
    }
    prefix = getattr(config, "prefix", None)
    if not prefix:
        return prompts, ""
    return {**prompts, "prefix": str(prefix)}, "prefix"


def _generation_of(given: dict[str, Any], source: Source) -> dict[str, Any]:
    """The settings of the checkpoint that differ from the defaults."""
    try:
        settings = config_from_settings(settings_from_config(given))
    except UsageError as error:
        raise BadCheckpoint(
            f"its generation config cannot be followed: {error.what}",
            where=source.given,
            fix="Take that field out of generation_config.json, if the results may change",
        ) from error
    defaults = config_from_settings(settings_from_config({}))
    return {name: value for name, value in settings.items() if value != defaults[name]}


def _audio_of(source: Source) -> AudioPreprocess:
    config, path = processor_config_of(source, "recordings")
    return audio_steps_from_config(config, source.model_type, path)
