"""Secrets: private copies, pointed to by variables, gone afterwards in every case, and never in a log."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.test_signals import wait_for
from tests.worker.worker_job import Job, Pairs, finish

MakeJob = Callable[..., Job]
CANARY = "canary-8f14e45fceea167a"
LOOK = """#!/bin/bash
find "$TNS_ADMIN" -printf '%y %m %P\\n' | sort
stat -f -c 'on %T' "$TNS_ADMIN"
echo "key is $XRD_KEY, timeout is $XRD_REQUESTTIMEOUT"
cmp "$TNS_ADMIN/wallet/cwallet.sso" "$XRD_KEY"
dirname "$TNS_ADMIN" >&2
"""


@pytest.fixture
def wallet(tmp_path: Path) -> Path:
    folder = tmp_path / "wallet"
    (folder / "wallet").mkdir(parents=True)
    (folder / "tnsnames.ora").write_text(CANARY)
    (folder / "wallet/cwallet.sso").write_bytes(CANARY.encode() + b"\0\xff")
    (folder / ".hidden").write_text(CANARY)
    folder.chmod(0o755)
    return folder


def oracle(wallet: Path) -> Pairs:
    points = [("secret.point", "TNS_ADMIN=."), ("secret.point", "XRD_KEY=wallet/cwallet.sso")]
    return [("secret", "oracle"), ("secret.from", str(wallet)), *points, ("secret.set", "XRD_REQUESTTIMEOUT=60")]


def staged() -> set[Path]:
    """The folders of secrets of all workers of this user."""
    return {path for path in Path("/dev/shm").glob("fermigrid.*") if path.stat().st_uid == os.geteuid()}


def test_the_payload_finds_its_secrets(make_job: MakeJob, wallet: Path) -> None:
    done = make_job(args=["./look"], code={"look": LOOK}, settings=oracle(wallet)).run()
    lines = done.out.decode().splitlines()
    assert lines[:5] == ["d 700 ", "d 700 wallet", "f 600 .hidden", "f 600 tnsnames.ora", "f 600 wallet/cwallet.sso"]
    assert lines[5] == "on tmpfs" and lines[6].endswith("/oracle/wallet/cwallet.sso, timeout is 60")
    folder = next(line for line in done.err.splitlines() if line.startswith("/"))
    assert not Path(folder).exists()
    assert CANARY not in done.err and CANARY.encode() not in done.out


def test_a_secret_that_is_one_file(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "krb5 file").write_text("k")
    settings = [("secret", "k"), ("secret.from", str(tmp_path / "krb5 file")), ("secret.point", "KEY=krb5 file")]
    done = make_job(args=["/bin/sh", "-c", 'stat -c %a "$KEY"; cat "$KEY"'], settings=settings).run()
    assert done.out.startswith(b"600\nk")


@pytest.mark.fault(fault="a secret is absent, or cannot be read", mode="host", does="ends before the payload", code=85)
@pytest.mark.parametrize("what", ["absent", "unreadable"])
def test_a_secret_that_cannot_be_had(make_job: MakeJob, wallet: Path, what: str) -> None:
    source = wallet / "absent"
    if what == "unreadable":
        source = wallet / "loop"
        source.symlink_to(source)
    done = make_job(args=["/bin/echo", "ran"], settings=oracle(source)).run()
    assert done.code == 85 and str(source) in done.message and b"ran" not in done.out


ENDS = {"good": "exit 0", "bad": "exit 3", "killed": "kill -KILL $$"}


@pytest.mark.parametrize("script", ENDS.values(), ids=list(ENDS))
def test_secrets_are_gone_afterwards(make_job: MakeJob, wallet: Path, script: str) -> None:
    done = make_job(args=["/bin/sh", "-c", f'echo "$TNS_ADMIN"; {script}'], settings=oracle(wallet)).run()
    folder = Path(done.out.decode().splitlines()[0])
    assert folder.name == "oracle" and not folder.parent.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_secrets_are_gone_after_a_signal(make_job: MakeJob, wallet: Path, number: signal.Signals) -> None:
    process = make_job(args=["/bin/sh", "-c", 'echo "$TNS_ADMIN"; exec sleep 2'], settings=oracle(wallet)).start()
    assert process.stdout is not None
    folder = Path(process.stdout.readline().decode().strip())
    assert (folder / "tnsnames.ora").exists()
    process.send_signal(number)
    if number == signal.SIGTERM:
        assert finish(process).code == 143
        assert not folder.parent.exists()
    else:
        wait_for(lambda: not folder.parent.exists(), 5)
        process.communicate(timeout=10)


def test_a_failure_later_on_leaves_no_secret(make_job: MakeJob, wallet: Path) -> None:
    (wallet / "mine").write_text(str(wallet))
    done = make_job(settings=[*oracle(wallet), ("secret", "second"), ("secret.from", "/nonexistent")]).run()
    assert done.code == 85
    kept = [path for path in staged() if (mine := path / "oracle/mine").exists() and mine.read_text() == str(wallet)]
    assert kept == []


@pytest.mark.fault(
    fault="a worker was killed together with the guard of its secrets",
    mode="host",
    does="the next worker with secrets on the node removes them",
    code=0,
)
def test_what_a_killed_worker_left_is_swept_up(make_job: MakeJob, wallet: Path) -> None:
    """Killed together with its guard. A folder that is locked, or new, is somebody's."""
    folders = {what: Path(f"/dev/shm/fermigrid.{uuid.uuid4()}") for what in ("dead", "alive", "new")}
    for what, folder in folders.items():
        folder.mkdir(mode=0o700)
        (folder / "secret").write_text(CANARY)
        if what != "new":
            os.utime(folder, (1, 1))
    lock = os.open(folders["alive"], os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        make_job(settings=oracle(wallet)).run()
        assert {what: folder.exists() for what, folder in folders.items()} == {
            "dead": False,
            "alive": True,
            "new": True,
        }
    finally:
        os.close(lock)
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)


CA = """
[ca]
default_ca = it
[it]
database = {0}/index
new_certs_dir = {0}
rand_serial = yes
default_md = sha256
policy = any
[any]
commonName = supplied
"""


def certificate(folder: Path, name: str, end: str) -> Path:
    """A self-signed certificate that is good from 2020 to `end` (YYMMDDHHMMSSZ)."""
    key, request, made = folder / "key.pem", folder / "request.pem", folder / name
    (folder / "index").touch()
    (folder / "ca.cnf").write_text(CA.format(folder))
    openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-subj", "/CN=proxy", "-out", request)
    sign = ["-config", folder / "ca.cnf", "-selfsign", "-keyfile", key, "-in", request, "-out", made]
    openssl("ca", "-batch", "-notext", *sign, "-startdate", "200101000000Z", "-enddate", end)
    (folder / "index").unlink()
    return made


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)


@pytest.mark.fault(
    fault="the X.509 proxy among the secrets has expired",
    mode="host",
    does="says so before anything is started",
    code=90,
)
def test_a_proxy_that_has_ended(make_job: MakeJob, tmp_path: Path) -> None:
    def run(proxy: Path) -> tuple[int, str]:
        settings = [("secret", "p"), ("secret.from", str(proxy)), ("secret.point", f"X509_USER_PROXY={proxy.name}")]
        done = make_job(settings=settings).run()
        return done.code, done.message

    assert run(certificate(tmp_path, "good.pem", "491231235959Z")) == (0, "")
    code, message = run(certificate(tmp_path, "ended.pem", "200102000000Z"))
    assert code == 90 and "secret p has expired" in message
    (tmp_path / "none.pem").write_text("no certificate")
    assert run(tmp_path / "none.pem")[0] == 90
