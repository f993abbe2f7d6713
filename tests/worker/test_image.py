"""The image ladder: what is served, what is refused, what is said. The images are bytes; no runtime is needed for that."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.worker.faulty_http import Faulty
from tests.worker.test_functions import sif
from tests.worker.worker_job import BATCH, NAME, Done, Job, Pairs, finish, sha256

MakeJob = Callable[..., Job]

CLIMB = r"""
. ./worker.sh
job=$1 batch=$2 attempt=g0.s1.5f3c9a01 scratch=$PWD begin=$(date +%s)
_now
begin_ms=$now_ms phase_ms=$now_ms
_set_traps
_make_folders
_parse_settings job.env
_phase image
_climb_ladder
cp -RL -- "$image" served
printf '%s' "$image" > image
_finish 0 ""
"""


def fault(what: str, does: str, code: object = 0) -> pytest.MarkDecorator:
    """A row of the fault matrix, where the worker starts the container."""
    return pytest.mark.fault(fault=what, mode="worker", does=does, code=code)


def start(
    job: Job, env: dict[str, str] | None = None, prefix: Sequence[str] = (), script: str = CLIMB
) -> subprocess.Popen[bytes]:
    """The worker's ladder alone, with a report: what it serves is copied to `served`."""
    job.write()
    (job.scratch / "climb.sh").write_text(script)
    return subprocess.Popen(
        [*prefix, "bash", "./climb.sh", NAME, BATCH],
        cwd=job.scratch,
        env={"PATH": os.environ["PATH"], "FERMIGRID_STALL": "1", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def climb(job: Job, env: dict[str, str] | None = None, prefix: Sequence[str] = (), script: str = CLIMB) -> Done:
    return finish(start(job, env, prefix, script))


def folder_image(folder: Path, marker: str = "light-1") -> Path:
    """A folder that looks like an image; in it a file that its owner may not write and a folder of that kind."""
    (folder / "bin").mkdir(parents=True)
    (folder / "etc/locked").mkdir(parents=True)
    (folder / "bin/sh").symlink_to("/bin/busybox")
    (folder / "etc/fermigrid-image").write_text(f"{marker}\n")
    (folder / "etc/locked/file").write_text("content\n")
    (folder / "etc/locked/file").chmod(0o400)
    (folder / "etc/locked").chmod(0o555)
    return folder


def served(job: Job) -> bytes:
    return (job.scratch / "served").read_bytes()


def image_of(job: Job) -> Path:
    return Path((job.scratch / "image").read_text())


def http(faulty: Faulty, *ways: str) -> Pairs:
    urls = [("image.url", f"{faulty.url}/{way}/i.sif") for way in ways]
    return [
        *urls,
        ("image.sha256", sha256(faulty.content)),
        ("image.size", str(len(faulty.content))),
        ("limit.http", "20"),
    ]


def results(done: Done) -> list[str]:
    return [f"{tried['rung']}: {tried['result']}" for tried in done.data["image"]["tried"]]


# --- rung 1


def test_path_first(make_job: MakeJob, tmp_path: Path, faulty: Faulty) -> None:
    (tmp_path / "i.sif").write_bytes(sif())
    job = make_job(settings=[("image.path", str(tmp_path / "i.sif")), *http(faulty, "good")])
    done = climb(job)
    assert served(job) == sif() and done.report.rung == "path" and results(done) == ["path: ok"]
    assert faulty.requests == []


@fault("the image's path is absent, or holds something else", "takes the next rung", 0)
def test_a_path_that_is_absent_or_damaged_is_passed_over(make_job: MakeJob, tmp_path: Path, faulty: Faulty) -> None:
    (tmp_path / "html.sif").write_text("<!DOCTYPE html>")
    for name, word in (("absent.sif", "absent"), ("html.sif", "damaged: no SIF file")):
        job = make_job(settings=[("image.path", str(tmp_path / name)), *http(faulty, "good")])
        done = climb(job)
        assert served(job) == faulty.content and results(done) == [f"path: {word}", "http: ok"]


def test_a_path_that_hangs(make_job: MakeJob, tmp_path: Path, faulty: Faulty) -> None:
    os.mkfifo(tmp_path / "hang.sif")  # opening it never ends
    settings = [("image.path", str(tmp_path / "hang.sif")), ("limit.path", "1"), *http(faulty, "good")]
    job = make_job(settings=settings)
    began = time.monotonic()
    done = climb(job)
    assert time.monotonic() - began < 6
    assert results(done) == ["path: timeout", "http: ok"] and served(job) == faulty.content


@fault("no source has the image", "says which were tried", 82)
def test_nothing_anywhere(make_job: MakeJob, tmp_path: Path, faulty: Faulty) -> None:
    done = climb(make_job(settings=[("image.path", str(tmp_path / "no")), *http(faulty, "404", "403")]))
    assert done.code == 82 and results(done) == ["path: absent", "http: 404", "http: 403"]
    assert climb(make_job()).code == 82


@fault("every source of the image is damaged", "uses none", 83)
def test_every_source_damaged(make_job: MakeJob, tmp_path: Path, faulty: Faulty) -> None:
    (tmp_path / "cut.sif").write_bytes(sif()[:2000])
    settings = [("image.path", str(tmp_path / "cut.sif")), *http(faulty, "wrong", "html")]
    done = climb(make_job(settings=settings))
    assert done.code == 83 and [words.split(":")[1] for words in results(done)] == [" damaged"] * 3


def test_one_damaged_and_one_not_reached_is_no_image(make_job: MakeJob, faulty: Faulty) -> None:
    assert climb(make_job(settings=http(faulty, "wrong", "404"))).code == 82


@fault("the image at the path is another one (its marker)", "does not use it", 83)
def test_a_marker_that_moved(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "i/bin").mkdir(parents=True)
    (tmp_path / "i/etc").mkdir()
    (tmp_path / "i/bin/sh").touch()
    (tmp_path / "i/etc/fermigrid-image").write_text("light-2\n")
    done = climb(make_job(settings=[("image.path", str(tmp_path / "i")), ("image.marker", "light-1")]))
    assert done.code == 83 and "light-2" in done.message


@fault("the image's first path is absent", "takes the second one, the same image in the other format", 0)
def test_the_next_path_where_two_exist(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "i.sif").write_bytes(sif())
    folder_image(tmp_path / "i")
    for first, second in (("no", "i.sif"), ("i.sif", "i")):
        job = make_job(settings=[("image.path", str(tmp_path / first)), ("image.path", str(tmp_path / second))])
        done = climb(job)
        assert done.code == 0 and done.data["image"]["source"] == str(tmp_path / "i.sif")


def test_the_ladder_goes_on_from_where_it_stopped(make_job: MakeJob, tmp_path: Path, faulty: Faulty) -> None:
    """As when the runtime can start no SIF here: each rung is tried once, and no source twice."""
    (tmp_path / "i.sif").write_bytes(sif())
    folder_image(tmp_path / "i")
    paths = [("image.path", str(tmp_path / name)) for name in ("no", "i.sif", "i")]
    job = make_job(settings=[*paths, *http(faulty, "404", "good")])
    done = climb(job, script=CLIMB.replace("_climb_ladder\n", 'while _climb; do echo "$image" >> images; done\n'))
    assert done.code == 0
    assert results(done) == ["path: absent", "path: ok", "path: ok", "http: 404", "http: ok"]
    assert [Path(line).name for line in (job.scratch / "images").read_text().splitlines()] == [
        "i.sif",
        "i",
        f"{sha256(faulty.content)}.sif",
    ]


# --- rung 3


@pytest.mark.parametrize(
    ("way", "statuses"),
    [
        ("good", [200]),
        ("redirect", [302, 200]),
        pytest.param(
            "503", [503, 503, 200], marks=fault("the mirror is overloaded for a while (503)", "tries again when told")
        ),
        pytest.param("drop", [200, 206, 206], marks=fault("the download breaks off", "resumes it")),
        pytest.param(
            "norange", [200, 200, 200], marks=fault("the download breaks off, the server cannot resume", "starts again")
        ),
        pytest.param(
            "change",
            [200, 200, 200],
            marks=fault("the file changes while it is downloaded", "starts again, never joins two"),
        ),
        pytest.param("shaky", [200, 503, 206], marks=fault("the download breaks off, then 503", "still resumes it")),
        ("later", [429, 200]),
    ],
)
def test_http(make_job: MakeJob, faulty: Faulty, way: str, statuses: list[int]) -> None:
    job = make_job(settings=http(faulty, way))
    done = climb(job)
    assert done.code == 0 and served(job) == faulty.content
    assert done.data["image"]["bytes"] == len(faulty.content) and done.report.rung == "http"
    assert faulty.statuses() == statuses


def test_a_resumed_download_asks_for_the_same_file(make_job: MakeJob, faulty: Faulty) -> None:
    climb(make_job(settings=http(faulty, "drop")))
    ranges = [(asked, condition) for _, asked, condition, _ in faulty.requests]
    assert ranges == [(None, None), ("bytes=150000-", '"v1"'), ("bytes=225000-", '"v1"')]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param("404", marks=fault("the first mirror does not have the image", "takes the next mirror")),
        pytest.param("wrong", marks=fault("one byte of a download is wrong", "does not use it, takes the next mirror")),
        pytest.param("html", marks=fault("an error page comes as the image", "does not use it, takes the next mirror")),
    ],
)
def test_the_second_mirror(make_job: MakeJob, faulty: Faulty, bad: str) -> None:
    job = make_job(settings=http(faulty, bad, "good"))
    done = climb(job)
    assert served(job) == faulty.content and results(done)[-1] == "http: ok" and len(results(done)) == 2


@fault("the first mirror does not answer", "takes the next mirror", 0)
def test_a_server_that_is_not_there(make_job: MakeJob, faulty: Faulty) -> None:
    settings = [("image.url", "http://127.0.0.1:9/i.sif"), *http(faulty, "good")]
    done = climb(make_job(settings=settings))
    assert done.code == 0 and results(done) == ["http: not reached (7)", "http: ok"]


@fault("the download stalls, again and again", "gives up after limit.http", 82)
def test_a_download_that_stalls(make_job: MakeJob, faulty: Faulty) -> None:
    job = make_job(settings=[("limit.http", "4"), *http(faulty, "stall")[:-1]])
    began = time.monotonic()
    done = climb(job)
    assert done.code == 82 and time.monotonic() - began < 10
    assert results(done)[0] in ("http: stalled", "http: timeout")


def test_the_sites_proxy_is_used(make_job: MakeJob, faulty: Faulty) -> None:
    settings = http(faulty, "good")
    settings[0] = ("image.url", "http://mirror.invalid/good/i.sif")
    job = make_job(settings=[*settings, ("http_proxy", faulty.url)])
    climb(job)
    assert faulty.requests[0][0] == "http://mirror.invalid/good/i.sif"


@pytest.fixture
def hidden(tmp_path: Path) -> Callable[..., list[str]]:
    """Makes command prefixes: /usr/bin without some programs, in a mount namespace of its own."""

    def hide(*missing: str) -> list[str]:
        links = tmp_path / "links"
        links.mkdir()
        (tmp_path / "real").mkdir()
        for program in Path("/usr/bin").iterdir():
            if program.name not in missing:
                (links / program.name).symlink_to(tmp_path / "real" / program.name)
        script = f'mount --bind /usr/bin {tmp_path}/real && mount --bind {links} /usr/bin && exec "$@"'
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        return ["unshare", *user, "--mount", "sh", "-c", script, "sh"]

    return hide


@fault("no curl on the node", "downloads with wget, without resuming", 0)
def test_with_wget_alone(make_job: MakeJob, faulty: Faulty, hidden: Callable[..., list[str]]) -> None:
    job = make_job(settings=http(faulty, "404", "drop", "good"))
    done = climb(job, prefix=hidden("curl"))
    assert done.code == 0, done.err
    assert served(job) == faulty.content and results(done)[0] == "http: 404"
    assert faulty.requests[1][1] is None


# --- rung 2


def cached(faulty: Faulty, cache: Path, *ways: str, limit: int = 10_000_000) -> Pairs:
    return [*http(faulty, *ways), ("node_cache", str(cache)), ("node_cache.limit", str(limit))]


@pytest.fixture(params=["flock", "no flock"])
def prefix(request: pytest.FixtureRequest, hidden: Callable[..., list[str]]) -> list[str]:
    return [] if request.param == "flock" else hidden("flock")


def folder_of(cache: Path) -> Path:
    return cache / f"u{os.geteuid()}"


def entries(cache: Path) -> set[str]:
    return {path.name for path in folder_of(cache).iterdir() if not path.name.startswith("lock")}


def test_the_cache_is_filled_and_used(make_job: MakeJob, faulty: Faulty, tmp_path: Path, prefix: list[str]) -> None:
    settings = cached(faulty, tmp_path / "c", "good")
    first, second = make_job(settings=settings), make_job(settings=settings)
    assert climb(first, prefix=prefix).report.rung == "http"
    done = climb(second, prefix=prefix)
    assert done.report.rung == "cache" and served(second) == faulty.content and len(faulty.requests) == 1
    digest = sha256(faulty.content)
    assert entries(tmp_path / "c") == {f"{digest}.sif", f"{digest}.sif.{os.geteuid()}.stamp"}
    assert folder_of(tmp_path / "c").stat().st_mode & 0o777 == 0o700


def test_many_jobs_at_once_make_one_download(
    make_job: MakeJob, faulty: Faulty, tmp_path: Path, prefix: list[str]
) -> None:
    jobs = [make_job(settings=cached(faulty, tmp_path / "c", "drop")) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        ends = list(pool.map(lambda job: climb(job, prefix=prefix), jobs))
    assert [done.code for done in ends] == [0] * 6
    assert sorted(done.report.rung for done in ends) == ["cache"] * 5 + ["http"]
    assert faulty.statuses() == [200, 206, 206]


def test_a_killed_downloader_leaves_a_cache_that_goes_on(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    process = start(make_job(settings=cached(faulty, tmp_path / "c", "stall")))
    part = folder_of(tmp_path / "c") / f"{sha256(faulty.content)}.sif.{os.geteuid()}.part"
    end = time.monotonic() + 10
    while not part.exists() or part.stat().st_size < 150_000:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    job = make_job(settings=cached(faulty, tmp_path / "c", "good"))
    done = climb(job)
    assert done.report.rung == "http" and served(job) == faulty.content
    assert len(entries(tmp_path / "c")) == 2


def test_a_killed_downloader_is_resumed(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    """What it leaves is taken up where it stopped, when it is the same file of the same server."""
    url = f"{faulty.url}/good/i.sif"
    folder_of(tmp_path / "c").mkdir(parents=True, mode=0o700)
    part = folder_of(tmp_path / "c") / f"{sha256(faulty.content)}.sif.{os.geteuid()}.part"
    part.write_bytes(faulty.content[:100_000])
    part.with_suffix(".part.url").write_text(url + "\n")
    part.with_suffix(".part.head").write_text('HTTP/1.1 200 OK\r\nETag: "v1"\r\n\r\n')
    job = make_job(settings=cached(faulty, tmp_path / "c", "good"))
    climb(job)
    assert served(job) == faulty.content and faulty.requests[0][1:] == ("bytes=100000-", '"v1"', 206)


@fault("the part of an earlier download is garbage", "downloads from the start", 0)
def test_a_part_that_is_garbage_is_replaced(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    folder_of(tmp_path / "c").mkdir(parents=True, mode=0o700)
    part = folder_of(tmp_path / "c") / f"{sha256(faulty.content)}.sif.{os.geteuid()}.part"
    part.write_bytes(b"garbage" * 1000)
    part.with_suffix(".part.url").write_text(f"{faulty.url}/good/i.sif\n")
    part.with_suffix(".part.head").write_text('HTTP/1.1 200 OK\r\nETag: "v1"\r\n\r\n')
    job = make_job(settings=cached(faulty, tmp_path / "c", "good", "good"))
    done = climb(job)
    assert served(job) == faulty.content and results(done)[-1] == "http: ok"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(
            "changed", marks=fault("a cached image has changed", "takes its digest again, removes it, fetches it anew")
        ),
        pytest.param(
            "cut", marks=fault("a cached image is truncated", "takes its digest again, removes it, fetches it anew")
        ),
        pytest.param(
            "no stamp", marks=fault("kill -9 before a cached image had its stamp", "takes its digest again, uses it")
        ),
    ],
)
def test_a_cached_image_that_does_not_fit_its_stamp(
    make_job: MakeJob, faulty: Faulty, tmp_path: Path, damage: str
) -> None:
    settings = cached(faulty, tmp_path / "c", "good")
    climb(make_job(settings=settings))
    image = folder_of(tmp_path / "c") / f"{sha256(faulty.content)}.sif"
    if damage == "changed":
        image.write_bytes(b"x" + faulty.content[1:])
        os.utime(image, (1, 1))
    elif damage == "cut":
        image.write_bytes(faulty.content[:1000])
    else:
        image.with_suffix(f".sif.{os.geteuid()}.stamp").unlink()
    job = make_job(settings=settings)
    done = climb(job)
    assert served(job) == faulty.content
    assert done.report.rung == ("cache" if damage == "no stamp" else "http")
    assert climb(make_job(settings=settings)).report.rung == "cache"


def test_the_least_recently_used_makes_room(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    contents = [os.urandom(300_000) for _ in range(3)]
    for number, content in enumerate([contents[0], contents[1], contents[0], contents[2]]):
        faulty.content = content
        climb(make_job(settings=cached(faulty, tmp_path / "c", "good", limit=700_000)))
        for stamp in folder_of(tmp_path / "c").glob("*.stamp"):  # the clock of a file system is coarse
            if stamp.stat().st_mtime > 1000:
                os.utime(stamp, (number + 1, number + 1))
    assert entries(tmp_path / "c") == {
        name
        for i in (0, 2)
        for name in (f"{sha256(contents[i])}.sif", f"{sha256(contents[i])}.sif.{os.geteuid()}.stamp")
    }


@fault("no room in the node's cache: all images are in use", "removes none; the image is fetched for this job alone", 0)
def test_an_image_in_use_is_never_evicted(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    first = faulty.content
    climb(make_job(settings=cached(faulty, tmp_path / "c", "good", limit=400_000)))
    image = folder_of(tmp_path / "c") / f"{sha256(first)}.sif"
    faulty.content = os.urandom(300_000)
    job = make_job(settings=cached(faulty, tmp_path / "c", "good", limit=400_000))
    with subprocess.Popen(["flock", "-s", image, "sleep", "60"], start_new_session=True) as user:
        end = time.monotonic() + 5
        while subprocess.run(["flock", "-x", "-n", image, "true"], check=False).returncode == 0:
            assert time.monotonic() < end
        done = climb(job)
        os.killpg(user.pid, signal.SIGKILL)
    assert done.report.rung == "http" and served(job) == faulty.content and "no room" in done.err
    assert image.exists() and len(entries(tmp_path / "c")) == 2
    assert climb(make_job(settings=cached(faulty, tmp_path / "c", "good", limit=400_000))).code == 0
    assert not image.exists()


def test_a_cache_that_cannot_be_used(make_job: MakeJob, faulty: Faulty, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").mkdir()
    (tmp_path / "elsewhere").mkdir()
    folder_of(tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "link"):
        job = make_job(settings=cached(faulty, tmp_path / name, "good"))
        done = climb(job)
        assert done.report.rung == "http" and served(job) == faulty.content and "cannot be used" in done.err
    assert list((tmp_path / "elsewhere").iterdir()) == []


@fault("scratch is full while the image is fetched", "says so", 89)
def test_a_full_disk(make_job: MakeJob, faulty: Faulty, small_disk: list[str]) -> None:
    faulty.content = os.urandom(4_000_000)
    done = climb(make_job(settings=http(faulty, "good")), prefix=small_disk)
    assert done.code == 89 and "full" in done.message
