"""What DIRAC's states of a job mean here. Pure.

DIRAC's word that a job is done counts for nothing: the worker's report decides. Jobs that were handed in together are
`Submitting` until they are confirmed; until then DIRAC starts none of them. See docs/reference/dirac.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from fermigrid.states import Seen

UNCONFIRMED_MINOR = "Bulk transaction confirmation"  # DIRAC's minor status of a job that waits for its confirmation


class Stage(StrEnum):
    """How far a job is, of all that DIRAC's states tell."""

    UNCONFIRMED = "unconfirmed"  # DIRAC has it and does not start it until it is confirmed
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"  # by itself, or because DIRAC gave it up: its sandbox tells
    KILLED = "killed"
    UNKNOWN = "unknown"  # a state that this fermigrid does not know: nothing is concluded from it

    @property
    def final(self) -> bool:
        return self in (Stage.ENDED, Stage.KILLED)


STAGES = {
    "Submitting": Stage.UNCONFIRMED,
    "Received": Stage.WAITING,
    "Checking": Stage.WAITING,
    "Scouting": Stage.WAITING,
    "Staging": Stage.WAITING,
    "Waiting": Stage.WAITING,
    "Matched": Stage.WAITING,  # a pilot has it, and has not started it
    "Rescheduled": Stage.WAITING,
    "Running": Stage.RUNNING,
    "Stalled": Stage.RUNNING,  # nothing was heard of it for hours: it may come back, and DIRAC fails it if it does not
    "Completing": Stage.RUNNING,
    "Completed": Stage.RUNNING,  # the payload has ended; its outputs are still under way
    "Done": Stage.ENDED,
    "Failed": Stage.ENDED,
    "Killed": Stage.KILLED,
    "Deleted": Stage.KILLED,
}

MEANINGS = {
    "Submitting": "handed in, and not confirmed yet: DIRAC does not start it",
    "Received": "DIRAC has it and has not looked at it yet",
    "Checking": "DIRAC looks at where it can run",
    "Scouting": "DIRAC waits for the jobs that try it first",
    "Staging": "its input data are brought from tape",
    "Waiting": "it waits for a pilot at a site where it may run",
    "Matched": "a pilot has it and is about to start it",
    "Rescheduled": "DIRAC starts it again",
    "Running": "it runs",
    "Stalled": "DIRAC has not heard of it for hours: it may come back, or DIRAC fails it",
    "Completing": "the payload has ended; DIRAC brings back what it left",
    "Completed": "the payload has ended; its output data are still under way",
    "Done": "DIRAC says that it ended well; the worker's report decides",
    "Failed": "DIRAC says that it failed; the worker's report decides where there is one",
    "Killed": "it was killed",
    "Deleted": "it was deleted",
}

# The worker's exit code for a job of which no report came back, by DIRAC's minor status; by it a rule is found. From
# https://github.com/DIRACGrid/DIRAC, src/DIRAC/WorkloadManagementSystem/{Client/JobMinorStatus,JobWrapper/Watchdog}.py
_BAD_JOB, _STAGE_IN, _STAGE_OUT, _DISK_FULL, _INTERNAL, _TERM = 80, 86, 88, 89, 99, 143
END_CODES = {
    "Illegal Job JDL": _BAD_JOB,
    "Input data contains //": _BAD_JOB,
    "Input data not correctly specified": _BAD_JOB,
    "No candidate sites available": _BAD_JOB,
    "Failed Downloading InputSandbox": _STAGE_IN,
    "Failed Downloading InputSandbox LFN(s)": _STAGE_IN,
    "Input Data Not Available": _STAGE_IN,
    "Job has insufficient disk space to continue": _DISK_FULL,
    "Job has exceeded maximum CPU time limit": _TERM,
    "Job has exceeded maximum wall clock time": _TERM,
    "Job has reached the CPU limit of the queue": _TERM,
}


@dataclass(frozen=True)
class ServerJob:
    """A job as DIRAC knows it now. `started`: when it last began to run, None where it never did or nobody tells;
    `group`: where it is told."""

    id: int
    name: str
    status: str
    minor: str = ""
    application: str = ""
    site: str = ""
    updated: datetime | None = None
    started: datetime | None = None
    reschedules: int = 0
    group: str = ""

    @property
    def stage(self) -> Stage:
        return STAGES.get(self.status, Stage.UNKNOWN)

    @property
    def ran(self) -> bool:
        return self.started is not None or self.status in ("Running", "Stalled", "Completing", "Completed", "Done")

    @property
    def confirmed(self) -> bool:
        """Was DIRAC told to start it? Where nobody tells it, DIRAC fails the job after some minutes."""
        return self.stage is not Stage.UNCONFIRMED and not (self.stage.final and self.minor == UNCONFIRMED_MINOR)

    @property
    def end_code(self) -> int:
        """What stands for the exit code of a job that ended and left no report: what came of it was lost (Done), or the
        grid failed it, if DIRAC does not say more."""
        return _STAGE_OUT if self.status == "Done" else END_CODES.get(self.minor, _INTERNAL)

    @property
    def words(self) -> str:
        """Its state as DIRAC words it."""
        known = ("", "Unknown", self.status)
        more = [text for text in (self.minor, self.application) if text not in known]
        return ", ".join(dict.fromkeys([self.status, *more]))


@dataclass(frozen=True)
class Known:
    """What was last told of a job: its stage, how often DIRAC had rescheduled it, and whether a start was told."""

    stage: Stage = Stage.WAITING
    reschedules: int = 0
    started: bool = False


@dataclass(frozen=True)
class Change:
    """Something to be told of a job."""

    seen: Seen
    reason: str = ""


def changes(before: Known, now: ServerJob) -> Iterator[tuple[Change, Known]]:
    """What happened to a job since it was last looked at, in order, each with what is known afterwards.

    An unknown state, and one that is not confirmed, changes nothing: such a job is looked at again.
    """
    known, stage = before, now.stage
    if stage in (Stage.UNKNOWN, Stage.UNCONFIRMED):
        return
    if known.stage is Stage.UNKNOWN:
        known = replace(known, stage=Stage.WAITING, started=False)
        yield Change(Seen.SUBMITTED, "DIRAC knows it again"), known
    again = now.reschedules > before.reschedules or (stage is Stage.WAITING and before.stage is Stage.ENDED)
    if before.stage is Stage.RUNNING and (again or stage is Stage.WAITING):
        known = replace(known, stage=Stage.WAITING, reschedules=now.reschedules, started=False)
        yield Change(Seen.EVICTED, f"DIRAC starts it again: {now.words}"), known
    elif again:
        known = replace(known, stage=Stage.WAITING, reschedules=now.reschedules, started=False)
    begun = stage is Stage.RUNNING or (stage is Stage.ENDED and now.ran)
    if begun and not known.started:
        known = replace(known, stage=Stage.RUNNING, started=True, reschedules=now.reschedules)
        yield Change(Seen.STARTED), known
    if stage is known.stage:
        return
    known = replace(known, stage=stage, reschedules=now.reschedules)
    if stage is Stage.ENDED:
        yield Change(Seen.ENDED, now.words), known
    elif stage is Stage.KILLED:
        yield Change(Seen.REMOVED, f"DIRAC: {now.words}"), known


def choose(jobs: list[ServerJob]) -> ServerJob:
    """The one of several jobs of one name that counts: the first that is confirmed, else the first that may be yet.

    The others are copies that a lost answer left: nobody confirms them, and DIRAC starts none of them.
    """
    return min(jobs, key=lambda job: (not job.confirmed, _is_over(job), job.id))


def _is_over(job: ServerJob) -> bool:
    """Does nothing come of it? DIRAC words it alike whether a job was killed before or after it was confirmed."""
    return job.stage is Stage.KILLED or (job.stage.final and not job.confirmed)


def twins(jobs: list[ServerJob]) -> list[ServerJob]:
    """Those of one name that run, or may, where they are several: DIRAC was given the job twice, not by fermigrid."""
    alive = [job for job in jobs if job.confirmed and not job.stage.final]
    return alive if len(alive) > 1 else []
