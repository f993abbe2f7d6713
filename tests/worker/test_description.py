"""80: a job that is not described well never runs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.worker_job import BATCH, NAME, Job, finish, sha256

MakeJob = Callable[..., Job]
RAN = {"payload.sh": "#!/bin/sh\necho ran"}

BAD_SETTINGS = {
    "unknown key": [("nonsense", "1")],
    "image.sha256": [("image.sha256", "abc")],
    "without image.sha256": [("image.url", "http://127.0.0.1/x")],
    "bind.to before": [("bind.to", "/x")],
    "cannot be bound": [("bind", "/a:b")],
    "launch=moon": [("launch", "moon")],
    "name of a variable": [("env", "1BAD=x")],
    "not NAME=value": [("env", "BAD")],
    "limit.path": [("limit.path", "soon")],
    "without output.root": [("output.kind", "posix")],
    "knows format 1": [("format", "2")],
}


def check(job: Job, words: str) -> None:
    done = job.run()
    assert done.code == 80 and words in done.message, done.message
    assert b"ran" not in done.out and done.data["started_payload"] is False


@pytest.mark.parametrize("words", BAD_SETTINGS)
def test_bad_job_env(make_job: MakeJob, words: str) -> None:
    check(make_job(settings=BAD_SETTINGS[words], args=["./payload.sh"], code=RAN), words)


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../b", "a//b", ".fermigrid/started.run", "", "."])
def test_names_that_lead_elsewhere(make_job: MakeJob, name: str) -> None:
    check(make_job(row=[("in", name), ("in.from", "/etc/passwd")]), "no relative path")
    check(make_job(row=[("out", name), ("out.to", "x")]), "no relative path")
    check(make_job(row=[("out", "x"), ("out.to", name)]), "no relative path")


def test_a_row_without_a_command(make_job: MakeJob) -> None:
    check(make_job(args=[]), "has no command")


def tampered(job: Job, change: Callable[[Path], None], *arguments: str) -> tuple[int, str]:
    """Runs a job after a change to its scratch folder."""
    command = job.write()
    change(job.scratch)
    process = subprocess.Popen([*command[:1], *(arguments or command[1:])], cwd=job.scratch, stdout=-1, stderr=-1)
    done = finish(process)
    assert b"ran" not in done.out
    return done.code, done.message


def shard_of(folder: Path) -> Path:
    return next(folder.glob("*.rows"))


def test_damage_is_found(make_job: MakeJob) -> None:
    def append(name: str) -> Callable[[Path], None]:
        def change(folder: Path) -> None:
            path = shard_of(folder) if name == "shard" else folder / name
            path.write_bytes(path.read_bytes() + b"x")

        return change

    def new() -> Job:
        return make_job(args=["./payload.sh"], code=RAN)

    code, message = tampered(new(), append("shard"))
    assert code == 80 and "damaged" in message
    code, message = tampered(new(), append("bundle.tar.gz"))
    assert code == 80 and "bundle.tar.gz is damaged" in message
    code, message = tampered(new(), lambda folder: (folder / "job.env").unlink())
    assert code == 80 and "there is no job.env" in message
    code, message = tampered(new(), lambda folder: shard_of(folder).unlink())
    assert code == 80 and "there is no s0000" in message


@pytest.mark.fault(
    fault="`job.env` was changed after the submission", mode="any", does="refuses the job, by the digest", code=80
)
def test_a_job_env_that_is_not_the_one_that_was_submitted(make_job: MakeJob) -> None:
    job = make_job(args=["./payload.sh"], code=RAN, settings=[("env", "WHO=me")])
    command = job.write()[1:]
    digest = sha256((job.scratch / "job.env").read_bytes())

    def alter(folder: Path) -> None:
        text = (folder / "job.env").read_text()
        (folder / "job.env").write_text(text.replace("WHO=me", "WHO=you"))

    code, message = tampered(job, alter, *command, digest)
    assert (code, message.partition(": its")[0]) == (80, "bad job description: job.env is damaged")
    code, message = tampered(job, lambda _: None, *command, "0" * 64)
    assert code == 80 and "job.env is damaged" in message
    process = subprocess.Popen(["./worker.sh", *command, digest], cwd=job.scratch, stdout=-1, stderr=-1)
    done = finish(process)
    assert done.code == 0 and b"ran" in done.out


def test_the_wrong_row(make_job: MakeJob) -> None:
    job = make_job()
    shard = job.write()[3]
    assert tampered(job, lambda _: None, "run", NAME, shard, "2", BATCH) == (
        80,
        f"bad job description: {shard} has no row 2",
    )
    code, message = tampered(job, lambda _: None, "run", NAME, "shard.rows", "1", BATCH)
    assert code == 80 and "carries no digest" in message


def test_arguments_that_are_not_tame(make_job: MakeJob) -> None:
    import json

    job = make_job()
    shard = job.write()[3]
    for arguments in (
        ["a b", shard, "1", "b"],
        [NAME, "../x", "1", "b"],
        [NAME, shard, "0", "b"],
        [NAME, shard, "1", '"'],
    ):
        done = subprocess.run(["./worker.sh", "run", *arguments], cwd=job.scratch, capture_output=True, check=False)
        assert done.returncode == 80
        assert json.loads(done.stdout.splitlines()[-1].split(b" ", 3)[3])["exit"] == 80
    assert subprocess.run(["./worker.sh"], cwd=job.scratch, capture_output=True, check=False).returncode == 2
