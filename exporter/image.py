"""Export a model that reads images: one graph, its preprocessing, sample images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import graph_file
from tfc.errors import require
from tfc.exporter.comparison import check_outputs
from tfc.exporter.exported import Exported, Loaded, identity_of
from tfc.exporter.fusion_sites import fusion_sites_of
from tfc.exporter.loading import wrapped
from tfc.exporter.processor_config import processor_config_of
from tfc.exporter.sample_images import write_sample_images
from tfc.exporter.sentence_embedding import EmbeddingHead
from tfc.exporter.source import Source
from tfc.exporter.tasks import IMAGE_CLASSIFICATION
from tfc.exporter.text import labels_of
from tfc.exporter.to_onnx import image_input, onnx_from_module, signature_of
from tfc.manifest import MODEL, Graph, ImagePreprocess, Task
from tfc.onnx_files import save_onnx
from tfc.runtime.image_steps import image_steps_from_config
from tfc.runtime.images import ImageEncoder


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
    config, path = processor_config_of(source, "images")
    return image_steps_from_config(config, source.model_type, path)


def _extremes(image: npt.NDArray[np.float32]) -> list[dict[str, npt.NDArray[Any]]]:
    """A constant image and one of noise, as model inputs."""
    noise = np.random.default_rng(0).standard_normal(image.shape, dtype=np.float32)
    return [{"pixel_values": array[None]} for array in (np.zeros_like(image), noise)]
