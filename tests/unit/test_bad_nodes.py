"""Nodes on which starts keep failing are counted once for each start, and named."""

from __future__ import annotations

from datetime import UTC, datetime

from fermigrid.backends import JobSeen
from fermigrid.records import NodeFailures
from fermigrid.standing import standing_of
from fermigrid.states import Seen
from fermigrid.watch import Following, watch_once
from tests import stand_in
from tests.unit.test_accept import f

__all__ = ["f"]
NOW = datetime(2027, 3, 4, 5, 6, 7, tzinfo=UTC)


def start_and_fail(index: int, host: str, seen: Seen, code: int | None) -> None:
    """A start of a job of the first batch on a node, and how it ended."""
    batch = stand_in.memory.landed[0].batch_id
    stand_in.memory.news.append(JobSeen(batch, index, Seen.STARTED, NOW, host=host))
    stand_in.memory.news.append(JobSeen(batch, index, seen, NOW, exit_code=code))


def test_failures_of_nodes_are_counted_and_named(f: Following) -> None:
    for _ in range(3):
        start_and_fail(0, "slot1_2@bad.example.org", Seen.EVICTED, 82)
    start_and_fail(0, "slot1_1@good.example.org", Seen.EVICTED, None)  # somebody else's job came first
    start_and_fail(0, "slot1_1@pilot7@far", Seen.EVICTED, 91)
    start_and_fail(1, "slot1_1@good.example.org", Seen.EVICTED, 7)
    for _ in range(2):  # what was read is not read again
        watch_once(f)
    nodes = (NodeFailures("bad.example.org", 82, 3), NodeFailures("pilot7@far", 91, 1))
    assert standing_of(f).nodes == nodes
    named = [line for line in standing_of(f).headline.splitlines() if "nodes" in line]
    assert named == ["nodes that keep failing: bad.example.org (82 no image: 3 times)"]


def test_the_last_start_of_a_job_counts(f: Following) -> None:
    start_and_fail(1, "slot1@bad", Seen.ENDED, 81)
    watch_once(f)
    assert standing_of(f).nodes == (NodeFailures("bad", 81, 1),)
