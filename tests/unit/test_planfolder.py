"""Plans on disk: whole or not at all, whatever is killed or full; and the paths of the run folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
from pathlib import Path

import pytest

from fermigrid.errors import RunFolderError, Unrepresentable
from fermigrid.planfolder import is_plan, make_work, write_plan
from fermigrid.runfolder import RunFolder, check_path
from tests.campaigns import SMALL, SMALL_DISK, assemble, finish, plans, python, read_items, write

LARGE = SMALL.replace("{count: 2}", "{count: 100000}") + "block: 100000\n"


def test_a_plan_is_written_whole(tmp_path: Path) -> None:
    (tmp_path / "go.py").write_text("x")
    (plan,) = plans(assemble(tmp_path, SMALL + "code: [go.py]\n"))
    folder = tmp_path / "b" / "plan"
    digest = write_plan(plan, folder)
    manifest = (folder / "plan.json").read_bytes()
    assert digest == hashlib.sha256(manifest).hexdigest()
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == {"plan.json", *json.loads(manifest)["files"]}
    assert {"job.env", "worker.sh", "items.txt", "bundle.tar.gz"} <= there
    assert (folder / "worker.sh").stat().st_mode & 0o111 == 0o111
    assert is_plan(folder, digest)
    assert [path.name for path in folder.parent.iterdir()] == ["plan"]
    assert [name for name, _ in read_items(folder)] == ["go.0000", "go.0001"]


@pytest.mark.parametrize("damage", ["job.env", "items.txt", "worker.sh", "plan.json", "shard"])
@pytest.mark.parametrize("how", ["changed", "gone", "cut"])
def test_a_damaged_plan_is_known(tmp_path: Path, damage: str, how: str) -> None:
    (plan,) = plans(assemble(tmp_path))
    digest = write_plan(plan, tmp_path / "plan")
    path = next((tmp_path / "plan/shards").iterdir()) if damage == "shard" else tmp_path / "plan" / damage
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + (b"x" if how == "changed" else b""))
    assert not is_plan(tmp_path / "plan", digest)


def test_another_plan_is_not_this_one(tmp_path: Path) -> None:
    (plan,) = plans(assemble(tmp_path))
    write_plan(plan, tmp_path / "plan")
    assert not is_plan(tmp_path / "plan", "0" * 64)
    assert not is_plan(tmp_path / "absent", "0" * 64)


def test_a_plan_is_never_written_over(tmp_path: Path) -> None:
    (plan,) = plans(assemble(tmp_path))
    folder = tmp_path / "b" / "plan"
    folder.mkdir(parents=True)
    (folder / "mine").write_text("mine")
    with pytest.raises(RunFolderError, match="cannot write the plan"):
        write_plan(plan, folder)
    assert [str(path.relative_to(tmp_path / "b")) for path in (tmp_path / "b").rglob("*")] == ["plan", "plan/mine"]


def test_a_fault_while_rendering_leaves_nothing(tmp_path: Path) -> None:
    text = SMALL.replace("{run}", "{p}", 1) + "parameters: {p: x}\n"
    (plan,) = plans(assemble(tmp_path / "c", text, parameters={"p": "\udce9"}))
    with pytest.raises(Unrepresentable, match="surrogate"):
        write_plan(plan, tmp_path / "b" / "plan")
    assert list((tmp_path / "b").iterdir()) == []


WRITE = """
import sys
from pathlib import Path
from tests.campaigns import SITES, plans
from fermigrid.assemble import assemble_file
from fermigrid.errors import RunFolderError
from fermigrid.planfolder import write_plan
(plan,) = plans(assemble_file(Path(sys.argv[1]), "local", {}, (SITES,)))
print("ready", flush=True)
try:
    write_plan(plan, Path(sys.argv[2]) / "plan")
except RunFolderError as error:
    print(error)
    print(sorted(str(path) for path in Path(sys.argv[2]).iterdir()))
"""


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    campaign = write(tmp_path, LARGE)
    (tmp_path / "disk").mkdir()
    wrap = [*SMALL_DISK, "1m", str(tmp_path / "disk")]
    code, out, err = finish(python(WRITE, campaign, tmp_path / "disk", wrap=wrap))
    assert code == 0, err
    _, said, left = out.splitlines()
    assert "cannot write the plan" in said
    assert "No space left on device" in said
    assert left == "[]"


def test_kill_9_leaves_no_plan_that_is_not_whole_and_the_next_writer_cleans_up(tmp_path: Path) -> None:
    campaign = write(tmp_path, LARGE)
    folder = tmp_path / "b"
    folder.mkdir()
    process = python(WRITE, campaign, folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    while not list(folder.glob(".plan.*.draft/shards/*")):
        assert process.poll() is None, "it was over before it could be killed"
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert len(list(folder.iterdir())) == 1, "a draft, or the whole plan when it was faster than the signal"
    shutil.rmtree(folder / "plan", ignore_errors=True)
    (plan,) = plans(assemble(tmp_path / "again"))
    assert is_plan(folder / "plan", write_plan(plan, folder / "plan"))
    assert [path.name for path in folder.iterdir()] == ["plan"]


def test_folders_for_what_comes_back_are_there_beforehand(tmp_path: Path) -> None:
    (plan,) = plans(assemble(tmp_path))
    write_plan(plan, tmp_path / "plan")
    for _ in range(2):
        make_work(tmp_path / "work", tmp_path / "plan")
    shards = {path.name for path in (tmp_path / "plan" / "shards").iterdir()}
    assert {path.name for path in (tmp_path / "work").iterdir()} == shards


# --- the run folder


@pytest.mark.parametrize(
    "name", ["a b", "a,b", "a$b", "a'b", 'a"b', "a\\b", "a;b", "a\nb", "a\tb", "é", "a(b)", "a*", "a%b", "a:b", "a#b"]
)
def test_paths_that_the_batch_system_would_change(tmp_path: Path, name: str) -> None:
    bad = next(char for char in name if not (char.isascii() and (char.isalnum() or char in "/._+@=-")))
    with pytest.raises(RunFolderError) as refused:
        check_path(tmp_path / name / "run")
    assert repr(bad) in str(refused.value)
    assert "--run-dir" in refused.value.hint
    assert not (tmp_path / name).exists()


def test_tame_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_path(Path("a/../b+c@d=e-f_g.h")) == tmp_path / "b+c@d=e-f_g.h"


def test_every_path_is_inside(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    paths = [
        folder.ledger,
        folder.logs,
        folder.campaign,
        folder.runs,
        folder.bundle,
        folder.outputs,
        folder.batch("b0000", "go", 2),
        folder.event_log("b0000"),
    ]
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(tmp_path) for path in paths)
    assert folder.batch("b0000", "go", 2) == tmp_path / "blocks/b0000/go.g2"


@pytest.mark.parametrize(("mask", "folder", "file"), [(0o077, 0o700, 0o600), (0o007, 0o770, 0o660)])
def test_a_plan_has_the_modes_of_the_mask_and_its_worker_is_executable(
    tmp_path: Path, mask: int, folder: int, file: int
) -> None:
    (plan,) = plans(assemble(tmp_path))
    before = os.umask(mask)
    try:
        write_plan(plan, tmp_path / "plan")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "plan").iterdir()}
    assert modes.pop("worker.sh") == folder
    assert modes.pop("shards") == folder
    assert set(modes.values()) == {file}
