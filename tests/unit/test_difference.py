"""What differs between two plans, in the words of the domain: everything that does, and nothing that does not."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fermigrid import cli
from fermigrid.difference import SHOWN, Change, Job, Jobs, compare_jobs
from fermigrid.planfolder import write_plan
from fermigrid.plantext import find_plans, jobs_in, read_plan
from tests.campaigns import SMALL, assemble, plans

FULL = SMALL + "code: [lib]\nenvironment: {A: '1', B: '2'}\n"


def write(folder: Path, text: str = FULL, site: str = "pool", files: dict[str, str] | None = None) -> Path:
    """A campaign's one plan, as `render` writes it."""
    for name, content in (files or {"a.py": "a", "b.py": "b"}).items():
        (folder / "c/lib").mkdir(parents=True, exist_ok=True)
        (folder / "c/lib" / name).write_text(content)
    (plan,) = plans(assemble(folder / "c", text, site=site), site)
    write_plan(plan, folder / "plan/b0000/go.g0")
    return folder / "plan"


@pytest.fixture
def diff(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`fermigrid diff`: its exit code and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        code = cli.run(["diff", *map(str, arguments)])
        return code, capsys.readouterr().out

    return run


Diff = Callable[..., tuple[int, str]]


def test_the_same_plans(tmp_path: Path, diff: Diff) -> None:
    one, two = write(tmp_path / "1"), write(tmp_path / "2")
    assert diff(one, two) == (0, "the same\n")
    assert diff(one, two / "b0000/go.g0") == (0, "the same\n")
    code, out = diff(one, two, "--json")
    assert (code, json.loads(out)) == (0, {"same": True, "plans": []})


CHANGES: dict[str, tuple[str, list[str]]] = {
    "a variable": (FULL.replace("A: '1'", "A: '3'"), ["  settings", "    environment.A: 1 -> 3"]),
    "a variable more": (FULL.replace("B: '2'", "B: '2', C: x"), ["  settings", "    environment.C: now x"]),
    "a variable less": (FULL.replace(", B: '2'", ""), ["  settings", "    environment.B: gone, was 2"]),
    "a resource": (
        FULL.replace("    outputs:", "    resources: {memory: 4 GiB}\n    outputs:"),
        ["  settings", "    resources.memory: 2 GiB -> 4 GiB"],
    ),
    "a job more": (
        FULL.replace("count: 2", "count: 3"),
        ["  header", "    jobs: 2 -> 3", "  1 job added: go.0002"],
    ),
    "a job less": (
        FULL.replace("count: 2", "count: 1"),
        ["  header", "    jobs: 2 -> 1", "  1 job removed: go.0001"],
    ),
    "a command": (
        FULL.replace('/bin/true, "{run}"', '/bin/echo, "{run}"'),
        ["  2 jobs changed: go.0000, go.0001", "    job go.0000: command: /bin/true -> /bin/echo"],
    ),
    "an output": (
        FULL.replace("{run}.fit", "x/{run}.fit"),
        ["  2 jobs changed: go.0000, go.0001", "    job go.0000: outputs.out.fit: 0000.fit -> x/0000.fit"],
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_change_is_said_and_nothing_else(tmp_path: Path, diff: Diff, what: str) -> None:
    text, said = CHANGES[what]
    one, two = write(tmp_path / "1"), write(tmp_path / "2", text)
    code, out = diff(one, two)
    assert (code, out.splitlines()) == (1, ["b0000/go.g0:", *said])
    code, out = diff(one, two, "--json")
    assert (code, json.loads(out)["same"]) == (1, False)


def test_the_code_by_its_files(tmp_path: Path, diff: Diff) -> None:
    one = write(tmp_path / "1", files={"a.py": "a", "b.py": "b", "same.py": "same"})
    two = write(tmp_path / "2", files={"a.py": "A", "c.py": "c", "same.py": "same"})
    (change, gone, new) = json.loads(diff(one, two, "--json")[1])["plans"][0]["changes"]
    assert (change["part"], change["what"]) == ("code", "lib/a.py")
    assert (gone["what"], gone["after"]) == ("lib/b.py", None)
    assert (new["what"], new["before"]) == ("lib/c.py", None)


def test_another_site_and_another_worker(tmp_path: Path, diff: Diff) -> None:
    one, two = write(tmp_path / "1"), write(tmp_path / "2", site="local")
    out = diff(one, two)[1]
    assert "    site: pool -> local" in out
    assert "    container.launch: site -> worker\n" in out
    assert "  submit file\n" not in out and " lines of job.sub (--raw shows them)\n" in out
    assert "    universe: gone, was vanilla\n" in diff(one, two, "--raw")[1]
    assert out.count("pool -> local") == 1, "once, not for each place in which the site's name stands"
    assert "b0000/go.g0:" in out


SLURM = """\
site: farm
title: A farm
contact: me
manual: https://example.org/
backend: htcondor
htcondor:
  grid: {kind: slurm, queue: long, project: lat, options: [--licenses=sps]}
container: {launch: worker, scratch: /scratch}
binds:
  - {from: /data, to: /in}
  - {from: /scratch, mode: rw, required: false}
secrets: {db: {kind: path, from: /db, point: {TNS_ADMIN: .}, environment: {N: "1"}}}
output: {kind: posix, root: /out}
"""
TO_SLURM = [  # of sites `pool` and `farm`
    "    container.launch: site -> worker",
    "    container.scratch: now /scratch",
    "    binds /in: now /data (ro)",
    "    binds /scratch: now /scratch (rw, where it is)",
    "    htcondor.requirements: gone, was HasSingularity",
    "    htcondor.grid.kind: now slurm",
    "    htcondor.grid.queue: now long",
    "    htcondor.grid.project: now lat",
    "    htcondor.grid.options: now --licenses=sps",
    "    container.dialect: gone, was self-healing",
    "    output.kind: transfer -> posix",
    "    output.root: now /out",
    "    secrets.db.from: now /db",
    "    secrets.db.point.TNS_ADMIN: now .",
    "    secrets.db.environment.N: now 1",
]


def test_two_sites_in_the_words_of_their_files(tmp_path: Path, diff: Diff) -> None:
    """No macro, no field of job.env, no line of HTCondor's: those are counted, and shown when asked for."""
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites/farm.yaml").write_text(SLURM)
    folders = []
    for site, named in (("pool", ""), ("farm", "    secrets: [db]\n")):
        text = SMALL.replace("    outputs", f"{named}    outputs")
        (plan,) = plans(assemble(tmp_path, text, site=site, own=[tmp_path / "sites"]), site)
        write_plan(plan, tmp_path / site / "b0000/go.g0")
        folders.append(tmp_path / site)
    out = diff(*folders)[1]
    assert set(TO_SLURM) <= set(out.splitlines()), out
    assert not re.search(r"fg_|job\.env|periodic|bind\.|\$\(|arg:", out), out
    raw = diff(*folders, "--raw")[1]
    assert "    periodic_hold_subcode: gone, was 45" in raw and "  worker\n" in raw
    parts = [change["part"] for change in json.loads(diff(*folders, "--json")[1])["plans"][0]["changes"]]
    (counted,) = (line for line in out.splitlines() if line.startswith("  and with it "))
    assert counted == f"  and with it {parts.count('submit file')} lines of job.sub and worker.sh (--raw shows them)"


def test_many_plans_with_the_same_change_are_one(tmp_path: Path, diff: Diff) -> None:
    folders = []
    for number, text in enumerate((FULL, FULL.replace("A: '1'", "A: '3'"))):
        many = text.replace("count: 2", "count: 30") + "block: 1\n"
        (tmp_path / f"{number}/lib").mkdir(parents=True)
        for plan in plans(assemble(tmp_path / str(number), many, site="pool"), "pool"):
            write_plan(plan, tmp_path / f"{number}/plan" / plan.work.block / "go.g0")
        folders.append(tmp_path / f"{number}/plan")
    out = diff(*folders)[1].splitlines()
    assert out[0].endswith("b0009/go.g0, ... (30 in all):")
    assert out[1:] == ["  settings", "    environment.A: 1 -> 3"]
    assert diff(folders[0], folders[1] / "b0007/go.g0")[1].count("only in the first") == 1


def test_what_is_no_plan(tmp_path: Path, diff: Diff) -> None:
    one = write(tmp_path / "1")
    (tmp_path / "empty").mkdir()
    assert diff(one, tmp_path / "empty")[0] == 19
    assert diff(one, "nowhere")[0] == 19
    plan = one / "b0000/go.g0"
    (plan / "items.txt").write_text("go.0000 ../../../../etc/passwd 1\n")
    assert diff(one, write(tmp_path / "2"))[0] == 14


def test_a_plan_that_was_altered_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write(tmp_path / "1"), write(tmp_path / "2")
    path = two / "b0000/go.g0/job.env"
    path.write_text(path.read_text() + "env=EVIL=\x1b[2J\n")
    assert cli.run(["diff", str(one), str(two)]) == 1
    out, err = capsys.readouterr()
    assert "changed after it was written: job.env" in err
    assert "environment.EVIL: now ?[2J" in out


@pytest.mark.parametrize("name", ["job.env", "worker.sh", "items.txt", "bundle.tar.gz", "shards"])
def test_links_in_a_plan_are_not_followed(tmp_path: Path, diff: Diff, name: str) -> None:
    one, two = write(tmp_path / "1"), write(tmp_path / "2")
    (two / "b0000/go.g0" / name).rename(tmp_path / "aside")
    (two / "b0000/go.g0" / name).symlink_to(tmp_path / "aside")
    assert diff(one, two)[0] == 14


# --- streams of jobs


def stream(*names: str, rows: dict[str, str] | None = None) -> Callable[[], list[Job]]:
    return lambda: [Job(name, (rows or {}).get(name, f"job={name}")) for name in names]


def counts(found: Jobs) -> tuple[int, int, int]:
    return found.added, found.removed, found.changed


@pytest.mark.parametrize("ahead", [1, 2, 1000])
@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("abc", "abc", (0, 0, 0)),
        ("abc", "cab", (0, 0, 0)),
        ("abc", "xabc", (1, 0, 0)),
        ("abcd", "bcd", (0, 1, 0)),
        ("", "abc", (3, 0, 0)),
        ("abc", "", (0, 3, 0)),
        ("abc", "xyz", (3, 3, 0)),
        ("abcdef", "fedcbX", (1, 1, 0)),
    ],
)
def test_jobs_by_name_in_any_order(before: str, after: str, expected: tuple[int, int, int], ahead: int) -> None:
    assert counts(compare_jobs(stream(*before), stream(*after), len(before + after), ahead)) == expected


def test_a_job_that_changed_and_moved() -> None:
    found = compare_jobs(
        stream("a", "b", rows={"b": "job=b\targ=x\tenv=N=1"}), stream("b", "a", rows={"b": "job=b\targ=y\tenv=N=1"}), 4
    )
    assert (counts(found), found.names["changed"]) == ((0, 0, 1), ["b"])
    assert found.fields == [Change("job b", "command", "x", "y")]


def test_only_the_first_are_named() -> None:
    found = compare_jobs(stream(), stream(*(f"j{i}" for i in range(500))), 500)
    assert (found.added, len(found.names["added"])) == (500, SHOWN)


def million(change: str = "", number: int = 1_000_000) -> Callable[[], Iterator[Job]]:
    return lambda: (Job(f"go.r{i:07d}", f"job=go.r{i:07d}\targ={change}{i}") for i in range(number))


def peak_of(work: Callable[[], Any]) -> tuple[Any, int]:
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.drill
def test_a_million_jobs_all_of_them_changed() -> None:
    found, peak = peak_of(lambda: compare_jobs(million(), million("x"), 2_000_000))
    assert counts(found) == (0, 0, 1_000_000)
    assert peak < 10 * 2**20


def test_many_jobs_of_which_none_is_in_the_other_plan_need_little_memory() -> None:
    def other() -> Iterator[Job]:
        return (Job(f"z{job.name}", job.row) for job in million(number=10_000)())

    found, peak = peak_of(lambda: compare_jobs(million(number=10_000), other, 20_000, 2_000))
    assert counts(found) == (10_000, 10_000, 0)
    assert peak < 3 * 2**20


def test_what_a_plan_says_is_read_back(tmp_path: Path) -> None:
    ((_, plan),) = find_plans(write(tmp_path)).items()
    assert [job.name for job in jobs_in(plan)] == ["go.0000", "go.0001"]
    assert set(read_plan(plan).code) == {"lib/a.py", "lib/b.py"}
