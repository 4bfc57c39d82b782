"""Batch jobs: files of rows in, the same rows with predictions out; see `run_job`."""

from tfc.runtime.jobs.job import JobSummary, run_job, texts_from_jsonl

__all__ = ["JobSummary", "run_job", "texts_from_jsonl"]
