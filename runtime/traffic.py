"""How the texts of an engine are batched: by the plan that it was built for, or by default."""

from __future__ import annotations

from tfc.manifest import Engine, Traffic
from tfc.runtime.batching import Limits, Plan, default_plan


def plan_of_engine(engine: Engine, hardware: str) -> Plan:
    """The plan in the manifest; for an engine without one that of ``CPU``, or of a GPU."""
    return default_plan(hardware) if engine.traffic is None else plan_of_traffic(engine.traffic)


def plan_of_traffic(traffic: Traffic) -> Plan:
    """The plan as `tfc.runtime.batching` takes it."""
    limits = Limits(traffic.rows, traffic.tokens, tuple(traffic.widths), traffic.launch_tokens)
    return Plan(traffic.window, limits)
