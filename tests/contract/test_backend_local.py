"""What a backend owes to the rest: submitted once, observed by cursor, each job ended once, whatever dies in between.

The tests know the Protocol and an `Engine`, which starts and clears away a batch system; a second engine is a second
parameter of the fixture. Those that kill processes, and those about slots, are about this machine's runner. The jobs
are those of a stand-in worker whose rows say what happens.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path

import pytest

from fermigrid.backends import Allowed, Backend, Cursor, Handle, JobSeen, RenderedBatch, load
from fermigrid.backends.local_events import batch_to_text, folder_of, read_all
from fermigrid.backends.local_job import MEMORY
from fermigrid.errors import NotFound, SubmissionRefused
from fermigrid.states import Seen

LIMIT = 30.0  # s; everything here takes less than two

# Each field of a row is done in its order. The lock on `one/<job>` is held by all processes of a job.
WORKER = r"""
set -u
job=$2 shard=$3 row=$4 batch=$5
trap 'echo "TERM"; exit 143' TERM
echo "job $job start $FERMIGRID_START batch $batch"
exec 9>>"$ONE/$job"
flock -n 9 || echo "$job" >>"$ONE/doubled"
IFS=$'\t' read -r -a fields <<<"$(sed -n "${row}p" "$shard")"
for field in "${fields[@]}"; do
    value=${field#*=}
    case $field in
        say=*) printf '%s\n' "$value" ;;
        out=*) mkdir -p out; printf '%s' "$value" >"out/$job.0.g0.s$FERMIGRID_START" ;;
        wait=*) while [ ! -e "$value" ]; do sleep 0.02; done ;;
        stubborn=*) trap 'echo ignored' TERM; while [ ! -e "$value" ]; do sleep 0.02; done ;;
        escape=*) setsid bash -c 'trap "" TERM HUP; while [ ! -e "$0" ]; do sleep 0.02; done' "$value" & ;;
        lock=*) mkdir -p deep/down; touch deep/down/file; chmod 0500 deep/down deep ;;
        until=*) [ "$FERMIGRID_START" -ge "${value#*:}" ] || exit "${value%:*}" ;;
        signal=*) kill "-$value" $$ ;;
        exit=*) exit "$value" ;;
    esac
done
echo "@@END $job"
"""


@dataclass
class Engine:
    """A backend under test with a folder of its own."""

    backend: Backend
    folder: Path
    options: dict[str, object]
    handles: list[Handle] = field(default_factory=list)

    def batch(self, rows: Sequence[str], **options: object) -> RenderedBatch:
        """A batch whose jobs are `j0`, `j1`, ...: one a row, in shards of three."""
        batch_id = uuid.uuid4().hex
        plan, work = self.folder / batch_id / "plan", self.folder / batch_id / "work"
        (plan / "shards").mkdir(parents=True)
        items = []
        for first in range(0, len(rows), 3):
            shard = f"s{first // 3:04d}-{batch_id}.rows"
            (plan / "shards" / shard).write_text("".join(f"{row}\n" for row in rows[first : first + 3]))
            (work / shard / "out").mkdir(parents=True)
            items += [f"j{first + i} {shard} {i + 1}\n" for i in range(len(rows[first : first + 3]))]
        (plan / "items.txt").write_text("".join(items))
        (plan / "job.env").write_text("format=1\n")
        (plan / "plan.json").write_text(json.dumps({"cpus": options.pop("cpus", 1)}))
        (plan / "worker.sh").write_text(WORKER)
        log = self.folder / "events.log"
        options = {**self.options, **options}
        return RenderedBatch(batch_id, "T.b0000.step.g0", plan, work, log, len(rows), options)

    def submit(self, batch: RenderedBatch) -> Handle:
        handle = self.backend.submit(batch)
        self.handles.append(handle)
        return handle


def local_engine(folder: Path) -> Iterator[Engine]:
    """This machine, two slots; afterwards nothing of it may be left."""
    (folder / "scratch").mkdir()
    engine = Engine(load("local"), folder, {"slots": 2, "grace": 5, "scratch": str(folder / "scratch")})
    yield engine
    engine.backend.remove(engine.handles)
    for handle in engine.handles:
        wait(lambda handle=handle: not alive(handle))
    left = [p.name for p in (folder / "scratch").glob("fermigrid-*/*") if p.name != "slots"]
    assert left == [], "scratch folders were left"
    left = [p.name for handle in engine.handles for p in MEMORY.glob(f"fermigrid-*/{handle.batch.batch_id}.*")]
    assert left == [], "places for secrets were left"


ENGINES = {"local": local_engine}


@pytest.fixture(params=["local"])
def engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    (tmp_path / "one").mkdir()
    monkeypatch.setenv("ONE", str(tmp_path / "one"))
    yield from ENGINES[request.param](tmp_path)
    assert not (tmp_path / "one" / "doubled").exists(), "a job ran twice at the same time"


def wait(happened: Callable[[], object], limit: float = LIMIT) -> None:
    end = time.monotonic() + limit
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


class Watch:
    """Observes a batch from its beginning."""

    def __init__(self, engine: Engine, *handles: Handle) -> None:
        self.engine, self.handles = engine, handles
        self.cursor, self.seen, self.problems = Cursor(), list[JobSeen](), list[str]()

    def look(self) -> None:
        now = self.engine.backend.observe(self.handles, self.cursor)
        self.seen += now.seen
        self.problems += now.problems
        self.cursor = now.cursor

    def has(self, seen: Seen, index: int, times: int = 1) -> bool:
        self.look()
        return sum((s.seen, s.index) == (seen, index) for s in self.seen) >= times

    def until(self, seen: Seen, *indices: int, times: int = 1) -> None:
        for index in indices:
            wait(lambda index=index: self.has(seen, index, times))

    def story(self, index: int) -> list[Seen]:
        return [s.seen for s in self.seen if s.index == index]

    def ends(self) -> dict[int, int | None]:
        return {s.index: s.exit_code for s in self.seen if s.seen is Seen.ENDED}


def log_of(handle: Handle, job: str) -> str:
    (path,) = handle.batch.work_dir.glob(f"*/{job}.log")
    return path.read_text()


def outputs_of(handle: Handle) -> dict[str, str]:
    return {path.name: path.read_text() for path in handle.batch.work_dir.glob("*/out/*")}


def runner_of(handle: Handle) -> int:
    return [event["runner"] for event in read_all(folder_of(handle.batch).events) if "runner" in event][-1]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(stat.parent.name))
    return found


def alive(handle: Handle) -> bool:
    return runs(runner_of(handle))


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait(lambda: not runs(pid))


# --- pauses


def test_a_pause_lets_running_jobs_end_and_none_start_until_it_is_over(engine: Engine, tmp_path: Path) -> None:
    go = tmp_path / "go"
    handle = engine.submit(engine.batch([f"wait={go}", f"wait={go}", "until=81:2", "say=x", "say=y"], retries=3))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0, 1)
    engine.backend.pause([handle])
    engine.backend.hold([handle], [4])  # a person's own hold
    watch.until(Seen.HELD, 4)
    go.touch()
    watch.until(Seen.ENDED, 0, 1)
    assert watch.ends() == {0: 0, 1: 0}
    assert "the batch is paused" in " ".join(engine.backend.explain(handle, 3))
    kill(runner_of(handle))
    watch.look()  # the next runner knows of it
    assert not watch.has(Seen.STARTED, 2)
    engine.backend.resume([handle])
    watch.until(Seen.ENDED, 2, 3)
    assert not watch.has(Seen.STARTED, 4)
    assert engine.backend.silence(handle) == ""


def test_a_batch_keeps_to_its_places_and_starts_also_with_another_runner(engine: Engine, tmp_path: Path) -> None:
    go = tmp_path / "go"
    handle = engine.submit(engine.batch([f"wait={go}", *["exit=0"] * 9], places=1, slots=4))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0)
    assert not watch.has(Seen.STARTED, 1), "it has one place"
    assert "of this batch 1 job may run at a time" in " ".join(engine.backend.explain(handle, 3))
    engine.backend.adjust([(handle, Allowed(places=3, stay=60))])
    watch.until(Seen.ENDED, 1, 2)
    kill(runner_of(handle))
    go.touch()
    watch.look()  # the next runner knows what is allowed, and when jobs started
    watch.until(Seen.STARTED, 0)
    time.sleep(1)
    watch.look()
    assert not watch.has(Seen.STARTED, 3), "three have begun within a minute"
    engine.backend.adjust([(handle, Allowed(places=3, stay=0))])
    watch.until(Seen.ENDED, *range(10))


# --- results


def test_each_job_ends_once_with_its_exit_code_log_and_outputs(engine: Engine) -> None:
    handle = engine.submit(engine.batch(["say=hello world", "out=abc", "exit=7", "exit=0", "out=x"]))
    watch = Watch(engine, handle)
    watch.until(Seen.ENDED, *range(5))
    wait(lambda: not alive(handle))
    watch.look()
    assert watch.ends() == {0: 0, 1: 0, 2: 7, 3: 0, 4: 0}
    assert Counter(s.seen for s in watch.seen) == {Seen.STARTED: 5, Seen.ENDED: 5}
    assert log_of(handle, "j0") == f"job j0 start 1 batch {handle.batch.batch_id}\nhello world\n@@END j0\n"
    assert outputs_of(handle) == {"j1.0.g0.s1": "abc", "j4.0.g0.s1": "x"}
    assert watch.problems == []
    assert all(s.time.tzinfo is not None and s.batch_id == handle.batch.batch_id for s in watch.seen)


def test_the_log_is_there_when_the_end_is_seen(engine: Engine) -> None:
    handle = engine.submit(engine.batch(["say=x"] * 20))
    watch = Watch(engine, handle)
    checked = set[int]()
    while len(checked) < 20:
        watch.look()
        for index in watch.ends().keys() - checked:
            assert log_of(handle, f"j{index}").endswith(f"@@END j{index}\n")
            checked.add(index)


def test_a_job_killed_by_a_signal_says_which(engine: Engine) -> None:
    handle = engine.submit(engine.batch(["signal=KILL", "signal=SEGV"]))
    watch = Watch(engine, handle)
    watch.until(Seen.ENDED, 0, 1)
    ends = {s.index: (s.exit_code, s.signal) for s in watch.seen if s.seen is Seen.ENDED}
    assert ends == {0: (None, signal.SIGKILL), 1: (None, signal.SIGSEGV)}
    assert "start 1" in log_of(handle, "j0")


def test_what_a_payload_made_unwritable_is_removed(engine: Engine) -> None:
    handle = engine.submit(engine.batch(["lock=yes"]))
    Watch(engine, handle).until(Seen.ENDED, 0)  # the fixture looks for what is left


def test_nothing_that_a_job_started_outlives_it(engine: Engine, tmp_path: Path) -> None:
    handle = engine.submit(engine.batch([f"escape={tmp_path / 'never'}"]))
    Watch(engine, handle).until(Seen.ENDED, 0)
    done = subprocess.run(["flock", "-n", tmp_path / "one" / "j0", "true"], check=False)
    assert done.returncode == 0, "a process of the job still holds its lock"


def test_no_more_jobs_at_once_than_slots_whichever_batch_they_belong_to(engine: Engine, tmp_path: Path) -> None:
    go = tmp_path / "go"
    handles = [engine.submit(engine.batch([f"wait={go}"] * 3)) for _ in range(2)]
    watch = Watch(engine, *handles)

    def running() -> int:
        watch.look()
        kinds = Counter(s.seen for s in watch.seen)
        return kinds[Seen.STARTED] - kinds[Seen.ENDED]

    wait(lambda: running() == 2)
    go.touch()
    most = 0
    while sum(s.seen is Seen.ENDED for s in watch.seen) < 6:
        most = max(most, running())
    assert most == 2


def test_a_job_takes_as_many_slots_as_it_has_cpus(engine: Engine, tmp_path: Path) -> None:
    go = tmp_path / "go"
    handle = engine.submit(engine.batch([f"wait={go}"] * 2, cpus=2))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0)
    words = engine.backend.explain(handle, 1)
    assert words[0] == "waiting for a slot; it has not started yet"
    assert "slots of this machine: 2 of 2 in use, by all batches" in words
    go.touch()
    watch.until(Seen.ENDED, 0, 1)
    assert [s.index for s in watch.seen] == [0, 0, 1, 1]


# --- failures of the infrastructure


@pytest.mark.parametrize("code", [81, 82, 83, 84, 86, 88, 89, 91, 99])
def test_an_infrastructure_failure_is_started_again_and_then_leaves(engine: Engine, code: int) -> None:
    handle = engine.submit(engine.batch([f"exit={code}", f"until={code}:2\tout=good"]))
    watch = Watch(engine, handle)
    watch.until(Seen.ENDED, 0, 1)
    twice = [Seen.STARTED, Seen.EVICTED, Seen.STARTED, Seen.ENDED]
    assert (watch.story(0), watch.story(1)) == (twice, twice)
    assert watch.ends() == {0: code, 1: 0}
    assert log_of(handle, "j1").startswith("job j1 start 2")
    assert outputs_of(handle) == {"j1.0.g0.s2": "good"}


@pytest.mark.parametrize("code", [1, 79, 80, 85, 87, 90, 127])
def test_other_failures_leave_at_once(engine: Engine, code: int) -> None:
    handle = engine.submit(engine.batch([f"exit={code}"]))
    watch = Watch(engine, handle)
    watch.until(Seen.ENDED, 0)
    assert (watch.story(0), watch.ends()) == ([Seen.STARTED, Seen.ENDED], {0: code})


def test_the_number_of_retries_is_the_sites(engine: Engine) -> None:
    never, thrice = engine.batch(["exit=82"], retries=0), engine.batch(["exit=82"], retries=3)
    watch = Watch(engine, engine.submit(never), engine.submit(thrice))
    wait(lambda: watch.look() or sum(s.seen is Seen.ENDED for s in watch.seen) == 2)
    starts = Counter(s.batch_id for s in watch.seen if s.seen is Seen.STARTED)
    assert starts == {never.batch_id: 1, thrice.batch_id: 4}


# --- submitted once


def test_find_knows_what_landed_and_nothing_else(engine: Engine) -> None:
    batch, other = engine.batch(["say=x"]), engine.batch(["say=x"])
    assert engine.backend.find(batch) is None
    handle = engine.submit(batch)
    assert engine.backend.find(batch) == handle
    assert engine.backend.find(other) is None
    Watch(engine, handle).until(Seen.ENDED, 0)
    wait(lambda: not alive(handle))
    assert engine.backend.find(batch) == handle


def test_submitting_again_changes_nothing(engine: Engine) -> None:
    handle = engine.submit(engine.batch(["say=x"]))
    watch = Watch(engine, handle)
    watch.until(Seen.ENDED, 0)
    wait(lambda: not alive(handle))
    assert engine.backend.submit(handle.batch) == handle
    watch.look()
    assert watch.story(0) == [Seen.STARTED, Seen.ENDED]


def test_submitted_by_many_at_once_it_runs_once(engine: Engine, tmp_path: Path) -> None:
    batch, go = engine.batch([f"wait={tmp_path / 'go'}"] * 4), tmp_path / "go"
    with ThreadPoolExecutor(8) as pool:
        handles = [f.result() for f in [pool.submit(engine.backend.submit, batch) for _ in range(8)]]
    engine.handles.append(handles[0])
    assert set(map(repr, handles)) == {repr(handles[0])}
    go.touch()
    watch = Watch(engine, handles[0])
    watch.until(Seen.ENDED, *range(4))
    assert Counter(s.seen for s in watch.seen) == {Seen.STARTED: 4, Seen.ENDED: 4}
    lines = list(read_all(folder_of(batch).events))
    assert sum("batch" in line for line in lines) == 1
    assert sum("runner" in line for line in lines) == 1


def test_two_processes_that_submit_at_once_start_one_runner(engine: Engine, tmp_path: Path) -> None:
    batch = engine.batch([f"wait={tmp_path / 'go'}"] * 2)
    script = tmp_path / "submit.py"
    script.write_text(
        "import sys\n"
        "from fermigrid.backends.local import submit\n"
        "from fermigrid.backends.local_events import batch_from_text\n"
        "sys.stdin.readline()\n"
        "submit(batch_from_text(open(sys.argv[1]).read()))\n"
    )
    (tmp_path / "b.json").write_text(batch_to_text(batch))
    command = [sys.executable, str(script), str(tmp_path / "b.json")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    both = [subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
    assert [process.wait(LIMIT) for process in both] == [0, 0]
    handle = engine.backend.find(batch)
    assert handle is not None
    engine.handles.append(handle)
    (tmp_path / "go").touch()
    Watch(engine, handle).until(Seen.ENDED, 0, 1)
    assert sum("runner" in line for line in read_all(folder_of(batch).events)) == 1


def test_a_plan_without_its_files_is_refused(engine: Engine) -> None:
    batch = engine.batch(["say=x"])
    (batch.plan_dir / "worker.sh").unlink()
    with pytest.raises(SubmissionRefused, match=r"no worker\.sh"):
        engine.backend.submit(batch)
    assert engine.backend.find(batch) is None


# --- observed by cursor


def test_the_same_cursor_gives_the_same_again(engine: Engine) -> None:
    handle = engine.submit(engine.batch(["say=x"] * 4))
    watch = Watch(engine, handle)
    watch.until(Seen.ENDED, *range(4))
    wait(lambda: not alive(handle))
    once = engine.backend.observe([handle], Cursor())
    assert engine.backend.observe([handle], Cursor()) == once
    assert list(once.seen) == watch.seen
    nothing = engine.backend.observe([handle], once.cursor)
    assert (nothing.seen, nothing.cursor, nothing.problems) == ((), once.cursor, ())


# --- crashes


def test_after_kill_9_of_the_runner_each_job_still_ends_once(engine: Engine, tmp_path: Path) -> None:
    go = tmp_path / "go"
    rows = ["out=early", *[f"wait={go}\tout=late"] * 4]
    handle = engine.submit(engine.batch(rows))
    watch = Watch(engine, handle)
    watch.until(Seen.ENDED, 0)
    watch.until(Seen.STARTED, 1, 2)
    first = runner_of(handle)
    kill(first)
    assert engine.backend.find(handle.batch) == handle
    watch.until(Seen.STARTED, 1, 2, times=2)
    assert runner_of(handle) != first
    go.touch()
    watch.until(Seen.ENDED, *range(5))
    assert Counter(watch.ends().values()) == {0: 5}
    assert all(watch.story(index).count(Seen.ENDED) == 1 for index in range(5))
    assert watch.story(1) == [Seen.STARTED, Seen.EVICTED, Seen.STARTED, Seen.ENDED]
    assert log_of(handle, "j1").startswith("job j1 start 2 ")
    assert sorted(outputs_of(handle)) == ["j0.0.g0.s1", "j1.0.g0.s2", "j2.0.g0.s2", "j3.0.g0.s1", "j4.0.g0.s1"]
    assert len(watch.problems) == 1
    assert "a new one was started" in watch.problems[0]


def test_killed_again_and_again_nothing_is_lost_or_doubled(engine: Engine) -> None:
    handle = engine.submit(engine.batch(["say=a\tout=b"] * 60))
    watch = Watch(engine, handle)
    for ended in (5, 20, 35):
        wait(lambda ended=ended: watch.look() or len(watch.ends()) >= ended)
        kill(runner_of(handle))
    wait(lambda: watch.look() or len(watch.ends()) == 60)
    wait(lambda: not alive(handle))
    watch.look()
    assert all(watch.story(index).count(Seen.ENDED) == 1 for index in range(60))
    assert all(log_of(handle, f"j{index}").endswith(f"@@END j{index}\n") for index in range(60))


def test_jobs_of_a_killed_runner_that_ignore_TERM_are_killed_before_they_start_again(
    engine: Engine, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    handle = engine.submit(engine.batch([f"escape={go}\tstubborn={go}"], grace=1))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0)
    kill(runner_of(handle))
    watch.until(Seen.STARTED, 0, times=2)
    go.touch()
    watch.until(Seen.ENDED, 0)  # the fixture proves that the job never ran twice at the same time


def test_when_runner_and_keepers_are_all_killed_the_orphans_are_ended_first(engine: Engine, tmp_path: Path) -> None:
    go = tmp_path / "go"
    handle = engine.submit(engine.batch([f"escape={go}\tstubborn={go}"] * 2, grace=1))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0, 1)
    runner = runner_of(handle)
    wait(lambda: len(children(runner)) == 2)
    keepers = children(runner)
    os.kill(runner, signal.SIGSTOP)  # or it would end what the keepers leave
    for pid in (*keepers, runner):
        os.kill(pid, signal.SIGKILL)
    watch.until(Seen.STARTED, 0, 1, times=2)
    go.touch()
    watch.until(Seen.ENDED, 0, 1)
    assert watch.story(0) == [Seen.STARTED, Seen.EVICTED, Seen.STARTED, Seen.ENDED]


def test_the_same_plan_from_another_run_folder_is_left_alone(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch ids come from the plan: two run folders can have one. A crash in one must not touch the other's jobs."""
    go = tmp_path / "go"
    one = engine.submit(engine.batch([f"escape={go}\tstubborn={go}"], slots=4))
    watch = Watch(engine, one)
    watch.until(Seen.STARTED, 0)
    (tmp_path / "second").mkdir()
    for shard in one.batch.work_dir.iterdir():
        (tmp_path / "second" / "work" / shard.name).mkdir(parents=True)
    monkeypatch.setenv("ONE", str(tmp_path / "second"))
    elsewhere = {"event_log": tmp_path / "second" / "events.log", "work_dir": tmp_path / "second" / "work"}
    two = engine.submit(replace(one.batch, **elsewhere))
    other = Watch(engine, two)
    other.until(Seen.STARTED, 0)
    kill(runner_of(two))
    other.until(Seen.STARTED, 0, times=2)
    go.touch()
    other.until(Seen.ENDED, 0)
    watch.until(Seen.ENDED, 0)
    assert watch.story(0) == [Seen.STARTED, Seen.ENDED]
    assert watch.ends() == {0: 0}
    assert log_of(one, "j0").startswith("job j0 start 1 ")


def test_a_keeper_that_is_killed_takes_its_job_with_it(engine: Engine, tmp_path: Path) -> None:
    handle = engine.submit(engine.batch([f"escape={tmp_path / 'go'}\tstubborn={tmp_path / 'go'}"]))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0)
    wait(lambda: len(children(runner_of(handle))) == 1)
    kill(children(runner_of(handle))[0])
    watch.until(Seen.ENDED, 0)
    assert watch.seen[-1].signal == signal.SIGKILL
    assert subprocess.run(["flock", "-n", tmp_path / "one" / "j0", "true"], check=False).returncode == 0


def test_retries_are_remembered_over_a_crash(engine: Engine, tmp_path: Path) -> None:
    go = tmp_path / "go"
    handle = engine.submit(engine.batch([f"until=82:2\twait={go}\texit=82"], retries=1))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0, times=2)
    kill(runner_of(handle))
    watch.until(Seen.STARTED, 0, times=3)
    go.touch()
    watch.until(Seen.ENDED, 0)
    assert watch.ends() == {0: 82}
    assert watch.story(0).count(Seen.STARTED) == 3


def test_an_interrupt_in_the_terminal_does_not_reach_the_jobs(engine: Engine, tmp_path: Path) -> None:
    handle = engine.submit(engine.batch([f"wait={tmp_path / 'go'}"]))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0)
    assert os.getsid(runner_of(handle)) != os.getsid(0)
    wait(lambda: len(children(runner_of(handle))) == 1)
    assert os.getsid(children(runner_of(handle))[0]) not in (os.getsid(0), os.getsid(runner_of(handle)))


# --- remove, hold, release


def test_remove_ends_running_and_waiting_jobs(engine: Engine, tmp_path: Path) -> None:
    go = tmp_path / "go"
    handle = engine.submit(engine.batch([f"wait={go}"] * 5))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0, 1)
    engine.backend.remove([handle], [0, 4])
    watch.until(Seen.REMOVED, 0, 4)
    assert watch.story(0) == [Seen.STARTED, Seen.REMOVED]
    assert watch.story(4) == [Seen.REMOVED]
    assert all(s.reason.startswith("removed by ") for s in watch.seen if s.seen is Seen.REMOVED)
    assert engine.backend.explain(handle, 4)[0].startswith("removed since ")
    go.touch()
    watch.until(Seen.ENDED, 1, 2, 3)
    assert not list(handle.batch.work_dir.glob("*/j0.log"))


def test_remove_kills_what_ignores_TERM_after_the_grace(engine: Engine, tmp_path: Path) -> None:
    handle = engine.submit(engine.batch([f"stubborn={tmp_path / 'never'}"], grace=1))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0)
    begin = time.monotonic()
    engine.backend.remove([handle])
    watch.until(Seen.REMOVED, 0)
    assert 0.9 < time.monotonic() - begin < 10
    wait(lambda: not alive(handle))


def test_remove_works_when_the_runner_is_dead(engine: Engine, tmp_path: Path) -> None:
    handle = engine.submit(engine.batch([f"wait={tmp_path / 'never'}"] * 3))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0, 1)
    kill(runner_of(handle))
    engine.backend.remove([handle])
    watch.until(Seen.REMOVED, 0, 1, 2)
    wait(lambda: not alive(handle))
    assert watch.story(0) == [Seen.STARTED, Seen.EVICTED, Seen.REMOVED]


def test_a_crash_while_removing_does_not_bring_the_jobs_back(engine: Engine, tmp_path: Path) -> None:
    handle = engine.submit(engine.batch([f"stubborn={tmp_path / 'never'}"], grace=2))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0)
    engine.backend.remove([handle])
    kill(runner_of(handle))
    watch.until(Seen.REMOVED, 0)
    assert watch.story(0) == [Seen.STARTED, Seen.EVICTED, Seen.REMOVED]


def test_held_jobs_do_not_start_until_released(engine: Engine, tmp_path: Path) -> None:
    go = tmp_path / "go"
    handle = engine.submit(engine.batch([f"wait={go}", f"wait={go}", "out=x", "out=y"]))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0, 1)
    engine.backend.hold([handle], [0, 2])
    watch.until(Seen.HELD, 0, 2)
    watch.until(Seen.ENDED, 3)
    assert engine.backend.explain(handle, 2)[0].startswith("held since ")
    assert "held by " in engine.backend.explain(handle, 0)[0]
    held = [s for s in watch.seen if s.seen is Seen.HELD]
    assert {s.code for s in held} == {"1/0"}
    go.touch()
    watch.until(Seen.ENDED, 1)
    assert watch.story(2) == [Seen.HELD]
    engine.backend.release([handle])
    watch.until(Seen.ENDED, 0, 2)
    assert watch.story(0) == [Seen.STARTED, Seen.HELD, Seen.RELEASED, Seen.STARTED, Seen.ENDED]
    assert watch.story(2) == [Seen.HELD, Seen.RELEASED, Seen.STARTED, Seen.ENDED]
    assert log_of(handle, "j0").startswith("job j0 start 2 ")


def test_hold_and_release_in_one_breath_leave_the_job_running(engine: Engine, tmp_path: Path) -> None:
    handle = engine.submit(engine.batch([f"wait={tmp_path / 'go'}"]))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0)
    engine.backend.hold([handle])
    engine.backend.release([handle])
    watch.until(Seen.STARTED, 0, times=2)
    (tmp_path / "go").touch()
    watch.until(Seen.ENDED, 0)


def test_holds_survive_a_crash(engine: Engine, tmp_path: Path) -> None:
    handle = engine.submit(engine.batch([f"wait={tmp_path / 'go'}"] * 2, slots=1))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0)
    engine.backend.hold([handle])
    watch.until(Seen.HELD, 0, 1)
    kill(runner_of(handle))
    wait(lambda: watch.look() or watch.problems)
    engine.backend.remove([handle], [0])
    watch.until(Seen.REMOVED, 0)
    assert watch.story(1) == [Seen.HELD]
    engine.backend.release([handle], [1])
    (tmp_path / "go").touch()
    watch.until(Seen.ENDED, 1)


def test_a_job_that_does_not_exist_is_not_removed(engine: Engine) -> None:
    handle = engine.submit(engine.batch(["say=x"]))
    with pytest.raises(NotFound, match="not 1"):
        engine.backend.remove([handle], [1])
    with pytest.raises(NotFound):
        engine.backend.explain(handle, -1)


# --- in words


def test_explain_tells_where_a_running_job_writes_and_how_one_ended(engine: Engine, tmp_path: Path) -> None:
    handle = engine.submit(engine.batch([f"say=now\twait={tmp_path / 'go'}\texit=7"]))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0)
    words = engine.backend.explain(handle, 0)[0]
    log = Path(words.rpartition(" in ")[2])
    wait(lambda: log.is_file() and "now" in log.read_text())
    (tmp_path / "go").touch()
    watch.until(Seen.ENDED, 0)
    assert engine.backend.explain(handle, 0)[0].endswith("with exit code 7")


# --- what cannot be brought back


def fill(stream: FileIO) -> None:
    """Write until there is no room for one byte more."""
    while stream.write(b"\n"):
        pass


def test_a_job_whose_results_cannot_be_brought_back_is_held(engine: Engine) -> None:
    batch = engine.batch(["say=x\tout=y"])
    (shard,) = batch.work_dir.iterdir()
    (shard / "out").rmdir()
    (shard / "out").write_text("in the way")
    handle = engine.submit(batch)
    watch = Watch(engine, handle)
    watch.until(Seen.HELD, 0)
    assert watch.seen[-1].code == f"12/{errno.EEXIST}"
    assert "could not be brought back" in engine.backend.explain(handle, 0)[0]
    (shard / "out").unlink()
    engine.backend.release([handle])
    watch.until(Seen.ENDED, 0)
    assert outputs_of(handle) == {"j0.0.g0.s2": "y"}


@pytest.mark.drill
def test_a_full_work_folder_holds_the_job_until_there_is_room(engine: Engine) -> None:
    batch = engine.batch(["say=" + "x" * 3000 + "\tout=" + "y" * 3000])
    (shard,) = batch.work_dir.iterdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(shard)], check=True)
    try:
        filler = shard / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(b"x" * 1_000_000)
        handle = engine.submit(batch)
        watch = Watch(engine, handle)
        watch.until(Seen.HELD, 0)
        assert watch.seen[-1].code == f"12/{errno.ENOSPC}"
        assert "No space left" in engine.backend.explain(handle, 0)[0]
        filler.unlink()
        engine.backend.release([handle])
        watch.until(Seen.ENDED, 0)
        assert watch.ends() == {0: 0}
        assert log_of(handle, "j0").endswith("@@END j0\n")
    finally:
        subprocess.run(["umount", "-l", str(shard)], check=True)


@pytest.mark.drill
def test_on_a_full_disk_no_event_is_lost(engine: Engine, tmp_path: Path) -> None:
    """The events' own file system is full while jobs end: the runner waits, and goes on when there is room."""
    small, go = tmp_path / "small", tmp_path / "go"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], check=True)
    try:
        batch = replace(engine.batch([f"wait={go}"] * 8, slots=8), event_log=small / "events.log")
        handle = engine.submit(batch)
        watch = Watch(engine, handle)
        watch.until(Seen.STARTED, *range(8))
        first = runner_of(handle)
        filler = small / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(b"x" * 1_000_000)
        with folder_of(batch).events.open("ab", buffering=0) as stream, pytest.raises(OSError, match="No space"):
            fill(stream)
        go.touch()
        wait(lambda: len(list(batch.work_dir.glob("*/*.log"))) == 1)  # its end is the event that cannot be written
        assert not watch.has(Seen.ENDED, 0)
        assert alive(handle)
        filler.unlink()
        watch.until(Seen.ENDED, *range(8))
        wait(lambda: not alive(handle))
        watch.look()
        assert all(watch.story(index) == [Seen.STARTED, Seen.ENDED] for index in range(8))
        assert runner_of(handle) == first
    finally:
        (small / "filler").unlink(missing_ok=True)
        engine.backend.remove(engine.handles)
        for handle in engine.handles:
            wait(lambda handle=handle: not alive(handle))
        engine.handles.clear()  # their folder goes with the mount
        subprocess.run(["umount", "-l", str(small)], check=True)
