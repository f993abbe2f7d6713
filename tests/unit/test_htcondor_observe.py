"""What the backend for HTCondor reads of event logs in one call: bounded, and nothing lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from fermigrid.backends import Cursor, Handle, JobSeen, RenderedBatch, htcondor
from fermigrid.states import Seen

SUBMITTED = "000 (00{log}.00{job}.000) 2026-11-22 13:00:00 Job submitted from host: <10.0.0.1:9618>\n...\n"
SIZE = "006 (00{log}.00{job}.000) 2026-11-22 13:00:01 Image size of job updated: 35\n...\n"
ENDED = (
    "005 (00{log}.00{job}.000) 2026-11-22 13:01:02 Job terminated.\n\t(1) Normal termination (return value 3)\n...\n"
)


def handles(folder: Path, logs: int, jobs: int) -> list[Handle]:
    """A batch for each log, whose jobs were submitted, measured, and have ended."""
    found = []
    for log in range(logs):
        path = folder / f"{log}.log"
        path.write_text(
            "".join(kind.format(log=log, job=job) for kind in (SUBMITTED, SIZE, ENDED) for job in range(jobs))
        )
        batch = RenderedBatch(f"{log:032x}", f"b{log}", folder / "plan", folder / "work", path, jobs, {})
        found.append(Handle(batch, "schedd", log))
    return found


def observe_all(given: list[Handle]) -> list[tuple[JobSeen, ...]]:
    calls, cursor = list[tuple[JobSeen, ...]](), Cursor()
    while (seen := htcondor.observe(given, cursor)).cursor != cursor:
        assert not seen.problems
        calls.append(seen.seen)
        cursor = seen.cursor
    return calls


@pytest.mark.parametrize("most", [1, 3, 7, 1000])
def test_one_call_reads_so_much_however_many_logs_there_are(
    tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(htcondor, "_EVENTS", most)
    calls = observe_all(handles(tmp_path, 4, 5))
    assert max(map(len, calls)) <= most
    every = Counter((seen.batch_id, seen.index, seen.seen) for call in calls for seen in call)
    assert len(every) == 4 * 5 * 2
    assert set(every.values()) == {1}


def test_an_end_has_its_exit_code_and_a_submission_nothing(tmp_path: Path) -> None:
    (seen,) = observe_all(handles(tmp_path, 1, 1))
    assert [(one.seen, one.exit_code, one.signal, one.host) for one in seen] == [
        (Seen.SUBMITTED, None, None, ""),
        (Seen.ENDED, 3, None, ""),
    ]
