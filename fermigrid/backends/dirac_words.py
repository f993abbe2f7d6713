"""DIRAC's own commands: what is called, and what their output says. Pure: a command and its parser side by side.

As in DIRAC 8 and 9: https://github.com/DIRACGrid/DIRAC, src/DIRAC/Interfaces/scripts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from fermigrid.backends.dirac_states import ServerJob

_SUBMITTED = re.compile(r"^JobID = (\d+|\[[\d, ]*\])\s*$", re.MULTILINE)
_FAILED = re.compile(r"^ERROR (?P<what>\S+): (?P<why>.*?)(?=^ERROR |\Z)", re.MULTILINE | re.DOTALL)
_STATUS = re.compile(r"^JobID=(\d+) (.*)$", re.MULTILINE)
_FIELD = re.compile(r"(\w+)=(.*?);(?: |$)")
_RETRIEVED = re.compile(r"^Job output sandbox retrieved in (.+?)/?\s*$", re.MULTILINE)
_MOMENT = re.compile(r"datetime\.datetime\(([0-9, ]+)\)")
_INFO = re.compile(r"^([A-Za-z ]+?)\s*: (.*)$", re.MULTILINE)
_NO_JOBS = "No jobs selected"
NO_SANDBOX = ("No Output sandbox", "No output sandbox", "no output sandbox", "is not a final state")


def submit_command(files: Sequence[Path]) -> list[str]:
    """Hand in the JDL in these files."""
    return ["dirac-wms-job-submit", *map(str, files)]


def parse_submit(output: str, files: Sequence[Path]) -> dict[Path, tuple[int, ...] | str]:
    """The ids of each file's jobs, or what DIRAC said against it; files of which nothing is said are left out.

    It prints what it took in the order of the files, and afterwards what it did not take, by name.
    """
    errors = _errors(output)
    taken = iter([_ids(match[1]) for match in _SUBMITTED.finditer(output)])
    found: dict[Path, tuple[int, ...] | str] = {file: errors[str(file)] for file in files if str(file) in errors}
    return found | dict(zip((file for file in files if str(file) not in errors), taken, strict=False))


def _errors(output: str) -> dict[str, str]:
    """What was said against each file or job; it comes last, perhaps on several lines."""
    return {match["what"]: " ".join(match["why"].split())[:300] for match in _FAILED.finditer(output)}


def _ids(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def status_command(ids: Path) -> list[str]:
    """The state of the jobs whose ids are in a file."""
    return ["dirac-wms-job-status", "-f", str(ids)]


def group_command(group: str) -> list[str]:
    """The state of the jobs of a group that are not older than 30 days."""
    return ["dirac-wms-job-status", "-g", group]


def parse_status(output: str) -> list[ServerJob]:
    """The jobs that it tells of, by id, without their names."""
    return sorted(_jobs(output), key=lambda job: job.id)


def _jobs(output: str) -> Iterator[ServerJob]:
    for match in _STATUS.finditer(output):
        fields = dict(_FIELD.findall(match[2].strip() + " "))
        yield ServerJob(
            id=int(match[1]),
            name="",
            status=fields.get("Status", ""),
            minor=fields.get("MinorStatus", ""),
            application=fields.get("ApplicationStatus", ""),
            site=fields.get("Site", ""),
        )


def is_empty_group(output: str) -> bool:
    """Does it say that there are no jobs of the group? (It calls that an error.)"""
    return _NO_JOBS in output


def attributes_command(ids: Sequence[int]) -> list[str]:
    """All that DIRAC keeps of these jobs."""
    return ["dirac-wms-job-attributes", *map(str, ids)]


def parse_attributes(output: str) -> list[ServerJob]:
    """The jobs that it tells of, with their names: it prints one Python dictionary after the other, with times as
    Python writes them (DIRAC 9) or as text; an empty one for a job that is not there."""
    return [_from_attributes(fields) for fields in _dictionaries(output)]


def _dictionaries(output: str) -> Iterator[Mapping[str, object]]:
    for text in re.findall(r"^\{.*?\}\s*$", output, re.MULTILINE | re.DOTALL):
        try:
            fields = ast.literal_eval(_MOMENT.sub(r"(\1)", text))
        except (ValueError, SyntaxError):
            continue
        if isinstance(fields, dict) and "JobID" in fields:
            yield fields


def _from_attributes(fields: Mapping[str, object]) -> ServerJob:
    def text(name: str) -> str:
        return str(fields.get(name) or "")

    return ServerJob(
        id=int(text("JobID")),
        name=text("JobName"),
        status=text("Status"),
        minor=text("MinorStatus"),
        application=text("ApplicationStatus"),
        site=text("Site"),
        updated=_time(fields.get("LastUpdateTime")),
        started=_time(fields.get("StartExecTime")),
        reschedules=int(text("RescheduleCounter") or 0),
    )


def _time(value: object) -> datetime | None:
    try:
        moment = datetime(*value) if isinstance(value, tuple) else datetime.fromisoformat(str(value))
    except (ValueError, TypeError):
        return None  # "None", which DIRAC prints as a word
    return moment.replace(tzinfo=UTC)


def kill_command(ids: Sequence[int]) -> list[str]:
    """End these jobs."""
    return ["dirac-wms-job-kill", *map(str, ids)]


def parse_kill(output: str) -> set[int]:
    """The jobs that it killed."""
    return {int(number) for line in re.findall(r"^Killed jobs? (.*)$", output, re.MULTILINE) for number in _ids(line)}


def output_command(ids: Sequence[int], folder: Path) -> list[str]:
    """Bring the output sandboxes of these jobs, each into a folder of its own, `<folder>/<id>`."""
    return ["dirac-wms-job-get-output", "-D", str(folder), *map(str, ids)]


def parse_output(output: str) -> tuple[set[int], dict[int, str]]:
    """The jobs whose sandboxes came, and what it said against others."""
    there = {int(name) for path in _RETRIEVED.findall(output) if (name := path.rpartition("/")[2]).isdigit()}
    return there, {int(what): why for what, why in _errors(output).items() if what.isdigit()}


def data_command(job: int, folder: Path) -> list[str]:
    """Bring what the job has put on storage elements into a folder."""
    return ["dirac-wms-job-get-output-data", "-D", str(folder), str(job)]


def has_no_data(output: str) -> bool:
    """Does it say that the job has put nothing there? (It calls that an error.)"""
    return "No output data" in output


def proxy_command() -> list[str]:
    """The proxy that DIRAC's commands use."""
    return ["dirac-proxy-info", "--nocs"]


def parse_proxy(output: str) -> dict[str, str]:
    """What it prints, by the names that it gives: subject, timeleft, DIRAC group, path, ..."""
    return {name.strip(): value.strip() for name, value in _INFO.findall(output)}


def error_of(output: str) -> str:
    """What a command that failed said, in one line: its errors, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = [line for line in lines if "ERROR" in line or line.startswith(("Error", "error"))]
    return " ".join(said or lines[-1:] or ["it said nothing"])[:300]
