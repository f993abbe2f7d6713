"""The canary in the product, on this machine: secrets and a shell full of marked values, every verb, jobs that end in every
way; then everything is searched that was written, printed, sent or started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.campaigns import ROOT
from tests.canary import (
    Canaries,
    Found,
    Sampler,
    Trace,
    arguments_of,
    prove_search,
    search_places,
    search_shared,
    search_words,
    target_of,
)
from tests.canary_secrets import Kit, person_environment
from tests.message_servers import smtp

LIMIT_S = 90.0
SITE = """\
site: here
title: this machine, without containers
contact: nobody
manual: https://example.org/
backend: local
local: {slots: 2, scratch: SCRATCH}
container: {launch: worker, rehearsal: true, runtimes: [/nonexistent/apptainer], preamble: ["export SITE_SET=1"]}
images: {light: {path: /cvmfs/fermi.test/images/light-1}}
secrets:
  wallet: {kind: path, from: WALLET, point: {SECRET_FILE: my.cnf, TNS_ADMIN: .}, environment: {XRD_REQUESTTIMEOUT: "60"}}
  absent: {kind: path, from: /nonexistent/wallet, point: {SECRET_FILE: my.cnf}}
messages: {via: ["smtp://127.0.0.1:9", "spool:SPOOL"]}
output: {kind: transfer}
"""
CAMPAIGN = """\
campaign: NAME
image: light
runs: {count: 3}
code: [use]
steps:
  go:
    command: [./use, "WAY"]
    secrets: [SECRETS]
    outputs: {seen.tar: "{run}.tar"}
"""
# A payload that uses its secret and prints nothing of it; its picture has what it can see of itself and of the worker.
USE = """#!/bin/bash
set -e
grep -q password= "$SECRET_FILE"
mkdir -p seen
env > seen/env
cat /proc/self/cmdline "/proc/$PPID/environ" "/proc/$PPID/cmdline" > seen/parent
cp .fermigrid/launch.sh seen/ || :
tar -cf seen.tar seen
case $1 in wait) exec sleep 300 ;; *) exit "$1" ;; esac
"""


@dataclass
class Person:
    """Somebody with a careless shell; `said` has all that any command printed."""

    folder: Path
    since: float = field(default_factory=time.time)
    secrets: Canaries = field(default_factory=Canaries)
    shell: Canaries = field(default_factory=Canaries)
    said: list[bytes] = field(default_factory=list)
    more: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("kit", "trace", "sites", "spool", "scratch", "tmp", "work", "job"):
            (self.folder / name).mkdir()
        self.kit, self.trace = Kit(self.folder / "kit", self.secrets), Trace(self.folder / "trace")
        places = {"SCRATCH": self.folder / "scratch", "WALLET": self.kit.wallet, "SPOOL": self.folder / "spool"}
        text = SITE
        for word, path in places.items():
            text = text.replace(word, str(path), 1) if word != "SPOOL" else text.replace("spool:SPOOL", f"spool:{path}")
        (self.folder / "sites/here.yaml").write_text(text)
        (self.folder / "work/use").write_text(USE)
        (self.folder / "work/use").chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """The shell's. What has no telling name is the person's affair on this machine, where jobs are the person's."""
        own = {
            "PYTHONPATH": str(ROOT),
            "FERMIGRID_SITES": str(self.folder / "sites"),
            "FERMIGRID_POLL_S": "0.1",
            "TMPDIR": str(self.folder / "tmp"),
        }
        telling = ("PASS", "TOKEN", "SECRET")
        given = {n: v for n, v in person_environment(self.shell).items() if any(word in n for word in telling)}
        return {**os.environ, **own, **given, **self.more}

    def write(self, name: str, way: object = 0, secret: str = "wallet", more: str = "") -> str:
        """A campaign file; its name."""
        text = CAMPAIGN.replace("NAME", name).replace("WAY", str(way)).replace("SECRETS", secret) + more
        (self.folder / f"work/{name}.yaml").write_text(text)
        return f"{name}.yaml"

    def run(self, *arguments: str, codes: Sequence[int] = (0,), traced: bool = False, cwd: str = "work") -> str:
        """`fermigrid ARGUMENTS`; its stdout and stderr."""
        command = [sys.executable, "-m", "fermigrid", *arguments]
        return self.program(command, codes, [*self.trace.prefix()] if traced else [], cwd)

    def program(self, command: list[str], codes: Sequence[int], prefix: Sequence[str] = (), cwd: str = "work") -> str:
        """Any command of the person."""
        with (self.folder / "said").open("w+b") as said:
            done = subprocess.run(
                [*prefix, *command],
                cwd=self.folder / cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                timeout=LIMIT_S,
                check=False,
            )
            said.seek(0)
            words = said.read()
        self.said.append(words)
        assert done.returncode in codes, f"{command[3:]}: exit {done.returncode}\n{words.decode(errors='replace')}"
        return words.decode(errors="replace")

    def loose(self) -> list[Found]:
        """Every canary that is where it should not be."""
        found = []
        for flock in (self.secrets, self.shell):
            found += search_places(flock, [self.folder], [self.folder / "kit", self.folder / "trace"])
            found += search_places(flock, [Path(os.environ["FERMIGRID_STATE"])])
            found += search_shared(flock, self.since)
            found += search_words(flock, said=b"\n".join(self.said))
            found += self.trace.search(flock, self.may)
        return found

    def may(self, line: bytes) -> bool:
        """A private copy is written; fermigrid and what it asks inherit the shell, a job's processes do not."""
        target = target_of(line)
        if target is not None:
            return target.startswith(("/dev/shm/fermigrid", "/dev/null", "pipe:["))
        arguments = arguments_of(line)
        if arguments is None or self.secrets.word.encode() in line or self.shell.word.encode() in arguments:
            return False
        return b"fermigrid" in arguments and b"local_runner" not in arguments and b"worker.sh" not in arguments

    def until(self, *arguments: str, word: str) -> None:
        """Asks until the answer has the word."""
        end = time.monotonic() + LIMIT_S
        while word not in self.run(*arguments, codes=(0, 1)):
            assert time.monotonic() < end, f"{arguments} never said {word}"
            time.sleep(0.1)


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    made = Person(tmp_path)
    for folder in ("work", "tmp", "spool"):
        prove_search(made.secrets, tmp_path / folder)
    yield made
    left = [path for path in Path("/dev/shm").glob("fermigrid*") if search_places(made.secrets, [path])]
    assert left == [], "copies of secrets were left"


def show(found: Sequence[Found]) -> str:
    """For a failure's message."""
    return "\n".join(map(str, found[:20]))


def looks(person: Person, run: str) -> None:
    """Every verb that tells something of a campaign, as wordy as it can be."""
    person.run("status", run, "--json", codes=(0, 1))
    person.run("status", "--json", codes=(0, 1))
    person.run("watch", run, "--once", codes=(0, 1))
    for verb in (["why"], ["logs"], ["logs", "--report"]):
        person.run(*verb, run, "go.0000", codes=(0, 1))


def test_every_verb_leaves_nothing(person: Person) -> None:
    """Good jobs, and jobs whose payload fails; each told in every way."""
    with Sampler(person.secrets) as secrets, Sampler(person.shell, lambda _, data: b"=" in data[:40]) as shell:
        good = person.write("good")
        person.run("check", good, "--site", "here")
        person.run("check", good, "--site", "here", "--explain")
        person.run("render", good, "--site", "here", "--output", "plans")
        person.run("site", "show", "here")
        person.run("submit", good, "--site", "here", "--run-dir", "r-good", "--wait", traced=True)
        looks(person, "r-good")
        bad = person.write("bad", 3)
        person.run("submit", bad, "--site", "here", "--run-dir", "r-bad", "--wait", codes=(1,), traced=True)
        looks(person, "r-bad")
    assert secrets.looks > 5 and not secrets.found and not shell.found, show([*secrets.found.values()])
    assert (person.folder / "work/r-good/outputs").is_dir()
    assert len(list((person.folder / "work/r-good/outputs").iterdir())) == 3, "the payloads' pictures came back"
    assert (loose := person.loose()) == [], show(loose)


@pytest.mark.drill
def test_held_removed_and_killed(person: Person) -> None:
    """Jobs without a secret that they need; jobs at work with theirs: held, released, killed, removed."""
    absent = person.write("absent", secret="absent")
    person.run("submit", absent, "--site", "here", "--run-dir", "r-absent", "--wait", codes=(1,))
    looks(person, "r-absent")
    name = person.write("long", "wait")
    with Sampler(person.secrets) as sampler:
        person.run("submit", name, "--site", "here", "--run-dir", "r")
        person.until("status", "r", word="running")
        end = time.monotonic() + 20
        while not any(search_places(person.secrets, [p]) for p in Path("/dev/shm").glob("fermigrid*")):
            assert time.monotonic() < end, "the private copies are found while the jobs run"
        assert "held" in person.run("hold", "r")
        looks(person, "r")
        person.run("release", "r")
        looks(person, "r")
        for pid in workers_of(person.folder):
            os.kill(pid, 9)
        person.run("status", "r", codes=(0, 1))
        person.run("remove", "r")
    assert not sampler.found, show([*sampler.found.values()])
    end = time.monotonic() + 20
    while workers_of(person.folder) and time.monotonic() < end:
        time.sleep(0.1)
    assert (loose := person.loose()) == [], show(loose)


def workers_of(folder: Path) -> list[int]:
    """The workers of the runs below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if b"worker.sh" in words and os.fsencode(folder) in words:
            found.append(int(path.parent.name))
    return found


def test_what_is_refused_is_not_repeated(person: Person) -> None:
    """A person who writes secrets into a campaign is told so, without them; also a fault of fermigrid tells none."""
    core = person.secrets.core("written")
    more = f'    environment: {{DB_PASSWORD: {core}, DSN: "https://me:{core}@example.org/x"}}\n'
    name = person.write("told", more=more)
    try:
        for verb in (["check"], ["check", "--explain"], ["render", "--output", "p"], ["submit", "--run-dir", "r"]):
            said = person.run(verb[0], name, "--site", "here", *verb[1:], codes=(11,))
            assert "secrets: [name]" in said
        said = person.run(
            "submit", "--site", "here", "--image", "light", "--", "/bin/true", f"--password={core}", codes=(11,)
        )
        assert "secrets: [name]" in said
    finally:
        (person.folder / f"work/{name}").unlink()
    good = person.write("fault")
    code = (
        "import sys, fermigrid.render as render, fermigrid.cli as cli\n"
        "render.render_job_env = lambda header: {}[str(header)]\n"
        f"cli.main(['render', '{good}', '--site', 'here', '--output', 'p'])"
    )
    assert "fault in fermigrid itself" in person.program([sys.executable, "-c", code], (70,))
    assert list((person.folder / "tmp").glob("fermigrid-fault-*")), "the traceback was searched"
    assert (loose := person.loose()) == [], show(loose)


def test_a_job_of_the_pipeline(person: Person) -> None:
    """Messages by SMTP and by the spool, the archive of an earlier try, and variables that ask to travel."""
    shutil.copy(person.folder / "work/use", person.folder / "job/use")
    (person.folder / "job/script").write_text("#!/bin/bash\nbash ./use 0\n")
    with smtp() as box:
        site = person.folder / "sites/here.yaml"
        site.write_text(site.read_text().replace("smtp://127.0.0.1:9", box.address))
        person.more = {
            "PIPELINE_FROMADDRESS": "l1@example.org",
            "PIPELINE_TOADDRESS": "pipeline@example.org",
            "PIPELINE_ERRORADDRESS": "errors@example.org",
            "JOBCONTROL_LOGFILE": str(person.folder / "job/logFile.txt"),
            "PIPELINE_PASSWORD": person.shell.value("pipeline"),
            "GPL_TOKEN": person.shell.value("pipeline"),
        }
        submit = ("submit", "--site", "here", "--image", "light", "--secret", "wallet", "--env", "*")
        for instance in ("101", "102"):
            person.more["PIPELINE_PROCESSINSTANCE"] = instance
            person.run("pipeline", *submit, cwd="job")
            state, end = "", time.monotonic() + LIMIT_S
            while state not in ("done", "failed"):
                assert time.monotonic() < end, person.said[-1]
                (found,) = json.loads(person.run("pipeline", "status", "--json", instance, cwd="job"))
                state = found["state"]
                time.sleep(0.1)
            assert state == "done"
        person.said += [post.text for post in box.got]
        assert len(box.got) == 4
    assert (person.folder / "job/archive").is_dir()
    assert (loose := person.loose()) == [], show(loose)
