"""What happens to a campaign of several blocks and steps meanwhile (docs/reference/faults.md), on this machine: the disk
is full, two fermigrids, the clock jumps, somebody edits what was submitted. The batch system's faults: tests/pool."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from fermigrid.commands.following import following
from fermigrid.control import control
from fermigrid.ledger import open_ledger
from fermigrid.ledger_file import writing
from fermigrid.runfolder import RunFolder
from fermigrid.submit import Hand
from fermigrid.unattended import look_and_care
from fermigrid.watch import Turn
from tests.campaigns import NOW, ROOT, SMALL_DISK, fermigrid, write
from tests.contract.test_unattended import SITE

RUNS, JOBS = 9, 18
CAMPAIGN = """\
campaign: long
image: light
code: [go.sh, on.sh]
runs: {table: runs.csv}
block: 3
steps:
  go:
    command: [go.sh, "{run}", "{events}"]
    outputs: {out.fit: "{run}.fit"}
  on:
    command: [on.sh, "{run}", "{events}"]
    after: [go]
    outputs: {out.fit: "{run}_on.fit"}
"""
GO = '#!/bin/bash\nfor _ in {1..600}; do [ ! -e WAIT ] || [ -e READY ] || sleep 0.1; done\necho "$1 $2" > out.fit\n'
ON = '#!/bin/bash\necho "$1 $2 on" > out.fit\n'


class Operator:
    """A person in a folder, with the real command line."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_folder = folder, RunFolder(folder / "run")
        write(folder, CAMPAIGN, "run,events\n" + "".join(f"r{n:02},{100 + n}\n" for n in range(RUNS)))
        for name, text in (("go.sh", GO), ("on.sh", ON)):
            (folder / name).write_text(text.replace("WAIT", f"{folder}/wait").replace("READY", f"{folder}/ready"))
            (folder / name).chmod(0o755)
        (folder / "sites").mkdir()
        (folder / "sites/here.yaml").write_text(SITE)

    def start(self, *words: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "FERMIGRID_POLL_S": "0.1"}
        return subprocess.Popen(
            [sys.executable, "-m", "fermigrid", *words], cwd=self.folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __call__(self, *words: str, code: int | None = 0) -> str:
        done, out, err = fermigrid(*words, cwd=self.folder, env={"FERMIGRID_POLL_S": "0.1"}, limit=120)
        assert code is None or done == code, f"{words}: exit {done}\n{out}{err}"
        return out + err

    submission = ("submit", "campaign.yaml", "-s", "here", "--sites", "sites", "--run-dir", "run")

    def look(self, hours: float = 0) -> Turn:
        """A look at a time of ours."""
        hand = Hand("me@here", lambda: NOW + timedelta(hours=hours), lambda _: None)
        with following(self.run_folder, hand) as f, writing(self.run_folder.ledger):
            return look_and_care(f, alone=True)

    def check(self) -> None:
        """Every job has one result, each batch was sent once, and the outputs are those of their jobs."""
        with closing(open_ledger(self.run_folder.ledger)) as ledger:
            accepted = Counter(attempt.job for attempt in ledger.accepted())
            history = Counter(what for _, _, what in ledger.journal() if what.startswith("submitted batch"))
        assert (len(accepted), set(accepted.values())) == (JOBS, {1})
        assert (len(history), set(history.values())) == (6, {1})
        found = {file.name: file.read_text() for file in (self.folder / "run/outputs").iterdir()}
        assert found == {
            f"r{n:02}{end}.fit": f"r{n:02} {100 + n}{words}\n"
            for n in range(RUNS)
            for end, words in (("", ""), ("_on", " on"))
        }
        self("status", "run", "--check")


@pytest.fixture
def person(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


def test_three_fermigrids_at_once_do_the_work_of_one(person: Operator) -> None:
    person(*person.submission)
    all_ = [person.start(*words) for words in (("watch", "run"), ("watch", "run"), (*person.submission, "--wait"))]
    said = [process.communicate(timeout=120)[0] for process in all_]
    assert {process.returncode for process in all_} <= {0, 15}, said
    assert all_[0].returncode == 0, said
    person.check()
    with writing(person.run_folder.ledger):
        told = person("remove", "run", code=15)
        assert f"another fermigrid (process {os.getpid()}) is at work on {person.folder / 'run'}" in told
        assert "nothing is lost" in told


DISK = r"""
python=$1 disk=$2
cd "$disk/.." || exit 1
run() { FERMIGRID_POLL_S=0.1 timeout 60 "$python" -m fermigrid "$@"; }
mount -o remount,size=20m none "$disk"
run submit campaign.yaml -s here --sites sites --run-dir "$disk/run" || exit 1
head -c 40000000 /dev/zero > "$disk/fill" 2>/dev/null
touch ready
run watch "$disk/run"; full=$?
rm "$disk/fill"
run release "$disk/run" > /dev/null
run watch "$disk/run" || exit 2
run status "$disk/run" --check || exit 3
run status "$disk/run" --history
cp -r "$disk/run" .
echo "while it was full: $full"
"""


def test_a_full_disk_between_two_steps(person: Operator) -> None:
    (person.folder / "wait").touch()
    disk = person.folder / "disk"
    disk.mkdir()
    command = [*SMALL_DISK, "20m", str(disk), "sh", "-c", DISK, "small-disk", sys.executable, str(disk)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "while it was full: 15" in done.stdout, done.stderr
    assert "Make room, then run the same command again: nothing is lost." in done.stderr
    person.check()


@pytest.mark.parametrize("jump", [24 * 365, -24 * 365], ids=["a-year-ahead", "a-year-back"])
def test_a_clock_that_jumps_costs_and_doubles_nothing(person: Operator, jump: float) -> None:
    """The clock of the machine of fermigrid; the jobs' own, and so the times in the event log, stay as they are."""
    (person.folder / "wait").touch()
    person(*person.submission)
    for hours in (0, jump, 0.1, jump + 0.1):
        person.look(hours)
    told = person("status", "run")
    assert "18 jobs, " in told
    assert "removed" not in told
    assert "failed" not in told
    (person.folder / "ready").touch()
    until(lambda: person.look(random.choice((0, jump))).finished)
    person.check()


def until(what: Callable[[], bool], times: int = 600) -> None:
    """Look until it is so; a look takes a tenth of a second or more."""
    assert any(what() for _ in range(times))


@pytest.mark.parametrize("name", ["runs.csv", "campaign.yaml"])
def test_the_copies_of_what_was_submitted_are_not_changed_between_steps(person: Operator, name: str) -> None:
    person(*person.submission)
    copy = person.folder / "run" / name
    whole = copy.read_text()
    copy.write_text(
        whole.replace("r00,100", "r00,99") if name == "runs.csv" else whole.replace('"{run}_on', '"{run}_ON')
    )
    assert copy.read_text() != whole
    told = person("watch", "run", code=14)
    assert "was changed since long was submitted: nothing more is sent" in told
    person("status", "run")
    (person.folder / "runs.csv").write_text("run,events\nother,1\n")  # the person's own, which is another file
    copy.write_text(whole)
    person("watch", "run")
    person.check()


@pytest.mark.parametrize("file", ["job.env", "items.txt", "shards/*.rows", "worker.sh", "plan.json"])
def test_a_plan_that_is_edited_after_it_was_sent_makes_no_wrong_result(person: Operator, file: str) -> None:
    """Its jobs wait for their turn meanwhile: four run at a time."""
    (person.folder / "wait").touch()
    person(*person.submission)
    (path,) = (person.folder / "run/blocks/b0002/go.g0/plan").glob(file)
    text = path.read_text()
    path.chmod(0o600)
    changed = {
        "job.env": text.replace("walltime=14400", "walltime=60"),
        "items.txt": text.replace("r06", "r05"),
        "shards/*.rows": text.replace("106", "999"),
        "worker.sh": text.replace("\n", "\nexit 0\n", 1),
        "plan.json": text.replace('"jobs": 3', '"jobs": 2'),
    }[file]
    assert changed != text
    path.write_text(changed)
    (person.folder / "ready").touch()
    told = person("watch", "run", code=None if file == "worker.sh" else 14)
    outputs = {one.name: one.read_text() for one in (person.folder / "run").glob("outputs/*")}
    good = {f"r{n:02}.fit": f"r{n:02} {100 + n}\n" for n in range(RUNS)}
    assert {name: content for name, content in outputs.items() if "_on" not in name}.items() <= good.items(), told
    if file == "worker.sh":
        assert len([name for name in outputs if name in good]) >= 6, told
    else:
        assert f"{path} was changed since its batch was sent: nothing is taken in" in told
        assert f"{path} was changed" in person("status", "run")
    path.write_text(text)
    person("watch", "run", code=None)
    person("retry", "run", code=None)
    person("watch", "run", code=None)
    told = person("status", "run")
    assert {one.name for one in (person.folder / "run/outputs").iterdir()} >= set(good), told


def test_a_removal_that_was_cut_short_is_ended_by_the_next_look(person: Operator) -> None:
    (person.folder / "wait").touch()
    person(*person.submission)
    with closing(open_ledger(person.run_folder.ledger)) as ledger:
        ledger.stop(NOW, "me")  # and then it was killed, or the batch system was silent
    person("watch", "run", code=1)
    told = person("status", "run")
    assert "18 jobs, 9 removed, 9 never sent" in told
    hand = Hand("me@here", lambda: NOW, lambda _: None)
    with following(person.run_folder, hand) as f, writing(person.run_folder.ledger):
        assert control(f, "remove", (), ()) == 0
