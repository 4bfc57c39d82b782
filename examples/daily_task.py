"""One day's partition as a task of a scheduler such as Airflow: safe to run again.

    python examples/daily_task.py my-artifact --date 2026-01-31 --source raw --target labelled

A scheduler kills tasks and tries them again. The second try finds the journal of the first in the
target folder and goes on from there; a task that is done already has nothing to do. In Airflow:

    PythonOperator(task_id="label", python_callable=label_day, retries=3,
                   op_kwargs={"artifact": …, "source": …, "target": …, "day": "{{ ds }}"})
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import tfc


def label_day(artifact: str, source: str, target: str, day: str) -> dict[str, Any]:
    """Label the folder of one day; what it returns is small enough for Airflow's XCom."""
    with tfc.Session.load(artifact) as session:
        summary = tfc.run_job(
            session,
            Path(source) / f"day={day}",
            f"{target}/day={day}/",
            output_format="parquet",
        )
    if summary.bad_rows > 0.01 * summary.rows:
        raise RuntimeError(f"{summary.bad_rows} of the rows are bad: see {summary.errors}")
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(summary), default=str))
    return plain


def main() -> None:
    """Run the task from a shell."""
    parser = argparse.ArgumentParser(description="Label one day's tickets.")
    parser.add_argument("artifact")
    parser.add_argument("--date", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    asked = parser.parse_args()
    print(json.dumps(label_day(asked.artifact, asked.source, asked.target, asked.date)))


if __name__ == "__main__":
    main()
