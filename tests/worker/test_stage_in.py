"""Inputs: from paths and URLs, replicas in order, checked before the payload sees them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.faulty_http import Faulty
from tests.worker.node import Node
from tests.worker.worker_job import Done, Job, Pairs, sha256

MakeJob = Callable[..., Job]


def fetch(make_job: MakeJob, *sources: str, checks: Pairs = (), name: str = "x.root") -> tuple[Done, bytes | None]:  # type: ignore[assignment]
    """A job that publishes its only input again; what it got."""
    row = [("in", name), *(("in.from", source) for source in sources), *checks, ("out", "copy"), ("out.to", "copy")]
    job = make_job(args=["/bin/cp", name, "copy"], row=row)
    done = job.run(env={"FERMIGRID_STALL": "1"})
    outputs = done.report.outputs
    return done, (job.scratch / "out" / outputs[0].file).read_bytes() if outputs else None


def sums(content: bytes) -> Pairs:
    adler = f"{zlib.adler32(content):08x}"
    return [("in.bytes", str(len(content))), ("in.adler32", adler), ("in.sha256", sha256(content))]


@pytest.mark.parametrize("name", ["x.root", "sub folder/x y.root", "é.root"])
def test_from_a_path(make_job: MakeJob, tmp_path: Path, name: str) -> None:
    source = tmp_path / "a b%41\\é.root"
    source.write_bytes(b"events")
    for address in (str(source), "file://" + str(source).replace("%", "%25").replace(" ", "%20").replace("\\", "%5C")):
        done, got = fetch(make_job, address, checks=sums(b"events"), name=name)
        assert got == b"events", done.err
        staged = done.data["inputs"][0]
        assert (staged["name"], staged["source"], staged["bytes"], staged["sha256"]) == (
            name,
            address,
            6,
            sha256(b"events"),
        )


def test_from_http(make_job: MakeJob, faulty: Faulty) -> None:
    done, got = fetch(make_job, f"{faulty.url}/drop/x", checks=sums(faulty.content))
    assert got == faulty.content, done.err
    assert faulty.statuses() == [200, 206, 206]


@pytest.mark.fault(fault="a replica has other content", mode="any", does="takes the next replica", code=0)
@pytest.mark.parametrize("wrong", [("in.bytes", "5"), ("in.adler32", "00000001"), ("in.sha256", "0" * 64)])
def test_a_replica_with_wrong_content_is_passed_over(make_job: MakeJob, tmp_path: Path, wrong: tuple[str, str]) -> None:
    (tmp_path / "bad").write_bytes(b"other content")
    (tmp_path / "good").write_bytes(b"events")
    check = dict(sums(b"events"))[wrong[0]]
    done, got = fetch(make_job, str(tmp_path / "bad"), str(tmp_path / "good"), checks=[(wrong[0], check)])
    assert got == b"events" and done.data["inputs"][0]["source"].endswith("good")
    done, got = fetch(make_job, str(tmp_path / "good"), checks=[wrong])
    assert done.code == 86 and got is None and "x.root" in done.message


@pytest.mark.fault(fault="no replica of an input can be had", mode="any", does="says of each why", code=86)
def test_the_next_replica(make_job: MakeJob, tmp_path: Path, faulty: Faulty) -> None:
    (tmp_path / "good").write_bytes(b"events")
    bad = ["/nonexistent/x", f"{faulty.url}/404/x", "root://127.0.0.1:1//x", "gopher://x"]
    done, got = fetch(make_job, *bad, str(tmp_path / "good"))
    assert got == b"events", done.err
    done, _ = fetch(make_job, *bad)
    assert done.code == 86 and all(source in done.message for source in bad)
    assert done.data["started_payload"] is False


def test_without_a_source(make_job: MakeJob) -> None:
    assert fetch(make_job)[0].code == 86


def test_xrootd_is_asked_with_its_settings(make_job: MakeJob, tmp_path: Path) -> None:
    """The program of this name on the PATH is called as xrdcp is; no server is needed to see how."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/xrdcp"
    program.write_text('#!/bin/bash\nenv | grep ^XRD_ | sort > "${@: -1}"; echo "$@" >> "${@: -1}"\n')
    program.chmod(0o755)
    (tmp_path / "keys").write_text("k")
    secret = [
        ("secret", "x"),
        ("secret.from", str(tmp_path / "keys")),
        ("secret.point", "XRD_KEYS=keys"),
        ("secret.set", "XRD_REQUESTTIMEOUT=7"),
    ]
    row = [("in", "x"), ("in.from", "root://h:1094//f"), ("out", "x"), ("out.to", "x")]
    job = make_job(row=row, settings=secret)
    done = job.run(env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})
    got = (job.scratch / "out" / done.report.outputs[0].file).read_text()
    assert "XRD_REQUESTTIMEOUT=7\n" in got and "XRD_CONNECTIONRETRY=1\n" in got
    assert "/x/keys\n" in got and "--force root://h:1094//f" in got


@pytest.mark.fault(fault="inputs fill the scratch disk", mode="any", does="makes room, reports", code=89)
def test_a_full_disk(make_job: MakeJob, tmp_path: Path, small_disk: list[str]) -> None:
    (tmp_path / "big").write_bytes(os.urandom(4_000_000))
    job = make_job(row=[("in", "x"), ("in.from", str(tmp_path / "big"))])
    done = job.run(prefix=small_disk)
    assert done.code == 89 and "scratch is full" in done.message


def test_what_was_verified_is_said(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"events")
    for checks in ([], sums(b"events")[:1], sums(b"events")[1:2], sums(b"events")):
        done, _ = fetch(make_job, str(tmp_path / "x"), checks=checks)
        staged = done.data["inputs"][0]
        assert (staged["verified"], staged["tries"]) == ([key.removeprefix("in.") for key, _ in checks], 1)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1_000_000])
def test_adler32_without_a_tool_for_it(worker_bash: Callable[..., bytes], tmp_path: Path, size: int) -> None:
    path = tmp_path / "a file"
    path.write_bytes(b"\xff" * size if size % 2 else os.urandom(size))
    expected = f"{zlib.adler32(path.read_bytes()):08x}\n".encode()
    assert worker_bash('_slow_adler32 "$1"', str(path)) == expected


def tools(tmp_path: Path, *without: str) -> dict[str, str]:
    """A PATH with links to the programs of this machine but for these."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for program in Path("/usr/bin").iterdir():
        if not program.name.startswith(without):
            (folder / program.name).symlink_to(program)
    return {"PATH": str(folder)}


def test_adler32_is_checked_on_any_node(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"events")
    job = make_job(row=[("in", "x"), ("in.from", f"{tmp_path}/x"), *sums(b"events")[1:2]])
    done = job.run(env=tools(tmp_path, "python", "xrd", "perl"))
    assert done.code == 0 and done.data["inputs"][0]["verified"] == ["adler32"], done.err


def test_an_empty_file(make_job: MakeJob, tmp_path: Path, faulty: Faulty) -> None:
    faulty.content = b""
    (tmp_path / "x").touch()
    for source in (str(tmp_path / "x"), f"{faulty.url}/good/x"):
        done, got = fetch(make_job, source, checks=sums(b""))
        assert (done.code, got) == (0, b""), done.err


@pytest.mark.fault(fault="an input is a folder or a device", mode="any", does="does not try again, says so", code=86)
@pytest.mark.parametrize(
    ("source", "words"), [("/etc", "is no plain file"), ("/dev/zero", "is no plain file"), ("/dev/null/x", "not there")]
)
def test_a_source_that_is_no_file(make_job: MakeJob, source: str, words: str) -> None:
    done, _ = fetch(make_job, source)
    assert done.code == 86 and words in done.message and "again in" not in done.err


@pytest.mark.fault(fault="an input that the user may not read", mode="any", does="does not try again, says so", code=86)
@pytest.mark.pool
def test_a_source_without_permission(node: Node) -> None:
    (node.folder / "secret").write_text("x")
    (node.folder / "secret").chmod(0)
    done = node.run_job(node.job(row=[("in", "x"), ("in.from", f"{node.folder}/secret")]))
    assert done.code == 86 and "Permission denied" in done.message and "again in" not in done.err


@pytest.mark.fault(
    fault="a file system fails in the middle of an input", mode="any", does="tries again, then the next replica", code=0
)
@pytest.mark.pool
def test_a_source_with_errors(node: Node) -> None:
    (node.folder / "readeio").write_text("x" * 9)
    (node.folder / "good").write_text("good")
    node.mount_bad()
    done = node.run_job(
        node.job(row=[("in", "x"), ("in.from", "/mnt/bad/readeio"), ("in.from", f"{node.folder}/good")])
    )
    assert done.code == 0 and done.data["inputs"][0]["source"].endswith("/good"), done.err
    assert done.err.count("Input/output error; again in") == 2


@pytest.mark.fault(
    fault="a file system never gives the content of an input",
    mode="any",
    does="gives it its share of the time, takes the next replica",
    code=0,
)
@pytest.mark.pool
def test_a_source_that_hangs(node: Node) -> None:
    (node.folder / "readhang").write_text("x" * 9)
    (node.folder / "good").write_text("good")
    node.mount_bad()
    row = [("in", "x"), ("in.from", "/mnt/bad/readhang"), ("in.from", f"{node.folder}/good")]
    done = node.run_job(node.job(row=row, settings=[("limit.stage_in", "8")]))
    assert done.code == 0 and done.data["inputs"][0]["source"].endswith("/good"), done.err
    assert "no end within 4 s" in done.err or "no end within 3 s" in done.err
    done = node.run_job(node.job("alone", row=row[:2], settings=[("limit.stage_in", "2"), ("limit.path", "2")]))
    assert done.code == 86 and "/mnt/bad/readhang: " in done.message and done.data["phases"]["stage_in"] < 9


@pytest.mark.fault(fault="an input changes while it is copied", mode="any", does="copies it again", code=0)
def test_a_source_that_changes(make_job: MakeJob, tmp_path: Path) -> None:
    """The program of this name copies, and the first time the file grows before it is done."""
    source = tmp_path / "x"
    source.write_bytes(b"events")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/cp"
    program.write_text(
        f'#!/bin/sh\n/bin/cp "$@"\n[ -e {tmp_path}/once ] || echo more >> {source}\n: > {tmp_path}/once\n'
    )
    program.chmod(0o755)
    job = make_job(row=[("in", "x"), ("in.from", str(source)), ("out", "x"), ("out.to", "x")])
    done = job.run(env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})
    assert done.code == 0 and "it changed while it was copied; again in 1 s" in done.err, done.err
    assert (job.scratch / "out" / done.report.outputs[0].file).read_bytes() == b"eventsmore\n"
    assert done.data["inputs"][0]["tries"] == 2


@pytest.mark.fault(fault="a server of inputs is busy", mode="any", does="comes back when the server says", code=0)
def test_http_tries(make_job: MakeJob, faulty: Faulty) -> None:
    done, got = fetch(make_job, f"{faulty.url}/503/x")
    assert got == faulty.content and done.data["inputs"][0]["tries"] == 3
    done, _ = fetch(make_job, f"{faulty.url}/404/x")
    assert done.code == 86 and faulty.seen["/404/x"] == 1


@pytest.mark.fault(
    fault="all inputs together take too long", mode="any", does="ends at the site's limit, says so", code=86
)
def test_the_time_limit_is_for_all_inputs(make_job: MakeJob, tmp_path: Path, faulty: Faulty) -> None:
    row = [(key, value) for name in "ab" for key, value in (("in", name), ("in.from", f"{faulty.url}/stall/{name}"))]
    done = make_job(row=row, settings=[("limit.stage_in", "3")]).run(env={"FERMIGRID_STALL": "60"})
    assert done.code == 86 and "input a" in done.message
    assert done.data["phases"]["stage_in"] < 6


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a")])
def test_inputs_that_get_in_each_others_way(make_job: MakeJob, tmp_path: Path, names: tuple[str, str]) -> None:
    (tmp_path / "x").write_text("x")
    done = make_job(
        row=[(key, value) for name in names for key, value in (("in", name), ("in.from", f"{tmp_path}/x"))]
    ).run()
    assert done.code == (0 if names[0] == names[1] else 86), done.err
    assert done.code == 0 or f"input {names[1]}" in done.message


@pytest.mark.parametrize("name", ["-rf", "a b", "$(id)", "*", "'", '"', "a\\b", "é", "a;b", ".hidden"])
def test_hostile_names(make_job: MakeJob, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("events")
    job = make_job(
        args=["/bin/sh", "-c", 'cat -- "$1" > copy', "sh", name], row=[("in", name), ("in.from", f"{tmp_path}/{name}")]
    )
    job.row += [("out", "copy"), ("out.to", "copy")]
    done = job.run()
    assert done.code == 0 and (job.scratch / "out" / done.report.outputs[0].file).read_text() == "events", done.err
