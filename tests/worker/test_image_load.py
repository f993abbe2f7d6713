"""The image under load: many jobs of a node at once, killed downloaders, a server that caps its pulls, a cache that others use too."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import ssl
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme

from tests.worker.faulty_http import Faulty, serve
from tests.worker.node import wait_for
from tests.worker.test_functions import sif
from tests.worker.test_image import (
    CLIMB,
    MakeJob,
    cached,
    climb,
    entries,
    fault,
    folder_image,
    folder_of,
    hidden,
    http,
    image_of,
    prefix,
    results,
    served,
    start,
)
from tests.worker.worker_job import Done, Job, Pairs, finish, sha256

__all__ = ["hidden", "prefix"]


def all_at_once(jobs: list[Job], prefix: list[str] | None = None, env: dict[str, str] | None = None) -> list[Done]:
    """Their ladders, started together."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(lambda job: finish(start(job, env, prefix or []), 120), jobs))


def part_of(faulty: Faulty, cache: Path) -> Path:
    return folder_of(cache) / f"{sha256(faulty.content)}.sif.{os.geteuid()}.part"


def started(
    job: Job, faulty: Faulty, cache: Path, prefix: list[str] | None = None, bytes_: int = 150_000
) -> subprocess.Popen[bytes]:
    """A ladder whose download has reached `bytes_`."""
    process = start(job, prefix=prefix or [])
    part = part_of(faulty, cache)
    wait_for(lambda: part.exists() and part.stat().st_size >= bytes_, "the download has not begun")
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate(timeout=20)


# --- one download a node


@fault(
    "many jobs start at once on a node with a cache",
    "one of them downloads; the others wait and use the same file in place",
)
def test_forty_jobs_make_one_download(make_job: MakeJob, faulty: Faulty, tmp_path: Path, prefix: list[str]) -> None:
    jobs = [make_job(settings=[*cached(faulty, tmp_path / "c", "slow"), ("jitter", "1")]) for _ in range(40)]
    ends = all_at_once(jobs, prefix)
    assert [done.code for done in ends] == [0] * 40
    assert sorted(done.report.rung for done in ends) == ["cache"] * 39 + ["http"]
    assert len(faulty.requests) == 1 and all(served(job) == faulty.content for job in jobs)
    assert {image_of(job) for job in jobs} == {folder_of(tmp_path / "c") / f"{sha256(faulty.content)}.sif"}
    assert len(entries(tmp_path / "c")) == 2


def test_they_are_woken_at_once(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    """Not one after the other: with a second of waiting each, twenty would take long."""
    faulty.hold_s = 6
    jobs = [make_job(settings=cached(faulty, tmp_path / "c", "slow")) for _ in range(20)]
    began = time.monotonic()
    ends = all_at_once(jobs, env={"FERMIGRID_STALL": "30"})
    assert time.monotonic() - began < 10 and len(faulty.requests) == 1
    assert [done.code for done in ends] == [0] * 20


@fault("kill -9 of the worker that downloads, while others wait", "one of those that wait goes on with what is there")
def test_a_killed_downloader_has_a_successor(
    make_job: MakeJob, faulty: Faulty, tmp_path: Path, prefix: list[str]
) -> None:
    settings = cached(faulty, tmp_path / "c", "stallonce")
    first = started(make_job(settings=settings), faulty, tmp_path / "c", prefix)
    jobs = [make_job(settings=settings) for _ in range(5)]
    others = [start(job, prefix=prefix) for job in jobs]
    time.sleep(0.5)  # they are waiting by now, or come later: both must work
    kill(first)
    began = time.monotonic()
    ends = [finish(process) for process in others]
    assert [done.code for done in ends] == [0] * 5 and time.monotonic() - began < 15
    assert all(served(job) == faulty.content for job in jobs)
    assert sorted(done.report.rung for done in ends) == ["cache"] * 4 + ["http"]
    resumed = [206] if prefix == [] else [200]  # without flock it cannot be known that the dead one's curl has ended
    assert faulty.statuses() == [200, *resumed]
    assert len(entries(tmp_path / "c")) == 2


@fault(
    "kill -9 of the worker after its download, before the file has its name",
    "the digest is taken, nothing is downloaded",
)
def test_a_whole_part_is_used(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    folder_of(tmp_path / "c").mkdir(parents=True, mode=0o700)
    part_of(faulty, tmp_path / "c").write_bytes(faulty.content)
    job = make_job(settings=cached(faulty, tmp_path / "c", "404"))
    assert climb(job).report.rung == "http" and served(job) == faulty.content and faulty.requests == []


@pytest.mark.parametrize("size", [300_000, 300_001])
def test_a_part_that_is_whole_and_wrong_costs_one_download(
    make_job: MakeJob, faulty: Faulty, tmp_path: Path, size: int
) -> None:
    """Also the answer 416 to what is as long as the file, where the size is not known beforehand."""
    folder_of(tmp_path / "c").mkdir(parents=True, mode=0o700)
    for known in (True, False):
        part = part_of(faulty, tmp_path / "c")
        part.write_bytes(b"x" * size)
        part.with_name(part.name + ".url").write_text(f'{faulty.url}/good/i.sif\n"v1"\n')
        settings = [pair for pair in cached(faulty, tmp_path / "c", "good") if known or pair[0] != "image.size"]
        job = make_job(settings=settings)
        assert climb(job).report.rung == "http" and served(job) == faulty.content
        (folder_of(tmp_path / "c") / f"{sha256(faulty.content)}.sif").unlink()
    assert 416 in faulty.statuses() and faulty.statuses().count(200) == 2


@fault("the part of another URL, or of a file that has changed", "it is never continued")
def test_a_part_of_another_url(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    folder_of(tmp_path / "c").mkdir(parents=True, mode=0o700)
    for line in (
        f'{faulty.url}/other/i.sif\n"v1"\n',
        f'{faulty.url}/good/i.sif\n"v0"\n',
        f'{faulty.url}/good/i.sif\nW/"v1"\n',
        "",
    ):
        part = part_of(faulty, tmp_path / "c")
        part.write_bytes(faulty.content[:1000] + b"other" * 1000)
        part.with_name(part.name + ".url").write_text(line)
        job = make_job(settings=cached(faulty, tmp_path / "c", "good"))
        assert climb(job).report.rung == "http" and served(job) == faulty.content
        (folder_of(tmp_path / "c") / f"{sha256(faulty.content)}.sif").unlink()
    assert set(faulty.statuses()) == {200}


@fault("the lock of the cache does not come within limit.http", "the image is fetched for this job alone")
def test_a_lock_that_does_not_come(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    folder_of(tmp_path / "c").mkdir(parents=True, mode=0o700)
    job = make_job(settings=[*cached(faulty, tmp_path / "c", "good"), ("limit.http", "2")])
    with subprocess.Popen(["flock", "-x", folder_of(tmp_path / "c"), "sleep", "60"], start_new_session=True) as holder:
        wait_for(
            lambda: subprocess.run(["flock", "-x", "-n", folder_of(tmp_path / "c"), "true"], check=False).returncode,
            "no lock",
        )
        began = time.monotonic()
        done = climb(job)
        os.killpg(holder.pid, signal.SIGKILL)
    assert done.code == 0 and served(job) == faulty.content and "no lock within 2 s" in done.err
    assert 1.5 < time.monotonic() - began < 8 and entries(tmp_path / "c") == set()


@pytest.mark.parametrize(("owner", "waits"), [("999999999", False), ("1", True)])
def test_a_lock_by_name(
    make_job: MakeJob, faulty: Faulty, tmp_path: Path, hidden: Callable[..., list[str]], owner: str, waits: bool
) -> None:
    """Without flock: the link of a dead process is removed; that of one that lives is waited for, but not for ever."""
    folder_of(tmp_path / "c").mkdir(parents=True, mode=0o700)
    lock = folder_of(tmp_path / "c") / "lock"
    lock.symlink_to(f"{owner} {Path('/proc/self/ns/pid').readlink()}")
    job = make_job(settings=[*cached(faulty, tmp_path / "c", "good"), ("limit.http", "2")])
    done = climb(job, prefix=hidden("flock"))
    assert done.code == 0 and served(job) == faulty.content
    assert ("no lock within 2 s" in done.err) == waits and (len(entries(tmp_path / "c")) == 0) == waits
    assert lock.is_symlink() == waits


@pytest.mark.drill
def test_a_storm(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    """Two hundred at once with 20 MB: one GET; processes bounded: a worker that waits has two."""
    faulty.content = os.urandom(20_000_000)
    faulty.hold_s = 8
    jobs = [
        make_job(settings=[*cached(faulty, tmp_path / "c", "slow", limit=10**9), ("limit.http", "60")])
        for _ in range(200)
    ]
    before = len(list(Path("/proc").glob("[0-9]*")))
    processes = [start(job, {"FERMIGRID_STALL": "30"}) for job in jobs]
    most = 0
    wait_for(lambda: len(faulty.seen) > 0, "nobody asks")
    end = time.monotonic() + 6
    while time.monotonic() < end:
        most = max(most, len(list(Path("/proc").glob("[0-9]*"))) - before)
        time.sleep(0.2)
    ends = [finish(process, 120) for process in processes]
    assert len(faulty.requests) == 1, "".join(
        {line for done in ends for line in done.err.splitlines(True) if "absent" not in line}
    )
    assert [done.code for done in ends] == [0] * 200
    assert sorted(done.report.rung for done in ends) == ["cache"] * 199 + ["http"]
    assert most < 200 * 3 + 100
    assert {image_of(job) for job in jobs} == {folder_of(tmp_path / "c") / f"{sha256(faulty.content)}.sif"}


@pytest.mark.drill
@pytest.mark.parametrize("seed", range(30))
def test_kills_at_any_moment(make_job: MakeJob, faulty: Faulty, tmp_path: Path, prefix: list[str], seed: int) -> None:
    """The one that downloads is killed, and the next, and the next: in the end there is a whole image, and nothing else."""
    chance = random.Random(seed)
    faulty.content, faulty.hold_s = os.urandom(3_000_000), 0.1
    settings = cached(faulty, tmp_path / "c", chance.choice(["slow", "drop", "stallonce", "norange"]))
    running = [start(make_job(settings=settings), prefix=prefix) for _ in range(6)]
    for process in running[:5]:
        time.sleep(chance.uniform(0, 0.6))
        kill(process)
    assert finish(running[5], 60).code == 0
    last = make_job(settings=settings)
    done = climb(last, prefix=prefix)
    assert done.report.rung == "cache" and served(last) == faulty.content and "digest is taken again" not in done.err, (
        done.err
    )
    assert len(entries(tmp_path / "c")) == 2, entries(tmp_path / "c")


# --- the origin's side


@fault(
    "the origin answers 503 or 429 with Retry-After: it caps the pulls of a campaign",
    "comes back when the origin said, until limit.http",
)
def test_the_cap_of_a_campaign(make_job: MakeJob, faulty: Faulty) -> None:
    """Twelve nodes, two pulls at a time, and each node comes back no sooner than it was told, as often as it needs."""
    faulty.capacity, faulty.hold_s = 2, 1.5
    jobs = [make_job(settings=[*http(faulty, "busy")[:-1], ("limit.http", "90")]) for _ in range(12)]
    ends = all_at_once(jobs, env={"FERMIGRID_STALL": "30"})
    assert [done.code for done in ends] == [0] * 12 and all(served(job) == faulty.content for job in jobs)
    assert faulty.busiest <= faulty.capacity and faulty.statuses().count(200) == 12
    assert max(done.err.count("503; again") for done in ends) >= 4
    for done in ends:
        assert done.data["image"]["seconds"] >= done.err.count("503; again") * 1.0


@fault("Retry-After as a date, by a clock that is wrong", "waits so long as the server means")
def test_retry_after_as_a_date(make_job: MakeJob, faulty: Faulty) -> None:
    done = climb(make_job(settings=http(faulty, "later")))
    assert done.code == 0 and faulty.statuses() == [429, 200]
    assert 2.5 < faulty.times[1] - faulty.times[0] < 10


@fault("Retry-After lies beyond the time limit", "takes the next mirror at once")
def test_retry_after_too_late(make_job: MakeJob, faulty: Faulty) -> None:
    began = time.monotonic()
    done = climb(make_job(settings=http(faulty, "never", "good")))
    assert results(done) == ["http: 503", "http: ok"] and time.monotonic() - began < 5


def test_jitter_is_for_those_that_download(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    jobs = [make_job(settings=[*http(faulty, "good"), ("jitter", "8")]) for _ in range(10)]
    waits = [done.data["image"]["seconds"] for done in all_at_once(jobs)]
    assert 3 < max(waits) < 20 and max(waits) - min(waits) > 0.3
    settings = [*cached(faulty, tmp_path / "c", "good")]
    climb(make_job(settings=settings))
    done = climb(make_job(settings=[*settings, ("jitter", "1000")]))
    assert done.report.rung == "cache" and done.data["image"]["seconds"] < 3


@pytest.fixture(params=["curl", "wget"])
def client(request: pytest.FixtureRequest, hidden: Callable[..., list[str]]) -> list[str]:
    """A command prefix under which there is only this program to download with."""
    return hidden("wget" if request.param == "curl" else "curl")


@fault("an origin whose certificate nobody knows", "does not fetch from it", 82)
def test_https(make_job: MakeJob, tmp_path: Path, client: list[str]) -> None:
    """The certificate of a site's own authority is named by CURL_CA_BUNDLE, as a site's preamble may set it."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with serve(os.urandom(100_000), tls=context) as server:
        job = make_job(settings=http(server, "good"))
        done = climb(job, {"CURL_CA_BUNDLE": str(tmp_path / "ca.pem")}, prefix=client)
        assert done.code == 0 and served(job) == server.content, done.err
        assert climb(make_job(settings=http(server, "good")), prefix=client).code == 82


def test_ipv6(make_job: MakeJob, client: list[str]) -> None:
    with serve(os.urandom(100_000), host="::1") as server:
        job = make_job(settings=http(server, "good"))
        assert climb(job, prefix=client).code == 0 and served(job) == server.content


@fault("scratch is full, and there is only wget", "says so", 89)
def test_a_full_disk_with_wget(
    make_job: MakeJob, faulty: Faulty, small_disk: list[str], hidden: Callable[..., list[str]]
) -> None:
    faulty.content = os.urandom(4_000_000)
    assert climb(make_job(settings=http(faulty, "good")), prefix=[*hidden("curl"), *small_disk]).code == 89


# --- the cache's folder


def on_mount(folder: Path, options: str) -> list[str]:
    """A command prefix: a tmpfs with these options on `folder`, in a mount namespace of its own."""
    folder.mkdir()
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--mount", "sh", "-c", f'mount -t tmpfs -o {options} small {folder} && exec "$@"', "sh"]


@fault("the disk of the node's cache is full", "the image is fetched for this job alone")
def test_the_caches_disk_is_full(
    make_job: MakeJob, faulty: Faulty, tmp_path: Path, hidden: Callable[..., list[str]]
) -> None:
    for number, hiding in enumerate(([], hidden("curl"))):
        job = make_job(settings=cached(faulty, tmp_path / f"c{number}", "good", "404"))
        done = climb(job, prefix=[*hiding, *on_mount(tmp_path / f"c{number}", "size=200k")])
        assert served(job) == faulty.content and results(done) == [
            "cache: absent",
            "http: cannot be written",
            "http: ok",
        ]
        assert done.data["image"]["source"].startswith("http") and "for this job alone" in done.err


@fault("the node's cache is read-only", "goes without it")
def test_a_read_only_cache(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    job = make_job(settings=cached(faulty, tmp_path / "c", "good"))
    done = climb(job, prefix=on_mount(tmp_path / "c", "ro"))
    assert served(job) == faulty.content and results(done) == ["http: ok"] and "cannot be used" in done.err


def test_an_image_cannot_be_evicted_while_it_is_looked_at(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    """Sixteen jobs of two images in a cache that has room for one: each gets a whole image."""
    contents = [os.urandom(300_000) for _ in range(2)]
    with serve(contents[0]) as one, serve(contents[1]) as two:
        jobs = [make_job(settings=cached(server, tmp_path / "c", "good", limit=400_000)) for server in (one, two) * 8]
        script = CLIMB.replace("cp -RL", "sleep 0.$RANDOM; cp -RL")
        with ThreadPoolExecutor(16) as pool:
            ends = list(pool.map(lambda job: climb(job, script=script), jobs))
    assert [done.code for done in ends] == [0] * 16
    assert [served(job) for job in jobs] == contents * 8
    assert sum(path.stat().st_size for path in folder_of(tmp_path / "c").glob("*.sif")) <= 400_000


# --- one folder for all users of a node


USERS = (20001, 20002)


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder for all users, and a place for jobs that others can reach."""
    made = Path(tempfile.mkdtemp(prefix="fermigrid-common-"))
    made.chmod(0o1777)
    yield made
    shutil.rmtree(made)


def climb_as(user: int, job: Job) -> Done:
    """The ladder as another user of the node."""
    job.scratch.mkdir(parents=True)
    job.scratch.chmod(0o777)
    assert os.geteuid() == 0, "this test needs root, to be two users"
    return climb(job, prefix=["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"])


def shared(faulty: Faulty, folder: Path, *ways: str, limit: int = 10_000_000) -> Pairs:
    return [*cached(faulty, folder / "c", *ways, limit=limit), ("node_cache.shared", "yes")]


def test_a_cache_for_all_users(faulty: Faulty, common: Path) -> None:
    """The second user takes the digest once, because another has written the file; then the stamp is his own."""
    count = iter(range(100))

    def run(user: int) -> tuple[Done, Job]:
        job = Job(common / f"j{next(count)}", settings=shared(faulty, common, "good"))
        return climb_as(user, job), job

    assert run(USERS[0])[0].report.rung == "http"
    second, job = run(USERS[1])
    assert second.report.rung == "cache" and served(job) == faulty.content and "digest is taken again" in second.err
    third, _ = run(USERS[1])
    assert third.report.rung == "cache" and "digest is taken again" not in third.err and len(faulty.requests) == 1
    folder = common / "c/shared"
    assert folder.stat().st_mode & 0o7777 == 0o1777
    image = folder / f"{sha256(faulty.content)}.sif"
    assert image.stat().st_uid == USERS[0] and image.stat().st_mode & 0o777 == 0o644


@fault(
    "another user of the node has changed an image of the shared cache",
    "is not used, even with its old size and time; fetched for this job alone",
)
def test_an_image_that_another_user_has_changed(faulty: Faulty, common: Path) -> None:
    for number, user in enumerate((USERS[0], USERS[1])):
        climb_as(user, Job(common / f"j{number}", settings=shared(faulty, common, "good")))
    image = common / f"c/shared/{sha256(faulty.content)}.sif"
    times = image.stat()
    with image.open("r+b") as file:
        file.write(b"changed")
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    job = Job(common / "last", settings=shared(faulty, common, "good"))
    done = climb_as(USERS[1], job)
    assert done.report.rung == "http" and served(job) == faulty.content and "damaged" in results(done)[0]
    assert image.exists(), "it is not this user's to remove"
    assert climb_as(USERS[0], Job(common / "owner", settings=shared(faulty, common, "good"))).report.rung == "http"
    assert image.read_bytes() == faulty.content


@pytest.mark.parametrize("what", ["fifo", "link", "part", "stamp"])
def test_what_another_user_has_put_in_the_way(faulty: Faulty, common: Path, what: str) -> None:
    folder = common / "c/shared"
    folder.mkdir(parents=True)
    for path in (common / "c", folder):
        path.chmod(0o1777)
    image = folder / f"{sha256(faulty.content)}.sif"
    if what == "fifo":
        os.mkfifo(image, 0o644)
        image.chmod(0o666)
    elif what == "link":
        (common / "evil").write_bytes(faulty.content)
        image.symlink_to(common / "evil")
    elif what == "stamp":  # as if this user had taken the digest of another image
        image.write_bytes(b"evil")
        os.chown(image, USERS[0], USERS[0])
        state = subprocess.run(["stat", "-c", "%s %i %z", image], check=True, capture_output=True).stdout
        image.with_name(f"{image.name}.{USERS[1]}.stamp").write_bytes(state)
    else:
        part = image.with_name(f"{image.name}.{USERS[1]}.part")
        part.write_bytes(b"")
        part.chmod(0o666)
    for path in folder.iterdir():
        if path.lstat().st_uid != USERS[0]:
            os.chown(path, USERS[0], USERS[0], follow_symlinks=False)
    job = Job(common / "j", settings=shared(faulty, common, "good"))
    done = climb_as(USERS[1], job)
    assert done.code == 0 and served(job) == faulty.content
    taken = image_of(job)
    if what == "part":
        assert taken.is_relative_to(job.scratch) and not image.exists() and "for this job alone" in done.err
    else:  # nobody may rename over another's file in such a folder
        assert taken.is_relative_to(job.scratch) and image.lstat().st_uid == USERS[0]


def test_only_ones_own_images_make_room(faulty: Faulty, common: Path) -> None:
    first = sha256(faulty.content)
    climb_as(USERS[0], Job(common / "j0", settings=shared(faulty, common, "good", limit=400_000)))
    faulty.content = os.urandom(300_000)
    done = climb_as(USERS[1], Job(common / "j1", settings=shared(faulty, common, "good", limit=400_000)))
    assert done.report.rung == "http" and "no room" in done.err and (common / f"c/shared/{first}.sif").exists()
    done = climb_as(USERS[0], Job(common / "j2", settings=shared(faulty, common, "good", limit=400_000)))
    assert "makes room" in done.err and not (common / f"c/shared/{first}.sif").exists()


@fault("the node's cache belongs to another user, or is a link", "goes without it")
@pytest.mark.parametrize("user", [0, USERS[1]])
def test_a_private_cache_of_another(faulty: Faulty, common: Path, user: int) -> None:
    theirs = common / f"c/u{user}"
    theirs.mkdir(parents=True)
    theirs.chmod(0o777)
    os.chown(theirs, USERS[0], USERS[0])
    done = climb_as(user, Job(common / "j", settings=cached(faulty, common / "c", "good")))
    assert done.report.rung == "http" and "not a folder of this user" in done.err
    assert list(theirs.iterdir()) == [] and theirs.stat().st_mode & 0o777 == 0o777


# --- images that are folders, in tar files


def tar_of(folder: Path, more: list[tarfile.TarInfo] | None = None, mode: str = "w:gz") -> bytes:
    """The folder as a tar file, its top the top of the image, with `more` empty members after it."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:  # type: ignore[call-overload]
        tar.add(folder, arcname=".")
        for member in more or []:
            tar.addfile(member)
    return data.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def directory(faulty: Faulty, content: bytes, cache: Path | None = None, limit: int = 10_000_000) -> Pairs:
    faulty.content = content
    common = cached(faulty, cache, "good", limit=limit) if cache else http(faulty, "good")
    return [*common, ("image.format", "directory"), ("image.marker", "light-1")]


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_a_folder_image_from_a_tar_file(make_job: MakeJob, faulty: Faulty, tmp_path: Path, mode: str) -> None:
    settings = directory(faulty, tar_of(folder_image(tmp_path / "i"), mode=mode), tmp_path / "c")
    jobs = [make_job(settings=settings) for _ in range(5)]
    ends = all_at_once(jobs)
    assert sorted(done.report.rung for done in ends) == ["cache"] * 4 + ["http"] and len(faulty.requests) == 1
    for job in jobs:
        assert (job.scratch / "served/etc/locked/file").read_text() == "content\n"
    name = f"{sha256(faulty.content)}.dir"
    assert entries(tmp_path / "c") == {name, f"{name}.{os.geteuid()}.stamp"}
    done = climb(make_job(settings=settings))
    assert done.data["image"]["source"].endswith(".dir") and done.data["image"]["sha256"] == sha256(faulty.content)
    assert done.data["image"]["bytes"] > 8
    alone = make_job(settings=directory(faulty, faulty.content))
    assert climb(alone).report.rung == "http" and (alone.scratch / "served/etc/fermigrid-image").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(
            lambda _: b"<html>no</html>",
            "no tar file",
            marks=fault("a folder image that is no tar file", "is not used", 83),
        ),
        pytest.param(
            lambda folder: tar_of(folder, [member("dev/sda", tarfile.BLKTYPE)]),
            "no tar file of folders and files",
            marks=fault("a tar file with device nodes", "is not unpacked", 83),
        ),
        (lambda folder: tar_of(folder, [member("dev/p", tarfile.FIFOTYPE)]), "no tar file of folders and files"),
        pytest.param(
            lambda folder: tar_of(folder_image(folder.parent / "other", "light-2")),
            "its marker is 'light-2'",
            marks=fault("a tar file with another image in it", "is not used", 83),
        ),
    ],
)
def test_a_tar_file_that_is_no_image(
    make_job: MakeJob, faulty: Faulty, tmp_path: Path, make: Callable[[Path], bytes], words: str
) -> None:
    settings = directory(faulty, make(folder_image(tmp_path / "i")), tmp_path / "c")
    done = climb(make_job(settings=settings))
    assert done.code == 83 and words in done.message and entries(tmp_path / "c") == set()


@fault("a tar file with names that lead out of the image", "what it has stays inside")
def test_a_tar_file_that_leads_outside(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    away = str(tmp_path / "away")
    more = [
        member("../outside"),
        member(f"{away}/absolute"),
        member("lib", tarfile.SYMTYPE, away),
        member("lib/through"),
    ]
    settings = directory(faulty, tar_of(folder_image(tmp_path / "i"), more), tmp_path / "c")
    (tmp_path / "away").mkdir()
    climb(make_job(settings=settings))
    assert list((tmp_path / "away").iterdir()) == []
    assert {path.parent for path in tmp_path.rglob("outside")} <= {
        folder_of(tmp_path / "c") / f"{sha256(faulty.content)}.dir"
    }


def test_folder_images_make_room_by_what_they_hold(faulty: Faulty, common: Path) -> None:
    """Packed they are small; as an ordinary user, so that what its owner may not write is in the way."""
    (folder_image(common / "i1") / "big").write_bytes(bytes(300_000))
    (folder_image(common / "i2") / "big").write_bytes(bytes(300_001))
    for number in (1, 2):
        settings = directory(faulty, tar_of(common / f"i{number}"), common / "c", limit=500_000)
        done = climb_as(USERS[0], Job(common / f"j{number}", settings=settings))
        assert done.report.rung == "http", done.err
    folder = common / f"c/u{USERS[0]}"
    assert [path.name for path in folder.glob("*.dir")] == [f"{sha256(faulty.content)}.dir"]
    assert len(list(folder.iterdir())) == 2
    settings = directory(faulty, tar_of(common / "i1"), common / "c", limit=200_000)
    done = climb_as(USERS[0], Job(common / "j3", settings=settings))
    assert done.report.rung == "http" and "for this job alone" in done.err


def test_a_folder_image_that_was_not_unpacked_to_its_end(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    settings = directory(faulty, tar_of(folder_image(tmp_path / "i")), tmp_path / "c")
    name = f"{sha256(faulty.content)}.dir"
    for left in (name, f"{name}.new"):
        (folder_of(tmp_path / "c") / left / "bin").mkdir(parents=True)
    folder_of(tmp_path / "c").chmod(0o700)
    job = make_job(settings=settings)
    done = climb(job)
    assert done.report.rung == "http" and (job.scratch / "served/etc/fermigrid-image").exists()
    assert entries(tmp_path / "c") == {name, f"{name}.{os.geteuid()}.stamp"}


def test_a_folder_image_and_a_full_disk(
    make_job: MakeJob, faulty: Faulty, tmp_path: Path, small_disk: list[str]
) -> None:
    (folder_image(tmp_path / "i") / "big").write_bytes(bytes(4_000_000))
    settings = directory(faulty, tar_of(tmp_path / "i"))
    assert climb(make_job(settings=settings), prefix=small_disk).code == 89
    settings = directory(faulty, faulty.content, tmp_path / "c", limit=100_000_000)
    job = make_job(settings=settings)
    done = climb(job, prefix=on_mount(tmp_path / "c", "size=1m"))
    assert done.report.rung == "http" and results(done)[1] == "http: cannot be written"
    assert (job.scratch / "served/big").stat().st_size == 4_000_000


def test_a_stamp_knows_more_than_size_and_time(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    settings = cached(faulty, tmp_path / "c", "good")
    climb(make_job(settings=settings))
    image = folder_of(tmp_path / "c") / f"{sha256(faulty.content)}.sif"
    times = image.stat()
    image.write_bytes(sif().ljust(300_000, b"x"))
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    job = make_job(settings=settings)
    assert climb(job).report.rung == "http" and served(job) == faulty.content
