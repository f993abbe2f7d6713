"""The process that runs the jobs of one local batch: `python -m fermigrid.backends.local_runner FOLDER`.

It is started by `local.submit`, and by `local.observe` when it died before its jobs were over. All that it must
know after a crash is in its event file: a job that had started and not ended is started again, one that ended is
left alone. It holds the batch's lock, so there is one runner at most. When its folder is moved or removed it stops
its jobs and ends: nothing may appear in the old place, and in the new one `local.observe` starts another runner.
Exit codes: 0 it runs (in the background), 3 another one does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from array import array
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fermigrid.backends import Allowed, RenderedBatch
from fermigrid.backends.local_events import (
    HELD,
    RUNNING,
    WAITING,
    Event,
    EventFile,
    Folder,
    Table,
    batch_from_text,
    leads_to,
    now,
    read_all,
    say,
    try_lock,
)
from fermigrid.backends.local_job import (
    Execution,
    Item,
    Slots,
    bring_back,
    folder_name,
    folder_prefix,
    prepare,
    read_options,
    remove_job,
    remove_left,
)
from fermigrid.backends.local_keeper import become_subreaper, kill_strays, launch, reap, sweep
from fermigrid.states import Seen

ANOTHER_RUNS = 3  # exit code

_LOCK_LIMIT = 2.0  # s: whoever only looks whether the lock is free holds it for an instant
_LOOK = 0.25  # s between looks for commands, for slots that other batches freed, and whether the folder is here
_STARTS = 100_000  # that are remembered: the most that a limit may allow in a minute
_GONE = "its run folder was moved or removed"


@dataclass(frozen=True)
class Command:
    """What a person wants done with jobs (None: with all) that has not happened to all of them yet."""

    path: Path
    verb: str
    indices: tuple[int, ...] | None
    reason: str
    allowed: Allowed | None = None  # of `allow`


class Items:
    """items.txt by line number: 8 bytes a job in memory, not its text."""

    def __init__(self, path: Path) -> None:
        self._path, self._starts = path, array("Q", [0])
        with path.open("rb") as stream:
            for line in stream:
                self._starts.append(self._starts[-1] + len(line))

    def __getitem__(self, index: int) -> Item:
        with self._path.open("rb") as stream:
            stream.seek(self._starts[index])
            name, shard, row = stream.readline().decode().split()
        return Item(index, name, shard, row)


class Runner:
    """One batch, from its event file to the end of its last job."""

    def __init__(self, folder: Folder, batch: RenderedBatch) -> None:
        self.folder, self.batch = folder, batch
        self.options = read_options(batch.options)
        self.slots = Slots(self.options.scratch, self.options.slots)
        self.cpus = cpus_of(batch.plan_dir)
        self.items = Items(batch.plan_dir / "items.txt")
        self.table = Table(batch.jobs)
        self.host = socket.gethostname()
        self.running: dict[int, Execution] = {}  # by the keeper's process id
        self.stopping: dict[int, tuple[Seen, str]] = {}  # job -> what it is when it has stopped, and why
        self.command: Command | None = None
        self.begun = deque[float](maxlen=_STARTS)  # when jobs started, s since 1970
        self.digest = ""  # of job.env, when the batch was submitted
        self.events = EventFile(folder.events)
        self.opened = os.open(folder.path, os.O_DIRECTORY | os.O_CLOEXEC)  # and so no other folder gets its number
        self.awake, self.bell = socket.socketpair()

    def run(self) -> None:
        """Until no job has anything left to do (held jobs are waited for), or the folder is no longer here."""
        become_subreaper()
        for end in (self.awake, self.bell):
            end.setblocking(False)
        signal.set_wakeup_fd(self.bell.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            self._work()
        except OSError:
            if self._is_here():
                raise
        finally:
            self._stop_jobs()
        if not self.table.over:
            say(f"{_GONE}: the runner ends")
            return
        self._obey()
        self.events.append({"finished": True, "time": now()}, sync=True)

    def _work(self) -> None:
        self._recover()
        while not self.table.over and self._is_here():
            self._obey()
            self._start_jobs()
            self._wait()

    def _is_here(self) -> bool:
        """Whether the folder was neither moved nor removed."""
        return leads_to(self.folder.path, self.opened)

    def _wait(self) -> None:
        """For the end of a job, or for a moment."""
        if select.select([self.awake], [], [], _LOOK)[0]:
            self.awake.recv(4096)
        for pid, status in reap():
            if pid in self.running:
                self._end(self.running.pop(pid), status)

    def _stop_jobs(self) -> None:
        """End what runs, of a runner that cannot go on; the next one starts these jobs anew."""
        why = "its runner ended early" if self._is_here() else _GONE
        for run in self.running.values():
            self.stopping.setdefault(run.item.index, (Seen.EVICTED, why))
            os.kill(run.keeper, signal.SIGTERM)
        while self.running:
            self._wait()

    def _recover(self) -> None:
        """Take in what earlier runners did, and end what they left running."""
        earlier = list[Event]()
        for event in read_all(self.folder.events):
            self.digest = event.get("env", self.digest)
            if "runner" in event:
                earlier.append(event)
            if event.get("seen") == Seen.STARTED:
                self.begun.append(datetime.fromisoformat(event["time"]).timestamp())
            self.table.apply(event)
        here = str(self.folder.path)
        self.events.append({"runner": os.getpid(), "host": self.host, "folder": here, "time": now()})
        if not earlier:
            return
        sweep(self.batch.batch_id, self.options.grace)
        for place in {event.get("folder", here) for event in earlier}:
            if place == here or not Path(place).exists():  # else this folder is a copy, and the other one has a runner
                remove_left(folder_prefix(self.batch.batch_id, place), self.options.scratch)
        while (index := self.table.find(RUNNING)) is not None:
            self._note(index, Seen.EVICTED, reason="its runner ended (killed, or the machine was started again)")

    def _note(self, index: int, seen: Seen, **more: Any) -> None:
        """One event of a job: to the file first (an end safe from a power cut), then to the table."""
        event = {"index": index, "seen": str(seen), "time": now(), "host": self.host, **more}
        self.events.append(event, sync=seen is Seen.ENDED)
        self.table.apply(event)

    def _start_jobs(self) -> None:
        while not self.table.paused and self._may_start() and (index := self.table.find(WAITING)) is not None:
            slots = self.slots.take(self.cpus)
            if slots is None:
                return
            start = self.table.starts.get(index, 0) + 1
            try:
                item = self.items[index]
                folder = prepare(self.batch, item, start, self.options.scratch)
                self._note(index, Seen.STARTED, start=start)
                self.begun.append(time.time())
                keeper = launch(self.batch, item, start, folder, self.options.grace, self.digest)
            except OSError as error:
                self._hold_for(index, "13", "its scratch folder or process could not be made", error)
                remove_job(self.options.scratch / folder_name(self.batch, index, start))
                Slots.give(slots)
                if not self._is_here():
                    return
            else:
                self.running[keeper] = Execution(item, start, keeper, slots, folder)

    def _hold_for(self, index: int, code: str, what: str, error: OSError) -> None:
        if self._is_here():
            self._note(index, Seen.HELD, reason=f"{what}: {error}", code=f"{code}/{error.errno or 0}")
        else:
            self._note(index, Seen.EVICTED, reason=_GONE)

    def _end(self, run: Execution, status: int) -> None:
        """A keeper has ended; `status` is the worker's exit code, or -n for signal n."""
        if status < 0:  # perhaps the keeper itself was killed
            kill_strays(frozenset(self.running))
        index, asked = run.item.index, self.stopping.pop(run.item.index, None)
        if asked is not None and status != 0:
            self._note(index, asked[0], reason=asked[1], code="1/0")
        elif not self._is_here():
            self._note(index, Seen.EVICTED, reason=_GONE)
        elif self._again(status) and self.table.failures.get(index, 0) < self.options.retries:
            again = f"{self.table.failures.get(index, 0) + 1} of {self.options.retries}"
            why = f"exit code {status}: started again ({again})"
            self._note(index, Seen.EVICTED, reason=why, failed=True, exit=status if status >= 0 else 128 - status)
        else:
            self._bring_back(run, status)
        remove_job(run.folder)
        Slots.give(run.slots)

    def _again(self, status: int) -> bool:
        """Does the job start once more? `status`: of the keeper."""
        return (status if status >= 0 else 128 - status) in self.options.again

    def _bring_back(self, run: Execution, status: int) -> None:
        try:
            bring_back(run, self.batch.work_dir)
        except OSError as error:
            self._hold_for(run.item.index, "12", "its log or outputs could not be brought back", error)
        else:
            how = {"exit": status} if status >= 0 else {"signal": -status}
            self._note(run.item.index, Seen.ENDED, **how)

    def _obey(self) -> None:
        """Commands one after the other: the next is taken when the last has happened to all its jobs."""
        while self.command is None or not self.stopping:
            if self.command is not None:
                self.command.path.unlink(missing_ok=True)
                self.command = None
            path = min(self.folder.commands.glob("*.json"), default=None)
            if path is None:
                return
            self.command = read_command(path)
            if self.command.allowed is not None:
                self._allow(self.command.allowed)
                continue
            if self.command.verb in ("pause", "resume"):
                self._set_paused(self.command.verb == "pause")
                continue
            for index in range(self.batch.jobs) if self.command.indices is None else self.command.indices:
                self._apply(self.command, index)

    def _set_paused(self, paused: bool) -> None:
        if paused != self.table.paused:
            event = {"paused": paused, "time": now()}
            self.events.append(event, sync=True)
            self.table.apply(event)

    def _allow(self, allowed: Allowed) -> None:
        if allowed != self.table.allowed:
            event = {"places": allowed.places, "stay": allowed.stay, "time": now()}
            self.events.append(event, sync=True)
            self.table.apply(event)

    def _may_start(self) -> bool:
        """Is there a place for one more, and did not as many start lately as may?"""
        allowed = self.table.allowed or self.options.allowed
        if allowed.places is not None and len(self.running) >= allowed.places:
            return False
        if allowed.starts is None:
            return True
        most = max(1, int(allowed.starts))  # within a minute, or a longer time where it is one
        if len(self.begun) < most:
            return True
        return not 0 <= time.time() - self.begun[-most] < 60 * most / allowed.starts

    def _apply(self, command: Command, index: int) -> None:
        state = self.table.state(index)
        if command.verb == "release" and state == HELD:
            self._note(index, Seen.RELEASED, reason=command.reason)
        elif command.verb == "hold" and state == WAITING:
            self._note(index, Seen.HELD, reason=command.reason, code="1/0")
        elif command.verb == "remove" and state in (WAITING, HELD):
            self._note(index, Seen.REMOVED, reason=command.reason, code="1/0")
        elif command.verb != "release" and state == RUNNING:
            self.stopping[index] = (Seen.HELD if command.verb == "hold" else Seen.REMOVED, command.reason)
            for run in self.running.values():
                if run.item.index == index:
                    os.kill(run.keeper, signal.SIGTERM)


def read_command(path: Path) -> Command:
    """A command file, as `local` wrote it."""
    data = json.loads(path.read_text())
    indices = None if data["indices"] is None else tuple(data["indices"])
    allowed = Allowed(data["places"], data["stay"]) if data["verb"] == "allow" else None
    return Command(path, data["verb"], indices, data["reason"], allowed)


def cpus_of(plan_dir: Path) -> int:
    """The CPUs that each job of the plan asks for."""
    plan: Mapping[str, Any] = json.loads((plan_dir / "plan.json").read_text())
    return int(plan["cpus"])


def main(arguments: list[str]) -> int:
    """Take the lock, go into the background, run. Returns to the starter as soon as that is certain."""
    folder = Folder(Path(arguments[0]))
    deadline = time.monotonic() + _LOCK_LIMIT
    while (lock := try_lock(folder.lock)) is None:
        if time.monotonic() > deadline:
            return ANOTHER_RUNS
        time.sleep(0.02)
    runner = Runner(folder, batch_from_text(folder.batch.read_text()))
    if os.fork():
        return 0
    _detach(folder)
    say(f"runner {os.getpid()} for {runner.batch.name}")
    runner.run()
    os.close(lock)
    return 0


def _detach(folder: Folder) -> None:
    """A session of its own, no terminal, what it says in runner.log."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")
    log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for source, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
