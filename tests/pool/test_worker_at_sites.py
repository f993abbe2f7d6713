"""The real worker on the pool's unlike sites: what it finds, how it ends, and what HTCondor then really does.

All jobs are submitted at once, each as a batch of its own, and each test waits for its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fermigrid.backends import Handle, RenderedBatch
from fermigrid.report import INFRASTRUCTURE
from fermigrid.states import Seen
from tests.pool.batches import last, states, submitted, wait_for, wait_until_seen, write_batch
from tests.pool.conftest import Pool
from tests.worker.worker_job import NAME, Done, Job, Pairs, read_log

pytestmark = pytest.mark.pool

HEADS = {
    "worker": {"launch": "worker", "order": "wrapper-outside", "runtime": "apptainer"},
    "inside": {"launch": "worker", "order": "wrapper-inside", "runtime": "apptainer"},
    "site": {"launch": "site", "order": "wrapper-outside", "runtime": "apptainer"},
}
SHOW = ("/bin/sh", "-c", "cat /etc/fermigrid-image")
RETRIES = 1  # so an infrastructure failure has two starts


@dataclass(frozen=True)
class Case:
    """A job at one site. `settings` may name the pool's facts: `{marker}`. `asks`: the image that HTCondor is asked for."""

    fault: str
    site: str
    mode: str
    code: int
    does: str
    settings: Pairs = field(default_factory=list)
    row: Pairs = field(default_factory=list)
    args: tuple[str, ...] = SHOW
    kind: str = "transfer"
    asks: str = ""
    image: str = "{light}"
    said: str = ""  # in the report's message
    where: str = ""  # of the report, where it matters: "where container"

    @property
    def id(self) -> str:
        return f"{self.site}-{self.mode}-{self.fault.replace(' ', '-')}"


def each(modes: str, fault: str, site: str, code: int, does: str, **what: Any) -> list[Case]:
    """The same fault in several launch modes."""
    return [Case(fault, site, mode, code, does, **what) for mode in modes.split()]


def bound(source: str, to: str) -> Pairs:
    return [("bind", source), ("bind.to", to), ("bind.mode", "ro"), ("bind.required", "yes")]


HEAL = 'ifThenElse((NumVacatesByReason.SingularityTestFailed ?: 0) >= 1, undefined, "{}")'
NO_FILE = [("in", "x"), ("in.from", "/nonexistent/x")]
MARKER = [("image.marker", "light-1")]
HTTP = [("image.url", "{url}"), ("image.sha256", "{sha}")]
RUNS = "runs the payload in the image"
CASES = [
    *each("worker inside", "a site in order", "A", 0, RUNS, where="host worker"),
    *each("site", "a site in order", "A", 0, RUNS, asks='"{light}"', where="image site"),
    *each("worker inside", "the site has neither overlay nor underlay", "B", 0, RUNS, settings=bound("/etc", "/data"), where="host worker"),
    *each("site", "the site has neither overlay nor underlay", "B", 0, RUNS, asks='"{light}"', where="image site"),
    *each("worker inside", "neither overlay nor underlay, and the image lacks the mount point", "B", 84,
          "names bind, image and the way out", settings=bound("/etc", "/not/in/image"), said="/not/in/image"),
    *each("worker inside", "the runtime ignores binds (user bind control = no)", "C", 84, "notices before the payload begins", settings=bound("/etc", "/data")),
    *each("worker inside", "the node has no runtime", "D", 81, "says so, backs off", said="no container runtime"),
    *each("worker inside", "the site starts an image of its own, in which there is no runtime", "E", 82, "never runs the payload in it",
          said="another image", where="other none"),
    *each("site", "the site has an image of its own, and obeys the request for another", "E", 0, RUNS, asks='"{light}"', where="image site"),
    *each("site", "the site ignores the request for an image", "F", 0, "starts the container itself", asks='"{light}"', where="host worker"),
    *each("site", "the site cannot start the image on CVMFS", "A", 0, "second start without the site's container: takes the image from HTTP",
          asks=HEAL.format("{broken}"), image="{broken}", settings=HTTP, where="host worker"),
    *each("worker inside", "the image on CVMFS cannot be used", "A", 0, "takes the next rung", image="{broken}", settings=HTTP, where="host worker"),
    *each("worker inside", "the payload fails", "A", 7, "passes the code on", args=("/bin/sh", "-c", "exit 7")),
    *each("worker inside", "the payload ends with a code of the worker's own", "A", 79, "tells the true code in the report", args=("/bin/sh", "-c", "exit 82")),
    *each("worker", "a setting that the worker does not know", "A", 80, "refuses the job", settings=[("nonsense", "1")], said="nonsense"),
    *each("worker inside", "no source has the image", "A", 82, "names each source that it tried, backs off", image="/nonexistent/image"),
    *each("worker inside", "every source of the image is damaged", "A", 83, "never starts it", image="", settings=[("image.url", "{url}"), ("image.sha256", "0" * 64)]),
    *each("worker inside", "the image is another one than its marker says", "A", 83, "never runs the payload in it", settings=[("image.marker", "other-1")]),
    *each("worker inside", "a required bind is not on the node", "A", 84, "names it", settings=bound("/nonexistent/d", "/data"), said="/nonexistent/d"),
    *each("worker inside", "a secret is not on the node", "A", 85, "names it", settings=[("secret", "s"), ("secret.from", "/nonexistent/s")], said="/nonexistent/s"),
    *each("worker inside", "no replica of an input can be had", "A", 86, "names each", row=NO_FILE, said="/nonexistent/x"),
    *each("worker inside", "a declared output is missing", "A", 87, "publishes none", row=[("out", "o"), ("out.to", "o")], said="output o"),
    *each("worker inside", "the folder of the outputs cannot be written", "A", 88, "publishes none", args=("/bin/sh", "-c", "echo > o"),
          row=[("out", "o"), ("out.to", "o")], kind="posix", settings=[("output.root", "/opt")]),
]  # fmt: skip


@dataclass
class Sent:
    """A case in the queue."""

    case: Case
    batch: RenderedBatch
    handle: Handle

    def done(self) -> Done:
        """The report of its last start."""
        (path,) = self.batch.work_dir.glob(f"*/{NAME}.log")
        log = path.read_bytes()
        code = last(wait_until_seen(self.handle, Seen.ENDED), Seen.ENDED).exit_code
        return read_log(code if code is not None else -1, log, log.decode(errors="replace"), self.batch.batch_id)


def write_case(folder: Path, case: Case, pool: Pool) -> RenderedBatch:
    """The case as a batch on disk, with the worker, as a plan would have it."""
    light = pool.facts["images"]["light-1"]
    facts = {
        "light": light["cvmfs"],
        "url": light["sif_url"],
        "sha": light["sha256"],
        "broken": pool.facts["broken_image"],
    }
    batch = write_batch(
        folder, requirements=f'GLIDEIN_Site == "SITE{case.site}"', retries=RETRIES,
        singularity_image=case.asks.format(**facts) if case.asks else None,
    )  # fmt: skip
    image = [*MARKER, *([("image.path", case.image.format(**facts))] if case.image else [])]
    settings = [*image, ("backoff", "1"), *((name, value.format(**facts)) for name, value in case.settings)]
    job = Job(
        folder / f"job-{batch.batch_id}",
        settings=settings,
        row=case.row,
        args=case.args,
        head=HEADS[case.mode],
        kind=case.kind,
    )
    shard = job.write()[3]
    shutil.rmtree(batch.plan_dir / "shards")
    (batch.plan_dir / "shards").mkdir()
    for name in ("worker.sh", "job.env"):
        shutil.copy(job.scratch / name, batch.plan_dir / name)
    shutil.copy(job.scratch / shard, batch.plan_dir / "shards" / shard)
    (batch.plan_dir / "items.txt").write_text(f"{NAME} {shard} 1\n")
    (batch.work_dir / shard).mkdir()
    (batch.work_dir / shard).chmod(0o777)
    return batch


@pytest.fixture(scope="module")
def as_fermi(running_pool: Pool) -> Iterator[Pool]:
    """This process is the pool's user fermi, for all tests of this file."""
    before = dict(os.environ)
    os.environ.update(running_pool.env)
    import htcondor2

    htcondor2.reload_config()
    yield running_pool
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def sent(as_fermi: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Sent]]:
    """All cases, submitted; nothing of them is left in the queue afterwards."""
    folder = as_fermi.work / f"sites-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with ExitStack() as stack:
        cases = {}
        for case in CASES:
            batch = write_case(folder, case, as_fermi)
            cases[case.id] = Sent(case, batch, stack.enter_context(submitted(batch)))
        yield cases
    shutil.rmtree(folder, ignore_errors=True)


def rows() -> list[Any]:
    made = []
    for case in CASES:
        row = pytest.mark.fault(fault=case.fault, mode=case.mode, does=case.does, code=case.code)
        made.append(pytest.param(case.id, marks=row, id=case.id))
    return made


@pytest.mark.parametrize("name", rows())
def test_a_case(pool: Pool, sent: dict[str, Sent], name: str) -> None:
    one = sent[name]
    case = one.case
    wait_until_seen(one.handle, Seen.ENDED, limit=150)
    done = one.done()
    assert done.code == case.code, f"{done.message}\n{done.err}"
    assert case.said in done.message, done.message
    assert not case.where or f"{done.report.where} {done.data['container']}" == case.where, done.err
    ran = b"light-1\n" in done.out
    assert ran == (case.code in (0, 87) and case.args is SHOW), "the payload runs in its image or not at all"
    starts = states(one.handle).count(Seen.STARTED)
    if "second start" in case.does:
        assert starts == 2 and done.report.start == 2
    else:
        expected = 1 + RETRIES if case.code in INFRASTRUCTURE else 1
        assert (starts, done.report.start) == (expected, expected), states(one.handle)


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(
            mode,
            marks=pytest.mark.fault(
                fault="HTCondor evicts the job", mode=mode, does="passes TERM on, reports", code=143
            ),
        )
        for mode in ("worker", "inside")
    ],
)
def test_an_eviction(pool: Pool, as_fermi: Pool, job_folder: Path, mode: str) -> None:
    """The worker ends in order, and HTCondor, which ended it, starts the job again, whatever the exit code."""
    shared = pool.directory / f"sps/{job_folder.name}"  # /sps on the nodes
    shared.mkdir()
    shared.chmod(0o777)
    said = shared / "said"
    said.touch()
    said.chmod(0o666)
    script = 'echo "$FERMIGRID_ATTEMPT" >> /data/said; [ "$(wc -l < /data/said)" = 2 ] || exec sleep 600; cat /etc/fermigrid-image'
    settings = [*bound(f"/sps/{shared.name}", "/data"), ("bind.mode", "rw")]
    case = Case("", "A", mode, 0, "", settings=settings, args=("/bin/sh", "-c", script))
    batch = write_case(job_folder, case, pool)
    with submitted(batch) as handle:
        wait_for(said.read_text, "the payload runs")
        assert pool.run("fermi", "condor_vacate_job", f"{handle.cluster}.0").returncode == 0
        wait_until_seen(handle, Seen.ENDED, limit=90)
        assert states(handle) == [Seen.SUBMITTED, Seen.STARTED, Seen.EVICTED, Seen.STARTED, Seen.ENDED]
        done = Sent(case, batch, handle).done()
    assert (done.code, done.report.start) == (0, 2)
    assert [line.split(".")[1] for line in said.read_text().split()] == ["s1", "s2"]


@pytest.mark.drill
@pytest.mark.parametrize("round_", range(5))
def test_all_cases_many_times(pool: Pool, as_fermi: Pool, job_folder: Path, round_: int) -> None:
    """Under load: three of each at once, a few rounds."""
    with ExitStack() as stack:
        many = []
        for case in CASES * 3:
            batch = write_case(job_folder, case, pool)
            many.append(Sent(case, batch, stack.enter_context(submitted(batch))))
        for one in many:
            wait_until_seen(one.handle, Seen.ENDED, limit=600)
            done = one.done()
            assert done.code == one.case.code, f"{one.case.id}\n{done.message}\n{done.err}"
