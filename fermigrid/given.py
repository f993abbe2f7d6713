"""What jobs gather, beyond the plan: which outputs were accepted, by the ledger; and those that came back, laid out for
the jobs that are to be given them. Every function may be cut short anywhere and run again."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fermigrid.advance import Work
from fermigrid.campaign import Campaign
from fermigrid.errors import RunFolderError
from fermigrid.gather import CAME_BACK, Given, Good, lines_of_row
from fermigrid.ledger import Ledger
from fermigrid.plainfile import open_plain, real_folder
from fermigrid.planfolder import open_of_plan
from fermigrid.quoting import decode_lines, decode_row
from fermigrid.report import outputs_of
from fermigrid.runs import Run

_NO_LINK = frozenset({errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP})


def given_by(ledger: Ledger) -> Given:
    """The accepted outputs that the ledger knows."""
    sites: dict[str, str] = {}

    def given(step: str, output: str, run: Run) -> dict[str, Good]:
        if not sites:
            sites.update((batch.id, batch.site) for batch in ledger.batches())
        found = {}
        for attempt in ledger.accepted_of(step, run.name):
            piece = attempt.job.removeprefix(f"{step}.{run.name}").lstrip(".")
            for each in outputs_of(attempt.report):
                if each.name == output:
                    found[piece] = Good(each.to, sites[attempt.batch], each.bytes, each.sha256)
        return found

    return given


def without_unpublished(ledger: Ledger, campaign: Campaign, work: Work) -> Work:
    """The work without the runs that would gather an accepted output which has no final name yet: they come later."""
    sources = {gather.step for gather in campaign.steps[work.step].gather.values()}
    if not sources or not ledger.waiting_to_publish():
        return work
    waiting = {(step, run.name) for step in sources for run in work.runs
               if not all(attempt.published for attempt in ledger.accepted_of(step, run.name))}  # fmt: skip
    late = {run for _, run in waiting}
    return replace(work, runs=tuple(run for run in work.runs if run.name not in late))


def lay_out(outputs: Path, plan: Path, work: Path) -> None:
    """Give each job of a plan a folder `work/<shard>/in/<job>/gathered` with the files of the run folder's `outputs`
    that it is to have: other names of the same files, or copies where there can be none.

    Nothing is done for a plan whose jobs gather nothing. Raises RunFolderError, also for an output that is not there.
    """
    try:
        with open_of_plan(plan, "job.env") as file:
            folders = [value for key, value in decode_lines(file.read().decode()) if key == "gather"]
        for job, shard, lines in _jobs(plan) if folders else ():
            _lay_out_job(outputs, work, (shard, "in", job, "gathered"), lines, folders)
    except OSError as error:
        text = f"what the jobs of {plan.parent.name} gather cannot be laid out: {error.filename}: {error.strerror}"
        raise RunFolderError(text, "An accepted output that is gone can be made anew: `fermigrid rollback`.") from error


def _jobs(plan: Path) -> Iterator[tuple[str, str, Sequence[str]]]:
    """(job, shard, the lines after its row) of each job of a plan."""
    known, lines = "", list[str]()
    with open_of_plan(plan, "items.txt") as items:
        for item in items:
            job, shard, row = item.decode("ascii").split()
            if shard != known:
                with open_of_plan(plan, f"shards/{shard}") as file:
                    known, lines = shard, file.read().decode().split("\n")
            yield job, shard, lines_of_row(lines, int(row))


def _lay_out_job(outputs: Path, work: Path, above: Sequence[str], lines: Sequence[str], folders: Sequence[str]) -> None:
    with real_folder(work, above, make=True):
        pass
    for folder in folders:
        with real_folder(work, (*above, folder), make=True) as here:
            for line in lines:
                fields = dict(decode_row(line))
                inside, _, name = fields.get("in", "").partition("/")
                if inside == folder and fields["in.from"].startswith(CAME_BACK):
                    _give(outputs, fields["in.from"].removeprefix(CAME_BACK), here, name)


def _give(outputs: Path, to: str, here: int, name: str) -> None:
    """The output `to` under another name in the open folder `here`."""
    *above, last = to.split("/")
    with real_folder(outputs, above) as home, open_plain(last, home) as file:
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(name, dir_fd=here, follow_symlinks=False), os.fstat(file.fileno())):
                return
            os.unlink(name, dir_fd=here)
        try:
            os.link(last, name, src_dir_fd=home, dst_dir_fd=here, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(name, flags, 0o666, dir_fd=here), "wb") as copy:
                shutil.copyfileobj(file, copy)


def take_away(log: Path, job: str) -> None:
    """What was laid out for a job that has ended, by where its log is. Nothing there: nothing done."""
    laid_out = log.parent / "in" / job
    if laid_out.is_dir() and not laid_out.is_symlink():
        shutil.rmtree(laid_out, ignore_errors=True)
