"""How a batch gets to DIRAC whole: handed in, looked for, handed in again, confirmed.

Jobs that are handed in are started only once they are confirmed, and given up if nobody does it. So a document whose
answer was lost is sent again if its jobs are not there; of copies that appear later none is ever confirmed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from fermigrid.backends import RenderedBatch
from fermigrid.backends.dirac_book import note_killed, that_count
from fermigrid.backends.dirac_states import ServerJob, Stage, choose, twins
from fermigrid.backends.dirac_transport import Denied, Sent, Transport, Unreachable
from fermigrid.errors import (
    BackendUnavailable,
    FermigridError,
    RunFolderError,
    SecretRefused,
    SubmissionDoubt,
    SubmissionRefused,
)
from fermigrid.jdl import JdlDocument, documents, names_of

T = TypeVar("T")
Found = Mapping[str, list[ServerJob]]  # the server's jobs of a batch by name

_ROUNDS = 5  # times that a submission goes on after answers were lost
_WAIT_S = 0.5  # before the second round; twice as long before each other
_CONFIRM_AFTER_S = 60.0  # DIRAC gives up what is not confirmed after 300 s
_PATIENCE_S = 600.0  # after so long no new round is begun
_LATER = "Nothing is known to be lost: try again later."
_SETTLE = "Run the same `fermigrid submit` again, or `fermigrid watch`: they hand in what is missing, nothing twice."
_LOG_IN = "Log in again (docs/how-to/dirac.md); then the same command goes on."


class Landing:
    """A batch on its way to the server."""

    def __init__(self, batch: RenderedBatch, way: Transport) -> None:
        self.batch, self.way, self.names = batch, way, names_of(batch)
        self.ids: dict[int, int] = {}  # of each index: the job that counts
        self.unconfirmed: dict[int, float] = {}  # index -> since when it has waited for its confirmation
        self.made: dict[int, datetime] = {}  # job -> when the server made it
        self.copies: set[int] = set()
        self.killed: set[int] = set()  # indices whose job somebody killed

    def land(self) -> list[int]:
        """All ids, in the order of the jobs; all are confirmed."""
        trouble, began = self._look(), time.monotonic()
        for wait in (0.0, *(_WAIT_S * 2**count for count in range(_ROUNDS - 1))):
            if time.monotonic() - began > _PATIENCE_S:
                break
            time.sleep(wait if trouble else 0)
            if trouble and (trouble := self._look()):
                continue
            if not (trouble := self._clear() or self._send() or self._confirm()):
                self._kill_copies()
                return [self.ids[index] for index in range(self.batch.jobs)]
        raise self._doubt(trouble)

    def _doubt(self, trouble: str) -> FermigridError:
        if not self.ids and not self.copies:
            return BackendUnavailable(f"{self.batch.name}: DIRAC does not answer: {trouble}", _LATER)
        return SubmissionDoubt(self._words(trouble), _SETTLE)

    def _words(self, trouble: str) -> str:
        landed = f"{len(self.ids)} of its {self.batch.jobs} jobs landed"
        return f"{self.batch.name}: {landed}, {len(self.unconfirmed)} of them are not confirmed: {trouble}"

    def _look(self) -> str:
        """Take in what the server has of the batch; the trouble with it, if any."""
        try:
            jobs = self.way.select(self.batch.batch_id, {})
        except Unreachable as error:
            return str(error)
        except Denied as error:
            if not error.credentials:
                return str(error)
            if self.ids:
                raise SubmissionDoubt(self._words(f"DIRAC does not let us in any more: {error}"), _LOG_IN) from error
            raise denied(self.batch, error) from error
        found = by_name(that_count(self.batch, jobs))
        refuse_twins(self.batch, found)
        self.ids, self.unconfirmed = {}, {}
        self.copies = {job.id for job in jobs if not job.stage.final}
        self.killed = set()
        for index, name in enumerate(self.names):
            job = choose(found[name]) if name in found else None
            if job is not None and (job.confirmed or (self.way.confirms and not job.stage.final)):
                self._has_landed(index, job.id)
                if job.stage is Stage.KILLED:
                    self.killed.add(index)
                if job.confirmed:
                    del self.unconfirmed[index]
                else:
                    self.unconfirmed[index] = 0.0  # of an earlier fermigrid: nobody knows for how long it has waited
        return ""

    def _has_landed(self, index: int, job: int) -> None:
        self.ids[index] = job
        self.copies.discard(job)
        self.unconfirmed[index] = time.monotonic()

    def _clear(self) -> str:
        """Where what hands jobs in confirms them, too, it may have asked to and died: the server confirms them when it
        comes to it. So they are killed before others are handed in for them; the trouble with it, if any."""
        if self.way.confirms or not self.copies:
            return ""
        try:
            self._kill(self.copies)
        except (Unreachable, Denied) as error:
            return str(error)
        self.copies.clear()
        return ""

    def _kill(self, ids: Iterable[int]) -> None:
        """Take these back. Raises Unreachable, Denied."""
        note_killed(self.batch, ids := sorted(ids))
        self.way.kill(ids)

    def _missing(self) -> Iterator[JdlDocument]:
        for document in documents(self.batch):
            indices = range(document.first_index, document.first_index + document.jobs)
            here = [index for index in indices if index in self.ids]
            if len(here) == document.jobs:
                continue
            if self.killed.issuperset(here):  # as a person was told to do
                for index in here:
                    del self.ids[index]
            elif any(index not in self.unconfirmed for index in here):
                text = f"DIRAC has only {len(here)} of {document.jobs} jobs that were handed in as one"
                hint = f"Kill them, and submit again: {kill_words([self.ids[index] for index in here])}"
                raise SubmissionDoubt(f"{self.batch.name}: {text}", hint)
            yield document

    def _send(self) -> str:
        """Hand in what is missing; the trouble with it, if any. What is under way when something goes wrong has its
        word first: more of the batch may be there then."""
        refused = trouble = login = ""
        try:
            for sent in self.way.send(self._missing()):
                self._take(sent)
                refused, trouble = refused or sent.refused, trouble or sent.doubt
                login = login or (sent.doubt if sent.login else "")
                if not refused and not trouble and self._waits_long():
                    trouble = self._confirm()
                    if trouble:
                        break
        except Unreachable as error:
            trouble = trouble or str(error)
        except Denied as error:
            trouble, login = str(error), str(error) if error.credentials else ""
        if refused:
            self._take_back()
            raise SubmissionRefused(f"{self.batch.name}: DIRAC refused the batch: {refused}")
        if login:
            raise SubmissionDoubt(self._words(f"DIRAC does not let us in any more: {login}"), _LOG_IN)
        return trouble

    def _take(self, sent: Sent) -> None:
        """The jobs of a document have landed."""
        for index, job in enumerate(sent.ids, sent.document.first_index):
            if index in self.ids:
                self.copies.add(self.ids[index])
            self._has_landed(index, job)
            if sent.made:
                self.made[job] = sent.made
            if not self.way.confirms:
                del self.unconfirmed[index]

    def _waits_long(self) -> bool:
        """Must something be confirmed before the rest has landed, lest DIRAC gives it up?"""
        since = min(self.unconfirmed.values(), default=time.monotonic())
        return time.monotonic() - since > _CONFIRM_AFTER_S

    def _confirm(self) -> str:
        """Let DIRAC start what has landed; the trouble with it, if any."""
        if not self.unconfirmed:
            return ""
        try:
            self.way.confirm([self.ids[index] for index in sorted(self.unconfirmed)], self.made)
        except Unreachable as error:
            return str(error)
        except Denied as error:
            if error.credentials:
                raise SubmissionDoubt(self._words(f"DIRAC does not let us in any more: {error}"), _LOG_IN) from error
            return f"not confirmed: {error}"
        self.unconfirmed = {}
        return ""

    def _take_back(self) -> None:
        """Kill what the server has of the batch: perhaps more than was told so far."""
        try:
            if not (trouble := self._look()):
                self._kill({*self.ids.values(), *self.copies})
        except (Unreachable, Denied) as error:
            trouble = str(error)
        if trouble:
            text = f"{self.batch.name}: refused in part, and what had landed of it cannot be taken back: {trouble}"
            raise SubmissionDoubt(text, _SETTLE)

    def _kill_copies(self) -> None:
        """Tidy up: nobody confirms them, so it does not matter whether it can be done."""
        if self.copies:
            try:
                self._kill(self.copies)
            except (Unreachable, Denied, RunFolderError):
                return


def by_name(jobs: Sequence[ServerJob]) -> Found:
    """The server's jobs by their names."""
    found = defaultdict[str, list[ServerJob]](list)
    for job in jobs:
        found[job.name].append(job)
    return found


def refuse_twins(batch: RenderedBatch, found: Found) -> None:
    """Raise SubmissionDoubt where several jobs of one name run, or may."""
    double = {name: both for name, jobs in found.items() if (both := twins(jobs))}
    for name, jobs in double.items():
        ids = [job.id for job in jobs]
        text = f"{batch.name}: DIRAC has {name} more than once, as jobs {', '.join(map(str, ids))}"
        more = f"; so it is with {len(double) - 1} other jobs" if len(double) > 1 else ""
        raise SubmissionDoubt(text + more, f"Somebody else handed it in. Keep one: {kill_words(ids[1:])}")


def kill_words(ids: Sequence[int]) -> str:
    """The command that ends these jobs, for a person."""
    return f"dirac-wms-job-kill {' '.join(map(str, ids))}"


def spoken(batch: RenderedBatch, ask: Callable[[], T], otherwise: str = "") -> T:
    """The answer to a question, or the error for having none. Credentials that will not do are the matter of who sends
    (`otherwise`: what that came to); who only looks hears that DIRAC cannot be asked now."""
    try:
        return ask()
    except Unreachable as error:
        what = f"{otherwise}: " if otherwise else ""
        raise BackendUnavailable(f"{batch.name}: {what}DIRAC does not answer: {error}", _LATER) from error
    except Denied as error:
        raise denied(batch, error) from error
    except SecretRefused as error:
        if otherwise:
            raise
        raise BackendUnavailable(f"{batch.name}: {error}", error.hint) from error


def denied(batch: RenderedBatch, error: Denied) -> FermigridError:
    """The error for a question that was answered with no: of the batch it says nothing."""
    if error.credentials:
        return BackendUnavailable(f"{batch.name}: DIRAC does not let us in: {error}", _LOG_IN)
    return BackendUnavailable(f"{batch.name}: DIRAC does not answer that: {error}", _LATER)
