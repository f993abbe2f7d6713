"""`fermigrid watch` as the job of a schedd: it goes on by itself where a person would give the command again."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime

import click

from fermigrid.archive import archive_of
from fermigrid.commands.following import following, make_hand, tell_holds
from fermigrid.errors import FermigridError, LedgerBusy
from fermigrid.ledger_file import writing
from fermigrid.runfolder import RunFolder
from fermigrid.unattended import look_and_care
from fermigrid.watch import Following, Turn
from fermigrid.watch_job import arrive, log_file

POLL_S = 15.0  # between two looks: nobody waits at a screen, and the schedd's machine has other work
NICE = 10
FIRST_WAIT_S, TRIES = 15.0, 6  # after an error, doubled each time: 15 s ... 4 min
AGAIN = 75  # EX_TEMPFAIL: the schedd starts it anew, after some minutes
_SESSION = "CONDOR_SECURITY_SESSION"  # a key of the schedd's: nothing that is started here may have it


def watch_as_job(folder: RunFolder, cluster: int) -> int:
    """Watch until nothing is left to wait for. Returns 0 then, AGAIN when it went wrong time after time: a new process
    may have a newer fermigrid, or more luck."""
    os.environ.pop(_SESSION, None)
    os.nice(NICE)
    _speak_into_the_log(folder)
    click.echo(f"begins at {_now()}, job {cluster}, process {os.getpid()}", err=True)
    wait = FIRST_WAIT_S
    for _ in range(TRIES):
        if _has_gone(folder):
            return 0
        began = time.monotonic()
        try:
            with following(folder, make_hand()) as f:
                _watch(f, cluster)
            click.echo(f"ends at {_now()}: nothing is left to wait for", err=True)
            return 0
        except FermigridError as error:
            if time.monotonic() - began > wait:
                wait = FIRST_WAIT_S
            click.echo(f"{_now()}: {error} {error.hint}".rstrip(), err=True)
        time.sleep(wait)
        wait *= 2
    return AGAIN


def _watch(f: Following, cluster: int) -> None:
    """Look until nothing is left to wait for. Raises FermigridError for a look that failed."""
    pause = float(os.environ.get("FERMIGRID_POLL_S", POLL_S))
    told, here = set[str](), False
    while not _has_gone(f.folder):
        try:
            with writing(f.folder.ledger):
                if not here:
                    arrive(f, cluster)
                    here = True
                turn = look_and_care(f)
                if turn.finished and not _waits_for_a_person(f):
                    f.ledger.watch_ends(f.hand.now(), f.hand.who)
                    return
        except LedgerBusy:  # a person is at work: it is for us to wait
            time.sleep(pause)
            continue
        _say(f, turn, told)
        if not turn.events:
            time.sleep(pause)


def _waits_for_a_person(f: Following) -> bool:
    """Was it stopped (a trial, the circuit breaker), and will go on when a person says so?"""
    return bool(f.ledger.halts()) and not f.ledger.campaign().stopped


def _say(f: Following, turn: Turn, told: set[str]) -> None:
    for problem in turn.problems:
        if (gist := problem.partition(", in ")[0]) not in told:
            f.hand.tell(f"{_now()}: {problem}")
            told.add(gist)
    tell_holds(f, told)


def _speak_into_the_log(folder: RunFolder) -> None:
    """HTCondor empties a job's output at each start: what it says is kept in a file of its own."""
    descriptor = os.open(log_file(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())


def _has_gone(folder: RunFolder) -> bool:
    """Was the campaign archived, or its run folder removed? A file system that is not there now may come back."""
    try:
        return folder.pointer.is_file() or archive_of(folder) is not None or _was_removed(folder)
    except OSError:
        return False


def _was_removed(folder: RunFolder) -> bool:
    return not folder.path.exists() and folder.path.parent.is_dir() and any(folder.path.parent.iterdir())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
