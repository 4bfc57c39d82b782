"""int8: which products are quantised, with which ranges, in which form, and at what cost."""

from __future__ import annotations
