"""Models that generate: their graphs with a key-value cache, and the proof that they are right."""

from tfc.exporter.generation.graphs import DECODER, ENCODER, graphs_from_model

__all__ = ["DECODER", "ENCODER", "graphs_from_model"]
