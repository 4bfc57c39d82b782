"""Precision in the graph: TensorRT networks are strongly typed, so types are the only switch."""

from __future__ import annotations
