"""Jobs that DIRAC starts: by a plain pilot, which leaves the container to the worker, and in DIRAC's own container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.dirac_node import JOB_ID, Pilot
from tests.worker.faulty_http import serve
from tests.worker.node import IMAGES, Node, built, running_node
from tests.worker.test_secrets import certificate
from tests.worker.worker_job import Job, Pairs, sha256

pytestmark = pytest.mark.pool

CVMFS = "/cvmfs/fermi.test/images/light-1"
LIGHT: Pairs = [("image.marker", "light-1"), ("image.path", CVMFS)]
UNMARKED: Pairs = [("image.path", CVMFS)]
HEAD = {"launch": "worker", "order": "wrapper-outside", "runtime": "apptainer", "batch_system": "dirac"}
INSIDE = HEAD | {"order": "wrapper-inside"}
SHOW = [
    "/bin/sh",
    "-c",
    'cat /etc/fermigrid-image; echo "HOME $HOME"; echo "PATH $PATH"; env | sort; echo words >&2; exit 0',
]
OTHER = "/cvmfs/site/default"


@pytest.fixture(scope="module")
def grid() -> Iterator[Node]:
    """A node with a stand-in CVMFS, as a site of the grid has it."""
    with running_node(600) as node:
        node.sh(
            f"""for name in fermi.test site; do mkdir -p /cvmfs/$name; mount --bind {IMAGES}/cvmfs/$name /cvmfs/$name; done"""
        )
        yield node


@pytest.fixture
def pilot(grid: Node, request: pytest.FixtureRequest) -> Pilot:
    folder = grid.folder / f"pilot-{abs(hash(request.node.name)) % 10**9}"
    folder.mkdir(mode=0o755)
    return Pilot(grid, folder)


def job(**what: Any) -> Job:
    what = {"settings": LIGHT, "head": HEAD, "args": SHOW, **what}
    return Job(Path("/unused"), **what)


# --- a plain pilot


@pytest.mark.parametrize("head", [HEAD, INSIDE], ids=["outside", "inside"])
def test_the_worker_starts_the_container_from_cvmfs(pilot: Pilot, head: dict[str, str]) -> None:
    done = pilot.run(job(head=head), env={"LD_LIBRARY_PATH": "/evil"})
    assert (done.code, done.report.where, done.data["container"]) == (0, "host", "worker"), done.out
    assert done.data["image"]["rung"] == "path" and done.data["image"]["source"] == CVMFS
    assert done.out.count(b"\nlight-1\n") == 1 and b"DIRACOS" not in done.out and b"/evil" not in done.out
    # one log: the worker's words and the payload's stderr are in it, in order
    assert done.err == "" and f"DIRAC's job {JOB_ID} at LCG.Example.org" in done.out.decode()
    assert done.out.index(b"fermigrid| ") < done.out.index(b"light-1\n") < done.out.index(b"@@FERMIGRID")


def test_without_cvmfs_the_image_comes_over_http(pilot: Pilot) -> None:
    sif = (built()["images"] / "http/images/light-1.sif").read_bytes()
    with serve(sif) as server:
        http = [("image.url", f"{server.url}/good"), ("image.sha256", sha256(sif)), ("image.size", str(len(sif)))]
        gone = [("image.marker", "light-1"), ("image.path", "/cvmfs/gone/light-1"), *http, ("limit.http", "60")]
        done = pilot.run(job(settings=gone), timeout=120)
    assert (done.code, done.data["image"]["rung"], done.data["container"]) == (0, "http", "worker"), done.out
    assert [try_["result"] for try_ in done.data["image"]["tried"]] == ["absent", "ok"]


def test_the_watchdog_of_dirac_is_told_that_the_walltime_is_watched(pilot: Pilot) -> None:
    pilot.run(job())
    assert (pilot.folder / "back/DISABLE_WATCHDOG_CPU_WALLCLOCK_CHECK").exists()


@pytest.mark.parametrize("head", [HEAD, INSIDE], ids=["outside", "inside"])
def test_dirac_does_not_begin_a_job_again_by_itself(pilot: Pilot, head: dict[str, str]) -> None:
    """With 222 it would, and the job would run beside its next generation."""
    done = pilot.run(job(head=head, args=["/bin/sh", "-c", "exit 222"]))
    assert (done.code, done.data["payload_exit"]) == (79, 222)


@pytest.mark.fault(
    fault="DIRAC has not brought an input that is in its catalogue", mode="host", does="names it", code=86
)
def test_inputs_that_dirac_brings_are_taken_from_the_job_s_folder(pilot: Pilot, tmp_path: Path) -> None:
    row = [("in", "data.fit"), ("in.from", "LFN:/glast.org/data/r1.fit"), ("in.bytes", "6")]
    work = job(row=row, args=["/bin/cat", "data.fit"])
    done = pilot.run(work)
    assert done.code == 86 and "LFN:/glast.org/data/r1.fit: not there" in done.message


@pytest.mark.parametrize("head", [HEAD, INSIDE], ids=["outside", "inside"])
def test_an_input_of_dirac(pilot: Pilot, head: dict[str, str]) -> None:
    row = [("in", "data.fit"), ("in.from", "LFN:/glast.org/data/r1.fit"), ("in.bytes", "7")]
    work = job(row=row, head=head, args=["/bin/cat", "data.fit"])
    pilot.before = "echo events > sandbox/r1.fit"
    done = pilot.run(work)
    assert done.code == 0 and b"\nevents\n" in done.out, done.out
    assert done.data["inputs"][0]["source"] == "LFN:/glast.org/data/r1.fit"


# --- DIRAC's own container


def test_dirac_has_started_the_right_image(pilot: Pilot, tmp_path: Path) -> None:
    pilot.root = CVMFS
    pilot.proxy = certificate(tmp_path, "good.pem", "491231235959Z").read_text()
    secret = [
        ("secret", "p"),
        ("secret.kind", "proxy"),
        ("secret.from", "proxy"),
        ("secret.point", "X509_USER_PROXY=proxy"),
    ]
    done = pilot.run(
        job(settings=[*LIGHT, *secret]), env={"X509_CERT_DIR": "/grid/certificates", "SECRET": "of the host"}
    )
    assert (done.code, done.report.where, done.data["container"]) == (0, "image", "site"), done.out
    assert (done.data["image"]["rung"], done.data["image"]["source"]) == ("site", CVMFS)
    text = done.out.decode()
    assert f"DIRAC has started this container itself, from its site's ContainerRoot: {CVMFS}" in text
    shown = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line and line[0].isupper())
    assert shown["HOME"] != "/tmp" and "diracos" not in shown["PATH"] and "/usr/bin" in shown["PATH"]
    assert not {"PYTHONPATH", "DIRAC", "DIRACOS", "DIRACSYSCONFIG", "X509_CERT_DIR", "SECRET"} & {*shown}
    assert not any("dirac" in value for value in shown.values())  # LD_LIBRARY_PATH is the image's own
    assert shown["X509_USER_PROXY"] not in ("", "/tmp/proxy")  # a private copy
    built = pilot.command()  # by DIRAC's own code
    assert built[:4] == ["apptainer", "exec", "--contain", "--ipc"]
    assert built[6:9] == ["--home", "/tmp", "--userns"]
    assert built[-2:] == [CVMFS, "/tmp/dirac_container.sh"]


def test_an_image_without_a_marker_is_known_by_its_path(pilot: Pilot) -> None:
    pilot.root = CVMFS
    done = pilot.run(job(settings=UNMARKED))
    assert (done.code, done.report.where, done.data["container"]) == (0, "image", "site"), done.out


@pytest.mark.fault(
    fault="DIRAC's own container is another image, and there is no runtime in it",
    mode="site",
    does="names the image, does not run the payload in it",
    code=82,
)
@pytest.mark.parametrize("settings", [LIGHT, UNMARKED], ids=["marker", "no marker"])
@pytest.mark.parametrize("before", ["", "unset ${!APPTAINER_*} ${!SINGULARITY_*}"], ids=["", "variables lost"])
def test_dirac_has_started_another_image(pilot: Pilot, settings: Pairs, before: str) -> None:
    """Also where nothing is left of the runtime's variables: HOME and the script on /tmp tell whose container it is."""
    pilot.root, pilot.before = OTHER, before
    done = pilot.run(job(settings=settings, args=["/bin/echo", "it", "ran"]))
    assert (done.code, done.report.where) == (82, "other") and not done.data["started_payload"], done.out
    named = "unnamed" if before else OTHER
    assert f"from its site's ContainerRoot: {named}" in done.out.decode() and b"it ran" not in done.out


def test_in_another_image_with_a_runtime_the_worker_starts_its_own_in_it(pilot: Pilot) -> None:
    """The site's container is the node's own system: a runtime is in it, as there is one on CVMFS elsewhere."""
    pilot.node.sh("mkdir -p /mnt/system; mountpoint -q /mnt/system || mount --bind / /mnt/system")
    pilot.root = "/mnt/system"
    done = pilot.run(job())
    assert (done.code, done.report.where, done.data["container"]) == (0, "other", "nested"), done.out
    assert b"\nlight-1\n" in done.out
