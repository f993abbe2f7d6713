"""What is done again, taken out of the way: its jobs out of the queue, its outputs from their final names.

A decision is in the ledger before anything of this is done, and finished there when its outputs are out of the way, and
no job is left that could write one. Every function may be cut short anywhere and run again; nothing of a block is sent
before. What retired jobs still bring back is read and not accepted.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fermigrid import backends
from fermigrid.accept import Items, publish_output
from fermigrid.errors import BackendUnavailable, FermigridError, SubmissionRefused
from fermigrid.ledger import Ledger
from fermigrid.plainfile import open_plain
from fermigrid.plan import Assembled
from fermigrid.records import AttemptRecord, BatchRecord, Decision, JobRecord
from fermigrid.report import Output, outputs_of
from fermigrid.runfolder import RunFolder
from fermigrid.submit import Hand, handle_of
from fermigrid.units import show_count

RETIRED = "retired"  # the folder of outputs that do not count any more


@dataclass(frozen=True)
class Old:
    """An output that does not count any more: where it is, and the folder that it is moved into under its name `to`.
    None: it stays. `sha256`: as it was accepted; without, an attempt may have left it there of which nobody heard."""

    to: str
    place: str
    aside: Path | None
    sha256: str = ""


def blocks_at_work(ledger: Ledger) -> set[str]:
    """The blocks of which something is still to be retired: nothing of them is sent."""
    unfinished = [decision.id for decision in ledger.decisions() if decision.finished is None]
    batches = {job.batch for number in unfinished for job in ledger.retired_by(number)}
    return {batch.block for batch in ledger.batches() if batch.id in batches}


def finish_decisions(ledger: Ledger, folder: RunFolder, a: Assembled, hand: Hand, moved: bool = True) -> list[str]:
    """Go on with what people decided; `moved`: something happened to jobs. Returns what is in the way, in words."""
    unfinished = [decision for decision in ledger.decisions() if decision.finished is None]
    problems = _remove(ledger, folder) if unfinished or moved else []
    for decision in unfinished:
        problems += _finish(ledger, folder, a, decision, hand)
    return problems


def _remove(ledger: Ledger, folder: RunFolder) -> list[str]:
    """Take the retired jobs that are alive out of the queue. A job that HTCondor has not made yet comes later."""
    batches, by_batch = {batch.id: batch for batch in ledger.batches()}, defaultdict[str, list[int]](list)
    for job in ledger.retired_alive():
        by_batch[job.batch].append(job.index)
    problems = []
    for name, indices in by_batch.items():
        batch = batches[name]
        try:
            backends.load(batch.backend).remove([handle_of(folder, batch)], indices)
        except (BackendUnavailable, SubmissionRefused) as error:
            problems.append(f"{batch.name}: jobs that are done again are still to be removed: {error}")
    return problems


def _finish(ledger: Ledger, folder: RunFolder, a: Assembled, decision: Decision, hand: Hand) -> list[str]:
    batches = {batch.id: batch for batch in ledger.batches()}
    jobs = ledger.retired_by(decision.id)
    if writers := [job for job in jobs if not job.state.final and not _comes_back(a, batches[job.batch])]:
        what = f"{show_count(len(writers), 'job')} of it {'is' if len(writers) == 1 else 'are'} being removed"
        return [f"{decision.kind} {decision.id}: {what}, and may write until then; what is done again comes after that"]
    moved, problems = 0, list[str]()
    outputs = OldOutputs(ledger, folder, a, decision.id)
    for old in (old for job in jobs for old in outputs.of(job)):
        try:
            moved += old.aside is not None and _move(Path(old.place), old.aside, old.to, old.sha256)
        except FermigridError as error:
            problems.append(f"{decision.kind} {decision.id}: {error}")
    if not problems:
        ledger.finish(decision.id, hand.now(), hand.who, f"{show_count(moved, 'output')} moved away")
    return problems


def _comes_back(a: Assembled, batch: BatchRecord) -> bool:
    """Do its outputs come back with its jobs, so that a late one can do no harm?"""
    return a.sites[batch.site].output.root is None


class OldOutputs:
    """The outputs of jobs that do not count any more, by the decision with this number."""

    def __init__(self, ledger: Ledger, folder: RunFolder, a: Assembled, number: int) -> None:
        self._ledger, self._folder, self._assembled, self._items = ledger, folder, a, Items(folder)
        self._number, self._word = number, ledger.campaign().instance[:8]
        self._batches = {batch.id: batch for batch in ledger.batches()}

    def of(self, job: JobRecord) -> Iterator[Old]:
        """The outputs of a job under their final names, and what an attempt without a report may have left there."""
        batch, folder = self._batches[job.batch], self._folder
        accepted = self._accepted(job)
        known: dict[str, Output] = {output.to: output for output in outputs_of(accepted.report)} if accepted else {}
        root = self._assembled.sites[batch.site].output.root
        if root is None and not accepted:  # what came back stays where it came to
            return
        for _, to in self._items.declared(batch, job.index).outputs:
            output = known.get(to)
            sha256 = output.sha256 if output else ""
            if root is not None:
                aside = self._aside(batch.site, root)
                if aside and output and not self._is_there(batch.site, Path(root, to), aside / to):
                    aside = None
                if output or job.starts:
                    yield Old(to, f"{root}/{to}", aside, sha256)
            elif accepted and output:
                came = self._items.log(batch, job.index).parent / "out" / output.file
                place = folder.outputs / to if accepted.published else came
                yield Old(to, str(place), folder.outputs / RETIRED / str(self._number), sha256)

    def _accepted(self, job: JobRecord) -> AttemptRecord | None:
        mine = (one for one in self._ledger.attempts(job.name) if one.batch == job.batch and one.accepted)
        return next(mine, None)

    def _is_there(self, site: str, place: Path, aside: Path) -> bool:
        """Is it the folder that the site's nodes see? An output of this machine that is gone is gone."""
        return self._assembled.sites[site].backend == "local" or os.path.lexists(place) or os.path.lexists(aside)

    def _aside(self, site: str, root: str) -> Path | None:
        output = self._assembled.sites[site].output
        if output.kind != "posix" or not Path(root).is_dir():
            return None
        return Path(root) / RETIRED / f"{self._assembled.campaign.campaign}-{self._word}" / str(self._number)


def _move(place: Path, aside: Path, to: str, sha256: str) -> bool:
    """Move an output away, without clobbering; False: it is not there, or not any more. Raises FermigridError."""
    try:
        with open_plain(place) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FermigridError(f"{place} cannot be moved away: {error.strerror}") from error
    if sha256 and found != sha256:
        raise FermigridError(f"{place} is not what was accepted: its sha256 differs. Move it away by hand")
    try:
        aside.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FermigridError(f"{aside} cannot be made: {error.strerror}") from error
    publish_output(place, aside, to, found)
    return True
