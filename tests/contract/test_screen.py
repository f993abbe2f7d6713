"""`watch` and `submit --wait` on a real terminal (tmux): narrow ones, one that changes its size, Ctrl-C, kill."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests.campaigns import ROOT, fermigrid

WORK = """#!/bin/bash
while [ ! -e "$GO" ]; do sleep 0.1; done
[ "$1" != 0001 ] || exit 3
echo good > out.fit
"""
CAMPAIGN = """\
campaign: shown
image: light
code: [work.sh]
runs: {{count: 6}}
steps:
  clump:
    command: [work.sh, "{{run}}"]
    environment: {{GO: "{go}"}}
    outputs: {{out.fit: "c{{run}}.fit"}}
  merge:
    after: [clump]
    command: [/bin/true]
"""
SITE = """\
site: here
extends: local
container: {{launch: worker, rehearsal: true, runtimes: [absent-on-purpose]}}
local: {{slots: 2, scratch: {scratch}}}
"""  # slots of its own: those of a scratch folder are shared by all that runs on the machine
LIMIT_S = 60


class Terminal:
    """A terminal of a size, in which a program runs."""

    def __init__(self, folder: Path, width: int, height: int) -> None:
        self._socket = str(folder / "tmux")
        self._width, self._height, self._folder = width, height, folder

    def tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", self._socket, "-f", "/dev/null", *words],
            text=True,
            capture_output=True,
            check=True,
            timeout=20,
        )
        return done.stdout

    def command(self, *arguments: str, **more: str) -> str:
        """What a person types."""
        settings = {
            "PYTHONPATH": str(ROOT), "FERMIGRID_STATE": os.environ["FERMIGRID_STATE"], "FERMIGRID_POLL_S": "0.3",
            "FERMIGRID_SITES": str(self._folder), "FERMIGRID_ALERTS": "", "LC_ALL": "C.UTF-8",
            "COLUMNS": "71", "LINES": "33",  # which some shells export, and which are not so
            **more,
        }  # fmt: skip
        words = [f"{name}={value}" for name, value in settings.items()]
        return shlex.join(["env", *words, sys.executable, "-m", "fermigrid", *arguments])

    def start(self, *arguments: str, **more: str) -> None:
        line = self.command(*arguments, **more)
        script = f"cd {shlex.quote(str(self._folder))}; echo $$ > pid; {line}; echo ended with $?; exec sleep 600"
        self.tmux(
            "new-session", "-d", "-x", str(self._width), "-y", str(self._height), f"bash -c {shlex.quote(script)}"
        )

    def start_shell(self) -> None:
        self.tmux("new-session", "-d", "-x", str(self._width), "-y", str(self._height), "bash --norc -i")
        self.type(f"cd {shlex.quote(str(self._folder))}")

    def type(self, line: str) -> None:
        self.tmux("send-keys", "-l", line)
        self.tmux("send-keys", "Enter")

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def until(self, seen: Callable[[str], bool] | str) -> str:
        """The screen as soon as it shows what is waited for."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            text = self.screen()
            if seen in text if isinstance(seen, str) else seen(text):
                return text
            time.sleep(0.1)
        raise AssertionError(f"not seen: {seen}\n{self.screen()}")

    def resize(self, width: int, height: int) -> None:
        self.tmux("resize-window", "-x", str(width), "-y", str(height))

    def program(self) -> int:
        """The process that shows the screen."""
        shell = int((self._folder / "pid").read_text())
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work.sh").write_text(WORK)
    (tmp_path / "work.sh").chmod(0o755)
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN.format(go=tmp_path / "go"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "here.yaml").write_text(SITE.format(scratch=tmp_path / "scratch"))
    return tmp_path


@pytest.fixture
def submitted(folder: Path) -> Iterator[Path]:
    env = {"FERMIGRID_SITES": str(folder)}
    code, _, err = fermigrid("submit", "campaign.yaml", "--site", "here", "--run-dir", "run", cwd=folder, env=env)
    assert code == 0, err
    yield folder
    (folder / "go").touch()
    fermigrid("remove", "run", cwd=folder, env=env)


@pytest.fixture
def terminal(folder: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    one = Terminal(folder, *getattr(request, "param", (100, 30)))
    yield one
    one.tmux("kill-server")


def running(text: str) -> bool:
    return "clump  here" in text and "2 " in text and "running" in text


@pytest.mark.parametrize("terminal", [(60, 20), (120, 40)], indirect=True, ids=["narrow", "wide"])
def test_a_campaign_is_seen_to_its_end(submitted: Path, terminal: Terminal) -> None:
    terminal.start("watch", "run")
    text = terminal.until(running)
    lines = text.splitlines()
    assert lines[0].startswith("shown  looked ") and lines[1].endswith("0 of 12 jobs done")
    assert "merge  6 not sent" in text and "Ctrl-C ends the watching, not the jobs" in text
    (submitted / "go").touch()
    text = terminal.until("ended with 1")
    assert "shown: 12 jobs, 10 done, 1 failed, 1 never sent" in text, "what came of it is left on the terminal"
    assert "submitted shown.b0000.merge.g0: 5 jobs" in text, "and what was told meanwhile"
    assert "Ctrl-C ends" not in text


def test_it_follows_the_size_of_the_terminal(submitted: Path, terminal: Terminal) -> None:
    terminal.start("watch", "run")
    terminal.until(running)
    for width, height in ((60, 16), (45, 9), (140, 40)):
        terminal.resize(width, height)
        text = terminal.until(partial(fills, width))
        lines = text.rstrip("\n").splitlines()
        assert lines[0].startswith("shown  looked ") and len(lines) <= height and "Ctrl-C" in lines[-1]
        assert sum(line.startswith("shown  ") for line in lines) == 1, "nothing is left of the other size"
    terminal.tmux("send-keys", "C-c")
    assert "Ctrl-C" not in terminal.until("ended with 130"), "nothing is left of the screen"


def fills(width: int, text: str) -> bool:
    """Is the bar as wide as the terminal?"""
    bar = next((line for line in text.splitlines() if "jobs d" in line), "")
    return running(text) and "Ctrl-C" in text and width - 6 <= len(bar) <= width


def test_ctrl_c_ends_the_watching_and_not_the_jobs(submitted: Path, terminal: Terminal) -> None:
    terminal.start("watch", "run")
    terminal.until(running)
    terminal.tmux("send-keys", "C-c")
    text = terminal.until("ended with 130")
    assert "its jobs go on, and `fermigrid watch shown` looks again" in text.replace("\n", "")
    assert "interrupted" not in text and not running(text)
    (submitted / "go").touch()
    code, out, _ = fermigrid("watch", "run", cwd=submitted, env={"FERMIGRID_SITES": str(submitted)})
    assert (code, out.splitlines()[0]) == (1, "shown: 12 jobs, 10 done, 1 failed, 1 never sent")


def looked_last(folder: Path) -> str:
    with closing(sqlite3.connect(f"file:{folder / 'run/ledger.sqlite'}?mode=ro", uri=True)) as db:
        return str(db.execute("SELECT looked FROM watching").fetchone())


def test_ctrl_c_does_not_say_that_nobody_looks_where_another_watch_does(submitted: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    both = [Terminal(folder, 100, 30) for folder in (submitted, tmp_path / "other")]
    sites = {"FERMIGRID_SITES": str(submitted)}
    try:
        for one in both:
            one.start("watch", str(submitted / "run"), **sites)
        for one in both:
            one.until(running)
        looks, end = {looked_last(submitted)}, time.monotonic() + LIMIT_S
        while len(looks) < 10 and time.monotonic() < end:  # both have looked, by turns
            looks.add(looked_last(submitted))
        both[0].tmux("send-keys", "C-c")
        text = both[0].until("ended with 130")
        assert "this watch has ended; another fermigrid looked at shown" in text and "nobody looks" not in text
        assert running(both[1].screen())
    finally:
        for one in both:
            one.tmux("kill-server")


def alternate(terminal: Terminal) -> bool:
    """Does the program have the terminal's other screen, without a cursor?"""
    found = terminal.tmux("display-message", "-p", "#{alternate_on} #{cursor_flag}").split()
    assert found in (["1", "0"], ["0", "1"])
    return found == ["1", "0"]


def test_ctrl_z_gives_the_terminal_back_until_fg(submitted: Path, terminal: Terminal) -> None:
    terminal.start_shell()
    terminal.type(terminal.command("watch", "run"))
    terminal.until(running)
    for in_between in ("", "bg; until jobs | grep -q Stopped; do sleep 0.1; done"):
        terminal.tmux("send-keys", "C-z")
        text = terminal.until("Stopped")
        assert not alternate(terminal) and "Ctrl-C ends" not in text
        code, out, err = fermigrid("hold", "run", cwd=submitted, env={"FERMIGRID_SITES": str(submitted)})
        assert code == 0, (out, err, "nobody waits for a watch that is stopped")
        terminal.type(f"{in_between}; clear; jobs".lstrip("; "))
        terminal.until(lambda text: text.startswith("[1]+  Stopped"))
        assert not alternate(terminal), "a screen is for the foreground"
        terminal.type("fg")
        terminal.until("held")
        assert alternate(terminal)
        fermigrid("release", "run", cwd=submitted, env={"FERMIGRID_SITES": str(submitted)})
        terminal.until(running)
    terminal.tmux("send-keys", "C-c")
    terminal.until("nobody looks at shown any more")
    assert not alternate(terminal)


def test_ctrl_z_where_nothing_can_be_stopped(submitted: Path, terminal: Terminal) -> None:
    """Without a shell that begins it again it goes on, with its screen."""
    terminal.start("watch", "run")
    terminal.until(running)
    terminal.tmux("send-keys", "C-z")
    (submitted / "go").touch()
    terminal.until("ended with 1")


@pytest.mark.parametrize("coloured", [True, False])
def test_colours_can_be_taken_away(submitted: Path, terminal: Terminal, coloured: bool) -> None:
    terminal.start("watch", "run", **({} if coloured else {"NO_COLOR": "1"}))
    terminal.until(running)
    shown = terminal.tmux("capture-pane", "-p", "-e")
    assert bool(re.search(r"\x1b\[(3[0-8]|9[0-7])m", shown)) == coloured


def test_a_kill_leaves_a_terminal_that_can_be_used(submitted: Path, terminal: Terminal) -> None:
    terminal.start("watch", "run")
    terminal.until(running)
    os.kill(terminal.program(), signal.SIGTERM)
    text = terminal.until("ended with 143")
    assert not running(text)
    assert terminal.tmux("display-message", "-p", "#{alternate_on} #{cursor_flag}").split() == ["0", "1"]


def test_without_a_terminal_there_are_plain_lines(submitted: Path) -> None:
    (submitted / "go").touch()
    code, out, err = fermigrid("watch", "run", cwd=submitted, env={"FERMIGRID_SITES": str(submitted)})
    assert code == 1 and out.startswith("shown: 12 jobs, 10 done, 1 failed, 1 never sent\n")
    assert "\x1b" not in out + err
    assert "submitted shown.b0000.merge.g0: 5 jobs" in err
