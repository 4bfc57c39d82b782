"""What `tfc run` says of the plan for the CPU, and when it is worth measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfc.cli.console import err

if TYPE_CHECKING:
    from tfc.cli.run_display import JsonLog
    from tfc.runtime import Session

# Some 10,000 texts of 400 bytes, a minute for MiniLM on a core: a plan is measured in some seconds.
_BYTES = 4 << 20


def worth_measuring(inputs: Sequence[str], format: str | None) -> bool:
    """Whether the inputs are large enough; of pipes that is not known before they end."""
    from tfc.runtime.jobs.inputs import files_from_inputs

    return sum(file.size for file in files_from_inputs(inputs, format)) >= _BYTES


def show_plan(session: Session) -> None:
    """A line, where a plan was measured: now, or before an earlier job."""
    plan = session.plan
    if plan is not None and plan.is_measured:
        err.print(f"plan: {plan.text()}", soft_wrap=True)


def log_plan(session: Session, log: JsonLog) -> None:
    """The same as an event of the log, a rule's too."""
    plan = session.plan
    if plan is not None:
        log.event(
            "plan",
            streams=plan.streams,
            threads=plan.threads,
            batch_tokens=plan.tokens,
            chosen=plan.chosen,
        )
