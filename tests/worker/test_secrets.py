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

from tests.worker.node import IMAGES, Node
from tests.worker.sealing import Office, archive
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
    assert code == 90 and "secret p has expired: it ended at 2020-01-02T00:00:00Z" in message
    (tmp_path / "none.pem").write_text("no certificate")
    assert run(tmp_path / "none.pem")[0] == 90


# --- transfer: what came with the job


def transferred(name: str = "wallet") -> Pairs:
    points = [("secret.point", "TNS_ADMIN=."), ("secret.point", "XRD_KEY=wallet/cwallet.sso")]
    return [("secret", "oracle"), ("secret.kind", "transfer"), ("secret.from", name), *points]


def test_a_transferred_folder_is_taken_out_of_the_scratch_folder(make_job: MakeJob, wallet: Path) -> None:
    job = make_job(args=["./look"], code={"look": LOOK + "ls -A .."}, settings=transferred())
    shutil.copytree(wallet, job.scratch / "wallet")
    done = job.run()
    lines = done.out.decode().splitlines()
    assert lines[:5] == ["d 700 ", "d 700 wallet", "f 600 .hidden", "f 600 tnsnames.ora", "f 600 wallet/cwallet.sso"]
    assert lines[5] == "on tmpfs" and "wallet" not in lines and not (job.scratch / "wallet").exists()
    assert CANARY not in done.err and CANARY.encode() not in done.out


@pytest.mark.parametrize("name", ["key", ".key", "-rf", "a=b@c+d"])
def test_a_transferred_file(make_job: MakeJob, name: str) -> None:
    settings = [("secret", "k"), ("secret.kind", "transfer"), ("secret.from", name), ("secret.point", f"KEY={name}")]
    job = make_job(args=["/bin/sh", "-c", 'stat -c %a "$KEY"; cat "$KEY"'], settings=settings)
    job.scratch.mkdir()
    (job.scratch / name).write_text("k")
    done = job.run()
    assert done.out.startswith(b"600\nk") and not (job.scratch / name).exists()


def link(folder: Path) -> None:
    (folder / "evil").symlink_to("/etc/hostname")


def itself_a_link(folder: Path) -> None:
    folder.rename(folder.parent / "other")
    folder.symlink_to("other")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "evil")


def absent(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.fault(
    fault="a transferred secret did not come, or has links or pipes in it",
    mode="host",
    does="says which; nothing of it stays in the scratch folder",
    code=85,
)
@pytest.mark.parametrize("spoil", [link, itself_a_link, pipe, absent])
def test_a_transferred_secret_that_is_refused(make_job: MakeJob, wallet: Path, spoil: Callable[[Path], None]) -> None:
    job = make_job(settings=transferred())
    shutil.copytree(wallet, job.scratch / "wallet")
    spoil(job.scratch / "wallet")
    done = job.run()
    assert done.code == 85 and not done.data["started_payload"] and done.message.startswith("secret oracle: wallet")
    assert not os.path.lexists(job.scratch / "wallet")


@pytest.mark.parametrize("name", ["../wallet", "a/b", ".", "..", "...", "/etc/passwd", ""])
def test_a_transferred_name_that_leads_elsewhere(make_job: MakeJob, name: str) -> None:
    job = make_job(settings=transferred(name))
    done = job.run()
    assert done.code == 80 and "secret.from" in done.message and (job.scratch / "job.env").exists()


def test_a_job_that_ends_early_leaves_no_transferred_secret(make_job: MakeJob, wallet: Path) -> None:
    """Before secrets are looked at."""
    job = make_job(settings=[*transferred(), ("nonsense", "x")])
    shutil.copytree(wallet, job.scratch / "wallet")
    assert job.run().code == 80
    assert not (job.scratch / "wallet").exists()


# --- how clients find them


def test_files_of_the_home_folder(make_job: MakeJob, tmp_path: Path) -> None:
    """Links into the private copy, so that no value is on a disk; clients follow them."""
    source = tmp_path / "db"
    source.mkdir()
    (source / "my.cnf").write_text(f"[client]\npassword={CANARY}\n")
    (source / "rucio.cfg").write_text("[client]\n")
    homes = [
        ("secret.home", ".my.cnf=my.cnf"),
        ("secret.home", ".config/rucio/rucio.cfg=rucio.cfg"),
        ("secret.home", ".db=."),
    ]
    settings = [("secret", "db"), ("secret.from", str(source)), *homes]
    script = "cd; stat -L -c %a .my.cnf; wc -c < .my.cnf; cat .config/rucio/rucio.cfg; ls .db; readlink .my.cnf >&2; find . -type f"
    done = make_job(args=["/bin/sh", "-c", script], settings=settings).run()
    length = len(CANARY) + len("[client]\npassword=\n")
    assert done.out.startswith(f"600\n{length}\n[client]\nmy.cnf\nrucio.cfg\n\n@@".encode()), done.err
    target = next(line for line in done.err.splitlines() if line.endswith("/db/my.cnf"))
    assert not Path(target).exists()


@pytest.mark.parametrize(
    "home", ["../x=my.cnf", "/etc/x=my.cnf", ".fermigrid/x=my.cnf", "x=../my.cnf", "x=/etc/passwd", "=x", "x="]
)
def test_a_home_file_that_leads_elsewhere(make_job: MakeJob, wallet: Path, home: str) -> None:
    done = make_job(settings=[*oracle(wallet), ("secret.home", home)]).run()
    assert done.code == 80 and "secret.home" in done.message


@pytest.mark.parametrize(
    "key", [("secret.kind", "magic"), ("secret.point", "X=../y"), ("secret.sha256", "x"), ("secret.other", "")]
)
def test_bad_keys_of_a_secret(make_job: MakeJob, wallet: Path, key: tuple[str, str]) -> None:
    done = make_job(settings=[*oracle(wallet), key]).run()
    assert done.code == 80 and key[0] in done.message


def test_a_key_before_its_secret(make_job: MakeJob) -> None:
    assert make_job(settings=[("secret.from", "/x")]).run().code == 80


# --- the Oracle wallet


def move(make_job: MakeJob, wallet: Path, text: bytes) -> bytes:
    """What sqlnet.ora is for the payload; @ in the place of TNS_ADMIN."""
    (wallet / "sqlnet.ora").write_bytes(text)
    done = make_job(
        args=["/bin/sh", "-c", 'cat "$TNS_ADMIN/sqlnet.ora"; echo; echo "=$TNS_ADMIN"'], settings=oracle(wallet)
    ).run()
    assert done.code == 0, done.err
    seen, _, place = done.out.rpartition(b"\n\n@@")[0].rpartition(b"\n=")
    return seen.replace(place, b"@")


LOCATION = "(SOURCE=(METHOD=FILE)(METHOD_DATA=(DIRECTORY={})))"
ORA = {
    "usual": ("WALLET_LOCATION = " + LOCATION.format("/sdf/old"), "WALLET_LOCATION = " + LOCATION.format("@")),
    "blanks": (
        "A = B\nwallet_location=( source = (method = file)\n (method_data =\n  ( directory = /sdf/old ) ) )\nSQLNET.WALLET_OVERRIDE = TRUE\n",
        "A = B\nwallet_location=( source = (method = file)\n (method_data =\n  ( directory = @ ) ) )\nSQLNET.WALLET_OVERRIDE = TRUE\n",
    ),
    "many lines": (
        "WALLET_LOCATION\n =\n (SOURCE\n =(METHOD_DATA=(DIRECTORY\n=\n# (DIRECTORY=/a comment)\n\t/sdf/old\n)))\nX=1",
        "WALLET_LOCATION\n =\n (SOURCE\n =(METHOD_DATA=(DIRECTORY\n=\n# (DIRECTORY=/a comment)\n\t@\n)))\nX=1",
    ),
    "carriage returns": ("WALLET_LOCATION=\r\n" + LOCATION.format("/x\r\n") + "\r\n", "WALLET_LOCATION=\r\n" + LOCATION.format("@\r\n") + "\r\n"),
    "quotes": ("WALLET_LOCATION=" + LOCATION.format('"?/network/admin"'), "WALLET_LOCATION=" + LOCATION.format('"@"')),
    "relative": ("WALLET_LOCATION=" + LOCATION.format("."), "WALLET_LOCATION=" + LOCATION.format("@")),
    "parent": ("WALLET_LOCATION=" + LOCATION.format("../.."), "WALLET_LOCATION=" + LOCATION.format("@")),
    "variable": ("WALLET_LOCATION=" + LOCATION.format("${ORACLE_HOME}/admin"), "WALLET_LOCATION=" + LOCATION.format("@")),
    "below": ("WALLET_LOCATION=" + LOCATION.format("/sdf/old/wallet"), "WALLET_LOCATION=" + LOCATION.format("@/wallet")),
    "below, slash": ("WALLET_LOCATION=" + LOCATION.format("/sdf/old/wallet/"), "WALLET_LOCATION=" + LOCATION.format("@/wallet")),
    "nothing": ("WALLET_LOCATION=" + LOCATION.format(""), "WALLET_LOCATION=" + LOCATION.format("@")),
    "encryption": ("ENCRYPTION_WALLET_LOCATION=" + LOCATION.format("/x"), "ENCRYPTION_WALLET_LOCATION=" + LOCATION.format("@")),
}  # fmt: skip
KEPT = [
    b"",
    b"\n\n",
    b"NAMES.DIRECTORY_PATH = (TNSNAMES, EZCONNECT)\n# WALLET_LOCATION = (DIRECTORY=/x)\n",
    b"LOG_DIRECTORY_CLIENT = /x\nTRACE=(DIRECTORY=/y)\r\nMY_WALLET_LOCATION=(DIRECTORY=/z)",
    b"WALLET_LOCATION = SYSTEM:\nX = (DIRECTORY = /y)\n",
    b"WALLET_LOCATION = (SOURCE = (METHOD = HSM))\nX = (DIRECTORY = /y)",
    b"\\ back \\n slash % ` $(x) \xff \x80\n" + b"# long " + b"x" * 20000,
]


@pytest.mark.parametrize("name", ORA)
def test_a_wallet_that_moved(make_job: MakeJob, wallet: Path, name: str) -> None:
    before, after = ORA[name]
    assert move(make_job, wallet, before.encode()) == after.encode()


@pytest.mark.parametrize("text", KEPT, ids=range(len(KEPT)))
def test_other_lines_are_kept(make_job: MakeJob, wallet: Path, text: bytes) -> None:
    assert move(make_job, wallet, text) == text


@pytest.mark.parametrize("text", [b"#" * 40000, b"WALLET_LOCATION=\0(DIRECTORY=/x)"], ids=["huge", "zero byte"])
@pytest.mark.fault(
    fault="a wallet's sqlnet.ora is no Oracle configuration (huge, binary)", mode="host", does="names it", code=85
)
def test_a_hostile_sqlnet(make_job: MakeJob, wallet: Path, text: bytes) -> None:
    (wallet / "sqlnet.ora").write_bytes(text)
    done = make_job(settings=oracle(wallet)).run()
    assert done.code == 85 and done.message.startswith("secret oracle: its sqlnet.ora"), done.err


@pytest.mark.parametrize(
    "text",
    [
        b"WALLET_LOCATION=" + b"(" * 8000 + b"\n",
        b"WALLET_LOCATION=" + b"(DIRECTORY=" * 2000,
        b"WALLET_LOCATION='" + b"x\n" * 9000,
    ],
)
def test_a_clumsy_sqlnet_takes_no_time(make_job: MakeJob, wallet: Path, text: bytes) -> None:
    move(make_job, wallet, text)


def test_a_wallet_without_sqlnet_gets_none(make_job: MakeJob, wallet: Path) -> None:
    assert make_job(args=["/bin/sh", "-c", '[ ! -e "$TNS_ADMIN/sqlnet.ora" ]'], settings=oracle(wallet)).run().code == 0


def test_the_sites_own_wallet_is_untouched(make_job: MakeJob, wallet: Path) -> None:
    text = "WALLET_LOCATION = " + LOCATION.format("/sdf/old")
    move(make_job, wallet, text.encode())
    assert (wallet / "sqlnet.ora").read_text() == text


# --- all of it in containers

IN_CONTAINER = """
head -n 5 "$TNS_ADMIN/sqlnet.ora" ~/.my.cnf "$KEY"; echo
find "$TNS_ADMIN" "$KEY" -printf '%m %p\\n' | sort
for file in "$TNS_ADMIN/sqlnet.ora" ~/.my.cnf "$KEY"; do { echo > "$file"; } 2> /dev/null && echo "$file can be written"; done
find / -xdev -name my.cnf -not -path '/etc/*' -not -path '/proc/*' 2> /dev/null"""


@pytest.mark.pool
@pytest.mark.parametrize("order", ["wrapper-outside", "wrapper-inside"])
def test_all_that_files_can_be_in_a_container(node: Node, order: str) -> None:
    """A sealed wallet, a database's file in the home folder, a key that came with the job."""
    office = Office.open(node.folder)
    sqlnet = f"WALLET_LOCATION={LOCATION.format('/sdf/old')}\n".encode()
    sealed = office.secret(office.seal(archive([("sqlnet.ora", sqlnet), ("cwallet.sso", b"x")])))
    database = [("secret", "db"), ("secret.from", str(node.folder / "db")), ("secret.home", ".my.cnf=my.cnf")]
    key = [("secret", "k"), ("secret.kind", "transfer"), ("secret.from", "key"), ("secret.point", "KEY=key")]
    image = [("image.path", str(IMAGES / "cvmfs/fermi.test/images/light-1")), ("image.marker", "light-1")]
    head = {"launch": "worker", "order": order, "runtime": "apptainer"}
    settings = [*image, *sealed.settings, *database, *key]
    job = sealed.into(node.job("job", head=head, settings=settings, args=["/bin/bash", "-c", IN_CONTAINER]))
    (job.scratch / "key").write_text("the key")
    (node.folder / "db").mkdir()
    (node.folder / "db/my.cnf").write_text("[client]\n")
    done = node.run_job(job)
    assert done.code == 0, done.err
    place = "/srv/.fermigrid/secrets"
    assert f"(DIRECTORY={place}/oracle)".encode() in done.out and b"[client]" in done.out and b"the key" in done.out
    for mode, path in ((700, "oracle"), (600, "oracle/sqlnet.ora"), (600, "oracle/cwallet.sso"), (600, "k/key")):
        assert f"\n{mode} {place}/{path}\n".encode() in done.out, done.out
    assert b"can be written" not in done.out and b"/scratch/" not in done.out
    assert node.sh("ls /dev/shm").strip() == "" and not (job.scratch / "key").exists()
