"""200 jobs that start at once on a node with a cache and no image: until the last one has its image of 200 MB, and how often
the origin was asked. Beside it, in the same run: one download, 200 processes that take a lock and use a file in place, and
separate downloads (a sample). Limits: one GET, all ready within 3 times a single download with its digest.

    python -m benchmarks image_storm          (50 jobs, 50 MB)
    python -m benchmarks --full image_storm   (200 jobs, 200 MB)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure
from tests.worker.faulty_http import Faulty, serve
from tests.worker.test_image import CLIMB, cached
from tests.worker.worker_job import BATCH, NAME, Job, sha256

SAMPLE = 20
READY = CLIMB.replace('cp -RL -- "$image" served\n', '_now\necho "$now_ms $rung" > ready\n')
# starts "$@" JOBS times at once, in the folders 0, 1, 2...
AT_ONCE = 'jobs=$1; shift; for ((i = 0; i < jobs; i++)); do (cd "$i" && exec "$@" > log 2>&1) & done; wait'
LOCKED = 'exec 9< "$1" && flock -s 9 && [ -s "$1" ]'


def seconds(*argv: str | Path, cwd: Path) -> float:
    began = time.monotonic()
    subprocess.run(argv, cwd=cwd, check=True, timeout=600, stdin=subprocess.DEVNULL)
    return time.monotonic() - began


def most_processes(stop: threading.Event, found: list[int]) -> None:
    """The most processes at one time, besides those that were there; and the most memory that they took, in MB."""
    before, free = len(list(Path("/proc").glob("[0-9]*"))), available()
    while not stop.wait(0.25):
        found[0] = max(found[0], len(list(Path("/proc").glob("[0-9]*"))) - before)
        found[1] = max(found[1], (free - available()) // 1024)


def available() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0])


def storm(server: Faulty, base: Path, jobs: int) -> tuple[float, list[str]]:
    """Seconds until the last of the jobs had its image, and the rungs that served."""
    base.mkdir()
    for number in range(jobs):
        job = Job(
            base / str(number), settings=[*cached(server, base / "cache", "good", limit=10**10), ("limit.http", "300")]
        )
        job.write()
        (job.scratch / "climb.sh").write_text(READY)
    began = time.time()
    seconds(
        "env",
        "FERMIGRID_STALL=30",
        "bash",
        "-c",
        AT_ONCE,
        "bash",
        str(jobs),
        "bash",
        "./climb.sh",
        NAME,
        BATCH,
        cwd=base,
    )
    ready = [(base / str(number) / "ready").read_text().split() for number in range(jobs)]
    return max(int(ms) for ms, _ in ready) / 1000 - began, [rung for _, rung in ready]


def figures(full: bool) -> Iterator[Figure]:
    """The storm, beside one download."""
    jobs, size = (200, 200_000_000) if full else (50, 50_000_000)
    base = Path(tempfile.mkdtemp(prefix="bench-storm-"))
    with serve(os.urandom(size)) as server:
        url = f"{server.url}/good/i.sif"
        curl = min(seconds("curl", "-sSf", "-o", "file", url, cwd=base) for _ in range(3))
        digest = min(seconds("sh", "-c", "sha256sum file > sum", cwd=base) for _ in range(3))
        one, _ = storm(server, base / "one", 1)
        for number in range(jobs):
            (base / str(number)).mkdir()
        lock = seconds("bash", "-c", AT_ONCE, "bash", str(jobs), "bash", "-c", LOCKED, "bash", base / "file", cwd=base)
        server.requests.clear()
        stop, most = threading.Event(), [0, 0]
        watcher = threading.Thread(target=most_processes, args=(stop, most))
        watcher.start()
        took, rungs = storm(server, base / "storm", jobs)
        stop.set()
        watcher.join()
        asked = len(server.requests)
        images = list((base / "storm/cache").rglob("*.sif"))
        whole = [sha256(image.read_bytes()) == sha256(server.content) for image in images] == [True]
        separate = seconds(
            "bash", "-c", AT_ONCE, "bash", str(SAMPLE), "curl", "-sSf", "-o", "file", url, cwd=base
        )  # last: its writing to disk goes on
    shutil.rmtree(base)
    what = f"{jobs} workers without an image at once"
    yield Figure(what, took, "s", curl + digest, "a download with its digest", 3 * (curl + digest))
    yield Figure(f"{what}, beside one worker", took, "s", one, "one worker")
    yield Figure(f"{what}: a lock each", lock, "s")
    yield Figure(f"{SAMPLE} separate downloads", separate, "s")
    yield Figure(f"{what}: GETs of the image", asked, "", 1, "one", 1)
    yield Figure(f"{what}: damaged images", float(not whole or rungs.count("http") != 1), "", limit=0)
    yield Figure(f"{what}: processes at a time", most[0], "")
    yield Figure(f"{what}: memory of all", most[1], "MB")
