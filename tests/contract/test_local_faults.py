"""What must not happen on this machine: secrets left behind, files in a run folder's old place, runners without one.

The jobs with secrets are those of the real worker; the others are those of the stand-in of `test_backend_local`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fermigrid.backends import Handle, RenderedBatch, local_job
from fermigrid.backends.local_events import EventFile, folder_of
from fermigrid.backends.local_job import MEMORY, prepare, read_options, remove_job, secrets_of
from fermigrid.backends.local_runner import Items
from fermigrid.quoting import encode_lines, encode_row
from fermigrid.states import Seen
from fermigrid.worker import assemble_worker
from tests.contract.test_backend_local import (
    LIMIT,
    Engine,
    Watch,
    alive,
    children,
    kill,
    local_engine,
    log_of,
    outputs_of,
    runner_of,
    runs,
    wait,
)
from tests.worker.worker_job import NO_RUNTIME, WORKER, Job

JOB_ENV = [
    ("format", "1"),
    *[("campaign", "T"), ("step", "step"), ("site", "local"), ("block", "b0000"), ("generation", "0")],
    *[("launch", "worker"), ("rehearsal", "yes"), ("order", "wrapper-outside"), ("image", "light")],
    *[("runtime", NO_RUNTIME), ("output.kind", "transfer")],
]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """This machine, with a run folder that can be moved and removed."""
    for name in ("one", "run"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("ONE", str(tmp_path / "one"))
    for made in local_engine(tmp_path):
        made.folder = tmp_path / "run"
        yield made
    assert not (tmp_path / "one" / "doubled").exists(), "a job ran twice at the same time"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A secret that is one file, whose text is nowhere else."""
    path = tmp_path / "secret"
    path.write_text(f"canary-{uuid.uuid4().hex}")
    return path


def with_secret(engine: Engine, canary: Path, **options: object) -> RenderedBatch:
    """A batch of one job of the real worker, which has a secret and does not end by itself."""
    batch = engine.batch(["replaced below"], **options)
    args = [("arg", "/bin/sh"), ("arg", "-c"), ("arg", "sleep 600")]
    row = encode_row([("job", "j0"), ("run", "r0000000001"), ("piece", ""), *args]).encode() + b"\n"
    shard = f"s0000-{hashlib.sha256(row).hexdigest()[:32]}.rows"
    secret = [("secret", "key"), ("secret.from", str(canary)), ("secret.point", f"KEY={canary.name}")]
    (batch.plan_dir / "shards" / shard).write_bytes(row)
    (batch.plan_dir / "items.txt").write_text(f"j0 {shard} 1\n")
    (batch.plan_dir / "job.env").write_text(encode_lines([*JOB_ENV, *secret]))
    (batch.plan_dir / "worker.sh").write_text(assemble_worker(WORKER.parents[1], [*JOB_ENV, *secret]))
    (batch.work_dir / shard / "out").mkdir(parents=True)
    return batch


def copies(engine: Engine, canary: Path) -> list[Path]:
    """Where the secret's text can be read, but for its source."""
    text, found = canary.read_bytes(), []
    for top in (MEMORY, Path(str(engine.options["scratch"]))):
        for folder, _, names in os.walk(top):
            for path in (Path(folder, name) for name in names):
                if path.is_file() and path.stat().st_size < 4096 and text in path.read_bytes():
                    found.append(path)
    return found


def below(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        found += children(parent)
    return found[1:]


def started(engine: Engine, batch: RenderedBatch, canary: Path) -> tuple[Handle, Watch]:
    """Submitted, and its secret is staged; the payload runs."""
    handle = engine.submit(batch)
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0)
    wait(lambda: any(b"sleep" in command_of(pid) for pid in below(runner_of(handle))))
    (copy,) = copies(engine, canary)
    assert copy.is_relative_to(MEMORY / f"fermigrid-{os.getuid()}")
    return handle, watch


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def worker_of(keeper: int) -> int:
    (worker,) = (pid for pid in children(keeper) if b"worker.sh" in command_of(pid))
    return worker


def kill_all(handle: Handle) -> None:
    """Runner, keeper, worker, its guard and the payload, so that none of them can clean up.

    Children first: the kernel continues the stopped processes of a group whose last parent dies.
    """
    everything = [runner_of(handle), *below(runner_of(handle))]
    for pid in everything:
        os.kill(pid, signal.SIGSTOP)
    for pid in reversed(everything):
        os.kill(pid, signal.SIGKILL)
    wait(lambda: not any(runs(pid) for pid in everything))


# --- secrets


def test_no_secret_is_left_when_the_keeper_is_killed(engine: Engine, canary: Path) -> None:
    handle, watch = started(engine, with_secret(engine, canary), canary)
    kill(children(runner_of(handle))[0])
    watch.until(Seen.ENDED, 0)
    assert watch.seen[-1].signal == signal.SIGKILL
    wait(lambda: not alive(handle))
    assert copies(engine, canary) == []


def test_no_secret_is_left_of_a_removed_worker_that_does_not_answer(engine: Engine, canary: Path) -> None:
    handle, watch = started(engine, with_secret(engine, canary, grace=1), canary)
    os.kill(worker_of(children(runner_of(handle))[0]), signal.SIGSTOP)
    engine.backend.remove([handle])
    watch.until(Seen.REMOVED, 0)
    wait(lambda: not alive(handle))
    assert copies(engine, canary) == []


def test_no_secret_is_left_when_the_runner_is_dead_and_the_worker_does_not_answer(engine: Engine, canary: Path) -> None:
    handle, _ = started(engine, with_secret(engine, canary, grace=1), canary)
    keeper = children(runner_of(handle))[0]
    os.kill(worker_of(keeper), signal.SIGSTOP)
    kill(runner_of(handle))
    wait(lambda: not runs(keeper))  # nobody observes: it is the keeper's work
    assert copies(engine, canary) == []


def test_when_all_were_killed_the_next_runner_removes_the_secrets(engine: Engine, canary: Path) -> None:
    handle, watch = started(engine, with_secret(engine, canary), canary)
    kill_all(handle)
    (left,) = copies(engine, canary)
    watch.until(Seen.STARTED, 0, times=2)
    assert not left.exists()
    engine.backend.remove([handle])
    watch.until(Seen.REMOVED, 0)
    wait(lambda: not alive(handle))
    assert copies(engine, canary) == []


def test_when_all_were_killed_and_the_run_folder_moved_the_secrets_are_found(
    engine: Engine, canary: Path, tmp_path: Path
) -> None:
    handle, _ = started(engine, with_secret(engine, canary), canary)
    kill_all(handle)
    (left,) = copies(engine, canary)
    moved = move(engine, handle, tmp_path / "elsewhere")
    Watch(engine, moved).until(Seen.STARTED, 0, times=2)
    assert not left.exists()  # the fixture looks for what is left in scratch


def test_a_copy_of_a_run_folder_leaves_the_jobs_of_the_original_alone(engine: Engine, tmp_path: Path) -> None:
    """The copy's events tell of the original's runner, which is alive, and of its jobs."""
    go = tmp_path / "go"
    handle = engine.submit(engine.batch([f"wait={go}"], slots=4))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0)
    shutil.copytree(engine.folder, tmp_path / "copy")
    (tmp_path / "copy/one").mkdir()
    copied = placed(handle, tmp_path / "copy")
    engine.handles.append(copied)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONE", str(tmp_path / "copy/one"))
        other = Watch(engine, copied)
        other.until(Seen.STARTED, 0, times=2)
    go.touch()
    watch.until(Seen.ENDED, 0)
    other.until(Seen.ENDED, 0)
    assert (watch.ends(), other.ends()) == ({0: 0}, {0: 0})
    assert log_of(handle, "j0").startswith("job j0 start 1 ")


def test_without_a_place_in_memory_secrets_are_in_the_scratch_folder(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_job, "MEMORY", tmp_path / "nowhere")
    batch = engine.batch(["say=x"])
    item = Items(batch.plan_dir / "items.txt")[0]
    folder = prepare(batch, item, 1, read_options(batch.options).scratch)
    assert secrets_of(folder) == folder / "secrets"
    assert secrets_of(folder).stat().st_mode & 0o777 == 0o700
    remove_job(folder)
    assert not folder.exists()


@pytest.mark.parametrize(("mode", "used"), [(0o700, True), (0o755, False), (None, False)])
def test_the_worker_uses_the_place_it_is_given_if_it_is_private(
    tmp_path: Path, canary: Path, mode: int | None, used: bool
) -> None:
    place = tmp_path / "place"
    if mode is not None:
        place.mkdir()
        place.chmod(mode)
    settings = [("secret", "key"), ("secret.from", str(canary)), ("secret.point", f"KEY={canary.name}")]
    job = Job(
        tmp_path / "scratch", settings, args=["/bin/sh", "-c", 'echo "$KEY ${FERMIGRID_SECRETS-unset}"; cat "$KEY"']
    )
    where, text = job.run(env={"FERMIGRID_SECRETS": str(place)}).out.decode().splitlines()[:2]
    assert text == canary.read_text()
    assert where.endswith(" unset")
    assert where.startswith(f"{place}/") is used
    assert mode is None or list(place.iterdir()) == []


# --- the run folder is moved


def placed(handle: Handle, folder: Path) -> Handle:
    """The same batch with its run folder here."""
    top = handle.batch.event_log.parent
    names = ("plan_dir", "work_dir", "event_log")
    paths = {name: folder / getattr(handle.batch, name).relative_to(top) for name in names}
    return replace(handle, batch=replace(handle.batch, **paths))


def move(engine: Engine, handle: Handle, to: Path) -> Handle:
    engine.folder.rename(to)
    moved = placed(handle, to)
    engine.handles[:] = [moved]
    return moved


def test_in_a_moved_run_folder_the_jobs_go_on_and_nothing_appears_in_the_old_place(
    engine: Engine, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    handle = engine.submit(engine.batch(["out=early", *[f"wait={go}\tout=late"] * 3]))
    watch = Watch(engine, handle)
    watch.until(Seen.ENDED, 0)
    watch.until(Seen.STARTED, 1, 2)
    first = runner_of(handle)
    moved = move(engine, handle, tmp_path / "elsewhere")
    wait(lambda: not runs(first))
    watch = Watch(engine, moved)
    watch.until(Seen.STARTED, 1, 2, times=2)
    evicted = [s for s in watch.seen if s.seen is Seen.EVICTED]
    assert {s.reason for s in evicted} == {"its run folder was moved or removed"}
    go.touch()
    watch.until(Seen.ENDED, *range(4))
    assert watch.story(1) == [Seen.STARTED, Seen.EVICTED, Seen.STARTED, Seen.ENDED]
    assert watch.ends() == {0: 0, 1: 0, 2: 0, 3: 0}
    assert sorted(outputs_of(moved)) == ["j0.0.g0.s1", "j1.0.g0.s2", "j2.0.g0.s2", "j3.0.g0.s1"]
    assert log_of(moved, "j1").startswith("job j1 start 2 ")
    assert not engine.folder.exists()


def test_a_job_that_ends_while_its_folder_is_being_moved_is_not_said_to_have_ended(
    engine: Engine, tmp_path: Path
) -> None:
    """Its log cannot come back to the old place: not even when that place is there again, with a new campaign in it."""
    handle = engine.submit(engine.batch([f"wait={tmp_path / 'go'}\tout=x"]))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0)
    runner = runner_of(handle)
    wait(lambda: len(children(runner)) == 1)
    (keeper,) = children(runner)
    os.kill(runner, signal.SIGSTOP)
    (tmp_path / "go").touch()
    wait(lambda: not runs(keeper))
    moved = move(engine, handle, tmp_path / "elsewhere")
    shutil.copytree(moved.batch.work_dir, handle.batch.work_dir)
    os.kill(runner, signal.SIGCONT)
    wait(lambda: not runs(runner))
    watch = Watch(engine, moved)
    watch.until(Seen.ENDED, 0)
    assert watch.story(0) == [Seen.STARTED, Seen.EVICTED, Seen.STARTED, Seen.ENDED]
    assert outputs_of(moved) == {"j0.0.g0.s2": "x"}
    assert outputs_of(handle) == {}


def test_a_job_whose_work_folder_has_gone_is_held(engine: Engine, tmp_path: Path) -> None:
    handle = engine.submit(engine.batch([f"wait={tmp_path / 'go'}\tout=x"]))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0)
    shutil.rmtree(handle.batch.work_dir)
    (tmp_path / "go").touch()
    watch.until(Seen.HELD, 0)
    assert watch.seen[-1].code == f"12/{errno.ENOENT}"
    assert not handle.batch.work_dir.exists()


def test_a_job_whose_plan_has_gone_is_held(engine: Engine, tmp_path: Path) -> None:
    handle = engine.submit(engine.batch([f"wait={tmp_path / 'go'}", "say=x"], slots=1))
    watch = Watch(engine, handle)
    watch.until(Seen.STARTED, 0)
    wait((tmp_path / "one" / "j0").exists)  # the worker itself is read from the plan
    shutil.rmtree(handle.batch.plan_dir)
    (tmp_path / "go").touch()
    watch.until(Seen.HELD, 1)
    assert watch.seen[-1].code == f"13/{errno.ENOENT}"
    assert watch.ends() == {0: 0}


# --- the run folder is removed


def test_without_its_run_folder_a_runner_ends_with_its_jobs_and_leaves_nothing(
    engine: Engine, canary: Path, tmp_path: Path
) -> None:
    handle, _ = started(engine, with_secret(engine, canary, slots=4), canary)
    stubborn = f"escape={tmp_path / 'never'}\tstubborn={tmp_path / 'never'}"
    other = engine.submit(engine.batch([stubborn, "say=x", stubborn], grace=1, slots=4))
    Watch(engine, other).until(Seen.STARTED, 0, 2)
    runners = [runner_of(handle), runner_of(other)]
    jobs = [pid for runner in runners for pid in below(runner)]
    shutil.rmtree(engine.folder)
    engine.handles.clear()  # nothing can be asked of them; the fixture looks for what is left in scratch
    wait(lambda: not any(runs(pid) for pid in (*runners, *jobs)))
    assert not engine.folder.exists()
    assert copies(engine, canary) == []
    for batch in (handle.batch, other.batch):
        assert list(MEMORY.glob(f"fermigrid-*/{batch.batch_id}.*")) == []
    assert not folder_of(other.batch).path.exists()


def test_an_event_for_a_full_disk_that_has_gone_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "events").symlink_to("/dev/full")
    events = EventFile(tmp_path / "events")
    (tmp_path / "events").unlink()
    writer = threading.Thread(target=events.append, args=({"runner": 1},), daemon=True)
    writer.start()
    writer.join(LIMIT)
    assert not writer.is_alive()


def test_a_job_that_ends_after_its_run_folder_was_removed_does_not_make_it_anew(engine: Engine, tmp_path: Path) -> None:
    handle = engine.submit(engine.batch([f"wait={tmp_path / 'go'}\tout=x", "say=y"], slots=1))
    Watch(engine, handle).until(Seen.STARTED, 0)
    runner = runner_of(handle)
    wait(lambda: len(children(runner)) == 1)
    (keeper,) = children(runner)
    os.kill(runner, signal.SIGSTOP)
    (tmp_path / "go").touch()
    wait(lambda: not runs(keeper))
    shutil.rmtree(engine.folder)
    engine.handles.clear()
    os.kill(runner, signal.SIGCONT)
    wait(lambda: not runs(runner))
    assert not engine.folder.exists()
