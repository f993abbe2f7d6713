"""The canary on the real pool: secrets of all five kinds in jobs that end well, badly, and by a kill; then every daemon's
log, spool, queue and history, every scratch folder, and all that fermigrid wrote or said is searched for their values."""

from __future__ import annotations

import json
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

from tests.canary import (
    Canaries,
    Found,
    Sampler,
    Trace,
    attach,
    prove_search,
    search_places,
    search_shared,
    search_words,
    target_of,
)
from tests.canary_secrets import person_environment
from tests.pool.conftest import Pool, call_pool, describe, watchdog
from tests.pool.planted import KINDS, own, plant
from tests.pool.product import UID, Product

pytestmark = pytest.mark.pool

# What HTCondor can say at the most, and logs that are never cut. A starter at full debug still writes after it has hidden
# /tmp from its job: it would lose its log there, and with that the job ("dprintf hit fatal errors").
WORDY = "D_FULLDEBUG D_SECURITY D_COMMAND D_JOB D_MACHINE D_PROTOCOL"
DAEMONS = ("MASTER", "COLLECTOR", "NEGOTIATOR", "SCHEDD", "SHADOW", "STARTD", "STARTER", "CREDD", "SHARED_PORT", "TOOL")
LOUD = "MAX_DEFAULT_LOG = 0\nMOUNT_UNDER_SCRATCH =\n" + "".join(f"{name}_DEBUG = {WORDY}\n" for name in DAEMONS)
# Nodes as pilots are: what their daemons have in their environment, their jobs inherit.
PILOT = """\
JOB_INHERITS_STARTER_ENVIRONMENT = True
STARTD_ENVIRONMENT = "POOL_SITE=a BEARER_TOKEN=VALUE PILOT_PASSWORD=VALUE SOME_VARIABLE=VALUE"
SITEF_ENVIRONMENT = "POOL_SITE=f BEARER_TOKEN=VALUE PILOT_PASSWORD=VALUE SOME_VARIABLE=VALUE"
"""
USE = """#!/bin/bash
set -o pipefail
wallet=${TNS_ADMIN:+$TNS_ADMIN/cwallet.sso} none=/dev/null
for file in "${XRD_CLCONFFILE:-$none}" "${MYSQL_CNF:-$none}" "${wallet:-$none}" "${X509_USER_PROXY:-$none}" "${BEARER_TOKEN_FILE:-$none}"; do
    cksum < "$file" > /dev/null || exit 9
done
[ -z "${MYSQL_CNF:-}" ] || grep -q password= "$HOME/.my.cnf" || exit 9
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
GRID = ("slurm", "ce")  # ways by which others' disks and programs hand the job on: path and sealed alone go there
# What the search looks at in the pool's own namespaces.
PRIVATE = ("var/lib/condor", "run", "dev/shm", "var/tmp", "lscratch", "var/log")


@dataclass
class Cage:
    """A pool, a person on it, and the secrets with canaries in them."""

    pool: Pool
    product: Product
    way: str = "SITEF"
    pilot: Canaries = field(default_factory=Canaries)
    secrets: Canaries = field(default_factory=Canaries)
    shell: Canaries = field(default_factory=Canaries)
    said: list[str] = field(default_factory=list)
    since: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.planted = plant(self.product, self.way)
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
        out, err = process.communicate(timeout=600)
        self.said.append(out + err)
        assert code is None or process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return out + err

    @property
    def kinds(self) -> list[str]:
        """The secrets that can be had. SITEA's containers do not see the folder where the nodes keep theirs."""
        on_the_node = {secret for secret, (kind, *_) in KINDS.items() if kind in ("path", "sealed")}
        return [secret for secret in KINDS if self.way == "SITEF" or (secret in on_the_node) == (self.way in GRID)]

    def submit(self, name: str, way: object = 0) -> list[str]:
        """The words that submit a new campaign."""
        text = CAMPAIGN.replace("NAME", name).replace("WAY", str(way)).replace("SECRETS", ", ".join(self.kinds))
        self.product.write(f"{name}.yaml", text)
        return ["submit", f"{name}.yaml", "--site", "kinds", "--sites", "sites"]

    def state(self, name: str) -> str:
        """The state of a campaign's one job."""
        states: dict[str, int] = json.loads(self.product.run("status", name, "--json").stdout)["states"]
        return next(state for state, count in states.items() if count)

    def until(self, name: str, *wanted: str, limit_s: float = 120) -> None:
        """Waits until the campaign's one job is in one of these states."""
        end = time.monotonic() + limit_s
        while (now := self.state(name)) not in wanted:
            assert time.monotonic() < end, f"{name} is {now}, not {wanted}\n{self.product.failures()}"
            time.sleep(0.3)

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
            found += search_shared(flock, since or self.since)
        return found + self.inherited()

    def inherited(self) -> list[Found]:
        """What of the environment of daemons has got to where results, reports and messages are."""
        told = search_words(self.pilot, said="\n".join(self.said))
        return told + search_places(self.pilot, [self.product.folder])


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
def loud_cage(private_folder: Path) -> Iterator[Cage]:
    """A pool of the test's own whose daemons tell all that they can, and have in their environment what a pilot has."""
    pilot = Canaries()
    (private_folder / "etc/config.d").mkdir(parents=True)
    settings = LOUD + PILOT.replace("VALUE", pilot.core("pilot"))
    (private_folder / "etc/config.d/loud").write_text(settings)
    done = call_pool(private_folder, "start", "secrets", timeout=600)
    assert done.returncode == 0, done.stderr
    pool = describe(private_folder)
    with watchdog(pool):
        yield Cage(pool, person_on(pool), pilot=pilot)


@pytest.fixture
def handed_on(pool: Pool) -> list[Cage]:
    """The shared pool with what stands behind HTCondor's grid universe: a Slurm, a second schedd. One set of marks."""
    done = call_pool(pool.directory, "start", "grid", timeout=120)
    assert done.returncode == 0, done.stderr
    marks = Canaries()
    return [Cage(pool, person_on(pool), way, secrets=marks) for way in GRID]


def test_all_five_kinds_where_everything_is_told(loud_cage: Cage) -> None:
    """A good job, and one that is held, released and removed while it has its secrets, on nodes whose daemons have
    a pilot's environment: the search finds nothing, and would have."""
    cage = loud_cage
    for folder in (cage.product.folder, cage.pool.directory / "log"):
        prove_search(cage.secrets, folder)
    with Sampler(cage.secrets) as sampler:
        said = cage.run(*cage.submit("good"), "--wait", code=None)
        assert "1 done" in said, cage.product.failures()
        cage.take_credentials()
        cage.look("good")
        held_released_removed(cage)
        daemons_are_seen(cage)
    assert sampler.looks > 5 and not sampler.found, show([*sampler.found.values()])
    assert b" Env = " in starter_log(cage), "the starter told little"
    assert (found := cage.loose()) == [], show(found)


def test_what_goes_through_other_systems(handed_on: list[Cage]) -> None:
    """Slurm, blahp, gridmanager and the CE's schedd: their spools, logs, scripts and processes have no value of a
    secret."""
    with Sampler(handed_on[0].secrets) as sampler:
        for cage in handed_on:
            cage.run(*cage.submit("good"))
        for cage in handed_on:
            assert "1 done" in cage.run("watch", "good", code=None), cage.product.failures()
            cage.look("good")
            assert "secrets used" in "".join(cage.said)
    assert sampler.looks > 5 and not sampler.found, show([*sampler.found.values()])
    for cage, folder in zip(handed_on, ("slurm", "spool.ce"), strict=True):
        spool, mark = cage.pool.directory / "state" / folder, Canaries()
        prove_search(cage.secrets, spool)
        mark.watch("the run folder", f"{cage.product.folder}/fermigrid-runs/good".encode())
        assert search_places(mark, [spool]), f"nothing of the job is in {spool}"
    assert (found := handed_on_loose(handed_on)) == [], show(found)


@pytest.mark.drill
def test_other_systems_when_jobs_end_badly(handed_on: list[Cage]) -> None:
    """Failed, held, released, removed and killed, through Slurm and a CE."""
    with Sampler(handed_on[0].secrets) as sampler:
        for cage in handed_on:
            cage.run(*cage.submit("bad", 3), "--wait", code=1)
            cage.look("bad")
            held_released_removed(cage)
            killed(cage)
    assert not sampler.found, show([*sampler.found.values()])
    assert (found := handed_on_loose(handed_on)) == [], show(found)


def handed_on_loose(cages: Sequence[Cage]) -> list[Found]:
    """Every canary that is where it should not be; each cage's own files may have the marks of all."""
    allowed = [path for cage in cages for path in cage.allowed()]
    return [
        found
        for cage in cages
        for found in cage.loose(cage.since)
        if not any(Path(found.place).is_relative_to(path) for path in allowed)
    ]


@pytest.mark.drill
@pytest.mark.parametrize("way", ["SITEA", "SITEF"])
def test_everything_at_full_debug(loud_cage: Cage, way: str) -> None:
    """Each end of a job, at a pool that starts the container and one where the worker does, with every daemon at its
    wordiest."""
    cage = loud_cage if way == "SITEF" else Cage(loud_cage.pool, person_on(loud_cage.pool), way, loud_cage.pilot)
    for folder in (cage.product.folder, cage.pool.directory / "log", cage.pool.directory / "state/spool"):
        prove_search(cage.secrets, folder)
    with Sampler(cage.secrets) as sampler:
        assert "1 done" in cage.run(*cage.submit("good"), "--wait", code=None), cage.product.failures()
        cage.take_credentials()
        cage.look("good")
        for name, payload in {"bad": 3, "core": "core"}.items():
            cage.run(*cage.submit(name, payload), "--wait", code=1)
            cage.look(name)
        held_released_removed(cage)
        killed(cage)
        own_files = cage.planted.node / "xrootd"
        own_files.rename(cage.planted.node / "gone")
        cage.run(*cage.submit("absent"), "--wait", code=1 if way == "SITEF" else 0)
        (cage.planted.node / "gone").rename(own_files)
        cage.look("absent")
        (cage.planted.here / "calibration").rename(cage.planted.here / "gone")
        cage.run(*cage.submit("refused"), "--wait", code=21)
        (cage.planted.here / "gone").rename(cage.planted.here / "calibration")
    assert not sampler.found, show([*sampler.found.values()])
    assert (found := cage.loose()) == [], show(found)
    a_leak_is_found(cage)


def held_released_removed(cage: Cage) -> None:
    """A job at work with its secrets is held, released, at work again, and removed; each time its copies go."""
    cage.run(*cage.submit("long", "wait"))
    for verb, state in {"hold": "held", "remove": "removed"}.items():
        running(cage)
        if cage.way == "SITEF":  # elsewhere a container, a CE or Slurm stands between
            inherited = [Path(f"/proc/{pid}/environ").read_bytes() for pid in workers(cage)]
            assert any(cage.pilot.word.encode() in each for each in inherited), "the worker inherits nothing"
        assert f"{state}: 1 job" in cage.run(verb, "long")
        cage.until("long", state)
        until_gone(cage)
        cage.look("long")
        if verb == "hold":
            assert "released: 1 job" in cage.run("release", "long")
            cage.until("long", "waiting", "running")
            cage.look("long")


def killed(cage: Cage) -> None:
    """The worker of a job at work is killed with KILL: the copies go all the same, and the job is not done.

    Its guard removes them. Where the batch system is faster, and kills that too, the next job on the machine does.
    """
    cage.run(*cage.submit("killed", "wait"))
    running(cage)
    at_work = workers(cage)
    for pid in at_work:  # not what it has started
        folder = Path(f"/proc/{pid}")
        if parent_of(folder) not in at_work and (folder / "exe").readlink().name == "bash":
            os.kill(pid, 9)
    cage.look("killed")
    cage.run("remove", "killed")
    cage.until("killed", "failed", "removed")
    end, later = time.monotonic() + 180, 0
    while held_copies(cage):
        assert time.monotonic() < end, "the copies stay"
        cage.run(*cage.submit(f"later{later}"), "--wait", code=None)
        later += 1


def until_gone(cage: Cage) -> None:
    """Waits until no private copy is left."""
    end = time.monotonic() + 60
    while held_copies(cage):
        assert time.monotonic() < end, "the copies stay"
        time.sleep(0.3)


def daemons_are_seen(cage: Cage) -> None:
    """The environments that are searched are those of daemons, too: what was planted in one is seen."""
    with Sampler(cage.pilot) as seen:
        end = time.monotonic() + 20
        while not any(what == "environ" for _, what, _ in seen.found):
            assert time.monotonic() < end, "the sampler does not see the daemons' environments"
            time.sleep(0.1)


def starter_log(cage: Cage) -> bytes:
    """What the starters said."""
    return b"".join(path.read_bytes() for path in (cage.pool.directory / "log").glob("StarterLog.sitef.slot*"))


def held_copies(cage: Cage) -> list[Found]:
    """The private copies that there are now: in the /dev/shm of the nodes, and of each job that has one of its own."""
    first = int((cage.pool.directory / "pid").read_text().split()[0])
    return search_places(cage.secrets, [Path(f"/proc/{pid}/root/dev/shm") for pid in (first, *workers(cage))])


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
