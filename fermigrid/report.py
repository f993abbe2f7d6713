"""The worker's report: the framed last line of a job's log -> what happened. Pure.

Frame: `@@FERMIGRID 1 <bytes of JSON> <JSON>`, alone on its line. A payload may print such a line too, so only the last
one counts, and only when its length, job and batch are right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fermigrid.records import AttemptRecord

MARK = b"@@FERMIGRID "
TAIL_BYTES = 1 << 20  # a report is a few kB; one that is not within the last MB of a log is none

_MESSAGE_ID = re.compile(r"[0-9]{1,18}\.[A-Za-z0-9.]{1,60}@fermigrid")  # a file name, too, in a spool folder

_ATTEMPT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,79}")
_CONTROL = "\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNTAME = re.compile(f"[\0-\x1f{_CONTROL}]")
_UNTAME_TEXT = re.compile(f"[\0-\x08\x0b-\x1f{_CONTROL}]")

INFRASTRUCTURE = frozenset({81, 82, 83, 84, 86, 88, 89, 91, 99})  # started again, elsewhere by preference
WORDS = {
    79: "the payload ended with a code that is the worker's own (80-99); the true one is in the report",
    80: "bad job description",
    81: "no container runtime",
    82: "no image",
    83: "image damaged",
    84: "required bind missing",
    85: "secret missing",
    86: "stage-in failed",
    87: "declared output missing",
    88: "stage-out failed",
    89: "scratch full",
    90: "credential expired",
    91: "CVMFS broken",
    99: "internal error of the worker",
}


@dataclass(frozen=True)
class Output:
    """A published output. `file`: its name under `out/` (kind transfer) or its final path (kind posix)."""

    name: str
    to: str
    file: str
    bytes: int
    sha256: str
    result: str

    @property
    def came_back(self) -> bool:
        """Did it come back with the job (kind transfer)? Otherwise it has its final name already."""
        return "/" not in self.file


@dataclass(frozen=True)
class Message:
    """A start or end message of the pipeline that the node did not send for certain; `doubt`: it may have arrived."""

    kind: str
    id: str
    doubt: bool
    text: str


@dataclass(frozen=True)
class Report:
    """What one attempt says of itself. `data` is the whole JSON, without control characters in its texts."""

    job: str
    batch: str
    attempt: str
    start: int
    host: str
    where: str
    rehearsal: bool
    rung: str
    exit: int
    payload_exit: int | None
    message: str
    begin: int
    end: int
    outputs: tuple[Output, ...]
    summary: Mapping[str, str]
    messages: tuple[Message, ...]
    data: str


class NoReport(ValueError):
    """A log without a report that belongs to the job; the text says why."""


def parse_report(log: bytes, job: str, batch: str) -> Report:
    """The report of `job` in the tail of its log. Raises NoReport: the job was killed, or its log did not come back."""
    start = log.rfind(b"\n" + MARK) + 1 or (0 if log.startswith(MARK) else -1)
    if start < 0:
        raise NoReport("its log has no report: it was killed, or its log did not come back whole")
    line = log[start:].split(b"\n", 1)[0]
    try:
        _, version, size, text = line.split(b" ", 3)
        if version != b"1":
            raise NoReport(
                f"its report has format {version.decode(errors='replace')}, which this fermigrid does not know"
            )
        if int(size) != len(text):
            raise NoReport("its report is cut short")
        data = json.loads(text.decode(errors="replace"))
        clean = json.dumps(_tame(data), ensure_ascii=False)
        clean.encode()  # half a character ("\ud800") could be stored nowhere
        report = _from_json(json.loads(clean), clean)
    except NoReport:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise NoReport(f"its report cannot be read: {error!r}") from error
    if (report.job, report.batch) != (job, batch):
        raise NoReport(f"the report in its log is of {report.job} in batch {report.batch}")
    return report


def _tame(value: Any, key: str = "") -> Any:
    """The same without characters that move a terminal's cursor, colour it, or turn its text round.

    Only texts of messages have lines. Outputs stay as they are: `accept` compares them with the plan.
    """
    if isinstance(value, str):
        return (_UNTAME_TEXT if key == "text" else _UNTAME).sub("?", value)
    if isinstance(value, dict):
        return {_UNTAME.sub("?", k): v if k == "outputs" else _tame(v, k) for k, v in value.items()}
    return [_tame(inner, key) for inner in value] if isinstance(value, list) else value


def _from_json(data: Mapping[str, Any], text: str) -> Report:
    for step in data["image"].get("tried", ()):  # and what else `why` shows
        _words(step["rung"], step["result"])
    for core in data.get("cores", ()):
        _words(core["file"])
    _words(data["image"].get("name", ""))
    payload_exit = data["payload_exit"]
    return Report(
        job=str(data["job"]),
        batch=str(data["batch"]),
        attempt=_attempt(data["attempt"]),
        start=int(data["start"]),
        host=str(data["host"]),
        where=str(data["where"]),
        rehearsal=bool(data["rehearsal"]),
        rung=str(data["image"]["rung"]),
        exit=_exit_code(data["exit"]),
        payload_exit=None if payload_exit is None else int(payload_exit),
        message=str(data["message"]),
        begin=int(data["begin"]),
        end=int(data["end"]),
        outputs=outputs_in(data),
        summary={str(key): str(value) for key, value in data["summary"].items()},
        messages=tuple(_message(m) for m in data.get("messages", ()) if m["result"] != "sent"),
        data=text,
    )


def _words(*values: object) -> None:
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{values!r}: not texts")


def _message(data: Mapping[str, Any]) -> Message:
    if not _MESSAGE_ID.fullmatch(str(data["id"])):
        raise ValueError(f"{data['id']!r} is no Message-ID")
    return Message(str(data["kind"]), str(data["id"]), data["result"] == "doubt", str(data["text"]))


def _attempt(value: object) -> str:
    if not isinstance(value, str) or not _ATTEMPT.fullmatch(value):
        raise ValueError(f"{value!r} is no attempt")
    return value


def _exit_code(value: object) -> int:
    if type(value) is not int or not 0 <= value <= 255:
        raise ValueError(f"{value!r} is no exit code")
    return value


def outputs_of(data: str) -> tuple[Output, ...]:
    """The outputs in a report's JSON."""
    return outputs_in(json.loads(data))


def outputs_in(data: Mapping[str, Any]) -> tuple[Output, ...]:
    """The outputs in a report that was read already. Raises ValueError, KeyError, TypeError."""
    return tuple(
        Output(str(o["name"]), _inside(o["to"]), str(o["file"]), int(o["bytes"]), str(o["sha256"]), str(o["result"]))
        for o in data["outputs"]
    )


def _inside(to: str) -> str:
    """A name to publish; a log is no trusted place, so that it may not leave the folder of the outputs."""
    if any(part in ("", ".", "..") for part in to.split("/")) or "\0" in to:
        raise ValueError(f"the output's name {to!r} leaves the folder of the outputs")
    return to


def verdict(report: Report) -> str:
    """Why an attempt is not good, in words; "" for a good one."""
    if report.exit == 0:
        return ""
    why = cause_of(report.exit)
    return f"{why}: {report.message}" if report.exit in WORDS and report.message else why


def cause_of(code: int) -> str:
    """What an exit code of the worker says, in words: one for all jobs that failed so."""
    if code in WORDS:
        return WORDS[code]
    if code > 128:
        return f"the payload was killed by signal {code - 128}"
    return f"the payload ended with exit code {code}{_SHELL.get(code, '')}"


_SHELL = {
    126: " (its program cannot be executed)",
    127: " (its program was not found: is it named under code:, or in the image?)",
}


def payload_exit_of(attempts: Iterable[AttemptRecord], batch: str) -> int | None:
    """The payload's own exit code in the last report that came of a batch; None where there is none."""
    codes = [json.loads(attempt.report)["payload_exit"] for attempt in attempts if attempt.batch == batch]
    return None if not codes or codes[-1] is None else int(codes[-1])
