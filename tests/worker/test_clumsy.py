"""What a clumsy or hostile payload, a wrong folder, or a late end must not do: the worker's report stays right, and in time."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.worker_job import WORKER, Job, finish

MakeJob = Callable[..., Job]
Bash = Callable[..., bytes]
OUTPUT = [("out", "o"), ("out.to", "o.root")]


@pytest.mark.parametrize(("script", "code"), [("echo x > o; rm -rf .fermigrid", 0), ('rm -rf "$PWD"; true', 87)])
def test_a_payload_that_cleans_up_too_much(make_job: MakeJob, script: str, code: int) -> None:
    done = make_job(args=["/bin/sh", "-c", script], row=OUTPUT).run()
    assert done.code == code and done.report.payload_exit == 0, done.err
    assert len(done.report.outputs) == (code == 0)


def test_grace_for_a_payload_that_cleans_up_too_much(make_job: MakeJob) -> None:
    script = "rm -rf .fermigrid; trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    process = make_job(args=["/bin/sh", "-c", script]).start()
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    done = finish(process, 20)
    assert done.out.startswith(b"bye\n") and (done.code, done.report.payload_exit) == (5, 5)


@pytest.mark.parametrize("job", ["name", "no name"])
def test_started_by_hand_in_a_folder_of_a_person(tmp_path: Path, job: str) -> None:
    kept = [tmp_path / "out/precious", tmp_path / "work/precious"]
    for path in kept:
        path.parent.mkdir()
        path.touch()
    done = subprocess.run([WORKER, "run", job, "shard", "1", "batch"], cwd=tmp_path, capture_output=True, timeout=30)
    assert done.returncode == 80 and all(path.exists() for path in kept)


def test_a_commands_own_names_are_not_those_of_run(worker_bash: Bash) -> None:
    """A message's route has its own limit, in `limit`, two seconds before the one of its process."""
    script = """exec {pipe_fd}<> <(:); say() { echo "$limit $most $line"; }
    send() { local limit=5 most=6 line=7; _run 9 say; _ask 9 say; echo "${answer[0]}"; }; send"""
    assert worker_bash(script) == b"5 6 7\n5 6 \n"


FORGED = ["x[$(>pwned)] 0 1 1 1", "0 0 x[$(>pwned)] 1 1", "0 x[$(>pwned)] 1 1 1", "1234 0 1 1 1", "0 0 1 1", ""]


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_report_of_the_inner_worker_is_no_program(worker_bash: Bash, tmp_path: Path, forged: str) -> None:
    (tmp_path / "report").write_text(f"{forged}\n{{}}\n")
    out = worker_bash('control=$1; _take_inner_report; _seconds "$user_ms"; echo none', str(tmp_path), cwd=tmp_path)
    assert out == b"none\n" and not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("line", ["143 null 0 0 0", "7 7 -3 12 100"])
def test_the_report_of_the_inner_worker(worker_bash: Bash, tmp_path: Path, line: str) -> None:
    (tmp_path / "report").write_text(f"{line}\n{{}}\n")
    script = (
        "trap 'echo \"$exit_code $payload_exit $user_ms $system_ms ${spent[payload]}\"; trap - EXIT; exit 0' EXIT; "
    )
    out = worker_bash(script + "control=$1; _take_inner_report; echo none", str(tmp_path))
    assert out.decode() == line + "\n"


@pytest.mark.parametrize("forged", ["0", "1", "-1", "x"])
def test_a_forged_group_is_not_killed(worker_bash: Bash, tmp_path: Path, forged: str) -> None:
    (tmp_path / "group").write_text(forged + "\n")
    assert worker_bash('control=$1; kill() { echo "kill $*"; }; _kill_inner; echo none', str(tmp_path)) == b"none\n"


def test_an_image_that_came_late_is_not_taken_for_damaged(worker_bash: Bash, tmp_path: Path) -> None:
    """Its digest takes longer than what is left of the time for downloads."""
    (tmp_path / "part").write_bytes(b"x")
    script = """part=$1/part; set_of[image.sha256]=$(sha256sum < "$part"); set_of[image.sha256]=${set_of[image.sha256]%% *}
    sha256sum() { sleep 3; command sha256sum "$@"; }; openssl() { sleep 3; command openssl "$@"; }
    late() { local deadline; _now; deadline=$((now_ms + 500)); _check_download; }; late && echo whole"""
    assert worker_bash(script, str(tmp_path)) == b"whole\n"


def test_the_walltime_ends_in_the_middle_of_an_end(tmp_path: Path) -> None:
    """bash itself ends a worker at an unset variable; what is wiped after that is polled, and sees the walltime."""
    script = f""". "{WORKER}"; begin=1; _now; begin_ms=$now_ms phase_ms=$now_ms; messages=''; _set_traps
    set_of[output.kind]=http parts=(http://127.0.0.1:9/x) control=$PWD end_by=1; set_of[walltime]=1
    f() {{ : "$nothing_of_the_kind"; }}; f"""
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, timeout=30)
    assert done.returncode == 99 and done.stdout.count(b"\n@@FERMIGRID 1 ") == 1, done.stderr


@pytest.mark.drill
def test_a_scratch_disk_that_hangs_does_not_hold_back_the_report(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "rm").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "rm").chmod(0o755)
    began = time.monotonic()
    done = make_job().run(env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout=50)
    assert done.code == 0 and time.monotonic() - began < 30
