"""What the worker adds to a job: a whole job beside a bare `apptainer exec` of the same image, turn by turn, in the pool.

    python -m benchmarks worker

Also the processes that each of them starts. Limits: 100 ms and 60 processes added, with start and end messages too.
On a machine that has other work, `chrt -r 5 python -m benchmarks worker` (as root) still tells the truth.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure
from tests.pool.conftest import COMMAND, Pool, pool_folder, shared_pool
from tests.worker.worker_job import Job

TURNS = {True: 25, False: 7}  # full, short
FERMI = 20001
MESSAGES = [("message.to", "a@example.org"), ("message.from", "b@example.org"), ("message.instance", "1"),
            ("message.via", "sendmail:/bin/true")]  # fmt: skip
# For each turn: milliseconds and processes of the bare command, then of the worker. ns_last_pid counts what was started.
MEASURE = r"""
measure() {
    local began=${EPOCHREALTIME/./} first last
    read -r first < /proc/sys/kernel/ns_last_pid
    "$@" > out.log 2> err.log || { cat out.log err.log >&2; exit 1; }
    read -r last < /proc/sys/kernel/ns_last_pid
    printf '%s %s ' $(((${EPOCHREALTIME/./} - began) / 1000)) $((last - first))
}
image=$1 turns=$2
shift 2
for ((i = 0; i < turns; i++)); do
    measure apptainer -q exec --cleanenv --contain --no-home --bind "$PWD:/srv" "$image" /bin/true
    measure "$@"
    printf '\n'
done
"""


def make_job(folder: Path, settings: list[tuple[str, str]], order: str) -> list[str]:
    """A job as real ones are: a bundle, an output, a summary. The worker's command line."""
    script = '#!/bin/sh\necho out > out.fit; echo "events_read: 1" >> "$FERMIGRID_SUMMARY"\n'
    head = {"launch": "worker", "order": order, "runtime": "apptainer"}
    row = [("out", "out.fit"), ("out.to", "out.fit")]
    command = Job(folder, settings=settings, row=row, args=["./p"], code={"p": script}, head=head).write()
    subprocess.run(["chown", "-R", f"{FERMI}:{FERMI}", folder], check=True)
    return command


def measure(pool: Pool, folder: Path, image: str, command: list[str], turns: int) -> list[list[int]]:
    """`turns` rows of four numbers (see MEASURE), without the first, which warms the caches."""
    done = subprocess.run(
        [str(COMMAND), "as", "fermi", "bash", "-c", MEASURE, "measure", image, str(turns + 1), *command],
        cwd=folder,
        env=os.environ | {"POOL_DIR": str(pool.directory)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()][1:]


def added(what: str, rows: list[list[int]]) -> Iterator[Figure]:
    """Medians of what the worker needs beyond the bare command."""
    bare, bare_forks, worker, forks = (statistics.median(column) for column in zip(*rows, strict=True))
    yield Figure(f"the worker adds ({what})", worker - bare, "ms", bare, "the bare command", 100)
    yield Figure(f"the worker adds ({what}): processes", forks - bare_forks, "", bare_forks, "the bare command", 60)


def figures(full: bool) -> Iterator[Figure]:
    """Each way to come to the image."""
    turns = TURNS[full]
    with shared_pool(pool_folder()) as pool:
        image = pool.facts["images"]["light-1"]
        base = Path(tempfile.mkdtemp(prefix="bench-", dir=pool.work))
        base.chmod(0o777)
        path = [("image.marker", "light-1"), ("image.path", image["cvmfs"])]
        http = [("image.url", image["sif_url"]), ("image.sha256", image["sha256"]), ("image.size", str(image["bytes"]))]
        cache = [
            ("image.marker", "light-1"),
            *http,
            ("node_cache", str(base / "cache")),
            ("node_cache.limit", "1000000000"),
        ]
        (base / "cache").mkdir()
        (base / "cache").chmod(0o777)
        for number, (what, settings, order) in enumerate(
            [
                ("image: folder on CVMFS", path, "wrapper-outside"),
                ("image: SIF in the node's cache", cache, "wrapper-outside"),
                ("folder, worker inside", path, "wrapper-inside"),
                ("folder, with messages", path + MESSAGES, "wrapper-outside"),
                ("folder, inside, with messages", path + MESSAGES, "wrapper-inside"),
            ]
        ):
            folder = base / str(number)
            command = make_job(folder, settings, order)
            started = image["cvmfs"]
            if settings is cache:
                measure(pool, folder, image["cvmfs"], command, turns)
                started = str(next((base / "cache").rglob("*.sif")))
            yield from added(what, measure(pool, folder, started, command, turns))
        shutil.rmtree(base)
