"""A job may write any report and leave anything in its out folder: no file of the person's is touched, none waited for."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fermigrid import backends
from fermigrid.accept import publish_output
from fermigrid.backends.local_job import Execution, Item, bring_back
from fermigrid.errors import FermigridError
from fermigrid.explain import explain_job
from fermigrid.find_job import find_job, read_log
from fermigrid.standing import standing_of
from fermigrid.states import State
from fermigrid.watch import Following, Turn, advance, watch_once
from tests import stand_in
from tests.campaigns import SMALL
from tests.unit.test_submit import campaign

TWO = SMALL.replace('{out.fit: "{run}.fit"}', '{out.fit: "{run}.fit", log.txt: "{run}.txt"}')
JOB, ATTEMPT, CONTENT = "go.0000", "g0.s1.aaaaaaaa", b"result"
SHA = hashlib.sha256(CONTENT).hexdigest()
LIMIT_S = 20


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Nothing may wait for a pipe that nobody writes."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"it hung for {LIMIT_S} s"))
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def f(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Following]:
    """A campaign of two jobs with two outputs each, submitted."""
    monkeypatch.setitem(backends.BACKENDS, "local", "tests.stand_in")
    stand_in.forget()
    with campaign(tmp_path, TWO) as following:
        advance(following)
        yield following
    stand_in.forget()


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the person's, whose content the job knows."""
    path = tmp_path / "home" / "authorized_keys"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    path.chmod(0o600)
    return path


def out_of(f: Following) -> Path:
    """The folder that the outputs of the first job came back to."""
    return next(f.folder.path.glob("blocks/*/*/work/*/out"))


def end(f: Following, outputs: list[dict[str, Any]] | None = None, **changes: Any) -> Turn:
    """The first job ends, with this in its report."""
    more = changes if outputs is None else {**changes, "outputs": outputs}
    stand_in.end_job(stand_in.memory.landed[0], 0, content=CONTENT, **more)
    return watch_once(f)


def said(name: str, to: str, file: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "to": to, "file": file, "bytes": len(CONTENT), "sha256": SHA, "result": "ours", **changes}


GOOD = [
    said("out.fit", "0000.fit", f"{JOB}.0.{ATTEMPT}"),
    said("log.txt", "0000.txt", f"{JOB}.1.{ATTEMPT}"),
]


def forged(**changes: Any) -> list[dict[str, Any]]:
    return [{**GOOD[0], **changes}, GOOD[1]]


def test_the_honest_report(f: Following) -> None:
    end(f, GOOD)
    assert {path.name for path in f.folder.outputs.iterdir()} == {"0000.fit", "0000.txt"}


FORGED: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "an absolute file": lambda victim: forged(file=str(victim)),
    "a file above": lambda victim: forged(file=f"../../../../../../../home/{victim.name}"),
    "the other output": lambda _: forged(file=GOOD[1]["file"]),
    "another job's file": lambda _: forged(file="go.0001.0.g0.s1.bbbbbbbb"),
    "no file": lambda _: forged(file=""),
    "the folder": lambda _: forged(file="."),
    "a name with NUL": lambda _: forged(file="a\0b"),
    "another job's name": lambda _: forged(to="0001.fit"),
    "a name that nobody declared": lambda _: forged(to="more/x.fit"),
    "another local name": lambda _: forged(name="x"),
    "one output twice": lambda _: [GOOD[0], GOOD[0]],
    "one output more": lambda victim: [*GOOD, said("x", "x", str(victim))],
    "one output less": lambda _: GOOD[:1],
    "no outputs": lambda _: [],
    "the other order": lambda _: GOOD[::-1],
}


@pytest.mark.parametrize("attack", FORGED)
def test_names_in_a_report_are_the_plans_or_none(f: Following, victim: Path, attack: str) -> None:
    turn = end(f, FORGED[attack](victim))
    assert turn.problems == ()
    assert victim.read_bytes() == CONTENT
    assert not f.folder.outputs.exists() or list(f.folder.outputs.iterdir()) == []
    assert standing_of(f).counts[State.FAILED] == 1


def test_a_report_in_the_ledger_cannot_reach_a_file_either(f: Following, victim: Path) -> None:
    """Accepted by an older fermigrid, which took the name as it was: it is neither published nor removed now."""
    end(f, GOOD)
    evil = json.dumps({"outputs": forged(file=str(victim))})
    f.ledger._db.execute("UPDATE attempt SET published = 0, report = ? WHERE job = ?", (evil, JOB))
    watch_once(f)
    assert victim.read_bytes() == CONTENT


THINGS: dict[str, Callable[[Path, Path], object]] = {
    "a link": lambda path, victim: path.symlink_to(victim),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a folder": lambda path, _: path.mkdir(),
}


@pytest.mark.parametrize("thing", THINGS)
def test_what_came_back_is_no_plain_file(f: Following, victim: Path, thing: str) -> None:
    stand_in.end_job(stand_in.memory.landed[0], 0, content=CONTENT)
    came = out_of(f) / GOOD[0]["file"]
    came.unlink()
    THINGS[thing](came, victim)
    watch_once(f)
    (failed,) = f.ledger.jobs_in(State.FAILED)
    assert "the output out.fit did not come back: it is" in failed.reason
    assert victim.read_bytes() == CONTENT
    assert not f.folder.outputs.exists()


def test_a_file_with_another_name_is_copied(f: Following, victim: Path) -> None:
    """Else the person's own file would get the modes of outputs, and whoever writes to the one changes the other."""
    stand_in.end_job(stand_in.memory.landed[0], 0, content=CONTENT)
    came = out_of(f) / GOOD[0]["file"]
    came.unlink()
    os.link(victim, came)
    watch_once(f)
    final = f.folder.outputs / "0000.fit"
    assert final.read_bytes() == victim.read_bytes() == CONTENT
    assert (final.stat().st_nlink, victim.stat().st_nlink, stat.S_IMODE(victim.stat().st_mode)) == (1, 1, 0o600)
    assert [path.name for path in f.folder.outputs.glob(".*")] == []


@pytest.mark.parametrize("where", ["outputs", "outputs/sub"])
def test_a_link_in_the_place_of_a_folder_of_outputs(tmp_path: Path, where: str) -> None:
    for name in ("out", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "out/came").write_bytes(CONTENT)
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FermigridError, match="cannot become"):
        publish_output(tmp_path / "out/came", tmp_path / "outputs", "sub/final", SHA)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_final_name_that_is_a_link_to_the_same_content(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/came").write_bytes(CONTENT)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/final").symlink_to(victim)
    with pytest.raises(FermigridError, match="symbolic link"):
        publish_output(tmp_path / "out/came", tmp_path / "outputs", "final", SHA)
    assert (tmp_path / "out/came").exists()


@pytest.mark.parametrize("folder_mode", [0o700, 0o770, 0o755])
def test_outputs_are_as_open_as_their_folder(tmp_path: Path, folder_mode: int) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/came").write_bytes(CONTENT)
    (tmp_path / "out/came").chmod(0o4644)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs").chmod(folder_mode)
    publish_output(tmp_path / "out/came", tmp_path / "outputs", "final", SHA)
    expected = {0o700: 0o600, 0o770: 0o660, 0o755: 0o644}[folder_mode]
    assert stat.S_IMODE((tmp_path / "outputs/final").stat().st_mode) == expected


# --- words


ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\x9b31m\r\nok"


def test_a_report_does_not_speak_to_the_terminal(f: Following) -> None:
    image = {"name": ESCAPES, "rung": ESCAPES, "tried": [{"rung": ESCAPES, "result": ESCAPES}]}
    stand_in.end_job(
        stand_in.memory.landed[0], 0, 3, host=ESCAPES, message=ESCAPES, image=image, summary={ESCAPES: ESCAPES},
        cores=[{"file": ESCAPES, "bytes": 1}],
    )  # fmt: skip
    watch_once(f)
    found = find_job(f.ledger, f.folder, JOB)[-1]
    words = [*explain_job(f, found), found.record.host, found.record.reason]
    assert "ok" in "".join(words)
    assert all(char.isprintable() for word in words for char in word), words


@pytest.mark.parametrize(
    "changes",
    [
        {"image": {"name": 7, "rung": "path"}},
        {"image": {"name": "light", "rung": "path", "tried": [{"rung": 1, "result": None}]}},
        {"cores": [{"file": ["x"]}]},
        {"cores": [{}]},
        {"attempt": "../../x"},
        {"attempt": "x" * 500},
        {"attempt": ""},
    ],
)
def test_a_report_of_other_shapes_is_none(f: Following, changes: dict[str, Any]) -> None:
    stand_in.end_job(stand_in.memory.landed[0], 0, 3, **changes)
    watch_once(f)
    found = find_job(f.ledger, f.folder, JOB)[-1]
    assert "report cannot be read" in found.record.reason
    assert list(explain_job(f, found))


@pytest.mark.parametrize("thing", THINGS)
def test_a_log_that_is_something_else(f: Following, victim: Path, thing: str) -> None:
    stand_in.end_job(stand_in.memory.landed[0], 0, content=CONTENT)
    log = out_of(f).parent / f"{JOB}.log"
    log.unlink()
    THINGS[thing](log, victim)
    assert "its log cannot be read" in watch_once(f).problems[0]
    with pytest.raises(OSError, match="no plain file"):
        read_log(find_job(f.ledger, f.folder, JOB)[-1], f.folder)


# --- this machine's jobs


@pytest.fixture
def execution(tmp_path: Path) -> Execution:
    """A job that has ended on this machine, with its log and an output."""
    folder = tmp_path / "job"
    (folder / "scratch/out").mkdir(parents=True)
    (folder / "log").write_bytes(b"log")
    (folder / "scratch/out" / GOOD[0]["file"]).write_bytes(CONTENT)
    (tmp_path / "work/shard").mkdir(parents=True)
    return Execution(Item(0, JOB, "shard", "1"), 1, 0, (), folder)


def test_what_a_job_leaves_in_its_out_folder(execution: Execution, tmp_path: Path, victim: Path) -> None:
    out = execution.folder / "scratch/out"
    (out / f"{JOB}.link").symlink_to(victim)
    os.mkfifo(out / f"{JOB}.pipe")
    (out / f"{JOB}.folder").mkdir()
    (out / "go.0001.0.g0.s1.bbbbbbbb").write_bytes(b"another job's")
    os.link(victim, out / f"{JOB}.hard")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(out)  # the path of a socket is short
        try:
            listener.bind(f"{JOB}.socket")
        finally:
            os.chdir(here)
    bring_back(execution, tmp_path / "work")
    came = tmp_path / "work/shard/out"
    assert {path.name for path in came.iterdir()} == {GOOD[0]["file"], f"{JOB}.hard"}
    assert (victim.stat().st_nlink, (came / f"{JOB}.hard").stat().st_nlink) == (1, 1)
    assert (tmp_path / "work/shard" / f"{JOB}.log").read_bytes() == b"log"


@pytest.mark.parametrize("thing", THINGS)
def test_a_log_that_the_job_replaced(execution: Execution, tmp_path: Path, victim: Path, thing: str) -> None:
    (execution.folder / "log").unlink()
    THINGS[thing](execution.folder / "log", victim)
    with pytest.raises(OSError, match="its log is"):
        bring_back(execution, tmp_path / "work")
    assert victim.read_bytes() == CONTENT


def test_an_out_folder_that_is_a_link(execution: Execution, tmp_path: Path, victim: Path) -> None:
    out = execution.folder / "scratch/out"
    (out / GOOD[0]["file"]).rename(victim.parent / f"{JOB}.mine")
    out.rmdir()
    out.symlink_to(victim.parent)
    bring_back(execution, tmp_path / "work")
    assert list((tmp_path / "work/shard/out").iterdir()) == []
    assert (victim.parent / f"{JOB}.mine").exists()
