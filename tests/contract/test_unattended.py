"""Campaigns that nobody looks at, on this machine: trial, circuit breaker, room for outputs, timers, and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from fermigrid.commands.following import following
from fermigrid.errors import RunFolderError
from fermigrid.ledger_file import writing
from fermigrid.runfolder import RunFolder
from fermigrid.submit import Hand
from fermigrid.unattended import look_and_care
from fermigrid.watch import Turn
from tests.campaigns import NOW, ROOT, SMALL_DISK, fermigrid, write

SITE = """\
site: here
extends: local
container: {launch: worker, rehearsal: true, runtimes: [absent-on-purpose]}
local: {slots: 4}
output: {kind: transfer}
"""
RUNS = 24
CAMPAIGN = """\
campaign: long
image: light
code: [go.sh]
runs: {table: runs.csv}
block: 8
steps:
  go:
    command: [go.sh, "{run}", "{bad}"]
    outputs: {out.fit: "{run}.fit"}
"""
GO = """#!/bin/bash
[ "$2" = 0 ] || exit 1
while [ -e WAIT ] && [ ! -e GO ]; do sleep 0.05; done
head -c 4000 /dev/zero > out.fit
"""


class Operator:
    """A person in a folder, with the real command line."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_folder = folder, RunFolder(folder / "run")

    def write(self, more: str = "", bad: Callable[[int], bool] = lambda _: False, wait: bool = False) -> None:
        table = "run,events,bad\n" + "".join(f"r{n:02},{100 + n},{int(bad(n))}\n" for n in range(RUNS))
        write(self.folder, CAMPAIGN + more, table)
        gate = f"WAIT={self.folder}/wait GO={self.folder}/go\n"
        text = GO.replace("-e WAIT", "-e $WAIT").replace("-e GO", "-e $GO").replace("while", f"{gate}while", 1)
        (self.folder / "go.sh").write_text(text)
        (self.folder / "go.sh").chmod(0o755)
        (self.folder / "sites").mkdir(exist_ok=True)
        (self.folder / "sites/here.yaml").write_text(SITE)
        if wait:
            (self.folder / "wait").touch()

    def __call__(self, *words: object, code: int | None = 0) -> str:
        done, out, err = fermigrid(*words, cwd=self.folder, env={"FERMIGRID_POLL_S": "0.1"}, limit=120)
        assert code is None or done == code, f"{words}: exit {done}\n{out}{err}"
        return out + err

    def submit(self, *options: str, code: int | None = 0) -> str:
        return self(
            "submit", "campaign.yaml", "-s", "here", "--sites", "sites", "--run-dir", "run", *options, code=code
        )

    def states(self) -> dict[str, int]:
        told = json.loads(self("status", "run", "--json").partition("\n}")[0] + "}")
        return {state: count for state, count in told["states"].items() if count}

    def until(self, what: Callable[[], object], limit: float = 60) -> None:
        end = time.monotonic() + limit
        while not what():
            assert time.monotonic() < end, f"waited in vain\n{self('status', 'run')}"
            time.sleep(0.1)

    def look(self, hours: float = 0) -> tuple[Turn, list[str]]:
        """A look of a timer at a time of ours."""
        said: list[str] = []
        hand = Hand("me@here", lambda: NOW + timedelta(hours=hours), said.append)
        with following(self.run_folder, hand) as f, writing(self.run_folder.ledger):
            return look_and_care(f, alone=True), said


@pytest.fixture
def person(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


def test_a_trial_comes_first_and_counts(person: Operator) -> None:
    person.write("limits: {running: 6}\n")
    told = person.submit("--trial", "5")
    assert "24 jobs, 5 done, 19 not sent yet" in told
    assert "suggested for go: walltime 10 min (4 h now)" in told
    assert "the other 19 runs:" in told
    assert "the rest waits for" in told
    for again in ((), ("--trial", "5")):
        assert "nothing new to send" in person.submit(*again, "--no-wait")
    assert "it was begun with a trial of 5 runs" in person.submit("--trial", "4", code=14)
    person("watch", "run", "--once")
    assert person.states() == {"done": 5}
    trial = json.loads(person("trial", "run", "--json"))
    assert (trial["runs"], trial["rest"], trial["ended"], trial["waits"]) == (5, 19, True, True)
    assert (trial["steps"][0]["good"], trial["steps"][0]["output"]) == (5, 4000)
    assert trial["output"]["here"] == pytest.approx(4000 * 19, rel=0.1)
    person("resume", "run", "--suggested", "--reason", "fine")
    person("watch", "run")
    assert person.states() == {"done": RUNS}
    history = person("status", "run", "--history")
    assert [word in history for word in ("stopped (trial)", "goes on (trial): fine", "the trial suggests")] == [
        True
    ] * 3
    plans = sorted((person.folder / "run/blocks").glob("*/go.g0/plan/job.env"))
    limits = [next(line for line in plan.read_text().split("\n") if line.startswith("walltime=")) for plan in plans]
    assert limits == ["walltime=14400", *["walltime=600"] * 3]
    assert len(list((person.folder / "run/outputs").iterdir())) == RUNS


def test_a_trial_that_goes_on_is_not_ended_by_mistake(person: Operator) -> None:
    person.write(wait=True)
    person.submit("--trial", "5", "--no-wait")
    assert "still on their way" in person("resume", "run", code=17)
    assert "jobs of the trial are still on their way" in person("trial", "run")
    person("resume", "run", "--early")
    (person.folder / "go").touch()
    person("watch", "run")
    assert person.states() == {"done": RUNS}


def test_a_campaign_without_a_trial_says_so(person: Operator) -> None:
    person.write()
    person.submit()
    assert "had no trial" in person("trial", "run", code=19)
    assert "nothing is suggested" in person("resume", "run", "--suggested", code=17)
    assert "it was begun without a trial" in person.submit("--trial", "3", code=14)


def test_the_circuit_breaker_stops_the_rest_and_a_person_lets_it_go_on(
    person: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    person.write("stop_if: {failed: 40 % of the last 5}\n", bad=lambda n: n in (0, 1), wait=True)
    metrics = person.folder / "metrics"
    metrics.mkdir()
    own = person.folder / "alerts.yaml"
    own.write_text(f"metrics: {metrics}\n")
    monkeypatch.setenv("FERMIGRID_ALERTS", str(own))
    person.submit()
    person.until(lambda: "breaker" in look_of_a_timer(person))
    assert person.states() == {"failed": 2, "running": 4, "waiting": RUNS - 6}
    (person.folder / "go").touch()
    person.until(lambda: look_of_a_timer(person) and "running" not in person.states())
    stopped = person.states()
    assert stopped == {"done": 4, "failed": 2, "waiting": RUNS - 6}
    (file,) = metrics.glob("*.prom")
    assert 'fermigrid_alert{campaign="long",kind="breaker"} 1' in file.read_text()
    for _ in range(3):
        person("watch", "run", "--once", code=1)
        assert person.states() == stopped, "something started though the breaker was tripped"
    assert "nothing more starts until" in person("status", "run")
    assert "nothing more starts until" in person.submit()
    person("resume", "run", "--reason", "the two runs are known to be bad")
    person("watch", "run", code=1)
    assert person.states() == {"done": RUNS - 2, "failed": 2}
    assert "goes on (breaker): the two runs are known" in person("status", "run", "--history")


def look_of_a_timer(person: Operator) -> str:
    person("watch", "run", "--once", code=None)
    return " ".join(halt["kind"] for halt in json.loads(person("status", "run", "--json"))["halts"])


def test_submit_wait_ends_when_the_breaker_stopped_it(person: Operator) -> None:
    person.write("stop_if: {failed: 100 % of the last 3}\n", bad=lambda _: True)
    told = person.submit("--wait", code=1)
    assert "nothing more starts until" in told


def test_a_person_is_told_at_once_of_what_ends_a_watch(person: Operator) -> None:
    """Between two tellings a minute goes by; `submit --wait` ends before that when the breaker trips."""
    metrics = person.folder / "metrics"
    metrics.mkdir()
    alerts = f"alerts: {{metrics: {metrics}}}\n"
    person.write("stop_if: {failed: 100 % of the last 3}\n" + alerts, bad=lambda n: n > 11, wait=True)
    person("submit", "campaign.yaml", "-s", "here", "--sites", "sites", "--run-dir", "run")
    person("watch", "run", "--once", code=None)  # now a minute begins
    (file,) = metrics.glob("*.prom")
    assert 'kind="breaker"} 0' in file.read_text()
    (person.folder / "go").touch()
    person.submit("--wait", code=1)
    assert 'kind="breaker"} 1' in file.read_text()


def test_when_watch_looked_last_is_the_last_time(person: Operator) -> None:
    person.write(wait=True)
    person.submit()
    now = [NOW]
    with following(person.run_folder, Hand("me@here", lambda: now[0], print)) as f:
        for seconds in (0, 5, 10):
            now[0] = NOW + timedelta(seconds=seconds)
            with writing(person.run_folder.ledger):
                look_and_care(f)
            watching = f.ledger.watching()
            assert watching and watching.looked == now[0].isoformat()
    person("remove", "run")


def room(person: Operator, quota: str, resources: str = "") -> None:
    person.write()
    (person.folder / "sites/here.yaml").write_text(SITE.replace("kind: transfer", f"kind: transfer, quota: {quota}"))
    text = (person.folder / "campaign.yaml").read_text()
    (person.folder / "campaign.yaml").write_text(
        text + (f"    resources: {{output: {resources}}}\n" if resources else "")
    )


def test_outputs_for_which_there_is_no_room_wait(person: Operator) -> None:
    room(person, "60 kB")
    person.submit("--trial", "10")
    told = person("resume", "run")
    assert "not sent, there is no room: long.b0001.go (8 jobs to here) is expected to publish 31.2 KiB" in told
    assert "39.1 KiB of the 58.6 KiB that here has room for are used" in told
    assert look_of_a_timer(person) == "space"
    assert "not all is sent: it waits for room" in person("status", "run")
    assert person.states() == {"done": 10}
    assert "no site 'slac'" in person("resume", "run", "--quota", "slac=1 TB", code=19)
    assert "has no unit" in person("resume", "run", "--quota", "here=5", code=2)
    person("resume", "run", "--quota", "here=100 kB")
    person("watch", "run")
    assert person.states() == {"done": RUNS}
    assert "goes on (space): there is room" in person("status", "run", "--history")


def test_what_is_expected_counts_while_nothing_is_measured(person: Operator) -> None:
    room(person, "1 MB", "30 kB")
    person.submit()
    person.until(lambda: look_of_a_timer(person) == "")
    person("watch", "run")  # they were smaller
    assert person.states() == {"done": RUNS}


def test_two_looks_at_once(person: Operator) -> None:
    person.write()
    person.submit()
    with writing(person.run_folder.ledger):
        assert person("watch", "run", "--once", code=None).count("another fermigrid") == 0
        assert "another fermigrid" not in person("watch", "--all")
        assert "another fermigrid" in person("remove", "run", code=15)
    person("watch", "run", "--once", code=None)
    with following(person.run_folder, Hand("me", lambda: NOW, print)) as f:
        seen = f.ledger.watching()
        assert seen
        f.ledger.watched(type(seen)(NOW.replace(year=2020).isoformat(), seen.changed))
    with writing(person.run_folder.ledger):
        assert "another fermigrid" in person("watch", "run", "--once", code=15), "it has the lock and does not look"


def test_all_of_mine(person: Operator, tmp_path: Path) -> None:
    person.write()
    person.submit()
    other = Operator(tmp_path / "other")
    other.write()
    other.submit()
    (other.folder / "run/campaign.yaml").write_text("campaign: [\n")
    said = person("watch", "--all", code=11)
    assert str(other.folder) in said
    person.until(lambda: person("watch", "--all", code=11) and person.states().get("done") == RUNS)
    person("archive", "run", "--output", "long.archive")
    assert str(person.folder / "run") not in person("watch", "--all", code=11), "nothing is to be looked at any more"


def test_a_clock_that_is_set_back_stalls_nothing_and_repeats_nothing(person: Operator) -> None:
    person.write("alerts: {stall: 1 h, metrics: METRICS}\n".replace("METRICS", str(person.folder)), wait=True)
    person.submit()
    for hours, stalled in ((0, 0), (0.9, 0), (-30 * 24, 0), (-30 * 24 + 0.9, 0), (-30 * 24 + 6, 1)):
        person.look(hours)
        (file,) = person.folder.glob("*.prom")
        assert f'kind="stall"}} {stalled}' in file.read_text(), hours
    (person.folder / "go").touch()
    person("watch", "run")


def test_a_run_table_that_changes_between_blocks_does_not_matter(person: Operator) -> None:
    person.write()
    person.submit("--trial", "4")
    (person.folder / "runs.csv").write_text("run,events,bad\nother,1,1\n")
    (person.folder / "go.sh").write_text("#!/bin/sh\nexit 9\n")
    person("resume", "run")
    person("watch", "run")
    assert person.states() == {"done": RUNS}
    assert "what differs now" in person.submit(code=14)


def test_a_plan_that_is_edited_is_not_sent(person: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    person.write()
    kill = "import fermigrid.backends.local as l, os\nl.submit = lambda batch: os._exit(9)\n"
    code = f"{kill}from fermigrid.cli import main; main()"
    words = ["submit", "campaign.yaml", "-s", "here", "--sites", "sites", "--run-dir", "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=person.folder, env=environment, check=False)
    assert done.returncode == 9
    plan = person.folder / "run/blocks/b0000/go.g0/plan/job.env"
    plan.chmod(0o600)
    plan.write_text(plan.read_text().replace("walltime=14400", "walltime=60"))
    with pytest.raises(RunFolderError, match="was changed or damaged after it was intended"):
        person.look()
    assert "It is not submitted" in person("watch", "run", "--once", code=14)
    assert not list((person.folder / "run/blocks/b0000").glob("events.log.*"))


DISK = r"""
python=$1 disk=$2
cd "$disk/.." || exit 1
run() { FERMIGRID_POLL_S=0.1 timeout 60 "$python" -m fermigrid "$@"; }
mount -o remount,size=20m none "$disk"
run submit campaign.yaml -s here --sites sites --run-dir "$disk/run" || exit 1
head -c 40000000 /dev/zero > "$disk/fill" 2>/dev/null
touch go
run watch "$disk/run"; full=$?
rm "$disk/fill"
run release "$disk/run" > /dev/null
run watch "$disk/run" || exit 2
run status "$disk/run" --check || exit 3
echo "while it was full: $full"
"""


def test_a_disk_that_is_full_while_watch_runs(person: Operator) -> None:
    person.write(wait=True)
    disk = person.folder / "disk"
    disk.mkdir()
    command = [*SMALL_DISK, "20m", str(disk), "sh", "-c", DISK, "small-disk", sys.executable, str(disk)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{RUNS} jobs, {RUNS} done" in done.stdout
    assert "while it was full: 15" in done.stdout, done.stderr
    assert "Make room, then run the same command again: nothing is lost." in done.stderr
