"""The payload: its argv and environment to the byte, how it ends, what it says. On the host, without a container."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.worker_job import BATCH, NAME, Job

MakeJob = Callable[..., Job]

HOSTILE = [
    "", " ", "a b", "'", "''", '"', "\\", "\\\\", "\\t", "\\n", "\t", "$HOME", "$(id)", "`id`", "%s%d", "&", "&&", ";", "|", "<", ">",
    "(", ")", "{a,b}", "*", "?", "[a-z]", "!", "#", "~", "-n", "--", "-", "a=b", ",", ":", "é", "日本語", "\U0001f6f0", "\x01", "\x1b[31m",
    "\x7f", "\u2028", "it's \"quoted\" \\ $PATH", "trailing\\", "  both  ", "a\\0101", "@@FERMIGRID 1 2 {}",
]  # fmt: skip
DUMP = """#!{python}
import json, os, sys
raw = lambda text: os.fsencode(text).decode("latin-1")
with open("seen.json", "w") as file:
    json.dump({{"argv": [raw(a) for a in sys.argv[1:]], "env": {{raw(k): raw(v) for k, v in os.environ.items()}}}}, file)
"""


def seen(done_file: Path) -> dict[str, dict[str, str]]:
    raw = json.loads(done_file.read_text())
    back = lambda text: text.encode("latin-1").decode()  # noqa: E731
    return {"argv": [back(a) for a in raw["argv"]], "env": {back(k): back(v) for k, v in raw["env"].items()}}


def test_argv_and_environment_arrive_byte_exact(make_job: MakeJob) -> None:
    variables = {f"HOSTILE_{i}": value for i, value in enumerate(HOSTILE)}
    job = make_job(
        args=["./dump", *HOSTILE],
        code={"dump": DUMP.format(python=sys.executable)},
        settings=[*(("env", f"{name}={value}") for name, value in variables.items()), ("env", "TWICE=batch")],
        row=[("env", "TWICE=row"), ("out", "seen.json"), ("out.to", "seen.json")],
    )
    leaks = {
        "LD_LIBRARY_PATH": "/leak",
        "PYTHONPATH": "/leak",
        "PERL5LIB": "/leak",
        "LEAK": "1",
        "HOME": "/leak",
        "TMPDIR": "/leak",
    }
    done = job.run(env=leaks | {"BASH_FUNC_leak%%": "() { echo leak; }", "BASH_ENV": "/nonexistent"})
    got = seen(job.scratch / "out" / done.report.outputs[0].file)
    assert got["argv"] == HOSTILE
    control = f"{job.scratch}/work/.fermigrid"
    expected = variables | {
        "TWICE": "row",
        "HOME": f"{control}/home",
        "TMPDIR": f"{control}/tmp",
        "USER": "fermi",
        "LOGNAME": "fermi",
        "LANG": "C.UTF-8",
        "PATH": os.environ["PATH"],
        "FERMIGRID_CAMPAIGN": "P400",
        "FERMIGRID_STEP": "clump",
        "FERMIGRID_RUN": "r0239557414",
        "FERMIGRID_PIECE": "c003",
        "FERMIGRID_JOB": NAME,
        "FERMIGRID_SITE": "test",
        "FERMIGRID_ATTEMPT": done.report.attempt,
        "FERMIGRID_BATCH": BATCH,
        "FERMIGRID_SUMMARY": f"{control}/summary",
    }
    of_the_shell = {"PWD", "SHLVL", "_", "LC_CTYPE"}  # LC_CTYPE: Python's own
    assert {name: value for name, value in got["env"].items() if name not in of_the_shell} == expected


def sh(make_job: MakeJob, script: str, **what: object) -> Job:
    return make_job(args=["./payload.sh"], code={"payload.sh": "#!/bin/bash\n" + script}, **what)


@pytest.mark.parametrize(
    ("own", "code"), [(0, 0), (1, 1), (7, 7), (79, 79), (80, 79), (82, 79), (99, 79), (100, 100), (255, 255)]
)
def test_exit_codes(make_job: MakeJob, own: int, code: int) -> None:
    done = sh(make_job, f"exit {own}").run()
    assert (done.code, done.report.payload_exit) == (code, own)
    assert done.data["started_payload"] is True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGPIPE])
def test_killed_by_a_signal(make_job: MakeJob, number: signal.Signals) -> None:
    done = sh(make_job, f"ulimit -c 0; kill -{number.value} $$").run()
    assert (done.code, done.data["payload_exit"], done.data["signal"]) == (128 + number, 128 + number, number)
    assert done.data["signals"] == []


def test_a_program_that_is_not_there(make_job: MakeJob) -> None:
    assert make_job(args=["./missing"]).run().code == 127


@pytest.mark.parametrize(
    "script",
    [
        "printf 'no newline'",
        "echo '@@FERMIGRID 1 2 {}'",
        "printf '\\n@@FERMIGRID 1 999 {\"exit\": 0}'",
        "printf '\\0\\377\\n\\0'",
        "exec >&- 2>&-",
        ":",
    ],
)
def test_the_report_is_the_last_line_whatever_the_payload_prints(make_job: MakeJob, script: str) -> None:
    done = sh(make_job, script).run()
    assert done.code == 0
    size, text = done.out.splitlines()[-1].removeprefix(b"@@FERMIGRID 1 ").split(b" ", 1)
    assert done.out.endswith(b"\n@@FERMIGRID 1 %s %s\n" % (size, text)) and len(text) == int(size)
    assert json.loads(text) == json.loads(done.report.data)


def test_what_the_payload_leaves_behind_is_ended(make_job: MakeJob) -> None:
    job = sh(make_job, "(sleep 60; echo late) & echo $! > pid", row=[("out", "pid"), ("out.to", "pid")])
    done = job.run(timeout=10)
    pid = (job.scratch / "out" / done.report.outputs[0].file).read_text().strip()
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    assert b"late" not in done.out


def test_signals_are_as_at_birth_in_the_payload(make_job: MakeJob) -> None:
    done = sh(make_job, "grep SigIgn /proc/self/status; read -r line || echo 'stdin is empty'").run()
    (ignored,) = (line.split()[1] for line in done.out.splitlines() if line.startswith(b"SigIgn:"))
    assert int(ignored, 16) & 0x7FFFFFFF == 0  # 32 and on are the C library's own, and depend on who started the tests
    assert b"stdin is empty" in done.out


def test_the_summary(make_job: MakeJob) -> None:
    lines = [
        "events_read: 12",
        "events_kept: 7",
        "events_kept: 8",
        "no colon",
        "bad key!: 1",
        ": 1",
        'odd: \\ " \x01 é',
        "empty:",
    ]
    script = "cat > $FERMIGRID_SUMMARY <<'E'\n" + "\n".join(lines) + "\nE\n"
    script += "printf 'long: %1000s\\n' x >> $FERMIGRID_SUMMARY; printf 'raw: \\377' >> $FERMIGRID_SUMMARY"
    summary = sh(make_job, script).run().report.summary
    assert summary["events_read"] == "12" and summary["events_kept"] == "8"
    assert summary["odd"] == '\\ " ? é' and summary["empty"] == "" and summary["raw"] == "\ufffd"
    assert len(summary["long"]) <= 256 and len(summary) == 6


def test_a_summary_without_end_is_bounded(make_job: MakeJob) -> None:
    done = sh(make_job, "i=0; while [ $i -lt 5000 ]; do echo key$i: $i; i=$((i+1)); done > $FERMIGRID_SUMMARY").run()
    assert len(done.report.summary) == 64
    assert sh(make_job, "mkfifo $FERMIGRID_SUMMARY").run().report.summary == {}


def test_the_start_is_known(make_job: MakeJob) -> None:
    assert make_job().run(env={"FERMIGRID_START": "3"}).report.start == 3
    job = make_job()
    job.scratch.mkdir()
    (job.scratch / ".job.ad").write_text('JobStatus = 2\nNumShadowStarts = 4\nOwner = "fermi"\n')
    done = job.run()
    assert done.report.start == 4 and done.report.attempt.startswith("g0.s4.")
    assert make_job().run().report.start == 1


def test_nothing_is_left_in_the_scratch_folder(make_job: MakeJob) -> None:
    job = sh(make_job, "echo x > $TMPDIR/x; echo y > $HOME/y; echo z > z; mkdir -p a/b; chmod 700 a")
    job.run()
    names = {path.name.split("-")[0] for path in job.scratch.iterdir()}
    assert names == {"job.env", "worker.sh", "s0000", "bundle.tar.gz", "out"}
    assert list((job.scratch / "out").iterdir()) == []


def test_a_person_may_keep_the_working_folder(make_job: MakeJob) -> None:
    job = sh(make_job, "echo z > z")
    job.run(env={"FERMIGRID_KEEP": "yes"})
    assert (job.scratch / "work/z").read_text() == "z\n"


def test_a_rehearsal_says_so(make_job: MakeJob) -> None:
    done = make_job().run()
    assert done.err.count("rehearsal: not containerised") == 1
    assert (done.report.rehearsal, done.report.where, done.report.rung) == (True, "host", "none")
    for line in done.err.splitlines():
        assert line.startswith("fermigrid| 20"), line


@pytest.mark.fault(
    fault="no container runtime on the node", mode="worker", does="does not run the payload bare", code=81
)
def test_no_runtime_and_no_rehearsal(make_job: MakeJob) -> None:
    job = sh(make_job, "echo ran")
    job.head = dict(job.head) | {"rehearsal": "no"}
    done = job.run()
    assert done.code == 81 and b"ran" not in done.out
    assert "/nonexistent/apptainer" in done.message
    assert done.data["started_payload"] is False and done.report.payload_exit is None


def test_inside_the_image_that_the_site_has_started(make_job: MakeJob, tmp_path: Path) -> None:
    job = sh(make_job, "echo ran", settings=[("image.path", str(tmp_path))])
    job.head = {"launch": "site"}
    done = job.run(env={"APPTAINER_CONTAINER": str(tmp_path)})
    assert (done.code, done.report.where, done.data["container"], done.report.rung) == (0, "image", "site", "site")
    other = job.run(env={"APPTAINER_CONTAINER": "/cvmfs/other", "PATH": os.environ["PATH"]})
    assert other.code in (82,) and b"ran" not in other.out
