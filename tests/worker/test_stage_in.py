"""Inputs: from paths and URLs, replicas in order, checked before the payload sees them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.faulty_http import Faulty
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


@pytest.mark.parametrize("wrong", [("in.bytes", "5"), ("in.adler32", "00000001"), ("in.sha256", "0" * 64)])
def test_a_replica_with_wrong_content_is_passed_over(make_job: MakeJob, tmp_path: Path, wrong: tuple[str, str]) -> None:
    (tmp_path / "bad").write_bytes(b"other content")
    (tmp_path / "good").write_bytes(b"events")
    check = dict(sums(b"events"))[wrong[0]]
    done, got = fetch(make_job, str(tmp_path / "bad"), str(tmp_path / "good"), checks=[(wrong[0], check)])
    assert got == b"events" and done.data["inputs"][0]["source"].endswith("good")
    done, got = fetch(make_job, str(tmp_path / "good"), checks=[wrong])
    assert done.code == 86 and got is None and "x.root" in done.message


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


def test_a_full_disk(make_job: MakeJob, tmp_path: Path, small_disk: list[str]) -> None:
    (tmp_path / "big").write_bytes(os.urandom(4_000_000))
    job = make_job(row=[("in", "x"), ("in.from", str(tmp_path / "big"))])
    done = job.run(prefix=small_disk)
    assert done.code == 89 and "scratch is full" in done.message
