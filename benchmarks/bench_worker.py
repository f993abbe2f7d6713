"""What the worker adds to a job: a whole job beside a bare `apptainer exec` of the same image, turn by turn, in the pool.

Also the processes that each of them starts. Targets: 100 ms and 60 processes added, with start and end
messages too. On a machine that has other work, `chrt -r 5 python benchmarks/bench_worker.py` (as root) still tells the truth.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.pool.conftest import COMMAND, Pool, pool_folder, shared_pool
from tests.worker.worker_job import Job

TURNS = 25
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


def measure(pool: Pool, folder: Path, image: str, command: list[str]) -> list[list[int]]:
    """TURNS rows of four numbers (see MEASURE), without the first, which warms the caches."""
    done = subprocess.run(
        [str(COMMAND), "as", "fermi", "bash", "-c", MEASURE, "measure", image, str(TURNS + 1), *command],
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


def show(what: str, rows: list[list[int]]) -> None:
    bare, bare_forks, worker, forks = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"{what:34} {bare:8.0f} {worker:8.0f} {worker - bare:8.0f} ms {forks - bare_forks:8.0f}")


def main() -> None:
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
        print(f"{'median of ' + str(TURNS):34} {'bare':>8} {'worker':>8} {'added':>11} {'processes added':>16}")
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
                measure(pool, folder, image["cvmfs"], command)
                started = str(next((base / "cache").rglob("*.sif")))
            show(what, measure(pool, folder, started, command))
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
