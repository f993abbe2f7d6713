"""What stands between the work that is ready and the batch systems: circuit breaker, trial, space for the outputs.

While the breaker is tripped nothing is sent, jobs that wait are kept from starting, and those that run go on. While a
trial lasts only its block is sent. A batch for whose outputs there is no room waits until there is.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fermigrid import backends
from fermigrid.advance import Work, block_name
from fermigrid.breaker import find_reason, window_of
from fermigrid.errors import BackendUnavailable, SubmissionRefused
from fermigrid.ledger import Ledger
from fermigrid.plan import Assembled
from fermigrid.records import BatchRecord
from fermigrid.runfolder import RunFolder
from fermigrid.space import Room, Sent, find_shortage, output_of_a_job
from fermigrid.split import count_jobs
from fermigrid.states import State
from fermigrid.submit import Hand, handle_of
from fermigrid.units import show_count

_PATIENCE_S = 10  # a dead mount does not answer, and cannot be ended
BREAKER, TRIAL, SPACE = "breaker", "trial", "space"


def is_halted(ledger: Ledger, kind: str) -> bool:
    """Is there such a reason to send nothing more?"""
    return any(halt.kind == kind for halt in ledger.halts())


def check_breaker(ledger: Ledger, folder: RunFolder, assembled: Assembled, hand: Hand) -> bool:
    """May more of the campaign start? Trips the circuit breaker where it has to be."""
    stop_if = assembled.campaign.stop_if
    if is_halted(ledger, BREAKER):
        return False
    free = free_bytes(folder.path) if stop_if.disk is not None else None
    why = find_reason(stop_if, ledger.results(window_of(stop_if)), free)
    if why:
        ledger.halt(BREAKER, why, hand.now(), hand.who)
        hand.tell(f"nothing more of {assembled.campaign.campaign} starts: {why}. To go on: fermigrid resume")
    return not why


def keep_paused(ledger: Ledger, folder: RunFolder) -> None:
    """Keep jobs from starting, also those that came back from a machine. Raises BackendUnavailable, also to say of
    which batches the batch system cannot do it: all others are paused then."""
    paused, counts, unable = ledger.paused(), ledger.counts(), list[SubmissionRefused]()
    for batch in ledger.batches():
        by_state = counts.get(batch.id, {})
        if (
            batch.submitted
            and not _has_ended(batch, by_state)
            and (by_state.get(State.WAITING) or batch.id not in paused)
        ):
            ledger.pause(batch.id)  # first: what may be paused is resumed
            try:
                backends.load(batch.backend).pause([handle_of(folder, batch)])
            except SubmissionRefused as error:
                unable.append(error)
    if unable:
        raise BackendUnavailable("; ".join(map(str, unable)), unable[0].hint)


def resume_paused(ledger: Ledger, folder: RunFolder, drained: Container[str] = ()) -> int:
    """Let paused jobs start, but for those at drained sites; returns the number of batches. Raises BackendUnavailable:
    the rest stays paused then."""
    paused = {batch.id for batch in ledger.batches() if batch.site not in drained} & ledger.paused()
    for batch in ledger.batches():
        if batch.id in paused:
            if batch.submitted and not batch.removed:
                backends.load(batch.backend).resume([handle_of(folder, batch)])
            ledger.unpause(batch.id)
    return len(paused)


def _has_ended(batch: BatchRecord, by_state: Mapping[State, int]) -> bool:
    return bool(batch.removed) or sum(count for state, count in by_state.items() if state.final) >= batch.counted


def of_the_trial(ledger: Ledger, works: Iterable[Work]) -> Iterator[Work]:
    """The works that may be sent while a trial lasts: those of its block, which is the first."""
    only = block_name(0) if is_halted(ledger, TRIAL) else None
    return (work for work in works if only is None or work.block == only)


class Space:
    """The room for outputs, and what is known of jobs' outputs, while batches are sent one after the other."""

    def __init__(self, ledger: Ledger, folder: RunFolder, assembled: Assembled, hand: Hand) -> None:
        self.ledger, self.folder, self.assembled, self.hand = ledger, folder, assembled, hand

    def let_through(self, works: Iterable[Work]) -> Iterator[Work]:
        """The works for whose outputs there is room; a person is told of the others, by `status` and alerts.

        Each that is yielded counts as sent for those after it.
        """
        refused, sent = "", None
        for work in works:
            sent = list(self._sent()) if sent is None else sent
            why = self._shortage(work, sent)
            if not why:
                yield work
                jobs = count_jobs(self.assembled.campaign.steps[work.step], work.runs, work.pieces)
                sent.append(Sent(work.step, work.site, jobs, 0, 0, False))
            refused = refused or why
        if refused:
            if not is_halted(self.ledger, SPACE):
                self.hand.tell(f"not sent, there is no room: {refused}")
            self.ledger.halt(SPACE, refused, self.hand.now(), self.hand.who)
        elif is_halted(self.ledger, SPACE):
            self.ledger.lift(SPACE, self.hand.now(), self.hand.who, "there is room")

    def _shortage(self, work: Work, sent: Sequence[Sent]) -> str:
        campaign = self.assembled.campaign
        each = {name: output_of_a_job(name, step.resources.output, sent) for name, step in campaign.steps.items()}
        one = each[work.step]
        if not one:
            return ""
        jobs = count_jobs(campaign.steps[work.step], work.runs, work.pieces)
        name = f"{campaign.campaign}.{work.block}.{work.step} ({show_count(jobs, 'job')} to {work.site})"
        here = [batch for batch in sent if batch.site == work.site]
        return find_shortage(name, jobs * one, self._room(work.site), here, each)

    def _sent(self) -> Iterator[Sent]:
        produced, counts = self.ledger.produced(), self.ledger.counts()
        for batch in self.ledger.batches():
            good, count = produced.get(batch.id, (0, 0))
            yield Sent(batch.step, batch.site, batch.jobs, good, count, _has_ended(batch, counts.get(batch.id, {})))

    def _room(self, name: str) -> Room:
        output = self.assembled.sites[name].output
        quota = self.ledger.adjusted().get((name, "quota"), output.quota)
        if output.kind == "transfer":
            return Room(name, quota, free_bytes(self.folder.path), "the run folder's file system")
        if output.kind == "posix" and output.root:
            return Room(name, quota, free_bytes(Path(output.root)), output.root)
        return Room(name, quota, None)


def free_bytes(path: Path) -> int | None:
    """Bytes that are left for this user on the file system of `path`; None where it does not tell (in time)."""
    if not path.is_absolute():
        return None
    command = ["stat", "--file-system", "--format=%a %S", str(path)]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        asked = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        said, _ = asked.communicate(timeout=_PATIENCE_S)
        blocks, size = map(int, said.split())
    except subprocess.TimeoutExpired:
        asked.kill()  # and left behind
        return None
    except (OSError, ValueError):
        return None
    return blocks * size
