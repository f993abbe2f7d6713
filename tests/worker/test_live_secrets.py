"""Tokens and proxies: taken from where HTCondor keeps them, renewed while the job runs, refused when they have ended."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.worker.node import IMAGES, Node, wait_for
from tests.worker.sealing import identity
from tests.worker.test_secrets import certificate
from tests.worker.test_signals import wait_for as wait_until
from tests.worker.worker_job import Done, Job, Pairs, finish, read_log

MakeJob = Callable[..., Job]
CANARY = "canary-77b0a1d4c2e95f38"
OUTSIDE = {"launch": "worker", "order": "wrapper-outside", "runtime": "apptainer"}
INSIDE = {**OUTSIDE, "order": "wrapper-inside"}
LIGHT: Pairs = [("image.path", str(IMAGES / "cvmfs/fermi.test/images/light-1")), ("image.marker", "light-1")]
# shows each content that it sees under the one path, until it sees the word "theend", for half a minute at most
FOLLOW = """seen= n=0; while [ $((n = n + 1)) -lt 600 ]; do now=$(cut -c 1-6 < "$1") || { echo gone; exit 3; }
[ "$now" = "$seen" ] || echo "sees $now"; seen=$now; [ "$now" != theend ] || exit 0; sleep 0.05; done; exit 5"""


def token(ends_in: float, extra: str = "", **claims: object) -> str:
    """A bearer token as an issuer makes it (nobody verifies its signature here)."""
    parts = [{"alg": "ES256"}, {"exp": int(time.time() + ends_in), "jti": CANARY, **claims}, {"s": extra}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)


def replace(path: Path, text: str) -> None:
    """As HTCondor does: a new file, renamed."""
    new = path.with_name(path.name + ".tmp")
    new.write_text(text)
    new.chmod(0o600)
    new.rename(path)


TOKEN: Pairs = [
    ("secret", "t"),
    ("secret.kind", "token"),
    ("secret.from", "scitokens.use"),
    ("secret.point", "BEARER_TOKEN_FILE=scitokens.use"),
]
PROXY: Pairs = [
    ("secret", "p"),
    ("secret.kind", "proxy"),
    ("secret.from", "x509up"),
    ("secret.point", "X509_USER_PROXY=x509up"),
]


@pytest.fixture
def creds(tmp_path: Path) -> Path:
    folder = tmp_path / "creds"
    folder.mkdir(mode=0o700)
    return folder / "scitokens.use"


def run(job: Job, creds: Path, **env: str) -> Done:
    return job.run(env={"_CONDOR_CREDS": str(creds.parent), **env})


def show(variable: str) -> list[str]:
    return [
        "/bin/sh",
        "-c",
        f'stat -c "%a %s" "${variable}"; [ -z "${{_CONDOR_CREDS:-}}" ] && dirname "${variable}" >&2',
    ]


def test_a_token(make_job: MakeJob, creds: Path) -> None:
    creds.write_text(token(3600))
    done = run(make_job(args=show("BEARER_TOKEN_FILE"), settings=TOKEN), creds)
    assert done.out.startswith(f"600 {creds.stat().st_size}\n".encode()), done.err
    folder = next(line for line in done.err.splitlines() if line.startswith("/"))
    assert not Path(folder).exists() and CANARY not in done.err and "renewed" not in done.err


def test_a_token_where_the_variable_leads_elsewhere(make_job: MakeJob, creds: Path) -> None:
    """A container of the site may see the job's folder under another name than the variable says."""
    job = make_job(args=show("BEARER_TOKEN_FILE"), settings=TOKEN)
    (job.scratch / ".condor_creds").mkdir(parents=True)
    (job.scratch / ".condor_creds/scitokens.use").write_text(token(3600))
    for env in ({}, {"_CONDOR_CREDS": "/nonexistent/.condor_creds"}):
        assert job.run(env=env).out.startswith(b"600 ")


def test_a_proxy(make_job: MakeJob, tmp_path: Path, creds: Path) -> None:
    """In the scratch folder, where HTCondor goes on to renew it, or where its variable says."""
    job = make_job(args=show("X509_USER_PROXY"), settings=PROXY)
    job.scratch.mkdir()
    good = certificate(tmp_path, "good.pem", "491231235959Z").read_text()
    (job.scratch / "x509up").write_text(good)
    assert job.run().out.startswith(f"600 {len(good)}\n".encode())
    (job.scratch / "x509up").rename(tmp_path / "elsewhere")
    assert job.run(env={"X509_USER_PROXY": str(tmp_path / "elsewhere")}).out.startswith(b"600 ")


@pytest.mark.fault(
    fault="HTCondor gave the job no token or proxy, or an empty one", mode="host", does="names it", code=85
)
@pytest.mark.parametrize("settings", [TOKEN, PROXY], ids=["token", "proxy"])
def test_nothing_was_given(make_job: MakeJob, creds: Path, settings: Pairs) -> None:
    name = settings[2][1]
    job = make_job(settings=settings)
    done = run(job, creds)
    assert done.code == 85 and f"the job was given no {name}" in done.message
    for place in (creds, job.scratch / "x509up"):
        place.write_text("")
    done = run(job, creds)
    assert done.code == 85 and f"{name} cannot be copied: it is empty" in done.message


@pytest.mark.fault(
    fault="a token has expired when the job starts", mode="host", does="says so before anything is started", code=90
)
def test_a_token_that_has_ended(make_job: MakeJob, creds: Path) -> None:
    creds.write_text(token(-5))
    done = run(make_job(settings=TOKEN), creds)
    assert done.code == 90 and not done.data["started_payload"]
    assert "the credential of secret t has expired: it ended at 20" in done.message


@pytest.mark.parametrize("text", ["opaque\n", "a.b.c", '{"access_token": "x"}', "x.bm90IGpzb24.y", "\0\1\2"])
def test_a_token_whose_end_cannot_be_told(make_job: MakeJob, creds: Path, text: str) -> None:
    creds.write_text(text)
    assert run(make_job(settings=TOKEN), creds).code == 0


@pytest.mark.fault(
    fault="the X.509 proxy among the secrets has expired",
    mode="host",
    does="says so before anything is started",
    code=90,
)
def test_a_proxy_ends_with_the_first_of_its_chain(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(settings=PROXY)
    job.scratch.mkdir()
    parts = [certificate(tmp_path, f"{end}.pem", end).read_text() for end in ("491231235959Z", "200102000000Z")]
    (job.scratch / "x509up").write_text("".join(parts))
    done = job.run()
    assert done.code == 90 and "it ended at 2020-01-02T00:00:00Z" in done.message
    (job.scratch / "x509up").write_text("no certificate")
    done = job.run()
    assert done.code == 90 and "has no certificate in it" in done.message


@pytest.mark.fault(
    fault="a token or proxy ends while the job runs, and is not renewed",
    mode="host",
    does="a line of the log says when it ended",
    code=7,
)
def test_a_word_about_what_ended(make_job: MakeJob, creds: Path) -> None:
    creds.write_text(token(3))
    args = [
        "/bin/sh",
        "-c",
        "while [ $(date +%s) -le $1 ]; do sleep 0.1; done; exit 7",
        "sh",
        str(int(time.time()) + 4),
    ]
    done = run(make_job(args=args, settings=TOKEN), creds)
    assert done.code == 7 and "the credential of secret t ended at 20" in done.err and "was not renewed" in done.err


def test_a_renewed_one_has_not_ended(make_job: MakeJob, creds: Path) -> None:
    """What counts at the end is the end of the last one."""
    creds.write_text(token(3))
    process = start(make_job, creds, ["/bin/sh", "-c", FOLLOW.replace("cut -c 1-6", "wc -c"), "sh"])
    replace(creds, token(3600, "longer"))
    assert process.stdout is not None and process.stdout.readline()
    time.sleep(max(0.0, 3.5 - 0.5))
    process.terminate()
    done = finish(process)
    assert done.code == 143 and "renewed: t/scitokens.use" in done.err and "ended at" not in done.err


def start(make_job: MakeJob, creds: Path, args: Sequence[str]) -> subprocess.Popen[bytes]:
    """A job that follows its token and has seen the first."""
    job = make_job(args=[*args[:2], f'set -- "$BEARER_TOKEN_FILE"; {args[2]}'], settings=TOKEN)
    process = job.start(env={"_CONDOR_CREDS": str(creds.parent), "FERMIGRID_RENEW": "1"})
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"sees ")
    return process


def test_a_renewed_token_is_seen_under_the_same_path(make_job: MakeJob, creds: Path) -> None:
    creds.write_text("first-")
    process = start(make_job, creds, ["/bin/sh", "-c", FOLLOW])
    assert process.stdout is not None
    for word in ("second", "third-", "fourth"):
        replace(creds, word)
        assert process.stdout.readline() == f"sees {word}\n".encode()
    creds.unlink()  # taken away for a moment: the last one stays
    replace(creds, "")
    time.sleep(1.5)
    replace(creds, "theend")
    done = finish(process)
    assert done.code == 0 and done.out.startswith(b"sees theend\n"), done.err
    assert done.err.count("Z renewed: t/scitokens.use\n") == 4
    assert done.err.count("not renewed: t/scitokens.use: it is empty") == 1


def test_no_look_costs_a_process_when_nothing_changed(make_job: MakeJob, creds: Path) -> None:
    """The worker's own children, counted by the kernel's number of the last process of all that it started."""
    creds.write_text(token(3600))
    job = make_job(args=["/bin/sh", "-c", "echo up; sleep 3"], settings=TOKEN)
    process = job.start(env={"_CONDOR_CREDS": str(creds.parent), "FERMIGRID_RENEW": "0"})
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    before, end = children.read_text(), time.monotonic() + 2
    while time.monotonic() < end:
        assert children.read_text() == before
    assert finish(process).code == 0


# --- in containers


def own(node: Node, path: Path) -> None:
    os.chown(path, 20001, 20001)


@pytest.mark.pool
@pytest.mark.parametrize("head", [OUTSIDE, INSIDE], ids=["outside", "inside"])
def test_renewal_in_a_container(node: Node, head: dict[str, str]) -> None:
    """Token, proxy and sealed path: the payload sees the new ones in its container, through one path, read-only."""
    creds = node.folder / "creds"
    creds.mkdir(mode=0o700)
    job = node.job("job", head=head, settings=[*LIGHT, *TOKEN, *PROXY], args=["/bin/bash", "-c", IN_CONTAINER])
    job.scratch.mkdir()
    proxy = identity(node.folder, "proxy").certificate.read_text()
    paths = creds / "scitokens.use", job.scratch / "x509up"
    for path, text in zip(paths, ("first-", f"first-\n{proxy}"), strict=True):
        replace(path, text)
        own(node, path)
    own(node, creds)
    process = node.start_job(job, env={"_CONDOR_CREDS": str(creds), "FERMIGRID_RENEW": "1"})
    assert process.stdout is not None
    lines = []
    for word in ("second", "third-", "theend"):
        lines += [process.stdout.readline().decode() for _ in range(2)]
        for path, text in zip(paths, (word, f"{word}\n{proxy}"), strict=True):
            replace(path, text)
            own(node, path)
    out, err = node.ended(process, 60)
    done = read_log(process.returncode, out, err.decode())
    assert done.code == 0, (lines, done.err)
    shown = [*lines, *done.out.decode().splitlines(keepends=True)]
    for variable in ("BEARER_TOKEN_FILE", "X509_USER_PROXY"):
        seen = [line.split()[1] for line in shown if line.startswith(variable)]
        assert seen == ["first-", "second", "third-", "theend"], shown
    assert done.err.count("Z renewed: ") == 6 and "not read-only" not in done.err
    wait_for(lambda: not node.sh("ls /dev/shm").strip(), "the secrets are removed")


IN_CONTAINER = """
[[ $BEARER_TOKEN_FILE == /srv/.fermigrid/secrets/t/scitokens.use && $X509_USER_PROXY == /srv/.fermigrid/secrets/p/x509up ]] || exit 4
{ echo > "$BEARER_TOKEN_FILE"; } 2> /dev/null && echo not read-only >&2
declare -A seen=([BEARER_TOKEN_FILE]= [X509_USER_PROXY]=)
for ((n = 0; n < 400; n++)); do
[ "${seen[BEARER_TOKEN_FILE]}${seen[X509_USER_PROXY]}" != theendtheend ] || exit 0
for name in "${!seen[@]}"; do now=$(head -c 6 "${!name}") || exit 3
[ "$now" = "${seen[$name]}" ] || echo "$name $now"
seen[$name]=$now
done
sleep 0.05
done
exit 5"""


@pytest.mark.pool
def test_renewal_in_a_container_of_the_site(node: Node) -> None:
    """The worker itself is in the container, which binds its folder under another name, as HTCondor's starter does."""
    job = node.job(
        "job",
        head={"launch": "site", "order": "wrapper-outside"},
        settings=[*LIGHT, *TOKEN],
        args=["/bin/sh", "-c", f'set -- "$BEARER_TOKEN_FILE"; {FOLLOW}'],
    )
    argv = job.write()
    creds = job.scratch / ".condor_creds"
    creds.mkdir()
    replace(creds / "scitokens.use", "first-")
    for path in (job.scratch, *job.scratch.rglob("*")):
        own(node, path)
    image = str(IMAGES / "cvmfs/fermi.test/images/light-1")
    command = ["apptainer", "-q", "exec", "--contain", "--no-home", "--bind", f"{job.scratch}:/srv", "--pwd", "/srv"]
    env = {"APPTAINERENV__CONDOR_CREDS": f"{job.scratch}/.condor_creds", "APPTAINERENV_FERMIGRID_RENEW": "1"}
    process = node.start(*command, image, "/bin/bash", "-p", *argv, env=env, folder=job.scratch)
    assert process.stdout is not None
    for word in ("second", "theend"):
        line = process.stdout.readline()
        assert line.startswith(b"sees "), node.ended(process, 30)
        replace(creds / "scitokens.use", word)
        own(node, creds / "scitokens.use")
    out, err = node.ended(process, 60)
    done = read_log(process.returncode, out, err.decode())
    assert done.code == 0 and done.out.startswith(b"sees theend"), done.err
    assert done.data["where"] == "image" and CANARY not in done.err


def test_a_worker_that_is_killed_while_it_renews(make_job: MakeJob, creds: Path, tmp_path: Path) -> None:
    creds.write_text("first-")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    job = make_job(args=["/bin/sh", "-c", f'set -- "$BEARER_TOKEN_FILE"; {FOLLOW}'], settings=TOKEN)
    process = job.start(
        env={"_CONDOR_CREDS": str(creds.parent), "FERMIGRID_RENEW": "0", "FERMIGRID_SECRETS": str(private)}
    )
    assert process.stdout is not None and process.stdout.readline() == b"sees first-\n"
    for _ in range(5):
        replace(creds, "second")
        time.sleep(0.05)
    process.kill()
    wait_until(lambda: list(private.iterdir()) == [], 5)
    process.communicate(timeout=10)
