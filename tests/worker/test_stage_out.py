"""Outputs: declared ones are there, published whole under their names, and never over another attempt's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.worker.node import Node
from tests.worker.worker_job import Done, Job, finish, sha256

MakeJob = Callable[..., Job]
TWO = [("out", "a.fit"), ("out.to", "sub/a.fit"), ("out", "b b"), ("out.to", "b b")]


def writes(make_job: MakeJob, files: Mapping[str, str], root: Path | None = None, **what: object) -> Job:
    """A job that writes these files, and publishes a.fit and `b b`; to `root`, which is there."""
    if root and not root.exists():
        root.mkdir()
    script = "#!/bin/sh\n" + "".join(f"printf %s '{text}' > '{name}'\n" for name, text in files.items())
    more = {"kind": "posix", "settings": [("output.root", str(root))]} if root else {}
    return make_job(**{"args": ["./p"], "code": {"p": script}, "row": TWO, **more, **what})


BOTH = {"a.fit": "AAA", "b b": "B"}


def test_transfer(make_job: MakeJob) -> None:
    job = writes(make_job, BOTH)
    done = job.run()
    got = [(o.name, o.to, o.file, o.bytes, o.sha256, o.result) for o in done.report.outputs]
    name = f"clump.r0239557414.c003.%d.{done.report.attempt}"
    assert got == [
        ("a.fit", "sub/a.fit", name % 0, 3, sha256(b"AAA"), "ours"),
        ("b b", "b b", name % 1, 1, sha256(b"B"), "ours"),
    ]
    assert {path.name: path.read_text() for path in (job.scratch / "out").iterdir()} == {name % 0: "AAA", name % 1: "B"}


@pytest.mark.fault(fault="a declared output is missing", mode="any", does="publishes none of the outputs", code=87)
@pytest.mark.parametrize("kind", ["transfer", "posix"])
def test_a_declared_output_that_is_missing(make_job: MakeJob, tmp_path: Path, kind: str) -> None:
    job = writes(make_job, {"a.fit": "AAA"}, tmp_path / "root" if kind == "posix" else None)
    done = job.run()
    assert done.code == 87 and "b b" in done.message and done.report.outputs == () and done.report.payload_exit == 0
    assert list((job.scratch / "out").iterdir()) == [] and not any((tmp_path / "root").glob("*"))


@pytest.mark.fault(
    fault="an output is a folder, a device, or a link out of the working folder",
    mode="any",
    does="publishes nothing",
    code=87,
)
@pytest.mark.parametrize(
    "script",
    ["mkdir a.fit", "mkfifo a.fit", "ln -s /etc/passwd a.fit", "ln -s nowhere a.fit", "ln -s ../job.env a.fit"],
)
def test_an_output_that_is_no_file(make_job: MakeJob, script: str) -> None:
    done = make_job(args=["/bin/sh", "-c", script], row=TWO[:2]).run()
    assert done.code == 87 and "a.fit" in done.message


def test_a_link_within_the_working_folder_is_followed(make_job: MakeJob) -> None:
    job = make_job(args=["/bin/sh", "-c", "mkdir d; echo x > d/real; ln -s d/real a.fit"], row=TWO[:2])
    done = job.run()
    path = job.scratch / "out" / done.report.outputs[0].file
    assert path.read_text() == "x\n" and not path.is_symlink()


def test_a_failed_payload_publishes_nothing(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(args=["/bin/sh", "-c", "echo x > a.fit; exit 4"], row=TWO[:2])
    assert job.run().code == 4 and list((job.scratch / "out").iterdir()) == []


def everything(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


PUBLISHED = {"sub/a.fit": "AAA", "b b": "B"}


@pytest.mark.fault(
    fault="the folder for outputs (`output.root`) is missing on the node",
    mode="any",
    does="does not make it: what lies in a folder of the job's own would be lost",
    code=88,
)
def test_a_root_that_is_missing_is_not_made(make_job: MakeJob, tmp_path: Path) -> None:
    job = writes(make_job, BOTH, tmp_path / "root")
    (tmp_path / "root").rmdir()
    done = job.run()
    assert done.code == 88 and f"output.root {tmp_path}/root is missing on" in done.message
    assert not (tmp_path / "root").exists()


def test_posix(make_job: MakeJob, tmp_path: Path) -> None:
    done = writes(make_job, BOTH, tmp_path / "root").run()
    assert done.code == 0 and everything(tmp_path / "root") == PUBLISHED
    assert [(o.file, o.result) for o in done.report.outputs] == [
        (f"{tmp_path}/root/sub/a.fit", "ours"),
        (f"{tmp_path}/root/b b", "ours"),
    ]


def results(done: Done) -> list[str]:
    return [output.result for output in done.report.outputs]


def test_posix_again(make_job: MakeJob, tmp_path: Path) -> None:
    writes(make_job, BOTH, tmp_path / "root").run()
    assert results(writes(make_job, BOTH, tmp_path / "root").run()) == ["same", "same"]
    done = writes(make_job, {"a.fit": "new", "b b": "B"}, tmp_path / "root").run()
    assert (done.code, results(done)) == (0, ["earlier", "earlier"])
    assert [o.sha256 for o in done.report.outputs] == [sha256(b"AAA"), sha256(b"B")]
    assert everything(tmp_path / "root") == PUBLISHED


def test_posix_when_some_are_there_with_the_same_content(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/b b").write_text("B")
    done = writes(make_job, BOTH, tmp_path / "root").run()
    assert (done.code, results(done)) == (0, ["ours", "same"]) and everything(tmp_path / "root") == PUBLISHED


@pytest.mark.fault(
    fault="half of the outputs are there from another attempt",
    mode="any",
    does="overwrites nothing, says what to remove",
    code=88,
)
@pytest.mark.parametrize(("name", "text"), [("sub/a.fit", "old"), ("b b", "old")])
def test_posix_with_a_mixture(make_job: MakeJob, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "root/sub").mkdir(parents=True)
    (tmp_path / "root" / name).write_text(text)
    done = writes(make_job, BOTH, tmp_path / "root").run(env={"FERMIGRID_RIVAL_WAIT": "1"})
    assert done.code == 88 and f"runs: rm -- '{tmp_path}/root/{name}', then" in done.message
    assert everything(tmp_path / "root") == {name: text}


@pytest.mark.fault(
    fault="an attempt was killed between the names of its outputs",
    mode="any",
    does="gives the others their names for it, uses them",
    code=0,
)
def test_posix_goes_on_for_a_dead_attempt(make_job: MakeJob, tmp_path: Path) -> None:
    """Its parts are whole and the first has its name, as kill -9 leaves it."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    for folder, name, text in ((root / "sub", "a.fit", "OLD"), (root, "b b", "old")):
        (folder / f".{name}.g0.s1.00000000.part").write_text(text)
    os.link(root / "sub/.a.fit.g0.s1.00000000.part", root / "sub/a.fit")
    done = writes(make_job, BOTH, root).run()
    assert (done.code, results(done)) == (0, ["earlier", "earlier"]), done.err
    assert [o.sha256 for o in done.report.outputs] == [sha256(b"OLD"), sha256(b"old")]
    assert (root / "sub/a.fit").read_text() == "OLD" and (root / "b b").read_text() == "old"


def test_parts_of_dead_attempts_are_swept_after_a_day(make_job: MakeJob, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    old, new, other = (root / f".b b.g0.s1.{i}.part" for i in ("0", "1", "2"))
    other = root / ".c.g0.s1.0.part"
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (1, 1))
    assert writes(make_job, BOTH, root).run().code == 0 and old.exists()
    assert writes(make_job, BOTH, root).run(env={"FERMIGRID_START": "2"}).code == 0
    assert not old.exists() and new.exists() and other.exists()


def test_posix_names_that_shells_expand(make_job: MakeJob, tmp_path: Path) -> None:
    row = [("out", "[a]*?"), ("out.to", "x'y/[a]*?")]
    job = writes(make_job, {"[a]*?": "AAA"}, tmp_path / "root", row=row)
    assert job.run(env={"FERMIGRID_START": "2"}).code == 0 and everything(tmp_path / "root") == {"x'y/[a]*?": "AAA"}


@pytest.mark.parametrize("kind", ["transfer", "posix"])
@pytest.mark.fault(
    fault="the payload dumps core", mode="any", does="brings its core files back, up to the site's limit", code=134
)
def test_core_files_are_kept(make_job: MakeJob, tmp_path: Path, kind: str) -> None:
    """Those of the limit; a file of such a name that is no core, and a link, are not."""
    elf = r"printf '\177ELF%096d'"
    script = f"{elf} > core; {elf} > core.1; {elf} > core.2; echo x > core.py; ln -s core core.3; echo x > a.fit; kill -ABRT $$"
    root = (
        {"kind": "posix", "settings": [("output.root", str(tmp_path / "root"))]}
        if kind == "posix"
        else {"settings": []}
    )
    job = make_job(args=["/bin/sh", "-c", script], row=TWO[:2], **root)
    job.settings.append(("cores.limit", "250"))
    done = job.run()
    names = [f"clump.r0239557414.c003.core.{i}.{done.report.attempt}" for i in range(2)]
    assert done.code == 134 and done.data["cores"] == [{"file": name, "bytes": 100} for name in names]
    assert {path.name: path.stat().st_size for path in (job.scratch / "out").iterdir()} == dict.fromkeys(names, 100)
    assert "core.2, 100 bytes: not kept" in done.err and not (tmp_path / "root").exists()


@pytest.mark.parametrize("exit_code", [0, 5])
def test_no_core_files_of_a_good_job_or_without_a_limit(make_job: MakeJob, exit_code: int) -> None:
    job = make_job(args=["/bin/sh", "-c", f"printf '\\177ELF' > core; exit {exit_code}"])
    job.settings += [("cores.limit", "1000")] if exit_code == 0 else []
    done = job.run()
    assert (done.code, done.data["cores"]) == (exit_code, []) and list((job.scratch / "out").iterdir()) == []


@pytest.mark.fault(
    fault="the folder of outputs cannot be written", mode="any", does="does not try again, says why", code=88
)
def test_posix_that_cannot_be_written(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = writes(make_job, BOTH, tmp_path / "file").run()
    assert done.code == 88 and done.report.payload_exit == 0 and "again in" not in done.err
    (tmp_path / "root/sub/a.fit").mkdir(parents=True)
    done = writes(make_job, BOTH, tmp_path / "root").run(env={"FERMIGRID_RIVAL_WAIT": "1"})
    assert done.code == 88 and everything(tmp_path / "root") == {}


@pytest.mark.fault(
    fault="attempts of one job publish at once", mode="any", does="one whole set, the others use it", code=0
)
def test_attempts_at_once_publish_one_whole_set(make_job: MakeJob, tmp_path: Path) -> None:
    """Each writes other content; a mixture would be two halves."""
    for number in range(4):
        root = tmp_path / f"root{number}"
        jobs = [writes(make_job, {"a.fit": f"a{i}", "b b": f"b{i}"}, root) for i in range(5)]
        with ThreadPoolExecutor(5) as pool:
            ends = list(pool.map(Job.run, jobs))
        assert [done.code for done in ends] == [0] * 5, [done.message for done in ends]
        assert sorted(results(done)[0] for done in ends) == ["earlier"] * 4 + ["ours"]
        published = everything(root)
        assert set(published) == set(PUBLISHED)
        assert published["sub/a.fit"][1:] == published["b b"][1:]
        expected = [sha256(published[name].encode()) for name in PUBLISHED]
        assert all([o.sha256 for o in done.report.outputs] == expected for done in ends)


def full(target: Path, job: Job, megabytes: int) -> subprocess.Popen[bytes]:
    """A worker whose output root is a small disk of its own."""
    target.mkdir()
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = f'mount -t tmpfs -o size={megabytes}m small "{target}" && exec "$@"'
    return job.start(prefix=["unshare", *user, "--mount", "sh", "-c", script, "sh"])


@pytest.mark.fault(
    fault="the file system of the outputs is full", mode="any", does="does not try again, leaves nothing there", code=88
)
def test_posix_on_a_full_disk(make_job: MakeJob, tmp_path: Path) -> None:
    root = tmp_path / "root"
    job = make_job(
        args=["/bin/sh", "-c", "head -c 3000000 /dev/zero > a.fit"],
        row=TWO[:2],
        kind="posix",
        settings=[("output.root", str(root))],
    )
    done = finish(full(root, job, 1))
    assert done.code == 88 and "No space left" in done.message and "again in" not in done.err


@pytest.mark.pool
@pytest.mark.fault(
    fault="the file system of the outputs never answers", mode="any", does="ends at the site's limit, says so", code=88
)
@pytest.mark.parametrize("folder", ["hang", "out"])
def test_posix_that_hangs(node: Node, folder: str) -> None:
    node.mount_bad()
    row = [("out", "a.fit"), ("out.to", "writehang.fit")]
    settings = [("output.root", f"/mnt/bad/{folder}"), ("limit.stage_out", "3"), ("limit.path", "2")]
    done = node.run_job(node.job(args=["/bin/sh", "-c", "echo x > a.fit"], row=row, kind="posix", settings=settings))
    assert done.code == 88 and done.report.payload_exit == 0, done.err
    assert done.data["phases"]["stage_out"] < 25  # the limit, 5 s for KILL to tell, 10 s to remove what is there


@pytest.mark.pool
@pytest.mark.fault(fault="the file system of the outputs fails for a moment", mode="any", does="tries again", code=0)
def test_posix_with_errors_of_the_moment(node: Node) -> None:
    (node.folder / "fickle").mkdir(mode=0o777)
    (node.folder / "fickle").chmod(0o777)
    node.mount_bad(FICKLE="2")
    row = [("out", "a.fit"), ("out.to", "fickle/a.fit")]
    settings = [("output.root", "/mnt/bad")]
    done = node.run_job(node.job(args=["/bin/sh", "-c", "echo x > a.fit"], row=row, kind="posix", settings=settings))
    assert done.code == 0 and "again in" in done.err, done.err
    assert (node.folder / "fickle/a.fit").read_text() == "x\n"


@pytest.mark.fault(fault="the payload fills the scratch disk", mode="any", does="makes room, reports", code=89)
def test_scratch_full_in_the_payload(make_job: MakeJob, small_disk: list[str]) -> None:
    job = make_job(args=["/bin/sh", "-c", "head -c 5000000 /dev/zero > big; exit 6"])
    done = job.run(prefix=small_disk)
    assert (done.code, done.report.payload_exit) == (89, 6)


@pytest.mark.fault(fault="the scratch disk is full from the start", mode="any", does="reports", code=89)
def test_scratch_full_from_the_start(make_job: MakeJob, tmp_path: Path, small_disk: list[str]) -> None:
    job = make_job()
    fill = ["sh", "-c", 'head -c 5000000 /dev/zero > filler 2> /dev/null; exec "$@"', "sh"]
    done = job.run(prefix=[*small_disk, *fill])
    assert done.code == 89


def test_an_internal_error_has_a_report(make_job: MakeJob, tmp_path: Path) -> None:
    """A program that the worker relies on is broken."""
    (tmp_path / "bin").mkdir()
    shutil.copy("/bin/false", tmp_path / "bin/readlink")
    done = writes(make_job, BOTH).run(env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})
    assert done.code == 99 and re.search(r"internal error in _check_outputs, line \d+, status 1", done.message)
    assert done.report.payload_exit == 0
