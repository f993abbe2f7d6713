"""The canary on the real pool: secrets of all five kinds in jobs that end well, badly, and by a kill; then every daemon's
log, spool, queue and history, every scratch folder, and all that fermigrid wrote or said is searched for their values."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.canary import Canaries, Found, Sampler, Trace, attach, prove_search, search_places, search_words, target_of
from tests.canary_secrets import person_environment
from tests.pool.conftest import Pool, call_pool, describe, watchdog
from tests.pool.planted import KINDS, own, plant
from tests.pool.product import UID, Product

pytestmark = pytest.mark.pool

# What HTCondor can say at the most, and logs that are never cut. A starter that says more than usual gives its jobs up here
# ("dprintf hit fatal errors"): it says what it always does.
WORDY = "D_FULLDEBUG D_SECURITY D_COMMAND D_JOB D_MACHINE D_PROTOCOL"
LOUD = "MAX_DEFAULT_LOG = 0\n" + "".join(
    f"{name}_DEBUG = {WORDY}\n"
    for name in ("MASTER", "COLLECTOR", "NEGOTIATOR", "SCHEDD", "SHADOW", "STARTD", "CREDD", "SHARED_PORT", "TOOL")
)
USE = """#!/bin/bash
set -o pipefail
wallet=${TNS_ADMIN:+$TNS_ADMIN/cwallet.sso}
cat "${XRD_CLCONFFILE:-/dev/null}" "$MYSQL_CNF" "${wallet:-/dev/null}" "$X509_USER_PROXY" "$BEARER_TOKEN_FILE" | cksum > /dev/null || exit 9
grep -q password= "$HOME/.my.cnf" || exit 9
{ env; cat /proc/self/cmdline; } > seen.txt
echo "secrets used"
case $1 in
    wait) exec sleep 300 ;;
    leak) cat "$MYSQL_CNF"; /bin/sh -c 'sleep 2; :' "$(cat "$MYSQL_CNF")" ;;
    core) { printf '\\177ELF'; cat "$MYSQL_CNF"; } > core.1; kill -SEGV $$ ;;
    *) exit "$1" ;;
esac
"""
CAMPAIGN = """\
campaign: NAME
image: light
code: [use]
runs: {count: 1}
steps:
  look:
    command: [./use, "WAY"]
    secrets: [SECRETS]
    outputs: {seen.txt: "NAME.txt"}
"""
# What the search looks at in the pool's own namespaces.
PRIVATE = ("var/lib/condor", "run", "dev/shm", "var/tmp", "lscratch", "var/log")


@dataclass
class Cage:
    """A pool, a person on it, and the secrets with canaries in them."""

    pool: Pool
    product: Product
    glidein: str = "SITEF"
    secrets: Canaries = field(default_factory=Canaries)
    shell: Canaries = field(default_factory=Canaries)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.planted = plant(self.product, self.glidein)
        here, node = self.planted.here, self.planted.node
        for name, path in zip(("path", "transfer", "sealed"), self.planted.files, strict=True):
            path.write_text(f"{path.read_text()}# {self.secrets.value(name)}\n")
        own(here, node)
        self.planted.seal()
        for name, path in {
            "proxy": here / "x509up",
            "signer": here / "signer/key.pem",
            "site": node / "key/key.pem",
        }.items():
            self.secrets.watch(f"the key of {name}", private_part(path))
        self.product.write("use", USE).chmod(0o755)

    def run(self, *arguments: str, code: int | None = 0) -> str:
        """`fermigrid ARGUMENTS` in a careless shell; all that it said."""
        process = self.product.start(*arguments, extra=person_environment(self.shell))
        out, err = process.communicate(timeout=240)
        self.said.append(out + err)
        assert code is None or process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return out + err

    def submit(self, name: str, way: object = 0) -> list[str]:
        """The words that submit a new campaign. SITEA's containers do not see the folder where the nodes keep secrets."""
        kinds = [
            secret for secret, (kind, *_) in KINDS.items() if self.glidein == "SITEF" or kind not in ("path", "sealed")
        ]
        text = CAMPAIGN.replace("NAME", name).replace("WAY", str(way)).replace("SECRETS", ", ".join(kinds))
        self.product.write(f"{name}.yaml", text)
        return ["submit", f"{name}.yaml", "--site", "kinds", "--sites", "sites"]

    def look(self, name: str) -> None:
        """Everything that fermigrid and HTCondor tell of it."""
        for verb in (["status", "--json"], ["watch", "--once"]):
            self.run(verb[0], name, *verb[1:], code=None)
        for verb in (["why"], ["logs"], ["logs", "--report"]):
            self.run(*verb, name, "look.0000", code=None)
        for tool in (["condor_q", "-l", "-all"], ["condor_history", "-l"], ["condor_status", "-any", "-l"]):
            self.said.append(self.pool.run("fermi", *tool).stdout)

    def take_credentials(self) -> None:
        """The tokens and keys that HTCondor made or holds, which are no less secret."""
        for path in self.credentials():
            if path.is_file() and path.suffix in (".use", ".top", ".key") and path.stat().st_size > 40:
                text = path.read_text(errors="replace")
                watched = text.split(".")[-1].encode()[:40] if text.count(".") == 2 else None
                if watched and len(watched) >= 16:
                    self.secrets.watch(f"the token {path.name}", watched)

    def credentials(self) -> list[Path]:
        """What the credential daemon keeps."""
        return [path for path in (self.pool.directory / "state/oauth").rglob("*") if path.is_file()]

    def allowed(self) -> list[Path]:
        """Where values come from, and where the credential daemon keeps its own."""
        state = self.pool.directory / "state"
        return [self.planted.here, self.planted.node, state / "oauth", state / "cred"]

    def places(self) -> list[Path]:
        """Where they might have got to: all but images and software, which nobody writes to."""
        own = [path for path in self.pool.directory.iterdir() if path.name not in ("cvmfs", "http")]
        first = (self.pool.directory / "pid").read_text().split()[0]
        return [*own, *(Path(f"/proc/{first}/root/{name}") for name in PRIVATE)]

    def loose(self, since: float = 0.0) -> list[Found]:
        """Every canary that is where it should not be."""
        found = search_words(self.secrets, said="\n".join(self.said)) + search_words(
            self.shell, said="\n".join(self.said)
        )
        for flock in (self.secrets, self.shell):
            found += search_places(flock, self.places(), self.allowed(), since)
            found += search_places(flock, list(Path("/tmp").glob("fermigrid-fault-*")))
        return found


def private_part(path: Path) -> bytes:
    """Some bytes of a key that only its holder knows, as they are in its file, decoded."""
    match = re.search(
        rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----\n", path.read_bytes(), re.S
    )
    assert match, f"{path} has no key"
    key = serialization.load_pem_private_key(match[0], None)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.private_numbers().d.to_bytes(512, "big").lstrip(b"\0")[:48]
    der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return der[36:60]


def show(found: Sequence[Found]) -> str:
    """For a failure's message."""
    return "\n".join(map(str, found[:20]))


def person_on(pool: Pool) -> Product:
    """fermigrid in a new folder, as the pool's user fermi."""
    folder = Path(tempfile.mkdtemp(prefix="test-", dir=pool.work))
    shutil.copytree(pool.env["_CONDOR_SEC_TOKEN_DIRECTORY"], folder / "tokens")
    for path in (folder, folder / "tokens", *(folder / "tokens").iterdir()):
        os.chown(path, UID, UID)
    folder.chmod(0o755)
    return Product(pool, folder, folder / "tokens")


@pytest.fixture
def cage(pool: Pool) -> Cage:
    """The shared pool, with its credential daemon."""
    done = call_pool(pool.directory, "start", "secrets", timeout=120)
    assert done.returncode == 0, done.stderr
    return Cage(pool, person_on(pool))


@pytest.fixture
def loud_cage(private_folder: Path) -> Iterator[Cage]:
    """A pool of the test's own whose daemons tell all that they can."""
    (private_folder / "etc/config.d").mkdir(parents=True)
    (private_folder / "etc/config.d/loud").write_text(LOUD)
    done = call_pool(private_folder, "start", "secrets", timeout=600)
    assert done.returncode == 0, done.stderr
    pool = describe(private_folder)
    with watchdog(pool):
        yield Cage(pool, person_on(pool))


def test_a_job_with_all_five_kinds(cage: Cage) -> None:
    """Good; the search finds what a payload prints itself, and nothing else."""
    since = time.time()
    prove_search(cage.secrets, cage.product.folder)
    with Sampler(cage.secrets) as sampler:
        said = cage.run(*cage.submit("good"), "--wait", code=None)
        assert "1 done" in said, cage.product.failures()
        cage.take_credentials()
        cage.look("good")
    assert sampler.looks > 5 and not sampler.found, show([*sampler.found.values()])
    assert (found := cage.loose(since)) == [], show(found)


@pytest.mark.drill
@pytest.mark.parametrize("glidein", ["SITEA", "SITEF"])
def test_everything_at_full_debug(loud_cage: Cage, glidein: str) -> None:
    """Each end of a job, at a pool that starts the container and one where the worker does, with every daemon at its
    wordiest, and each program that the pool starts traced."""
    cage = loud_cage if glidein == "SITEF" else Cage(loud_cage.pool, person_on(loud_cage.pool), glidein)
    for folder in (cage.product.folder, cage.pool.directory / "log", cage.pool.directory / "state/spool"):
        prove_search(cage.secrets, folder)
    with Sampler(cage.secrets) as sampler:
        assert "1 done" in cage.run(*cage.submit("good"), "--wait", code=None), cage.product.failures()
        cage.take_credentials()
        cage.look("good")
        for name, way in {"bad": 3, "core": "core"}.items():
            cage.run(*cage.submit(name, way), "--wait", code=1)
            cage.look(name)
        removed_and_killed(cage)
        own_files = cage.planted.node / "xrootd"
        own_files.rename(cage.planted.node / "gone")
        cage.run(*cage.submit("absent"), "--wait", code=1 if glidein == "SITEF" else 0)
        (cage.planted.node / "gone").rename(own_files)
        cage.look("absent")
        (cage.planted.here / "calibration").rename(cage.planted.here / "gone")
        cage.run(*cage.submit("refused"), "--wait", code=None)
        (cage.planted.here / "gone").rename(cage.planted.here / "calibration")
    assert not sampler.found, show([*sampler.found.values()])
    assert (found := cage.loose()) == [], show(found)
    a_leak_is_found(cage)


def removed_and_killed(cage: Cage) -> None:
    """Jobs at work with their secrets: the worker of one is killed with KILL; another is held, released, and removed."""
    for name in ("killed", "long"):
        cage.run(*cage.submit(name, "wait"))
        running(cage)
        if name == "killed":
            for pid in workers(cage):
                os.kill(pid, 9)
        else:
            for verb in ("hold", "release", "remove"):
                cage.run(verb, name, code=None)
                cage.look(name)
        end = time.monotonic() + 60
        while held_copies(cage):
            assert time.monotonic() < end, f"the copies of {name} stay"
            time.sleep(0.3)
        cage.look(name)


def held_copies(cage: Cage) -> list[Found]:
    """The private copies that there are now. HTCondor gives each job a /dev/shm of its own, which a worker's process shows."""
    return search_places(cage.secrets, [Path(f"/proc/{pid}/root/dev/shm") for pid in workers(cage)])


def running(cage: Cage) -> None:
    """Waits until a payload has its secrets, which are found in their private folder then."""
    end = time.monotonic() + 90
    while not held_copies(cage):
        assert time.monotonic() < end, cage.product.failures()
        time.sleep(0.3)


def workers(cage: Cage) -> list[int]:
    """The workers of this pool, by their numbers on this machine; a container may have process numbers of its own."""
    first = int((cage.pool.directory / "pid").read_text().split()[0])
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_worker = b"look.0000\0s0000-" in (path / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        above = int(path.name)
        while is_worker and above not in (0, 1, first):
            above = parent_of(Path(f"/proc/{above}"))
        if is_worker and above == first:
            found.append(int(path.name))
    return found


def a_leak_is_found(cage: Cage) -> None:
    """A payload that prints its secret and gives it to a program as an argument: log, packed log and sampler show it."""
    with Sampler(cage.secrets) as sampler:
        cage.run(*cage.submit("leak", "leak"), "--wait", code=None)
    assert any("cmdline" in place for _, place, _ in sampler.found), "the sampler is blind"
    found = {Path(each.place).name for each in search_places(cage.secrets, cage.places(), cage.allowed())}
    assert found, "the search is blind"
    assert search_words(cage.secrets, said=cage.run("logs", "leak", "look.0000"))


@pytest.mark.drill
def test_each_system_call_of_a_pool(loud_cage: Cage, tmp_path: Path) -> None:
    """strace on the pool's first process and all that it starts, for one job: no argument, no environment, no file but the
    job's own scratch folder, the private copy and the credential daemon's."""
    cage, trace = loud_cage, Trace(tmp_path)
    first = int((cage.pool.directory / "pid").read_text().split()[0])
    tracer = subprocess.Popen(attach(first, tmp_path / "trace.0"), stderr=subprocess.PIPE)
    try:
        daemons = [int(p.name) for p in Path("/proc").glob("[0-9]*") if parent_of(p) == first]
        more = [subprocess.Popen(attach(pid, tmp_path / f"trace.{pid}"), stderr=subprocess.PIPE) for pid in daemons]
        time.sleep(1)
        try:
            said = cage.run(*cage.submit("traced"), "--wait", code=None)
        finally:
            for each in more:
                each.terminate()
                each.communicate(timeout=60)
    finally:
        tracer.terminate()
        tracer.communicate(timeout=60)
    assert "1 done" in said, cage.product.failures()
    scratch = (
        "/var/lib/condor/execute/",
        f"{cage.pool.directory}/nodes/",
        f"{cage.pool.directory}/state/oauth/",
        "/srv/",
    )
    places = ("/dev/shm/fermigrid.", "/dev/null", "pipe:[", *scratch)

    def may(line: bytes) -> bool:
        target = target_of(line)
        return target is not None and target.startswith(places)

    assert sum(b"execve" in line for line in trace.lines()) > 10, "nothing was traced"
    assert (found := trace.search(cage.secrets, may)) == [], show(found)


def parent_of(path: Path) -> int:
    """The parent of the process with this folder in /proc; 0 when it has ended."""
    try:
        return int((path / "stat").read_text().rpartition(") ")[2].split()[1])
    except (OSError, IndexError):
        return 0
