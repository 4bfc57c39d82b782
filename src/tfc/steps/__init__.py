"""The steps of the pipeline, one file each: what `tfc.export(…)` and `tfc export` both call."""

from __future__ import annotations
