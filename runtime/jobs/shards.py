"""The shards of a batch job: written one by one, noted in the journal, put together at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain, islice
from typing import Any

from tfc.errors import BadData, JobStopped, TfcError, UsageError, disk_errors
from tfc.runtime.jobs.inputs import Place, identities
from tfc.runtime.jobs.journal import RESTART, Journal, Shard
from tfc.runtime.jobs.outputs import Workspace, workspace, writing
from tfc.runtime.jobs.rows import Found, Plan, Predicts, Tally, Watch, found_rows
from tfc.runtime.jobs.writers import compressed, writer_of


def write_shards(session: Predicts, plan: Plan, watch: Watch) -> tuple[list[Shard], int]:
    """Run a job into a file or a folder; its shards, and how many of them an earlier run did.

    Raises:
        BadData, JobStopped, UsageError, NoSpace: as `run_job` says.
    """
    path = plan.output.path
    assert path is not None
    with disk_errors(path), workspace(plan.output) as work:
        journal = _journal_of(work, plan)
        before = len(journal.shards)
        if journal.finished:
            work.remove()
            return journal.shards, before
        watch.written(journal.place, 0, 0)
        with _kept(journal, work, plan), disk_errors(path):
            with closing(found_rows(session, plan, journal, watch)) as found:
                _write_rest(found, work, plan, journal, watch)
            _check_unchanged(journal.shards, plan)
            _check_any(journal.shards, plan)
            work.put_in_place(journal.shards, _done(plan, journal))
            journal.finish()
        work.remove()
        return journal.shards, before


def stream_rows(session: Predicts, plan: Plan, watch: Watch) -> list[Shard]:
    """Run a job into standard output, and its bad rows into standard error.

    Raises:
        BadData, JobStopped, UsageError: as `run_job` says.
    """
    out, err = sys.stdout.buffer, sys.stderr.buffer
    shards: list[Shard] = []
    with compressed(out, plan.style.format.codec) as sink:
        writer = writer_of(sink, plan.style, None, header=True)
        with closing(found_rows(session, plan, None, watch)) as found:
            while (first := next(found, None)) is not None:
                tally = Tally(writer, err, plan, watch)
                tally.take(chain([first], islice(found, plan.shard_rows - 1)))
                shards.append(tally.shard(0, 0))
                writer.close()
                err.flush()
    if watch.stopped():
        raise JobStopped("stopped, as asked; what was read until then is written")
    _check_any(shards, plan)
    return shards


def _write_rest(
    found: Iterator[Found], work: Workspace, plan: Plan, journal: Journal, watch: Watch
) -> None:
    while (first := next(found, None)) is not None:
        journal.begin()
        rows = chain([first], islice(found, plan.shard_rows - 1))
        journal.add(_shard_written(rows, work, plan, journal, watch))
        if watch.stopped():
            raise JobStopped("stopped, as asked", where=str(plan.output.path))


def _shard_written(
    rows: Iterator[Found], work: Workspace, plan: Plan, journal: Journal, watch: Watch
) -> Shard:
    number, format = len(journal.shards), plan.style.format
    # A single file has one header; each part of a folder is a file of its own.
    header = plan.output.is_folder or not any(shard.bytes for shard in journal.shards)
    with writing(work.part(number)) as good, writing(work.errors_part(number)) as bad:
        with compressed(good.stream, format.codec) as sink:
            writer = writer_of(sink, plan.style, journal.columns, header=header)
            tally = Tally(writer, bad.stream, plan, watch)
            tally.take(rows)
            writer.close()
        good.keep, bad.keep = bool(tally.rows), bool(tally.bad_rows)
        sizes = [staged.stream.tell() if staged.keep else 0 for staged in (good, bad)]
    return tally.shard(*sizes)


def _journal_of(work: Workspace, plan: Plan) -> Journal:
    """The journal to go on with; a new one where there is nothing to go on with."""
    if plan.restart:
        work.clear()
    journal = Journal.read(work.journal_path)
    path = plan.output.path
    assert path is not None
    if journal is not None and journal.finished and (journal.key != plan.key or not path.exists()):
        journal = None  # its output is in its place, or was taken away: it needs nothing more
        work.clear()
    if journal is not None and not plan.resumable:
        journal = None  # no run can go on with it
        work.clear()
    if journal is None:
        return _new_journal(work, plan)
    journal.check_same(plan.key)
    if not journal.finished:
        work.check_parts(journal.shards)
    return journal


def _new_journal(work: Workspace, plan: Plan) -> Journal:
    """A journal of nothing; of everything where this very job is finished in the output folder."""
    journal = Journal(work.journal_path, plan.key)
    done = work.finished()
    if done is None:
        work.clear()
        return journal
    if done.get("job") != plan.key or not plan.resumable:
        raise UsageError(
            "another finished job is in this folder",
            where=str(plan.output.path),
            fix=f"Choose another folder. {RESTART}",
        )
    journal.shards.append(Shard(**done["sums"], place=Place(), bytes=0, error_bytes=0))
    journal.finished = True
    return journal


@contextmanager
def _kept(journal: Journal, work: Workspace, plan: Plan) -> Iterator[None]:
    """Say, where the job fails, that what is done is kept; drop it where there is nothing."""
    try:
        yield
    except BaseException as error:
        if not journal.shards:
            work.clear()
            raise
        if not plan.resumable:
            work.clear()
            kept = "Standard input and pipes cannot be read again, so nothing is kept"
        else:
            kept = f"The first {journal.rows} rows are kept: run the same command to go on"
        if isinstance(error, TfcError):
            error.fix = f"{error.fix}. {kept}" if error.fix else kept
        raise


def _check_unchanged(shards: list[Shard], plan: Plan) -> None:
    """Refuse to make an output of inputs that somebody wrote to meanwhile."""
    now = identities(plan.files)
    changed = [number for number in now if now[number] != plan.key["inputs"][number]]
    if changed:
        shards.clear()
        raise BadData(
            "the input changed while the job ran",
            where=plan.files[int(changed[0])].name,
            fix="Run the job again when the input is complete",
        )


def _check_any(shards: list[Shard], plan: Plan) -> None:
    """Refuse to make an output without a row."""
    if any(shard.rows for shard in shards):
        return
    bad_rows = sum(shard.bad_rows for shard in shards)
    first = next((shard.first_bad for shard in shards if shard.first_bad is not None), None)
    shards.clear()
    if first is None:
        raise empty_input(plan.files[0].name)
    file, line, problem = first
    raise BadData(
        f"not one of its {bad_rows} rows can be used; the first: {problem}",
        where=f"{file}, line {line}",
        fix="Give rows with a text each, and name the field that holds it (--text-column)",
    )


def empty_input(name: str) -> BadData:
    """What is said of an input without a row."""
    return BadData("the input file is empty", where=name, fix="Give a file with one row per line")


def _done(plan: Plan, journal: Journal) -> dict[str, Any]:
    shards = journal.shards
    names = ("rows", "bad_rows", "tokens", "padded")
    sums = {name: sum(getattr(shard, name) for shard in shards) for name in names}
    return {"job": plan.key, "sums": sums}
