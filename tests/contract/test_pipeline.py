"""`fermigrid pipeline` as the job control of the pipeline runs it, in processes of its own, on this machine."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.campaigns import ROOT, finish

LIMIT_S = 60.0
PATTERN = re.compile(r"submitted to cluster (\d+)\.")  # the job control's own
SITE = """\
site: here
title: this machine, without containers
contact: nobody
manual: https://example.org/
backend: local
local: {slots: 4, scratch: SCRATCH}
container: {launch: worker, rehearsal: true, runtimes: [/nonexistent/apptainer]}
images: {light: {path: /cvmfs/fermi.test/images/light-1}}
messages: {via: ["spool:SPOOL"]}
output: {kind: transfer}
"""
SAY = """\
env -0 > seen.env
pwd
echo "hello from $PIPELINE_PROCESSINSTANCE"
pipelineSet nEvents 12
pipelineCreateStream sub -1 "a=1,b=2"
pipelineCreateStream sub -1 "a=2,b=3"
exit ${GPL_CODE:-0}
"""


@dataclass
class Control:
    """The job control: a job folder, the site, and the environment that it makes."""

    root: Path
    more: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.root / "job"

    def write(self, script: str, name: str = "script") -> None:
        (self.folder / name).write_text(script)

    def environment(self, instance: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FERMIGRID_SITES": str(self.root / "sites"),
            "PIPELINE_FROMADDRESS": "l1@example.org",
            "PIPELINE_TOADDRESS": "pipeline@example.org",
            "PIPELINE_ERRORADDRESS": "errors@example.org",
            "PIPELINE_PROCESSINSTANCE": instance,
            "JOBCONTROL_LOGFILE": str(self.folder / "logFile.txt"),
            **self.more,
            **(more or {}),
        }

    def start(
        self, *arguments: str, instance: str = "101", cwd: Path | None = None, more: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "fermigrid", "pipeline", *arguments],
            cwd=cwd or self.folder,
            env=self.environment(instance, more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0, **how: Any) -> tuple[str, str]:
        got, out, err = finish(self.start(*arguments, **how), LIMIT_S)
        assert got == code, f"exit {got}\n{out}\n{err}"
        return out, err

    def submit(self, *arguments: str, **how: Any) -> str:
        """Submits; the cluster, found as the job control finds it."""
        out, err = self.run("submit", "--site", "here", *arguments, **how)
        assert re.fullmatch(r"1 job\(s\) submitted to cluster \d+\.\n", out)
        assert not PATTERN.search(err)  # the job control reads both streams as one
        return PATTERN.search(out)[1]  # type: ignore[index]

    def status(self, *clusters: str, **how: Any) -> dict[str, Any]:
        out, _ = self.run("status", "--json", *clusters, **how)
        (found,) = json.loads(out)
        return dict(found)

    def ended(self, *clusters: str, **how: Any) -> dict[str, Any]:
        """The job's state when it has ended and everything is taken in."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            now = self.status(*clusters, **how)
            if now["state"] in ("done", "failed", "removed") and not now["problems"]:
                return now
            time.sleep(0.1)
        raise AssertionError(f"the job did not end: {now}")

    def messages(self) -> list[str]:
        """The ends of the names of the messages that were sent, by instance and kind."""
        return sorted(re.sub(r"\.g.*\.", " ", path.name) for path in (self.root / "spool").iterdir())

    def tree(self) -> dict[str, bytes]:
        """Everything in the job folder."""
        return {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def control(tmp_path: Path) -> Control:
    for name in ("job", "sites", "spool", "scratch"):
        (tmp_path / name).mkdir()
    text = SITE.replace("SPOOL", str(tmp_path / "spool")).replace("SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "sites/here.yaml").write_text(text)
    made = Control(tmp_path)
    made.write(SAY)
    made.write("echo the old wrapper must not run; exit 99\n", "pipeline_wrapper")
    return made


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


# --- submit


def test_a_job_from_end_to_end(control: Control) -> None:
    assert control.submit() == "101"  # no clusters on this machine: the process instance
    now = control.ended("101")
    assert (now["state"], now["exit"], now["instance"], now["cluster"]) == ("done", 0, "101", "101")
    assert now["cpu_s"] is not None
    assert (control.folder / "logFile.txt").read_text().splitlines() == [str(control.folder), "hello from 101"]
    summary = (control.folder / "pipeline_summary").read_text().splitlines()
    assert summary[0] == "ProcessInstance: 101"
    assert f"WorkDir: {control.folder}" in summary
    assert f"LogFile: {control.folder / 'logFile.txt'}" in summary
    assert [line for line in summary if line.startswith("Pipeline")] == [
        "Pipeline.nEvents: 12",
        "PipelineCreateStream.sub.-1: a=1,b=2",
        "PipelineCreateStream.sub.-1: a=2,b=3",
    ]
    assert summary[-1] == "Status: Ended"
    assert "ExitCode: 0" in summary
    assert control.messages() == ["101 end", "101 start"]
    assert "the old wrapper" not in (control.folder / "logFile.txt.worker").read_text()
    assert "rehearsal" in (control.folder / "logFile.txt.worker").read_text()


@pytest.mark.parametrize("missing", [["PIPELINE_TOADDRESS"], ["JOBCONTROL_LOGFILE", "PIPELINE_FROMADDRESS"]])
def test_without_a_variable_nothing_is_changed(control: Control, missing: list[str]) -> None:
    before = control.tree()
    out, err = control.run("submit", "--site", "here", code=13, more=dict.fromkeys(missing, ""))
    assert out == ""
    assert all(f"{name} is not set" in err for name in missing)
    assert (control.tree(), len(list(control.folder.iterdir()))) == (before, 2)


@pytest.mark.parametrize(
    ("arguments", "more", "code", "said"),
    [
        ([], {"PIPELINE_CONTAINER": "ligth"}, 13, "PIPELINE_CONTAINER='ligth' is no image"),
        ([], {"PIPELINE_CONTAINER_BIND": "-v /a:/b"}, 13, "'-v' is no option for binds"),
        (["--software", "none"], {}, 11, "no software 'none'"),
        (["--secret", "oracle"], {}, 11, "offers no secret 'oracle'"),
        (["--site", "nowhere"], {}, 19, "no site 'nowhere'"),
        (["--extra-options", "-q long"], {}, 2, "No such option"),
        (["--max-cpu-s", "0"], {}, 2, "--max-cpu-s"),
        (["--env", "LD_PRELOAD"], {"LD_PRELOAD": ""}, 13, "belongs to this machine"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_changed(
    control: Control, arguments: list[str], more: dict[str, str], code: int, said: str
) -> None:
    before = control.tree()
    out, err = control.run("submit", "--site", "here", *arguments, code=code, more=more)
    assert (out, control.tree()) == ("", before)
    assert said in err
    (control.folder / "script").unlink()
    _, err = control.run("submit", "--site", "here", code=13)
    assert "no file `script`" in err
    assert [path.name for path in control.folder.iterdir()] == ["pipeline_wrapper"]


HOSTILE = {
    "PIPELINE_A": "a  b\tc",
    "PIPELINE_B": 'it\'s "quoted" \\ `x` $(touch pwned) ${HOME} $HOME',
    "PIPELINE_C": "a=1;b=2|c&d>e<f",
    "PIPELINE_D": "line\nbreaks\r\n\n",
    "PIPELINE_E": "Grüße ☃ \U0001f680 \u2028\u0085",
    "PIPELINE_F": " {run} {{x}} %s %b \\n \\t \\0 ",
    "PIPELINE_G": "",
    "PIPELINE_H": "".join(map(chr, range(1, 128))),
    "PIPELINE_I": "-n",
    "PIPELINE_J": "x" * 100_000,
    "GPL_K": "!history ~ * ? [a] # comment",
    "JOBCONTROL_L": "$$(Cpus) $(DOLLAR) $ENV(HOME)",
    "RUN_M": "'",
}


@pytest.mark.parametrize("how", ["--shared", "--transfer"])
def test_every_value_arrives_as_it_was(control: Control, how: str) -> None:
    control.write("env -0 > seen.env; base64 -w0 seen.env; echo\n")
    secret = {"GPL_TOKEN": "canary-4711", "PYTHONHOME_X": "canary-4711", "OTHER": "canary-4711"}
    control.submit(how, "--env", "RUN_*", more={**HOSTILE, **secret, "LD_LIBRARY_PATH": "/canary-4711"})
    assert control.ended()["state"] == "done"
    line = next(line for line in (control.folder / "logFile.txt").read_bytes().splitlines() if len(line) > 100_000)
    seen = dict(item.split(b"=", 1) for item in base64.b64decode(line).split(b"\0") if item)
    assert {name: seen.get(name.encode()) for name in HOSTILE} == {name: v.encode() for name, v in HOSTILE.items()}
    assert not any(b"canary" in value for value in seen.values())
    everything = [*control.tree().values(), *(p.read_bytes() for p in control.root.rglob("*") if p.is_file())]
    assert not any(b"canary-4711" in data for data in everything)
    assert not (control.folder / "pwned").exists()


def test_the_job_sees_its_folder_or_its_files(control: Control) -> None:
    control.write("ls > listing; cat data/x; pwd\n")
    (control.folder / "data").mkdir()
    (control.folder / "data/x").write_text("the data\n")
    control.submit("--transfer")
    control.ended()
    log = (control.folder / "logFile.txt").read_text()
    assert "the data\n" in log
    assert "fermigrid| " in log  # what the worker said is in it: nobody else brings it back
    assert "@@FERMIGRID" not in log
    assert not (control.folder / "listing").exists()
    assert not (control.folder / "logFile.txt.worker").exists()
    control.submit(instance="102")
    control.ended()
    assert "data" in (control.folder / "listing").read_text().split()


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("#!/usr/bin/env python3\nimport os; print('python', os.getcwd())\n", [], "python"),
        ("echo shell", [], "shell"),
        ("", ["--", "bash", "-c", 'echo "$1"', "x", "a  'b'"], "a  'b'"),
        ("echo old", ["--", "bash", "pipeline_wrapper"], "old"),
    ],
)
def test_what_is_run(control: Control, script: str, arguments: list[str], says: str) -> None:
    control.write(script)
    control.submit(*arguments)
    assert control.ended()["state"] == "done"
    assert (control.folder / "logFile.txt").read_text().startswith(says)


def test_a_script_over_its_cpu_time_gets_xcpu(control: Control) -> None:
    control.write("bash -c 'trap \"echo got XCPU; exit 7\" XCPU; while :; do :; done'\n")
    control.submit("--max-cpu-s", "1")
    assert control.ended()["exit"] == 7
    assert "got XCPU" in (control.folder / "logFile.txt").read_text()


def test_options_of_a_task(control: Control) -> None:
    control.submit("--name", "do Chunk", "--extra-options", "--cpus 2|--max-wall-s 120", "--log-file", "other.log")
    control.ended()
    plan = json.loads(next(control.folder.glob(".fermigrid/101/blocks/*/*/plan/plan.json")).read_text())
    assert (plan["campaign"], plan["cpus"]) == ("do-Chunk-101", 2)
    assert "hello" in (control.folder / "other.log").read_text()
    assert (
        b"JOBCONTROL_LOGFILE=%s\0" % str(control.folder / "other.log").encode()
        in (control.folder / "seen.env").read_bytes()
    )


# --- once, and again


def test_the_same_instance_is_the_same_job(control: Control) -> None:
    control.write("echo x >> ran; sleep 0.5\n")
    for _ in range(3):
        assert control.submit(more={"PIPELINE_X": str(time.time())}) == "101"
    control.ended()
    assert control.submit() == "101"
    assert (control.folder / "ran").read_text() == "x\n"
    assert not (control.folder / "archive").exists()


def test_two_at_once_are_one(control: Control) -> None:
    control.write("echo x >> ran\n")
    both = [control.start("submit", "--site", "here") for _ in range(4)]
    assert {finish(process, LIMIT_S)[1] for process in both} == {"1 job(s) submitted to cluster 101.\n"}
    control.ended()
    assert (control.folder / "ran").read_text() == "x\n"


def test_two_instances_at_once_are_not_two_jobs(control: Control) -> None:
    control.write('echo "$PIPELINE_PROCESSINSTANCE" >> ran; until [ -e go ]; do sleep 0.05; done\n')
    together = [control.start("submit", "--site", "here", instance=str(101 + number)) for number in range(6)]
    ended = [finish(process, LIMIT_S) for process in together]
    assert sorted(code for code, _, _ in ended) == [0, 14, 14, 14, 14, 14]
    assert len([out for _, out, _ in ended if out]) == 1
    (control.folder / "go").touch()
    now = control.ended()
    assert (control.folder / "ran").read_text() == f"{now['instance']}\n"
    assert f"1 job(s) submitted to cluster {now['instance']}.\n" in [out for _, out, _ in ended]


def test_a_new_instance_is_a_new_try(control: Control) -> None:
    for instance in ("101", "102", "103"):
        control.write(f"echo try {instance}; pipelineSet try {instance}\n")
        control.submit(instance=instance)
        control.ended(instance)
    archived = {}
    for number in ("1", "2"):
        folder = control.folder / "archive" / number
        archived[number] = [(folder / name).read_text() for name in ("logFile.txt", "pipeline_summary", "pipeline_env")]
        assert len(list(folder.glob(".fermigrid/*/ledger.sqlite"))) == 1
    for number, instance in (("1", "101"), ("2", "102")):
        log, summary, environment = archived[number]
        assert log == f"try {instance}\n"
        assert f"Pipeline.try: {instance}" in summary
        assert f"export PIPELINE_PROCESSINSTANCE={instance}" in environment
    assert (control.folder / "logFile.txt").read_text() == "try 103\n"
    assert [control.status(instance)["state"] for instance in ("101", "102", "103")] == ["done"] * 3


def test_a_living_try_is_not_archived(control: Control) -> None:
    control.write("until [ -e go ]; do sleep 0.05; done\n")
    control.submit()
    out, err = control.run("submit", "--site", "here", instance="102", code=14)
    assert out == ""
    assert "process instance 101, is" in err
    assert "fermigrid pipeline kill 101" in err
    assert not (control.folder / "archive").exists()
    control.run("kill", "101")
    control.write("echo second\n")
    assert control.submit(instance="102") == "102"  # waits for the killed one to be gone
    assert control.ended()["state"] == "done"
    assert control.status("101")["state"] == "removed"


def test_variables_of_the_earlier_try_travel_again(control: Control) -> None:
    (control.folder / "pipeline_env").write_text(
        'declare -x RUNID="old"\ndeclare -x HOME="/old"\ndeclare -x GONE="x"\n'
    )
    control.submit(more={"RUNID": "r42"})
    control.ended()
    seen = (control.folder / "seen.env").read_bytes().split(b"\0")
    assert b"RUNID=r42" in seen
    assert not any(item.startswith((b"GONE=", b"HOME=/old")) for item in seen)
    assert (control.folder / "archive/1/pipeline_env").read_text().startswith('declare -x RUNID="old"')


def test_the_job_control_archives_a_try_that_goes_on(control: Control) -> None:
    """It died after the submission, and repeats it all: moves everything away, writes the files, submits again. The
    job is adopted. This machine ends a job whose run folder is moved, and then runs it once more (HTCondor does not)."""
    control.write("echo x >> ran; until [ -e go ]; do sleep 0.05; done\n")
    control.submit()
    wait_for(lambda: (control.folder / "ran").exists(), "the job did not start")
    (control.folder / "archive/1").mkdir(parents=True)
    for path in list(control.folder.iterdir()):
        if path.name not in ("archive", "ran"):
            path.rename(control.folder / "archive/1" / path.name)
    control.write("echo again >> ran\n")
    assert control.submit() == "101"
    (control.folder / "go").touch()
    now = control.ended()
    assert (now["state"], now["starts"]) == ("done", 2)
    assert (control.folder / "ran").read_text() == "x\nagain\n"
    assert [path.name for path in (control.folder / ".fermigrid/101/blocks/b0000").glob("script.*")] == ["script.g0"]


def test_a_living_try_that_the_job_control_has_archived_is_noticed(control: Control) -> None:
    control.write("until [ -e go ]; do sleep 0.05; done\n")
    control.submit()
    (control.folder / "archive/1").mkdir(parents=True)
    (control.folder / ".fermigrid").rename(control.folder / "archive/1/.fermigrid")
    _, err = control.run("submit", "--site", "here", instance="102", code=14)
    assert "fermigrid pipeline kill 101" in err
    control.run("kill", "101")
    assert control.ended("101")["state"] == "removed"
    assert control.submit(instance="102") == "102"
    (control.folder / "go").touch()
    assert control.ended("102")["state"] == "done"


def test_an_old_instance_does_not_disturb_the_new_one(control: Control) -> None:
    for instance in ("101", "102"):
        control.submit(instance=instance)
        control.ended()
    before = control.tree()
    assert control.submit(instance="101") == "101"
    after = control.tree()
    assert {name: after.get(name) for name in before if not name.endswith("lock")} == {
        name: data for name, data in before.items() if not name.endswith("lock")
    }


# --- status and kill


def test_states_and_lines(control: Control) -> None:
    control.write("touch started; until [ -e go ]; do sleep 0.05; done; exit 5\n")
    control.submit()
    wait_for(lambda: (control.folder / "started").exists(), "the job did not start")
    wait_for(lambda: control.status()["state"] == "running", "it is not seen to run")
    out, _ = control.run("status")
    assert re.fullmatch(r"101 running instance=101 host=\S+ starts=1 since=\S+\n", out)
    (control.folder / "go").touch()
    assert control.ended()["exit"] == 5
    out, err = control.run("status", "101")
    assert re.fullmatch(r"101 failed instance=101 exit=5 cpu_s=\d+\.\d{3} host=\S+ starts=1 since=\S+\n", out)
    assert "101: the payload ended with exit code 5" in err
    assert control.run("status", "101") == (out, err)


def test_a_job_that_never_came_to_its_script_has_a_log(control: Control, tmp_path: Path) -> None:
    site = tmp_path / "sites/here.yaml"
    site.write_text(site.read_text().replace("rehearsal: true, ", ""))
    control.submit("--retries", "0")
    now = control.ended()
    assert (now["state"], now["exit"]) == ("failed", 81)
    assert "no container runtime" in (control.folder / "logFile.txt").read_text()
    assert "ExitCode: 81" in (control.folder / "pipeline_summary").read_text()


def test_a_job_whose_messages_are_not_sent_is_not_forgotten(control: Control, tmp_path: Path) -> None:
    site = tmp_path / "sites/here.yaml"
    site.write_text(site.read_text().replace("/spool", "/spool/absent"))
    control.submit()
    deadline = time.monotonic() + LIMIT_S
    while (now := control.status())["state"] != "done":
        assert time.monotonic() < deadline, now
    assert ["is not sent" in problem for problem in now["problems"]] == [True, True]
    assert not (control.folder / ".fermigrid/101/result.json").exists()
    assert control.run("status", cwd=control.root)[0].startswith("101 done ")  # still among those under way
    assert "Pipeline.nEvents: 12" in (control.folder / "pipeline_summary").read_text()


def test_clusters_that_nobody_knows_do_not_hide_the_others(control: Control) -> None:
    control.submit()
    control.ended()
    out, err = control.run("status", "999", "101", "x", code=19)
    assert [line.split()[:2] for line in out.splitlines()] == [["999", "unknown"], ["101", "done"], ["x", "unknown"]]
    assert "no cluster 999, x is known" in err
    control.run("kill", "999", code=19)


def test_a_damaged_folder_does_not_hide_the_others(control: Control, tmp_path: Path) -> None:
    control.submit()
    control.ended()
    (tmp_path / "bad/job").mkdir(parents=True)
    bad = Control(tmp_path / "bad", control.more)
    (bad.root / "sites").symlink_to(tmp_path / "sites")
    bad.write(SAY)
    bad.submit(instance="99")
    wait_for(lambda: bad.status()["state"] == "done", "it does not end")
    (bad.folder / ".fermigrid/99/result.json").unlink(missing_ok=True)
    (bad.folder / ".fermigrid/99/ledger.sqlite").write_bytes(b"")
    out, err = control.run("status", "99", "101", cwd=tmp_path)
    assert [line.split()[:2] for line in out.splitlines()] == [["99", "unknown"], ["101", "done"]]
    assert "99: the ledger" in err
    out, err = control.run("kill", "99", "101", cwd=tmp_path, code=15)
    assert out.startswith("101 done ")
    out, _ = control.run("kill", "999", "101", cwd=tmp_path, code=19)
    assert [line.split()[:2] for line in out.splitlines()] == [["999", "unknown"], ["101", "done"]]


def test_a_folder_that_is_not_mounted_now_is_not_forgotten(control: Control, tmp_path: Path) -> None:
    (tmp_path / "elsewhere/job").mkdir(parents=True)
    other = Control(tmp_path / "elsewhere", control.more)
    (other.root / "sites").symlink_to(tmp_path / "sites")
    other.write(SAY)
    other.submit(instance="200")
    other.root.rename(tmp_path / "away")
    out, err = control.run("status", "--all")
    assert out.startswith("200 unknown ")
    assert "is gone" in err
    assert control.run("status", "--all")[0].startswith("200 unknown ")
    other.root.mkdir()  # it is mounted again, and the job's folder is not there
    assert "200 unknown" in control.run("status", "--all")[0]
    assert control.run("status", "--all")[0] == ""


def test_a_try_that_its_successor_took_in_is_not_under_way(control: Control) -> None:
    control.submit()
    wait_for(lambda: control.messages() == ["101 end", "101 start"], "it does not end")
    wait_for(lambda: PATTERN.search(control.start("submit", "--site", "here", instance="102").communicate()[0]), "102")
    control.ended("102")
    control.run("status", "--all")
    assert control.run("status", "--all")[0] == ""


def test_a_folder_that_is_not_ours_or_is_gone(control: Control, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    run = ["bash", "-c", 'rmdir "$PWD"; exec "$0" -m fermigrid pipeline status', sys.executable]
    done = subprocess.run(run, cwd=gone, env=control.environment("1"), capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 14
    assert "has been removed" in done.stderr
    before = control.tree()
    _, err = control.run("submit", "--site", "here", more={"JOBCONTROL_LOGFILE": str(control.folder)}, code=13)
    assert "is a folder" in err
    _, err = control.run("submit", "--site", "here", more={"PIPELINE_CONTAINER": "/a:b"}, code=13)
    assert "PIPELINE_CONTAINER='/a:b'" in err
    assert control.tree() == before


def test_status_of_all_takes_every_result_in_once(control: Control, tmp_path: Path) -> None:
    others = []
    for number in (1, 2, 3):
        other = Control(tmp_path / f"more{number}", control.more)
        other.folder.mkdir(parents=True)
        (other.root / "sites").symlink_to(tmp_path / "sites")
        other.write(SAY)
        other.submit(instance=str(200 + number))
        others.append(other)
    elsewhere = tmp_path / "spool"
    wait_for(lambda: len(list(elsewhere.glob("*.end"))) == 3, "the jobs did not end")
    out = ""

    def all_closed() -> bool:
        nonlocal out
        got = control.run("status", cwd=elsewhere)[0]
        out = got or out
        return got == ""

    wait_for(all_closed, "the jobs are still under way")
    assert [line.split()[:2] for line in out.splitlines()] == [["201", "done"], ["202", "done"], ["203", "done"]]
    assert all("Pipeline.nEvents: 12" in (each.folder / "pipeline_summary").read_text() for each in others)


def test_status_many_times_at_once(control: Control) -> None:
    control.submit()
    together = [control.start("status", "101") for _ in range(8)]
    for process in together:
        code, out, err = finish(process, LIMIT_S)
        assert code == 0, err
        assert out.startswith("101 ")
    control.ended()
    assert control.messages() == ["101 end", "101 start"]


def test_kill(control: Control) -> None:
    control.write("trap 'echo told; exit 0' TERM; touch started; while :; do sleep 0.05; done\n")
    control.submit()
    wait_for(lambda: (control.folder / "started").exists(), "the job did not start")
    out, _ = control.run("kill", "101", cwd=control.root)
    assert out.startswith("101 ")
    assert control.ended("101")["state"] == "removed"
    assert "told" in (control.folder / "logFile.txt").read_text()
    wait_for(lambda: control.messages() == ["101 end", "101 start"], "there is no end message")
    assert "Signals: TERM" in next((control.root / "spool").glob("*.end")).read_text()
    assert control.run("kill", "101")[0].split()[:2] == ["101", "removed"]
    assert control.submit() == "101"  # not sent again: it was killed
    assert control.ended("101")["state"] == "removed"


def test_a_job_that_never_starts_is_killed(control: Control, tmp_path: Path) -> None:
    text = (tmp_path / "sites/here.yaml").read_text()
    (tmp_path / "sites/here.yaml").write_text(text.replace("slots: 4", "slots: 1"))
    blocker = Control(tmp_path / "blocker")
    blocker.folder.mkdir(parents=True)
    (blocker.root / "sites").symlink_to(tmp_path / "sites")
    blocker.write("touch started; until [ -e go ]; do sleep 0.05; done\n")
    blocker.submit(instance="300")
    wait_for(lambda: (blocker.folder / "started").exists(), "the first job did not start")
    control.submit()
    assert control.status()["state"] == "waiting"
    control.run("kill", "101")
    assert control.ended()["state"] == "removed"
    assert "removed" in (control.folder / "pipeline_summary").read_text()
    (blocker.folder / "go").touch()
    assert blocker.ended("300")["state"] == "done"


# --- kill -9 at any point


def kill_at(process: subprocess.Popen[str], moment: float) -> None:
    """SIGKILL after so many seconds, unless it has ended."""
    try:
        process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def killed_tries(control: Control, chance: random.Random, tries: int) -> None:
    """Tries one after the other in one folder, each submission killed twice at random, each status once."""
    control.write('echo "ran $PIPELINE_PROCESSINSTANCE" >> ../ran; echo "log $PIPELINE_PROCESSINSTANCE"\n')
    instances = [str(1000 + number) for number in range(tries)]
    for instance in instances:
        for _ in range(2):
            kill_at(control.start("submit", "--site", "here", instance=instance), chance.uniform(0.05, 0.6))
        assert control.submit(instance=instance) == instance
        wait_for(lambda: bool(list((control.root / "spool").glob(f"{instance}.*.end"))), "the job did not end")  # noqa: B023
        kill_at(control.start("status", instance), chance.uniform(0.1, 0.5))
        assert control.ended(instance)["state"] == "done"
    assert (control.root / "ran").read_text().splitlines() == [f"ran {instance}" for instance in instances]
    folders = [*(control.folder / "archive" / str(number) for number in range(1, tries)), control.folder]
    assert {path.name for path in (control.folder / "archive").iterdir()} == {str(number) for number in range(1, tries)}
    for instance, folder in zip(instances, folders, strict=True):
        assert (folder / "logFile.txt").read_text() == f"log {instance}\n"
        assert f"ProcessInstance: {instance}" in (folder / "pipeline_summary").read_text()
        assert (folder / ".fermigrid" / instance / "result.json").is_file()
    assert not list(control.folder.rglob("*.part"))


def test_killed_at_any_time(control: Control) -> None:
    killed_tries(control, random.Random(1), 6)


@pytest.mark.drill
def test_killed_hundreds_of_times(control: Control) -> None:
    """Seeded, so that a failure can be repeated."""
    killed_tries(control, random.Random(2), 100)
