"""How a job of the pipeline stands, and what comes back of it: summary and log into its job folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fermigrid.access import usual_files
from fermigrid.errors import FermigridError
from fermigrid.eventlog import EventCode, LogEvent, read_events
from fermigrid.find_job import Found, find_job, read_log
from fermigrid.pipeline_campaign import STEP
from fermigrid.pipeline_folder import RESULT, SUMMARY
from fermigrid.plainfile import read_plain, write_new
from fermigrid.plan import job_name
from fermigrid.records import BatchRecord
from fermigrid.report import MARK
from fermigrid.runfolder import RunFolder
from fermigrid.states import State
from fermigrid.watch import Following

_CPU = re.compile(r"\s*Usr (\d+) (\d+):(\d+):(\d+), Sys (\d+) (\d+):(\d+):(\d+)\s+-\s+Total Remote Usage")
_MESSAGE_HEAD = re.compile(r"\A(?:[A-Za-z-]+:.*\n)+\n")


@dataclass(frozen=True)
class Standing:
    """One job, for the job control: `cpu_s` in seconds, `memory_mb` in MB, None what is not known.

    `exit`: the payload's exit code, or the worker's when that is why the job failed.
    """

    cluster: str
    state: State
    instance: str
    exit: int | None = None
    cpu_s: float | None = None
    memory_mb: int | None = None
    host: str = ""
    starts: int = 0
    since: str = ""
    reason: str = ""
    run: str = ""
    problems: tuple[str, ...] = field(default=())

    @property
    def line(self) -> str:
        """`<cluster> <state>`, then `key=value` words of what is known; no word has a blank in it."""
        cpu = None if self.cpu_s is None else f"{self.cpu_s:.3f}"
        words = {"instance": self.instance or None, "exit": self.exit, "cpu_s": cpu, "memory_mb": self.memory_mb}
        words |= {
            "host": re.sub(r"\s", "_", self.host) or None,
            "starts": self.starts or None,
            "since": self.since or None,
        }
        return " ".join(
            [self.cluster, self.state, *(f"{key}={value}" for key, value in words.items() if value is not None)]
        )

    @property
    def closed(self) -> bool:
        """Is its result final, and taken in?"""
        return self.state.final and not self.problems


def unknown(cluster: str, reason: str) -> Standing:
    """A job of which nothing is known: never called failed."""
    return Standing(cluster, State.UNKNOWN, "", reason=reason)


def cluster_of(batch: BatchRecord | None, instance: str) -> str:
    """The number that the job control knows the job by: HTCondor's cluster, DIRAC's job id; on this machine the process
    instance."""
    if batch is None or batch.submitted is None:
        return "-"
    return instance if batch.backend == "local" else str(batch.cluster)


def answer_of(batch: BatchRecord, instance: str, name: str) -> str:
    """The line in which the job control looks for that number: it has another pattern for DIRAC."""
    cluster = cluster_of(batch, instance)
    if batch.backend == "dirac":
        return f'Your job {cluster} ("{name}") has been submitted.'
    return f"1 job(s) submitted to cluster {cluster}."


def standing_of_try(f: Following) -> Standing:
    """How the job of a try stands, from its ledger."""
    instance = f.folder.path.name
    batch = next(iter(f.ledger.batches()), None)
    now = Standing(cluster_of(batch, instance), State.UNKNOWN, instance, run=str(f.folder.path))
    if batch is None:
        stopped = f.ledger.campaign().stopped
        return replace(now, state=State.REMOVED if stopped else State.UNKNOWN, reason="it was never sent")
    if batch.submitted is None:
        return replace(now, reason="nobody knows yet whether it landed: the same submission again finds out")
    job = f.ledger.job(batch.id, 0)
    if job is None:
        return replace(now, state=State.REMOVED if batch.removed else State.WAITING)
    state = State.UNKNOWN if job.state is State.ENDED else job.state
    now = replace(now, state=state, host=job.host, starts=job.starts, since=job.since, reason=job.reason)
    report = last_report(f)
    if report is not None and job.state.final:
        now = replace(now, exit=_exit(report), cpu_s=_cpu(report))
    elif job.state is State.FAILED and job.code.isdigit():
        now = replace(now, exit=int(job.code))
    return now


def last_report(f: Following) -> dict[str, Any] | None:
    """The report of the job's last attempt, or of the accepted one."""
    attempts = f.ledger.attempts(job_name(STEP, f.folder.path.name, ""))
    best = next((attempt for attempt in attempts if attempt.accepted), attempts[-1] if attempts else None)
    return None if best is None else dict(json.loads(best.report))


def _exit(report: dict[str, Any]) -> int:
    return int(report["payload_exit"] or report["exit"])


def _cpu(report: dict[str, Any]) -> float | None:
    with suppress(KeyError, TypeError, ValueError):
        return float(report["user"]) + float(report["system"])
    return None


def with_usage(now: Standing, batch: BatchRecord, log: Path) -> Standing:
    """The same with what HTCondor measured: memory, and the CPU time where no report tells it."""
    if batch.backend != "htcondor":
        return now
    items, _ = read_events(log, 0, datetime.now(UTC))
    for event in items:
        if isinstance(event, LogEvent) and event.code == EventCode.TERMINATED and event.cluster == batch.cluster:
            memory = event.measured.get("Memory (MB)")
            cpu = next((_seconds(found) for line in event.lines if (found := _CPU.match(line))), None)
            now = replace(now, memory_mb=memory, cpu_s=cpu if now.cpu_s is None else now.cpu_s)
    return now


def _seconds(found: re.Match[str]) -> float:
    days, hours, minutes, seconds, *system = map(int, found.groups())
    user = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    return float(user + ((system[0] * 24 + system[1]) * 60 + system[2]) * 60 + system[3])


# --- into the job folder


def deliver(f: Following, now: Standing) -> list[str]:
    """Summary and log of a job that has ended, into the folder that its run folder is in. Returns problems, in words.

    Each file appears whole; doing it again writes the same. A log that the job itself wrote on a shared file system is
    left alone, and what its worker said goes beside it.
    """
    home = f.folder.path.parent.parent
    try:
        with usual_files():  # the pipeline's server reads them
            _write(home / SUMMARY, "".join(f"{line}\n" for line in summary_lines(f, now)).encode())
            log = _own_log(f)
            if log is not None:
                _write(_log_target(f, home), log)
    except (OSError, FermigridError) as error:
        return [f"process instance {now.instance}: its summary or log cannot be written into {home}: {error}"]
    return []


def summary_lines(f: Following, now: Standing) -> Iterator[str]:
    """`pipeline_summary`: the end message as it was composed on the node, or what is known without it."""
    report = last_report(f)
    if report is None:
        who = f.assembled.campaign.messages
        yield f"ProcessInstance: {now.instance}"
        yield f"LogFile: {who.log if who else ''}"
        yield f"# no report came back; the batch system: {now.state}{': ' + now.reason if now.reason else ''}".replace(
            "\n", " "
        )
        return
    for message in report.get("messages", ()):
        if message.get("kind") == "end" and message.get("text"):
            yield from _MESSAGE_HEAD.sub("", str(message["text"])).splitlines()
            return
    yield f"ProcessInstance: {now.instance}"
    yield from (f"{key}: {value}" for key, value in report["summary"].items())
    yield f"ExitCode: {_exit(report)}"


def _own_log(f: Following) -> bytes | None:
    """What the batch system brought back, without the report."""
    found: Found = find_job(f.ledger, f.folder, job_name(STEP, f.folder.path.name, ""))[-1]
    log = read_log(found, f.folder)
    return None if log is None else log[: log.rfind(b"\n" + MARK)] + b"\n" if b"\n" + MARK in log else log


def _log_target(f: Following, home: Path) -> Path:
    """Where that log belongs: JOBCONTROL_LOGFILE, or a name beside it where the job itself has written there."""
    who = f.assembled.campaign.messages
    command = f.assembled.campaign.steps[STEP].command
    wanted = Path(f.assembled.folder, who.log if who else "logFile.txt")
    if wanted.is_relative_to(f.assembled.folder) and home != f.assembled.folder:
        wanted = home / wanted.relative_to(f.assembled.folder)  # it was archived
    live = command[5] and wanted.exists()
    return wanted.with_name(f"{wanted.name}.worker") if live else wanted


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)
        write_new(part, data)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def keep_result(run: RunFolder, now: Standing) -> None:
    """Write down a result that is final: it is answered from here, without the ledger."""
    _write(run.path / RESULT, (json.dumps(asdict(now), indent=1) + "\n").encode())


def kept_result(run: RunFolder) -> Standing | None:
    """The result that was written down, if there is one."""
    try:
        data = json.loads(read_plain(run.path / RESULT))
    except (FileNotFoundError, json.JSONDecodeError):  # a machine that lost its power may leave an empty file
        return None
    return Standing(**{**data, "state": State(data["state"]), "problems": (), "run": str(run.path)})
