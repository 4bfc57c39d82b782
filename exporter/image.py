"""Export a model that reads images: one graph, its preprocessing, sample images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import graph_file
from tfc.errors import BadCheckpoint, first_line, require
from tfc.exporter.comparison import check_outputs
from tfc.exporter.exported import Exported, Loaded, identity_of
from tfc.exporter.fusion_sites import fusion_sites_of
from tfc.exporter.loading import wrapped
from tfc.exporter.sample_images import write_sample_images
from tfc.exporter.sentence_embedding import EmbeddingHead
from tfc.exporter.source import Source
from tfc.exporter.tasks import IMAGE_CLASSIFICATION
from tfc.exporter.text import labels_of
from tfc.exporter.to_onnx import image_input, onnx_from_module, signature_of
from tfc.manifest import MODEL, Graph, ImagePreprocess, Task
from tfc.onnx_files import save_onnx
from tfc.runtime.image_steps import PREPROCESSOR_CONFIG, image_steps_from_config
from tfc.runtime.images import ImageEncoder

_PROCESSOR_CONFIGS = (PREPROCESSOR_CONFIG, "processor_config.json")


def export_image(loaded: Loaded) -> Exported:
    """Write the graph and sample images, and compare the graph with the checkpoint.

    Raises:
        BadCheckpoint: the image processor is missing or not one that tfc knows, or the model
            cannot be exported.
        CheckFailed: the graph does not say what the checkpoint says.
    """
    require("PIL", "images")
    source, spec, model = loaded.source, loaded.spec, loaded.model
    images = _steps_of(source)
    encoder = ImageEncoder(images)
    samples = write_sample_images(loaded.folder)
    pixels = encoder.encode(samples)
    module = wrapped(model, spec, EmbeddingHead())

    loaded.on_stage("exporting to ONNX")
    graph = onnx_from_module(module, [image_input(*pixels[0].shape)], spec.outputs)
    path = loaded.folder / graph_file(MODEL)
    save_onnx(graph, path)

    loaded.on_stage("checking parity with the checkpoint")
    feeds = [encoder.batch(pixels), encoder.batch(pixels[:1]), *_extremes(pixels[0])]
    parity = check_outputs(module, path, feeds, where=source.given)
    classifies = spec.name == IMAGE_CLASSIFICATION
    return Exported(
        checkpoint=identity_of(source, model),
        task=Task(
            spec.name,
            problem="single_label" if classifies else "",
            labels=labels_of(model.config) if classifies else [],
        ),
        graphs={MODEL: Graph(signature_of(graph), fusion_sites_of(model.config))},
        parity=parity,
        images=images,
    )


def _steps_of(source: Source) -> ImagePreprocess:
    for name in _PROCESSOR_CONFIGS:
        path = source.folder / name
        if path.is_file():
            return image_steps_from_config(_json_of(path), source.model_type, str(path))
    raise BadCheckpoint(
        f"this folder has no {PREPROCESSOR_CONFIG}, which says how images become tensors",
        where=source.given,
        fix="Save it into the folder with image_processor.save_pretrained()",
    )


def _json_of(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise BadCheckpoint(
            f"the file is not a JSON object ({first_line(error)})",
            where=str(path),
            fix="Save it again with image_processor.save_pretrained()",
        ) from error


def _extremes(image: npt.NDArray[np.float32]) -> list[dict[str, npt.NDArray[Any]]]:
    """A constant image and one of noise, as model inputs."""
    noise = np.random.default_rng(0).standard_normal(image.shape, dtype=np.float32)
    return [{"pixel_values": array[None]} for array in (np.zeros_like(image), noise)]
