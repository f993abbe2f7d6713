"""A job that works in the site's scratch folder, or that a batch system started in a shared one (part scratch)."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.worker.worker_job import NAME, Done, Job, Pairs, read_log

SLURM = ("batch_system", "slurm")


@dataclass
class Farm:
    """What a batch system's job sees: `plan` and `back` on the shared file system, `start` where it is started, the
    node's `scratch`, and its log."""

    folder: Path

    def __post_init__(self) -> None:
        for path in (self.plan / "shards", self.back, self.start, self.scratch):
            path.mkdir(parents=True)

    @property
    def plan(self) -> Path:
        return self.folder / "plan"

    @property
    def back(self) -> Path:
        return self.folder / "back"

    @property
    def start(self) -> Path:
        return self.folder / "back/home_bl_1"

    @property
    def scratch(self) -> Path:
        return self.folder / "lscratch"

    @property
    def log(self) -> Path:
        return self.back / f"{NAME}.log"

    def settings(self, *more: tuple[str, str]) -> Pairs:
        return [SLURM, ("scratch", str(self.scratch)), *more]

    def launch(self, job: Job, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """The worker as blahp starts it: in a folder of its own, its log in the shared one, its stderr nowhere."""
        job.scratch = self.plan
        command = job.write()
        shard = command[3]
        (self.plan / shard).rename(self.plan / "shards" / shard)
        env = {"FERMIGRID_PLAN": str(self.plan), "FERMIGRID_BACK": str(self.back), "SLURM_JOB_ID": "4711"}
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [*prefix, "/bin/bash", "-p", str(self.plan / "worker.sh"), *command[1:]],
                cwd=self.start,
                env={"PATH": os.environ["PATH"], **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.DEVNULL,
            )

    def end(self, process: subprocess.Popen[bytes]) -> Done:
        """Its end, from its log."""
        code = process.wait(timeout=30)
        return read_log(code, self.log.read_bytes(), "")

    def run(self, job: Job, prefix: tuple[str, ...] = ()) -> Done:
        return self.end(self.launch(job, prefix))

    def came_back(self) -> list[str]:
        """What is in the shared work folder but the log."""
        return sorted(path.name for path in (self.back / "out").iterdir())


@pytest.fixture
def farm(tmp_path: Path) -> Farm:
    return Farm(tmp_path)


WRITES = [("out", "x.txt"), ("out.to", "x.txt")]


@pytest.mark.parametrize("scratch", [True, False], ids=["scratch", "where it started"])
def test_a_batch_systems_job_brings_its_files_and_its_outputs(farm: Farm, scratch: bool) -> None:
    """What the plan has is brought, outputs are put where they belong, one log has both streams in their order."""
    job = Job(
        farm.plan,
        farm.settings() if scratch else [SLURM],
        row=WRITES,
        args=("./payload",),
        code={"payload": "#!/bin/sh\necho one; echo two >&2; echo three; pwd > x.txt; stat -c %a .. >> x.txt\n"},
    )
    done = farm.run(job)
    assert done.code == 0, done.out
    (name,) = farm.came_back()
    where, mode = (farm.back / "out" / name).read_text().splitlines()
    assert Path(where).parent.parent == (farm.scratch if scratch else farm.start.parent)
    assert not scratch or mode == "700"
    said = [line for line in done.out.decode().splitlines() if line in ("one", "two", "three")]
    assert said == ["one", "two", "three"]
    assert "SLURM_JOB_ID is 4711" in done.out.decode()
    assert list(farm.scratch.iterdir()) == []


def test_the_payload_sees_nothing_of_how_it_was_brought(farm: Farm) -> None:
    job = Job(farm.plan, farm.settings(), row=WRITES, args=("sh", "-c", "env > x.txt; ls /proc/self/fd >> x.txt"))
    assert farm.run(job).code == 0
    (name,) = farm.came_back()
    text = (farm.back / "out" / name).read_text()
    assert "FERMIGRID_PLAN" not in text and "SLURM" not in text and str(farm.plan) not in text
    assert {line for line in text.splitlines() if line.isdigit()} <= {"0", "1", "2", "3"}


def test_without_a_batch_system_too(tmp_path: Path) -> None:
    """A site's scratch folder where HTCondor brings the files itself: `out` is where HTCondor looks for it."""
    scratch = tmp_path / "lscratch"
    scratch.mkdir()
    job = Job(
        tmp_path / "start",
        [("scratch", str(scratch))],
        row=WRITES,
        args=("./payload",),
        code={"payload": "#!/bin/sh\npwd > x.txt\n"},
    )
    done = job.run()
    assert done.code == 0, done.err
    (out,) = (tmp_path / "start/out").iterdir()
    assert out.read_text().startswith(str(scratch))
    assert list(scratch.iterdir()) == []


@pytest.mark.fault(fault="the site's scratch folder is not there", mode="any", does="says so", code=99)
def test_no_scratch_folder(farm: Farm) -> None:
    farm.scratch.rmdir()
    done = farm.run(Job(farm.plan, farm.settings()))
    assert done.code == 99 and str(farm.scratch) in done.message


@pytest.mark.fault(
    fault="the node does not see the plan on the shared file system", mode="any", does="says so", code=86
)
def test_no_plan(farm: Farm) -> None:
    job = Job(farm.plan, farm.settings())
    process = farm.launch(job, ("sh", "-c", f'mv {farm.plan}/job.env {farm.plan}/gone && exec "$@"', "sh"))
    done = farm.end(process)
    assert done.code == 86 and "job.env cannot be read" in done.message


@pytest.mark.fault(fault="the bundle was cut short on its way", mode="any", does="says that it is damaged", code=80)
def test_a_bundle_cut_short(farm: Farm) -> None:
    job = Job(farm.plan, farm.settings(), args=("./payload",), code={"payload": "#!/bin/sh\n"})
    done = farm.end(farm.launch(job, ("sh", "-c", f': > {farm.plan}/bundle.tar.gz && exec "$@"', "sh")))
    assert done.code == 80 and "damaged" in done.message


@pytest.mark.fault(fault="the work folder cannot take the outputs", mode="any", does="says so, and keeps none", code=88)
def test_outputs_that_cannot_be_brought_back(farm: Farm) -> None:
    small = f'mount -t tmpfs -o size=64k small {farm.back}/out && exec "$@"'
    (farm.back / "out").mkdir()
    job = Job(
        farm.plan, farm.settings(), row=WRITES, args=("sh", "-c", "head -c 200000 /dev/zero > x.txt")
    )  # fmt: skip
    done = farm.run(job, ("unshare", "--mount", "sh", "-c", small, "sh"))
    assert done.code == 88 and "no way for outputs" in done.message
    assert done.data["outputs"] == []
    assert list(farm.scratch.iterdir()) == []


@pytest.mark.fault(fault="the scratch folder is full", mode="any", does="says so, and empties it", code=89)
def test_a_full_scratch(farm: Farm) -> None:
    small = f'mount -t tmpfs -o size=2m small {farm.scratch} && "$@"; c=$?; ls -A {farm.scratch} > {farm.back}/left; exit $c'
    job = Job(farm.plan, farm.settings(), args=("sh", "-c", "head -c 9000000 /dev/zero > x.txt"))
    done = farm.run(job, ("unshare", "--mount", "sh", "-c", small, "sh"))
    assert done.code == 89 and "full" in done.message
    assert (farm.back / "left").read_text() == ""


@pytest.mark.fault(fault="the payload fails", mode="any", does="brings no output back, but core files", code=3)
def test_a_failed_job_brings_back_core_files_only(farm: Farm) -> None:
    script = "printf '\\177ELFcore' > core.1; echo > x.txt; exit 3"
    job = Job(farm.plan, farm.settings(("cores.limit", "1000000")), row=WRITES, args=("sh", "-c", script))
    done = farm.run(job)
    assert done.code == 3
    assert farm.came_back() == [core["file"] for core in done.data["cores"]] != []
    assert list(farm.scratch.iterdir()) == []


@pytest.mark.fault(fault="TERM while the payload runs in the scratch folder", mode="any", does="empties it", code=143)
def test_term(farm: Farm) -> None:
    job = Job(farm.plan, farm.settings(), args=("sh", "-c", f"touch {farm.back}/ready; sleep 60"))
    process = farm.launch(job)
    wait_for(farm.back / "ready")
    (own,) = farm.scratch.iterdir()
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    process.send_signal(signal.SIGTERM)
    assert farm.end(process).code == 143
    assert list(farm.scratch.iterdir()) == []


@pytest.mark.fault(
    fault="the worker is killed (SIGKILL) in the scratch folder",
    mode="any",
    does="the node's next job sweeps it",
    code="killed",
)
def test_what_a_killed_worker_left_is_swept_but_not_what_lives(farm: Farm, tmp_path: Path) -> None:
    job = Job(farm.plan, farm.settings(), args=("sh", "-c", f"touch {farm.back}/ready; sleep 60"))
    killed = farm.launch(job)
    wait_for(farm.back / "ready")
    (dead,) = farm.scratch.iterdir()
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(timeout=30)
    living_farm = Farm(tmp_path / "other")
    living = living_farm.launch(
        Job(living_farm.plan, farm.settings(), args=("sh", "-c", f"touch {living_farm.back}/ready; sleep 60"))
    )
    wait_for(living_farm.back / "ready")
    strangers = farm.scratch / "fermigrid-job.othernode.1"
    strangers.mkdir()
    for path in farm.scratch.iterdir():
        os.utime(path, (0, 0))
    next_farm = Farm(tmp_path / "next")
    assert next_farm.run(Job(next_farm.plan, farm.settings())).code == 0
    left = set(farm.scratch.iterdir())
    assert dead not in left and strangers in left and len(left) == 2
    living.send_signal(signal.SIGTERM)
    living_farm.end(living)
    assert set(farm.scratch.iterdir()) == {strangers}


def wait_for(path: Path) -> None:
    """Until the payload has made the file."""
    subprocess.run(
        ["timeout", "20", "sh", "-c", f"until [ -e {path} ]; do sleep 0.05; done"], check=True
    )  # fmt: skip
