"""This machine as a batch system: for rehearsals and small work, never a scheduler.

`submit` writes the first line of the batch's event file, which is the submission, and starts a runner in the
background (`local_runner`). A runner that dies is started again by `observe`, on the machine where it was.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import fermigrid
from fermigrid.access import usual_umask
from fermigrid.backends import PAUSED, Allowed, Cursor, Handle, Indices, JobSeen, Observation, RenderedBatch
from fermigrid.backends.local_events import (
    HELD,
    RUNNING,
    WAITING,
    Event,
    Folder,
    Lines,
    Table,
    batch_to_text,
    folder_of,
    last_event,
    now,
    read_all,
    read_lines,
    to_seen,
    try_lock,
    write_whole,
)
from fermigrid.backends.local_job import Slots, folder_name, read_options
from fermigrid.backends.local_keeper import RUNNER, TAG, UMASK, cpu_used
from fermigrid.backends.local_runner import ANOTHER_RUNS
from fermigrid.credential import has_secret_name, looks_secret
from fermigrid.errors import BackendUnavailable, NotFound, SubmissionRefused
from fermigrid.plainfile import read_plain
from fermigrid.states import Seen
from fermigrid.units import show_count

_READ_LIMIT = 4 << 20  # bytes of events read in one call of `observe`
_START_LIMIT = 30.0  # s for a runner to say that it runs


def submit(batch: RenderedBatch) -> Handle:
    """Start the batch here; one that was submitted already goes on. Raises SubmissionRefused."""
    read_options(batch.options)
    if shutil.which("bash") is None:
        raise SubmissionRefused("local: there is no bash on this machine")
    for name in ("plan.json", "items.txt", "worker.sh", "job.env"):
        if not (batch.plan_dir / name).is_file():
            raise SubmissionRefused(f"local: the plan has no {name}: {batch.plan_dir}")
    folder = folder_of(batch)
    try:
        folder.commands.mkdir(mode=0o770, parents=True, exist_ok=True)
        _write_first_line(folder, batch)
    except OSError as error:
        raise SubmissionRefused(f"local: {folder.path} cannot be written: {error}") from error
    handle = Handle(batch, where="", cluster=0)
    _ensure_runner(handle)
    return handle


def _write_first_line(folder: Folder, batch: RenderedBatch) -> None:
    """The submission itself: the event file appears whole, once, whoever else tries at the same time."""
    digest = sha256(read_plain(batch.plan_dir / "job.env")).hexdigest()
    first = {"batch": batch.batch_id, "jobs": batch.jobs, "host": socket.gethostname(), "time": now(), "env": digest}
    part = folder.path / f".events.{os.getpid()}.{time.monotonic_ns()}"
    with part.open("x") as stream:
        stream.write(json.dumps(first) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    try:
        folder.events.hardlink_to(part)
    except FileExistsError:
        return
    finally:
        part.unlink(missing_ok=True)


def find(batch: RenderedBatch) -> Handle | None:
    """Whether the batch was submitted: whether its event file is there and begins with its id."""
    try:
        first = read_lines(folder_of(batch).events, 0, 8192).events[:1]
    except FileNotFoundError:
        return None
    landed = bool(first) and first[0].get("batch") == batch.batch_id
    return Handle(batch, where="", cluster=0) if landed else None


def take_back(batch: RenderedBatch) -> None:
    """A batch is there whole or not at all: of one that did not land nothing is there."""
    del batch


def observe(handles: Sequence[Handle], cursor: Cursor) -> Observation:
    """What happened since `cursor`; a batch whose runner died before its jobs were over gets a new one."""
    offsets, seen, problems, left = dict(cursor.offsets), list[JobSeen](), list[str](), _READ_LIMIT
    for handle in handles:
        path, batch_id = folder_of(handle.batch).events, handle.batch.batch_id
        if left <= 0:
            break
        before = offsets.get(str(path), 0)
        try:
            lines = read_lines(path, before, left)
        except OSError as error:
            problems.append(f"{handle.batch.name}: its events cannot be read: {error}")
            continue
        seen += _about_jobs(lines, batch_id)
        problems += lines.problems
        offsets[str(path)] = lines.offset
        left -= max(0, lines.offset - before)
        problems += _resume(handle)
    return Observation(tuple(seen), Cursor(offsets), tuple(problems))


def _about_jobs(lines: Lines, batch_id: str) -> Iterable[JobSeen]:
    return (seen for event in lines.events if (seen := to_seen(event, batch_id)) is not None)


def _resume(handle: Handle) -> list[str]:
    """Start a runner where one is needed and none is alive; what a person should know of it."""
    folder = folder_of(handle.batch)
    if _is_alive(folder) or last_event(folder.events).get("finished"):
        return []
    try:
        _ensure_runner(handle)
    except BackendUnavailable as error:
        return [f"{error}"]
    return [f"{handle.batch.name}: its runner was not alive; a new one was started; see {folder.log}"]


def _is_alive(folder: Folder) -> bool:
    """Whether a runner, or the keeper of a job that a dead runner left, holds the lock."""
    lock = try_lock(folder.lock)
    if lock is None:
        return True
    os.close(lock)
    return False


def _ensure_runner(handle: Handle) -> None:
    """See that a runner works on the batch, if anything is left to do. Raises BackendUnavailable."""
    folder = folder_of(handle.batch)
    if not folder.events.is_file():
        raise BackendUnavailable(f"{handle.batch.name}: its folder has gone: {folder.path}")
    if _is_alive(folder) or last_event(folder.events).get("finished"):
        return
    host = next(read_all(folder.events)).get("host")
    if host != socket.gethostname():
        hint = f"Run fermigrid watch on {host}."
        raise BackendUnavailable(f"{handle.batch.name}: its jobs run on {host}, this is {socket.gethostname()}", hint)
    environment = {name: value for name, value in os.environ.items() if _travels(name, value)}
    environment[UMASK] = f"{usual_umask():o}"
    command = [sys.executable, "-m", RUNNER, str(folder.path)]
    try:
        write_whole(folder.batch, batch_to_text(handle.batch))
        started = subprocess.run(
            command,
            env=environment,
            cwd=Path(fermigrid.__file__).parents[1],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_START_LIMIT,
            start_new_session=True,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendUnavailable(f"{handle.batch.name}: no runner could be started: {error}") from error
    if started.returncode not in (0, ANOTHER_RUNS):
        raise BackendUnavailable(f"{handle.batch.name}: no runner could be started: {started.stderr.strip()}")


def _travels(name: str, value: str) -> bool:
    """Is a variable of this shell the jobs' affair? A password in it is not; where a credential lies is."""
    if name in (TAG, "FERMIGRID_START") or looks_secret(value):
        return False
    return not has_secret_name(name) or value.startswith("/")


def explain(handle: Handle, index: int) -> tuple[str, ...]:
    """Why the job waits or is held, and where its log grows while it runs."""
    folder, options = folder_of(handle.batch), read_options(handle.batch.options)
    _check((handle,), (index,))
    table, last = Table(handle.batch.jobs), None
    for event in read_all(folder.events):
        table.apply(event)
        if event.get("index") == index:
            last = event
    said = [_in_words(handle, index, table, last)]
    if table.state(index) == WAITING:
        slots, running = Slots(options.scratch, options.slots), table.states.count(RUNNING)
        before = table.states.count(WAITING, 0, index)
        said.append(f"jobs of this batch: {before} wait before it, {running} run now")
        if table.paused:
            said.append("the batch is paused: nothing of it starts; fermigrid status says why")
        allowed = table.allowed or options.allowed
        if allowed.places is not None and running >= allowed.places:
            said.append(f"limits: of this batch {show_count(allowed.places, 'job')} may run at a time")
        if allowed.starts:
            said.append(f"limits: of this batch {allowed.starts:.3g} may start in a minute")
        said.append(f"slots of this machine: {slots.in_use()} of {slots.count} in use, by all batches")
    if not table.finished and not _is_alive(folder):
        said.append("no runner is alive: fermigrid watch starts it again")
    return tuple(said)


def explain_removal(reason: str, code: str) -> tuple[str, ...]:
    """Nothing takes a job out of the queue here but a person, who knows why."""
    del reason, code
    return ()


def _in_words(handle: Handle, index: int, table: Table, last: Event | None) -> str:
    if last is None:
        return "waiting for a slot; it has not started yet"
    when = datetime.fromisoformat(last["time"]).strftime("since %Y-%m-%d %H:%M:%S UTC")
    reason = f": {last['reason']}" if last.get("reason") else ""
    if table.state(index) == WAITING:
        return f"waiting for a slot {when}, again{reason}"
    if table.state(index) == RUNNING:
        start, scratch = table.starts[index], read_options(handle.batch.options).scratch
        log = scratch / folder_name(handle.batch, index, start) / "log"
        return f"running {when} on {last['host']}, start {start}; its log grows in {log}"
    if table.state(index) == HELD:
        return f"held {when}{reason}"
    how = f"with exit code {last['exit']}" if "exit" in last else f"by signal {last.get('signal')}"
    return f"ended {when} {how}" if last["seen"] == Seen.ENDED else f"removed {when}{reason}"


def remove(handles: Sequence[Handle], indices: Indices = None) -> None:
    """End jobs for good: those that run get TERM, and KILL after the grace."""
    _command("remove", "removed", handles, indices)


def hold(handles: Sequence[Handle], indices: Indices = None) -> None:
    """Keep jobs from starting; those that run are stopped as for `remove` and start anew when released."""
    _command("hold", "held", handles, indices)


def release(handles: Sequence[Handle], indices: Indices = None) -> None:
    """Let held jobs start."""
    _command("release", "released", handles, indices)


def pause(handles: Sequence[Handle]) -> None:
    """Keep waiting jobs from starting; those that run go on."""
    _command("pause", PAUSED, handles, None)


def resume(handles: Sequence[Handle]) -> None:
    """Let those start that `pause` kept from it."""
    _command("resume", "resumed", handles, None)


def adjust(wanted: Sequence[tuple[Handle, Allowed]], /) -> None:
    """Tell each batch's runner how many of its jobs may run, and begin in a minute. There is one node, no priority."""
    for handle, allowed in wanted:
        if not last_event(folder_of(handle.batch).events).get("finished"):
            _command("allow", "allowed", (handle,), None, places=allowed.places, stay=allowed.stay)


def used(handle: Handle, indices: Sequence[int], /) -> Mapping[int, float]:
    """CPU seconds of all processes of each job that are there now, and of their children that have ended."""
    if next(read_all(folder_of(handle.batch).events)).get("host") != socket.gethostname():
        return {}
    with (handle.batch.plan_dir / "items.txt").open() as items:
        wanted, names = set(indices), {}
        for index, line in enumerate(items):
            if index in wanted:
                names[line.partition(" ")[0]] = index
    return {names[name]: cpu for name, cpu in cpu_used(handle.batch.batch_id, names).items()}


def resolve(handles: Sequence[Handle]) -> Observation:
    """Nobody but its events knows of a job here: its runner writes them, and ends where it cannot."""
    del handles
    return Observation((), Cursor())


def silence(_: Handle, /) -> str:
    """This machine always answers itself; what its runners have to say `observe` tells."""
    return ""


def _command(verb: str, done: str, handles: Sequence[Handle], indices: Indices, **more: object) -> None:
    """Leave the command in the batch's folder and see that a runner is there to obey it."""
    _check(handles, indices)
    wanted = None if indices is None else sorted(set(indices))
    reason = f"{done} by {getpass.getuser()}"
    command = {"verb": verb, "indices": wanted, "reason": reason, "time": now(), **more}
    for handle in handles:
        folder = folder_of(handle.batch)
        name = f"{time.time_ns():020d}.{os.getpid()}.json"
        try:
            write_whole(folder.commands / name, json.dumps(command))
        except OSError as error:
            raise BackendUnavailable(f"{handle.batch.name}: {verb}: {error}") from error
        _ensure_runner(handle)


def _check(handles: Sequence[Handle], indices: Indices) -> None:
    for handle in handles:
        for index in indices or ():
            if not 0 <= index < handle.batch.jobs:
                raise NotFound(f"{handle.batch.name} has jobs 0 to {handle.batch.jobs - 1}, not {index}")
