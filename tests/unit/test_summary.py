"""What reports add up to: quantiles and time lines in bounded memory, and reports that lie."""

from __future__ import annotations

import json
import random
import statistics
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermigrid.attempt import PHASES, TEXT, Attempt, attempt_of, gist
from fermigrid.backends import Cursor
from fermigrid.commands.following import following
from fermigrid.histogram import Histogram
from fermigrid.pace import ENOUGH, Ended, Pace, end_words, pace_of, rate_words, since_when
from fermigrid.pace import as_data as pace_data
from fermigrid.report import INFRASTRUCTURE
from fermigrid.runfolder import RunFolder
from fermigrid.states import State
from fermigrid.submit import Hand
from fermigrid.summary import Failure, Group, Summary, Tally
from fermigrid.summary_campaign import COLUMNS, MEMORY, lines_of_jobs, memory_to_keep, summarize
from fermigrid.summary_tables import as_json, tables
from fermigrid.timeline import BINS, Timeline, running
from tests.synthetic import BEGIN, synthetic

LATER = BEGIN + timedelta(days=10)
VALUES = st.lists(st.floats(0, 1e12, allow_nan=False), min_size=1, max_size=60)


# --- histograms and time lines


@given(VALUES, st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
def test_a_quantile_is_off_by_two_percent_at_most(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    assert histogram.quantile(share) == pytest.approx(exact, rel=0.0201, abs=1.1e-3)
    assert (histogram.count, histogram.least, histogram.most) == (len(values), min(values), max(values))
    assert histogram.total == pytest.approx(sum(values))


@given(VALUES, VALUES)
def test_two_histograms_are_as_one(left: list[float], right: list[float]) -> None:
    both, one, other = Histogram(), Histogram(), Histogram()
    for value in left:
        one.add(value)
    for value in right:
        other.add(value)
    for value in [*left, *right]:
        both.add(value)
    one.merge(Histogram.load(json.loads(json.dumps(other.dump()))))
    assert one.total == pytest.approx(both.total)
    one.total = both.total
    assert one == both


def test_a_histogram_has_no_more_bins_than_there_are_sizes() -> None:
    histogram = Histogram()
    for power in range(-300, 300):
        for _ in range(20):
            histogram.add(random.random() * 10.0**power)
    assert len(histogram._bins) < 1300
    assert Histogram().quantile(0.5) == Histogram().mean == 0
    assert Histogram.load(Histogram().dump()) == Histogram()


@given(st.lists(st.tuples(st.integers(0, 4_000_000_000), st.integers(0, 10)), min_size=1, max_size=80))
def test_nothing_is_lost_when_bins_are_joined(events: list[tuple[int, int]]) -> None:
    line = Timeline()
    for time, amount in events:
        line.add(("x",), time, amount)
    amounts = line.amounts(("x",))
    assert len(amounts) == line.bins <= BINS
    assert sum(amounts) == sum(amount for _, amount in events)
    first, last = min(events)[0], max(events)[0]
    assert line.begin <= first and last < line.begin + line.bins * line.width
    assert last - first < BINS // 2 or line.bins > BINS // 2 - 2, "it is no coarser than it must be"
    assert line.amounts(("other",)) == [0] * line.bins


def test_a_bin_has_what_happened_in_it() -> None:
    line = Timeline()
    times = [1000, 1001, 1001, 5000, 90_000]
    for time in times:
        line.add(("x",), time)
    expected = Counter((time // line.width * line.width - line.begin) // line.width for time in times)
    assert line.amounts(("x",)) == [expected[number] for number in range(line.bins)]


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 3000)), min_size=1, max_size=30))
def test_running_jobs_are_counted_second_by_second(jobs: list[tuple[int, int]]) -> None:
    line = Timeline()
    for begin, seconds in jobs:
        for kind, time in (("began", begin), ("ended", begin + seconds)):
            line.add((kind, "x"), time)
            line.add((f"{kind} at", "x"), time, time)
    found = running(line, "x")
    for number in range(line.bins):
        begin = line.begin + number * line.width
        seconds = sum(max(0, min(b + s, begin + line.width) - max(b, begin)) for b, s in jobs)
        assert found[number] == pytest.approx(seconds / line.width, abs=1e-9)


# --- what a report says


LIES: list[dict[str, Any]] = [
    {}, {"phases": None}, {"phases": {"total": "4"}}, {"phases": {"total": -3, "image": float("nan")}},
    {"phases": {"total": float("inf")}}, {"begin": 2**80, "end": -5}, {"begin": True}, {"user": "x", "system": 1},
    {"image": "light"}, {"image": {"rung": ["http"]}}, {"image": {"rung": "<script>"}}, {"outputs": {}},
    {"outputs": [1, {"bytes": "7"}, {"bytes": 2**70}, {"bytes": -1}]}, {"summary": {"events_read": "1e9"}},
    {"summary": ["events_read"]}, {"summary": {"events_read": -4, "events_kept": None}}, {"exit": "0"},
    {"host": {"a": 1}}, {"host": "x" * 5000}, {"host": "a\x1b[31mb\u202ec\nd"}, {"message": 3},
]  # fmt: skip


@pytest.mark.parametrize("data", LIES, ids=str)
def test_a_report_that_lies_adds_up_to_nothing_worse(data: dict[str, Any]) -> None:
    one = attempt_of("clump.r1.c000", "clump", "east", "r1", True, data)
    tally = Tally(0, 2**62)
    tally.add(one)
    assert 0 <= one.wall < 1e13 and one.begin >= 0 and one.end >= 0 and one.output >= 0
    assert one.rung == "none" and len(one.host) <= 80 and one.host.isprintable()
    assert one.read is None or one.read >= 0
    assert set(one.phases) <= set(PHASES)
    json.dumps(vars(tally.groups["clump", "east"].wall)["total"])


def test_what_a_good_report_says() -> None:
    data = {
        "begin": 100, "end": 160, "exit": 0, "host": "n1", "user": 30.5, "system": 1, "phases": {"total": 60.4, "payload": 50},
        "image": {"rung": "http", "seconds": 3.5, "bytes": 700}, "outputs": [{"bytes": 5}, {"bytes": 6}],
        "summary": {"events_read": "12", "events_kept": "7"},
    }  # fmt: skip
    one = attempt_of("clump.r1.c000", "clump", "east", "r1", True, data)
    assert (one.wall, one.cpu, one.output, one.read, one.kept) == (60.4, 31.5, 11, 12, 7)
    assert (one.rung, one.image_seconds, one.image_bytes, one.phases) == ("http", 3.5, 700, {"payload": 50.0})
    assert attempt_of("j", "s", "x", "r", True, {"begin": 5, "end": 12}).wall == 7.0


def test_reasons_that_differ_in_numbers_are_one() -> None:
    assert gist("Error from slot1@node7: no space") == gist("Error from slot12@node31: no space")
    assert gist("") == "no reason given" and len(gist("x" * 999)) == TEXT
    assert "\x1b" not in gist("a\x1b[2Jb") and "\n" not in gist("a\nb")


# --- adding up


def attempt(job: str, run: str = "r1", **changes: Any) -> Attempt:
    values: dict[str, Any] = {
        "step": "clump", "site": "east", "accepted": True, "exit": 0, "host": "n1", "begin": 100, "end": 160,
        "wall": 60.0, "cpu": 50.0, "phases": {"payload": 60.0}, "rung": "path", "image_seconds": 1.0,
        "image_bytes": 0, "output": 10, "read": 5, "kept": 2,
    }  # fmt: skip
    return Attempt(job=job, run=run, **{**values, **changes})


def tally_of(attempts: Sequence[Attempt]) -> Tally:
    tally = Tally(0, 10_000)
    for one in attempts:
        tally.add(one)
    return tally


def test_only_accepted_attempts_count_as_results() -> None:
    tally = tally_of([
        attempt("clump.r1.c000"),
        attempt("clump.r1.c001", accepted=False, exit=82, wall=7.0, output=0),
        attempt("clump.r1.c002", accepted=False, wall=9.0),
    ])  # fmt: skip
    group = tally.groups["clump", "east"]
    assert (group.accepted, group.failed, group.surplus, group.attempts) == (1, 1, 1, 3)
    assert (group.wall.count, group.output.total, group.read, group.lost) == (1, 10, 5, 16.0)
    assert tally.failures == Counter({Failure("attempt", "east", "clump", "no image (82)"): 1})
    assert sum(tally.timeline.amounts(("failed",))) == 1
    assert group.efficiency(2) == pytest.approx(50 / 60 / 2)
    assert Group().efficiency(1) is None


def test_a_clock_that_is_wrong_is_on_no_time_line() -> None:
    """One job of the year 2999 would make one bin of all the others."""
    tally = tally_of([attempt("a"), attempt("b", begin=1, end=10**15), attempt("c", begin=200, end=100)])
    assert (tally.out_of_time, tally.groups["clump", "east"].accepted) == (2, 3)
    assert tally.timeline.begin >= 100 and tally.timeline.bins <= 61
    assert tally.slow_runs()[0].seconds == 60


def test_the_slowest_runs_and_jobs() -> None:
    runs = [
        attempt(f"clump.r{n:02d}.c{piece}", f"r{n:02d}", begin=100 + n * piece, end=200 + n * piece * 10, wall=float(n))
        for n in range(40)
        for piece in range(3)
    ]
    tally = tally_of(runs)
    slow = tally.slow_runs()
    assert [one.run for one in slow[:3]] == ["r39", "r38", "r37"] and len(slow) == 20
    assert (slow[0].seconds, slow[0].attempts, slow[0].wall, slow[0].longest) == (200 + 39 * 20 - 100, 3, 117.0, 39.0)
    assert [one.job for one in tally.slow_jobs()[:2]] == ["clump.r39.c2", "clump.r39.c1"]


def test_nodes_are_told_by_what_failed_on_them() -> None:
    tally = tally_of([attempt("a"), attempt("b", host="n2", exit=3, accepted=False), attempt("c", host="n2")])
    tally.fail_node("n2", 82, 4)
    tally.fail_node("n3", 91, 1)
    assert [(node.host, node.attempts, node.failed, dict(node.starts)) for node in tally.nodes()] == [
        ("n2", 2, 1, {82: 4}),
        ("n3", 0, 0, {91: 1}),
    ]
    assert tally.hosts == 2


def test_hosts_and_causes_that_never_end_are_no_end_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fermigrid.summary._NODES", 10)
    monkeypatch.setattr("fermigrid.summary._CAUSES", 10)
    tally = tally_of([attempt(f"j{n}", host=f"h{n}", exit=1 + n % 60, accepted=False) for n in range(300)])
    assert tally.hosts == 11 and len(tally.failures) == 11
    assert sum(tally.failures.values()) == sum(node.failed for node in tally.nodes()) == 300


def test_memory_does_not_grow_with_the_reports() -> None:
    def many(number: int) -> Iterator[Attempt]:
        r = random.Random(number)
        for job in range(number):
            begin, wall = job * 3, r.lognormvariate(7, 1)
            yield attempt(f"clump.r{job // 50:06d}.c{job % 50:03d}", f"r{job // 50:06d}", begin=begin, end=begin + int(wall),
                          wall=wall, host=f"n{r.randrange(300)}", exit=r.choice([0] * 50 + sorted(INFRASTRUCTURE)))  # fmt: skip

    def most(number: int) -> int:
        tracemalloc.start()
        try:
            tally = Tally(0, 2**62)
            for one in many(number):
                tally.add(one)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    most(100)
    small, large = most(2000), most(20_000)
    assert large < 2 * small, "ten times the reports"
    assert large < 1e6


# --- a whole campaign


@pytest.fixture(scope="module")
def p400(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """60 runs of 12 clumps at two sites, three quarters of them ended."""
    return synthetic(tmp_path_factory.mktemp("p400"), 60, 12, block=10, done=0.75)


def summary_of(run: RunFolder, now: datetime = LATER) -> Summary:
    with following(run, Hand("me@here", lambda: now, lambda _: None)) as f:
        return summarize(f)


def rows_of(run: RunFolder) -> list[tuple[Any, ...]]:
    """What the ledger has, added up by nobody."""
    import sqlite3

    with closing(sqlite3.connect(run.ledger)) as db:
        query = (
            "SELECT a.job, a.exit, a.accepted, a.report, b.step, b.site FROM attempt a JOIN batch b ON b.id = a.batch"
        )
        return db.execute(query).fetchall()


def test_a_summary_is_what_the_ledger_has(p400: RunFolder) -> None:
    summary, rows = summary_of(p400), rows_of(p400)
    assert {(step, site) for *_, step, site in rows} == set(summary.tally.groups)
    for (step, site), group in summary.tally.groups.items():
        mine = [row for row in rows if row[4:] == (step, site)]
        good = [json.loads(row[3]) for row in mine if row[2]]
        assert (group.accepted, group.failed) == (len(good), sum(row[1] != 0 for row in mine))
        assert group.wall.total == pytest.approx(sum(one["phases"]["total"] for one in good))
        assert group.cpu.total == pytest.approx(sum(one["user"] + one["system"] for one in good))
        middle = statistics.median_low(one["phases"]["total"] for one in good)
        assert group.wall.quantile(0.5) == pytest.approx(middle, rel=0.03)
        assert group.output.total == sum(one["outputs"][0]["bytes"] for one in good)
        assert group.read == sum(int(one["summary"]["events_read"]) for one in good)
        rungs = Counter(json.loads(row[3])["image"]["rung"] for row in mine)
        assert {rung: found.count for rung, found in group.images.items()} == rungs
        assert group.memory.count == len(mine)
    line = summary.tally.timeline
    for step in ("clump", "merge"):
        assert sum(line.amounts(("accepted", step))) == sum(bool(row[2]) for row in rows if row[4] == step)
    failed = Counter(row[1] for row in rows if row[1])
    assert sum(summary.tally.failures[f] for f in summary.tally.failures if f.what == "attempt") == failed.total()
    assert summary.jobs == {"clump": 720, "merge": 60}
    held = [f for f in summary.tally.failures if f.what == "held"]
    assert [f.cause for f in held] == ["Error from …: no space left"] * len(held)


def test_jobs_that_failed_without_a_report_that_says_why_are_told_apart(tmp_path: Path) -> None:
    run = synthetic(tmp_path, 4, 5, block=10)
    with following(run, Hand("me@here", lambda: LATER, lambda _: None)) as f:
        (clumps, _) = f.ledger.batches()
        done = [job for job in f.ledger.jobs_in(State.DONE) if job.batch == clumps.id]
        states = [State.FAILED, State.REMOVED, State.FAILED]
        troubled = [
            replace(job, state=state, reason=f"its log did not come back from n{number}" if state is State.FAILED else "it was held: full")
            for number, (job, state) in enumerate(zip(done, states, strict=False))
        ]  # fmt: skip
        f.ledger.apply(troubled, Cursor())
        before = sum(job.state is State.FAILED for job in f.ledger.jobs_of(clumps.id)) - 2
        found = summarize(f).tally.failures
    assert found[Failure("no result", clumps.site, "clump", "its log did not come back from n#")] == 2
    assert found[Failure("removed", clumps.site, "clump", "it was held: full")] == 1
    assert sum(n for f, n in found.items() if f.what == "attempt" and f.step == "clump") == before


def test_everything_that_was_asked_for_is_in_json_and_tables(p400: RunFolder) -> None:
    summary = summary_of(p400)
    data = json.loads(json.dumps(as_json(summary)))
    assert data["campaign"] == "P400" and {row["step"] for row in data["steps"]} == {"clump", "merge"}
    first = data["steps"][0]
    assert first["asked"]["memory"] == 2**31 and first["memory"]["most"] > first["memory"]["median"] > 2**28
    assert set(first["phases"]) == set(PHASES) and set(first["images"]) >= {"path", "cache"}
    assert sum(sum(n) for n in data["timeline"]["accepted"].values()) == data["total"]["accepted"]
    names = {table.name for table in tables(summary)}
    assert names == {
        "jobs",
        "time",
        "memory",
        "images",
        "phases",
        "data",
        "failures",
        "nodes",
        "slow runs",
        "slow jobs",
    }
    for table in tables(summary):
        assert all(len(row) == len(table.columns) for row in table.rows), table.name


def test_a_line_for_each_job(p400: RunFolder) -> None:
    with following(p400, Hand("me@here", lambda: LATER, lambda _: None)) as f:
        lines = [dict(zip(COLUMNS, line, strict=True)) for line in lines_of_jobs(f)]
        jobs = {job.name: job for batch in f.ledger.batches() for job in f.ledger.jobs_of(batch.id)}
    assert [line["job"] for line in lines] == sorted(jobs)
    assert all(line["state"] == jobs[str(line["job"])].state for line in lines)
    good = next(line for line in lines if line["state"] == "done" and line["step"] == "clump")
    assert (good["exit"], good["cause"], good["events_read"], good["attempts"]) == (0, "", 20000, 1)
    bad = next(line for line in lines if line["state"] == "failed")
    assert bad["exit"] and bad["cause"]
    held = next(line for line in lines if line["state"] == "held")
    assert (held["cause"], held["wall_s"], held["attempts"]) == ("Error from …: no space left", "", 0)


def test_an_archive_keeps_what_the_event_logs_said_of_memory(p400: RunFolder, tmp_path: Path) -> None:
    with following(p400, Hand("me@here", lambda: LATER, lambda _: None)) as f:
        groups = summarize(f).tally.groups
        kept = json.loads(memory_to_keep(f))
    assert {(step, site): Histogram.load(rest) for step, site, rest in kept} == {
        key: group.memory for key, group in groups.items()
    }
    assert MEMORY == "memory.json"


# --- the pace


NOW = datetime(2027, 3, 4, 12, tzinfo=UTC)


def ended(hours: float, step: str, jobs: int, failed: int = 0, site: str = "east") -> Ended:
    """Jobs that ended in the minute so many hours ago."""
    return Ended(f"{NOW - timedelta(hours=hours):%Y-%m-%dT%H:%M}", step, site, jobs - failed, failed)


def steadily(step: str, per_hour: int, hours: int = 24) -> list[Ended]:
    return [ended(minutes / 60, step, per_hour // 6) for minutes in range(10, 60 * hours + 1, 10)]


def hours_of(pace: Pace) -> tuple[float, float]:
    """From now to the estimated end."""
    assert pace.soonest and pace.latest
    return (pace.soonest - NOW) / timedelta(hours=1), (pace.latest - NOW) / timedelta(hours=1)


def test_the_pace_of_a_campaign_is_that_of_its_last_hour(p400: RunFolder) -> None:
    now = BEGIN + timedelta(days=5)
    summary = summary_of(p400, now)
    since = now - timedelta(hours=1)
    ends = [json.loads(row[3])["end"] for row in rows_of(p400) if row[2]]
    expected = sum(since.replace(second=0).timestamp() <= end < now.replace(second=0).timestamp() + 60 for end in ends)
    with following(p400, Hand("me@here", lambda: now, lambda _: None)) as f:
        later = f.ledger.pace(now)
    ahead = sum(one.good for one in later)  # that end after `now`: the clock of the test stands still in the middle
    assert summary.pace.good == pytest.approx(expected + ahead, abs=1)
    assert summary.pace.good + summary.pace.failed == pytest.approx(sum(summary.pace.rates.values()))


def test_rates_are_those_of_the_last_hour_by_step_and_site() -> None:
    done = [ended(0.5, "clump", 90, 10), ended(0.3, "merge", 6, site="west"), ended(2, "clump", 500)]
    pace = pace_of(done, {"clump": 200}, NOW - timedelta(days=3), NOW)
    assert (pace.good, pace.failed) == (86, 10)
    assert pace.rates == {("clump", "east"): 90, ("merge", "west"): 6}
    some = [ended(0.02, "clump", 10)]
    half = pace_of(some, {"clump": 50}, NOW - timedelta(minutes=30), NOW)
    assert half.good == pytest.approx(20), "a campaign younger than an hour has the rate of its own time"
    young = pace_of(some, {"clump": 50}, NOW - timedelta(minutes=9), NOW)
    assert (young.young, young.good, young.rates, rate_words(young)) == (True, 0, {}, ""), "a wave is no rate"
    assert pace_data(young)["good"] is None and young.why_not
    back = NOW + timedelta(days=1)  # the clock was set back since it was begun
    assert since_when(back, NOW) == NOW and pace_of([], {"clump": 1}, back, NOW).soonest is None


def test_an_estimate_holds_what_every_stretch_of_time_says() -> None:
    steady = pace_of(steadily("clump", 120), {"clump": 1200}, NOW - timedelta(days=30), NOW)
    low, high = hours_of(steady)
    assert low == pytest.approx(1200 / (120 + 2 * 120**0.5)) and high == pytest.approx(1200 / (120 - 2 * 120**0.5))
    halved = pace_of(
        [*steadily("clump", 120), *steadily("clump", 600, 1)], {"clump": 1200}, NOW - timedelta(days=30), NOW
    )
    assert hours_of(halved)[0] < 2 and hours_of(halved)[1] > 8, "what the last hour says is not all"
    few, many = (pace_of(steadily("clump", n), {"clump": n}, NOW - timedelta(days=3), NOW) for n in (24, 2400))
    assert hours_of(few)[1] - hours_of(few)[0] > 5 * (hours_of(many)[1] - hours_of(many)[0])


def test_the_step_that_takes_longest_says_when_it_ends() -> None:
    done = [*steadily("clump", 120), *steadily("merge", 30)]
    both = pace_of(done, {"clump": 120, "merge": 300, "ship": 0}, NOW - timedelta(days=3), NOW)
    assert hours_of(both) == hours_of(pace_of(done, {"merge": 300}, NOW - timedelta(days=3), NOW))


def test_before_the_first_wave_of_jobs_ended_nothing_could_end() -> None:
    """Jobs of 5 h: an hour after the first of them ended the campaign's mean says little; 5 h after, both count."""
    begun = NOW - timedelta(hours=10)
    early = pace_of([ended(hour, "clump", 100) for hour in (0.9, 0.5)], {"clump": 1000}, NOW - timedelta(hours=6), NOW)
    late = pace_of([ended(hour, "clump", 100) for hour in (5, 3.5, 2, 0.5)], {"clump": 1000}, begun, NOW)
    only = pace_of([ended(hour, "clump", 100) for hour in (4.9, 3.5, 2, 0.5)], {"clump": 1000}, begun, NOW)
    assert hours_of(early)[1] > 5 * hours_of(early)[0]
    assert hours_of(late)[0] <= hours_of(only)[0] * 1.1


@pytest.mark.parametrize(
    ("done", "left", "stopped", "words"),
    [
        ([ended(0.5, "clump", ENOUGH - 1)], {"clump": 99}, "", "no estimate of the end: fewer than 20 jobs of a step have ended in the last day"),
        (steadily("clump", 60), {"clump": 99}, "nothing runs", "no estimate of the end: nothing runs"),
        (steadily("clump", 60), {"clump": 10**10}, "", "no estimate of the end: next to nothing ends"),
        (steadily("clump", 60), {}, "", ""),
        ([], {"clump": 0}, "nothing runs", ""),
        (steadily("clump", 120), {"clump": 480, "merge": 7}, "", "ends not before 2027-03-04 15:20 UTC: too few jobs of merge have ended to tell more"),
        (steadily("clump", 120), {"clump": 480, "merge": 481}, "", "no estimate of the end: too few jobs of merge have ended, and most of what is left is of these"),
        (steadily("clump", 120), {"clump": 480}, "", "ends between 2027-03-04 15:22 and 16:54 UTC (in 3 h 22 min to 4 h 54 min), if it goes on as in the last day"),
        (steadily("clump", 120), {"clump": 12_000}, "", "ends between 2027-03-08 00:00 and 2027-03-09 15:00 UTC (in 3 d 12 h to 5 d 3 h), if it goes on as in the last day"),
    ],
)  # fmt: skip
def test_the_end_is_told_as_well_as_it_is_known(
    done: list[Ended], left: dict[str, int], stopped: str, words: str
) -> None:
    assert end_words(pace_of(done, left, NOW - timedelta(days=9), NOW, stopped=stopped), NOW) == words


def test_jobs_that_wait_for_a_person_are_told_beside_the_estimate() -> None:
    pace = pace_of(steadily("clump", 120), {"clump": 480}, NOW - timedelta(days=9), NOW, aside=3)
    assert " UTC (in 3 h 22 min to 4 h 54 min), without 3 jobs held or unknown, if it goes" in end_words(pace, NOW)


def test_rates_in_words_and_for_programs() -> None:
    pace = pace_of([ended(0.5, "clump", 90, 4), *steadily("clump", 120, 1)], {"clump": 1}, NOW - timedelta(days=9), NOW)
    assert rate_words(pace) == "206 jobs/h done, 4/h failed"
    assert (
        rate_words(pace_of([ended(5, "clump", 90)], {}, NOW - timedelta(days=9), NOW))
        == "no job came to its end in the last hour"
    )
    data = json.loads(json.dumps(pace_data(pace)))
    assert data["rates"] == [{"step": "clump", "site": "east", "jobs": 210.0}] and data["soonest"] < data["latest"]


@given(
    st.lists(st.tuples(st.floats(0, 24), st.sampled_from(["a", "b"]), st.integers(1, 5000)), max_size=30),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 10**7)), st.floats(-5, 100),
)  # fmt: skip
def test_an_estimate_is_never_in_the_past_and_never_made_of_nothing(
    some: list[tuple[float, str, int]], left: dict[str, int], age: float
) -> None:
    pace = pace_of([ended(*one) for one in some], left, NOW - timedelta(hours=age), NOW)
    words = end_words(pace, NOW)
    assert (words == "") == (not any(left.values()))
    if pace.soonest:
        assert sum(jobs for _, _, jobs in some) >= ENOUGH and pace.soonest >= NOW
        assert pace.latest is None or pace.soonest < pace.latest
        assert (pace.latest is None) == bool(pace.untold)
