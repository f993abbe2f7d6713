"""Signals in each phase: they reach the payload, and the report is written in every case, in bounded time."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.faulty_http import Faulty
from tests.worker.worker_job import Job, finish

MakeJob = Callable[..., Job]


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    """Waits for an event with a time limit."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def start_payload(make_job: MakeJob, script: str, *, shell: str = "bash", **what: object) -> subprocess.Popen[bytes]:
    """A worker whose payload has said `ready`."""
    job = make_job(args=["./payload.sh"], code={"payload.sh": f"#!/bin/{shell}\n{script}"}, **what)
    process = job.start()
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 10)[0]
    assert os.read(process.stdout.fileno(), 6) == b"ready\n"
    return process


IDLE = "echo ready; while :; do sleep 0.05; done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_payload_that_is_ended(make_job: MakeJob, number: signal.Signals) -> None:
    process = start_payload(make_job, "echo ready; exec sleep 60", shell="sh")  # bash itself ignores QUIT
    process.send_signal(number)
    done = finish(process, 8)
    name = number.name.removeprefix("SIG")
    assert done.data["signals"] == [name] and name in done.message
    assert done.code == 128 + number


@pytest.mark.fault(
    fault="a warning (USR1, USR2, XCPU) while the payload runs", mode="host", does="passes it on, once", code=0
)
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU])
def test_a_payload_that_is_warned_goes_on(make_job: MakeJob, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; echo x > o; exit 0' {name}; {IDLE}"
    process = start_payload(make_job, script, row=[("out", "o"), ("out.to", "o")])
    process.send_signal(number)
    done = finish(process, 8)
    assert done.code == 0 and f"got {name}".encode() in done.out
    assert done.data["signals"] == [name] and len(done.report.outputs) == 1


def test_each_signal_arrives_once(make_job: MakeJob) -> None:
    process = start_payload(make_job, f"n=0; trap 'n=$((n+1)); echo got $n' USR1; trap 'exit 0' USR2; {IDLE}")
    for count in range(3):
        process.send_signal(signal.SIGUSR1)
        assert process.stdout is not None and select.select([process.stdout], [], [], 5)[0]
        assert os.read(process.stdout.fileno(), 100) == f"got {count + 1}\n".encode()
        time.sleep(0.05)  # equal signals that come while a trap of bash runs are one
    process.send_signal(signal.SIGUSR2)
    done = finish(process, 8)
    assert done.data["signals"] == ["USR1"] * 3 + ["USR2"] and b"got" not in done.out


def test_the_exit_code_of_a_payload_that_cleans_up(make_job: MakeJob) -> None:
    process = start_payload(make_job, f"trap 'exit 5' TERM; {IDLE}")
    process.send_signal(signal.SIGTERM)
    assert finish(process, 8).code == 5


@pytest.mark.fault(
    fault="the payload ends with 0 when it is told to end",
    mode="host",
    does="does not take it for finished, publishes nothing",
    code=143,
)
def test_a_payload_that_ends_well_on_term_is_not_accepted(make_job: MakeJob) -> None:
    process = start_payload(make_job, f"echo half > o; trap 'exit 0' TERM; {IDLE}", row=[("out", "o"), ("out.to", "o")])
    process.send_signal(signal.SIGTERM)
    done = finish(process, 8)
    assert (done.code, done.report.payload_exit, done.report.outputs) == (143, 0, ())


@pytest.mark.fault(fault="the payload ignores TERM", mode="host", does="kills it after its grace time", code=137)
def test_a_payload_that_ignores_term_is_killed_after_its_grace(make_job: MakeJob) -> None:
    process = start_payload(make_job, f"trap '' TERM INT; {IDLE}", settings=[("grace", "1")])
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    done = finish(process, 8)
    assert 0.8 < time.monotonic() - began < 5
    assert (done.code, done.data["signal"]) == (137, 9) and set(done.data["signals"]) == {"TERM"}
    assert done.message.endswith("told to end by signal TERM")  # not twice, however often it came


def check_ended(process: subprocess.Popen[bytes], phase: str, number: signal.Signals = signal.SIGTERM) -> None:
    process.send_signal(number)
    done = finish(process, 8)
    assert done.code == 128 + number and done.data["signals"] == [number.name.removeprefix("SIG")]
    assert phase in done.message and done.data["started_payload"] is False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_term_in_the_download_of_the_image(make_job: MakeJob, faulty: Faulty, number: signal.Signals) -> None:
    settings = [("image.url", f"{faulty.url}/stall/x"), ("image.sha256", "0" * 64)]
    job = make_job(settings=settings, head={"launch": "worker", "runtime": "/bin/true"})
    process = job.start()
    assert faulty.requested.wait(10)
    check_ended(process, "phase image", number)
    assert not (job.scratch / ".image").exists()


def test_term_in_stage_in(make_job: MakeJob, faulty: Faulty) -> None:
    process = make_job(row=[("in", "x"), ("in.from", f"{faulty.url}/stall/x")]).start()
    assert faulty.requested.wait(10)
    check_ended(process, "phase stage_in")


def test_warnings_outside_the_payload_change_nothing(make_job: MakeJob, faulty: Faulty) -> None:
    process = make_job(row=[("in", "x"), ("in.from", f"{faulty.url}/503/x")]).start()
    assert faulty.requested.wait(10)
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGXCPU)
    done = finish(process, 15)
    assert done.code == 0 and sorted(done.data["signals"]) == ["USR1", "XCPU"], done.err


def test_term_in_stage_out(make_job: MakeJob, tmp_path: Path) -> None:
    """Another attempt's half set of outputs is waited for; then TERM comes."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a").write_text("other")
    row = [("out", "a"), ("out.to", "a"), ("out", "b"), ("out.to", "b")]
    script = "#!/bin/sh\necho a > a; echo b > b\n"
    job = make_job(
        args=["./p"], code={"p": script}, row=row, kind="posix", settings=[("output.root", str(tmp_path / "root"))]
    )
    process = job.start()
    wait_for(lambda: list((tmp_path / "root").glob(".b.*.part")) and not (tmp_path / "root/b").exists())
    process.send_signal(signal.SIGTERM)
    done = finish(process, 8)
    assert done.code == 143 and done.report.payload_exit == 0 and done.report.outputs == (), done.err
    assert {path.name for path in (tmp_path / "root").iterdir()} == {"a"}


def test_term_at_any_instant_gives_one_report(make_job: MakeJob) -> None:
    """A sweep over the whole life of a short job, from its first line on."""
    for delay in range(0, 60, 2):
        job = make_job(args=["/bin/sh", "-c", "sleep 0.02"], row=[("out", "none"), ("out.to", "none")])
        process = job.start()
        assert process.stderr is not None and b"job " in process.stderr.readline()
        time.sleep(delay / 1000)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=8)
        assert process.returncode in (143, 87), err
        assert out.count(b"@@FERMIGRID 1 ") == 1, (delay, out, err)


def test_a_signal_that_comes_while_another_is_passed_on(worker_bash: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "started").write_text("ok\n")
    script = """
    control=$1 phase=payload payload_group=999999999 pending=(XCPU) kill_at=0
    exec 3>&1 4>&2 {pipe_fd}<> <(:) {said_fd}< "$1/started"
    trap '_on_signal TERM 15' TERM
    kill() { echo "$1"; [ "$1" != -XCPU ] || builtin kill -TERM $$; }
    _forward 2> /dev/null; _forward 2> /dev/null
    """
    assert worker_bash(script, str(tmp_path)).split() == [b"-XCPU", b"-TERM"]
