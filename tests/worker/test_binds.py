"""Binds and software where the site has started the container: everything must be there already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.worker_job import Job, Pairs

MakeJob = Callable[..., Job]


def bind(source: str, to: str, required: str = "yes", mode: str = "ro") -> Pairs:
    return [("bind", source), ("bind.to", to), ("bind.mode", mode), ("bind.required", required)]


@pytest.mark.fault(
    fault="the site has started the container without an optional bind", mode="site", does="says so and goes on", code=0
)
def test_what_is_there_is_used_and_what_is_optional_dropped(make_job: MakeJob, tmp_path: Path) -> None:
    settings = bind("/somewhere", str(tmp_path)) + bind("/other", "/nonexistent/a", "no", "rw")
    done = make_job(settings=settings).run()
    assert done.code == 0 and done.data["binds"] == [
        {"from": "/somewhere", "to": str(tmp_path), "mode": "ro", "required": True, "result": "used"},
        {"from": "/other", "to": "/nonexistent/a", "mode": "rw", "required": False, "result": "dropped"},
    ]
    assert "/nonexistent/a is missing" in done.err


@pytest.mark.fault(
    fault="the site has started the container without a required bind",
    mode="site",
    does="ends before the payload",
    code=84,
)
def test_what_is_required_and_missing(make_job: MakeJob) -> None:
    done = make_job(args=["/bin/echo", "ran"], settings=bind("/x", "/nonexistent/a")).run()
    assert done.code == 84 and "/nonexistent/a" in done.message and b"ran" not in done.out
    assert done.data["binds"][0]["result"] == "fatal"


@pytest.mark.parametrize("where", ["to", "from"])
def test_software(make_job: MakeJob, tmp_path: Path, where: str) -> None:
    for name in ("to", "from"):
        (tmp_path / name).mkdir()
    (tmp_path / where / "lib&.py").touch()
    if where == "from":
        (tmp_path / "to").rmdir()
        (tmp_path / "to").mkdir()  # an empty mount point
    settings = [("software", "lat"), ("software.from", str(tmp_path / "from")), ("software.to", str(tmp_path / "to"))]
    settings += [("software.env", "PYTHONPATH={path}/lib:{path}"), ("software.env", "LAT=&{path}")]
    done = make_job(args=["/bin/sh", "-c", 'echo "$PYTHONPATH $LAT"'], settings=settings).run()
    path = tmp_path / where
    assert done.out.decode().splitlines()[0] == f"{path}/lib:{path} &{path}"


@pytest.mark.fault(fault="software is neither bound nor mounted", mode="site", does="ends before the payload", code=84)
def test_software_that_is_nowhere(make_job: MakeJob, tmp_path: Path) -> None:
    """In the image it is an error; a rehearsal says so and goes on."""
    software = [
        ("software", "lat"),
        ("software.from", "/nonexistent/f"),
        ("software.to", "/nonexistent/t"),
        ("software.env", "LAT={path}"),
    ]
    job = make_job(
        args=["/bin/sh", "-c", 'echo "LAT is ${LAT-not set}"'], settings=[*software, ("image.path", str(tmp_path))]
    )
    inside = job.run(env={"APPTAINER_CONTAINER": str(tmp_path)})
    assert inside.code == 84 and "lat" in inside.message and b"LAT is" not in inside.out
    rehearsed = job.run()
    assert rehearsed.code == 0 and b"LAT is not set" in rehearsed.out and "software lat" in rehearsed.err
