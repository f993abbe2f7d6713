"""A batch system that does what a test says: refuses, keeps silent, loses answers, ends jobs. A backend like others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fermigrid.backends import Allowed, Cursor, Handle, Indices, JobSeen, Observation, RenderedBatch
from fermigrid.errors import BackendUnavailable, SubmissionDoubt, SubmissionRefused
from fermigrid.quoting import decode_row
from fermigrid.states import Seen
from tests.campaigns import read_items

TIME = datetime(2027, 3, 4, 5, 6, 8, tzinfo=UTC)


@dataclass
class Memory:
    """What the batch system knows. `answer` is what it says to a submission: yes, no, lost, silent, late or dead."""

    answer: str = "yes"
    landed: list[RenderedBatch] = field(default_factory=list)
    news: list[JobSeen] = field(default_factory=list)
    late: list[RenderedBatch] = field(default_factory=list)  # lands after one more question
    asked: int = 0
    said: list[tuple[str, str, Indices]] = field(default_factory=list)
    allowed: dict[str, Allowed] = field(default_factory=dict)  # by the batch's name, as it was last told
    cpu: dict[int, float] = field(default_factory=dict)  # seconds, by the job's index


class Killed(BaseException):
    """Stands for a kill: nothing that runs afterwards may matter."""


memory = Memory()


def forget() -> Memory:
    """A new batch system."""
    global memory
    memory = Memory()
    return memory


def submit(batch: RenderedBatch) -> Handle:
    if memory.answer == "no":
        raise SubmissionRefused("no permission")
    if memory.answer == "silent":
        raise BackendUnavailable("no answer")
    if memory.answer == "dead":
        raise Killed
    if memory.answer == "late":
        memory.late.append(batch)
        raise SubmissionDoubt("sent, no answer")
    memory.landed.append(batch)
    if memory.answer == "lost":
        raise SubmissionDoubt("sent, no answer")
    if memory.answer == "killed":
        raise Killed
    return _handle(batch)


def find(batch: RenderedBatch) -> Handle | None:
    memory.asked += 1
    if memory.answer == "silent":
        raise BackendUnavailable("no answer")
    found = next((known for known in memory.landed if known.batch_id == batch.batch_id), None)
    if memory.late:
        memory.landed += memory.late
        memory.late.clear()
    return _handle(found) if found else None


def take_back(batch: RenderedBatch) -> None:
    memory.said.append(("take back", batch.name, None))


def _handle(batch: RenderedBatch) -> Handle:
    return Handle(batch, "here", 1 + [known.batch_id for known in memory.landed].index(batch.batch_id))


def observe(handles: Sequence[Handle], cursor: Cursor) -> Observation:
    if memory.answer == "silent":
        raise BackendUnavailable("no answer")
    read = cursor.offsets.get("news", 0)
    return Observation(tuple(memory.news[read:]), Cursor({**cursor.offsets, "news": len(memory.news)}))


def explain(handle: Handle, index: int) -> tuple[str, ...]:
    return (f"job {index} of cluster {handle.cluster} waits for a machine",)


def explain_removal(reason: str, code: str) -> tuple[str, ...]:
    return (f"{code}: {reason} (htcondor.grid.queue) (resources.memory)",)


def remove(handles: Sequence[Handle], indices: Indices = None) -> None:
    _do("remove", Seen.REMOVED, handles, indices)


def hold(handles: Sequence[Handle], indices: Indices = None) -> None:
    _do("hold", Seen.HELD, handles, indices)


def release(handles: Sequence[Handle], indices: Indices = None) -> None:
    _do("release", Seen.RELEASED, handles, indices)


def pause(handles: Sequence[Handle]) -> None:
    memory.said += [("pause", handle.batch.name, None) for handle in handles]


def resume(handles: Sequence[Handle]) -> None:
    memory.said += [("resume", handle.batch.name, None) for handle in handles]


def adjust(wanted: Sequence[tuple[Handle, Allowed]], /) -> None:
    if memory.answer == "no":
        raise SubmissionRefused("no permission")
    if memory.answer == "silent":
        raise BackendUnavailable("no answer")
    memory.allowed.update({handle.batch.name: allowed for handle, allowed in wanted})
    if memory.answer == "killed":
        raise Killed


def used(_: Handle, indices: Sequence[int], /) -> Mapping[int, float]:
    return {index: memory.cpu.get(index, 0.0) for index in indices}


def silence(_: Handle, /) -> str:
    return "no answer" if memory.answer == "silent" else ""


def _do(verb: str, seen: Seen, handles: Sequence[Handle], indices: Indices) -> None:
    if memory.answer == "no":
        raise SubmissionRefused("no permission")
    if memory.answer == "silent":
        raise BackendUnavailable("no answer")
    for handle in handles:
        memory.said.append((verb, handle.batch.name, indices))
        chosen = range(handle.batch.jobs) if indices is None else indices
        memory.news += [JobSeen(handle.batch.batch_id, index, seen, TIME) for index in chosen]


def end_job(
    batch: RenderedBatch,
    index: int,
    code: int = 0,
    /,
    *,
    attempt: str = "g0.s1.aaaaaaaa",
    content: bytes | None = b"fit",
    **changes: Any,
) -> None:
    """A job ends: its log comes back with a report, and its output when it has one."""
    name, shard = list(read_items(batch.plan_dir))[index]
    rows = (batch.plan_dir / "shards" / shard).read_text().splitlines()
    row = next(fields for line in rows if (fields := decode_row(line))[0] == ("job", name))
    names, places = ([value for key, value in row if key == which] for which in ("out", "out.to"))
    folder = batch.work_dir / shard
    outputs = []
    if content is not None and code == 0:
        (folder / "out").mkdir(exist_ok=True)
        for number in range(len(names)):
            (folder / "out" / f"{name}.{number}.{attempt}").write_bytes(content)
        to = changes.pop("to", None)
        outputs = [
            {
                "name": local,
                "to": to or place,
                "file": f"{name}.{number}.{attempt}",
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "result": "ours",
            }
            for number, (local, place) in enumerate(zip(names, places, strict=True))
        ]
    report = {
        "job": name,
        "batch": batch.batch_id,
        "attempt": attempt,
        "start": 1,
        "host": "n1",
        "where": "image",
        "rehearsal": False,
        "image": {"name": "light", "rung": "path"},
        "exit": code,
        "payload_exit": code,
        "message": "",
        "begin": 1,
        "end": 2,
        "summary": {},
        "outputs": outputs,
        **changes,
    }
    text = json.dumps(report).encode()
    (folder / f"{name}.log").write_bytes(b"hello\n@@FERMIGRID 1 %d %s\n" % (len(text), text))
    tell(batch, index, Seen.STARTED)
    tell(batch, index, Seen.ENDED, code)


def tell(batch: RenderedBatch, index: int, seen: Seen, code: int | None = None, **more: Any) -> None:
    """Something happens to a job."""
    memory.news.append(JobSeen(batch.batch_id, index, seen, TIME, **{"host": "n1", "exit_code": code, **more}))
