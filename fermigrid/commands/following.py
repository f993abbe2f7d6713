"""What the verbs that deal with a submitted campaign share: opening it, and following it on a live screen."""

from __future__ import annotations

import getpass
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from fermigrid.access import at_work_in, check_run_folder, check_team, trust_of
from fermigrid.archive import about_of, archive_of, check_archive, unpacked
from fermigrid.assemble import assemble_kept
from fermigrid.attempt import gist
from fermigrid.errors import LedgerBusy, RunFolderError
from fermigrid.ledger import Ledger, open_ledger
from fermigrid.ledger_file import BUSY_S, writing
from fermigrid.registry import find_campaign, registries
from fermigrid.runfolder import RunFolder
from fermigrid.standing import Standing, standing_of, top_failures
from fermigrid.submit import Hand
from fermigrid.trial import as_adjusted
from fermigrid.unattended import look_and_care
from fermigrid.units import show_count, show_seconds
from fermigrid.watch import Following, Turn, look

if TYPE_CHECKING:
    from rich.console import Console

SAID = 100  # texts that are kept while the live screen is there
_OTHER_S = 20.0  # another watch looks more often than that
_ENTER, _LEAVE = b"\x1b[?1049h\x1b[?25l\x1b[2J", b"\x1b[?1049l\x1b[?25h"  # the other screen, without a cursor; and back
_INTERRUPTED = 130  # exit code, as of shells
POLL_S = 2.0  # between two looks while following; a look costs one read of each event log


def make_hand() -> Hand:
    """The person at the keyboard, and the clock."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a uid without an entry: in containers, on nodes without the user database
        user = f"uid{os.getuid()}"
    who = f"{user}@{socket.gethostname()}"
    sendmail = os.environ.get("P2_SENDMAIL", "")
    return Hand(who, lambda: datetime.now(UTC), lambda text: click.echo(text, err=True), sendmail, os.environ)


def locate(campaign: str) -> RunFolder:
    """The run folder of a campaign by its name or path, or its archive. Raises AccessRefused for one not to be used."""
    folder = find_campaign(campaign, *registries(os.environ))
    if not folder.path.is_file():
        check_run_folder(folder.path, trust_of(os.environ))
    return folder


@contextmanager
def following(folder: RunFolder, hand: Hand, *, archived: bool = False) -> Iterator[Following]:
    """A submitted campaign, opened; what is made meanwhile is for those that its run folder is for.

    `archived`: one that was archived will do, to be read only; otherwise it is refused (RunFolderError).
    """
    if file := archive_of(folder):
        check_archive(file, trust_of(os.environ))
        if not archived:
            text = f"{about_of(file).campaign} is archived in {file}: it can be read, and nothing can be done with it"
            raise RunFolderError(text, "status, why, logs, report and audit read it.")
        with unpacked(file) as inside, closing(open_ledger(inside.ledger)) as ledger:
            yield _followed(ledger, inside, hand)
        return
    with at_work_in(folder.path, trust_of(os.environ)), closing(open_ledger(folder.ledger)) as ledger:
        check_team(folder.path, ledger.campaign().team)
        yield _followed(ledger, folder, hand)


def _followed(ledger: Ledger, folder: RunFolder, hand: Hand) -> Following:
    record = ledger.campaign()
    kept = as_adjusted(assemble_kept(folder, record), ledger.trial(), ledger.adjusted())
    return Following(ledger, folder, kept, record.site, hand)


def refresh(f: Following) -> tuple[str, ...]:
    """One look, unless another fermigrid is at work on the campaign already, or it is archived. Returns problems, in
    words."""
    if f.folder.archive:
        return ()
    try:
        with writing(f.folder.ledger):
            return look(f).problems
    except LedgerBusy:
        return ()
    except RunFolderError as error:  # what is known can be shown
        return (f"{error} {error.hint}".rstrip(),)


def follow(f: Following, until_stopped: bool = False) -> Standing:
    """Look again and again until nothing is left to wait for; `until_stopped`: or the circuit breaker has stopped it.

    The writer's lock is held only while looking, so that another terminal can remove, hold and release meanwhile.
    """
    looks = _Looks()
    try:
        with _screen(f, looks) as (seen, show):
            return _follow(seen, until_stopped, show, looks)
    except KeyboardInterrupt:
        name = f.assembled.campaign.campaign
        if age := looks.age_of_other(f):
            f.hand.tell(f"this watch has ended; another fermigrid looked at {name} {age} ago, and its jobs go on")
        else:
            f.hand.tell(f"nobody looks at {name} any more: its jobs go on, and `fermigrid watch {name}` looks again")
        raise click.exceptions.Exit(_INTERRUPTED) from None


@dataclass
class _Looks:
    """When this watch looked last, and when another one did meanwhile, as the ledger has it."""

    mine: str | None = None
    other: str | None = None
    at_work: bool = False  # with the writer's lock

    def see(self, f: Following) -> None:
        """A look since our own last one was somebody else's."""
        if self.mine and (looked := _looked(f)) != self.mine:
            self.other = looked

    def age_of_other(self, f: Following) -> str:
        """How long ago another one looked, if it seems to look again and again."""
        self.see(f)
        age = (f.hand.now() - datetime.fromisoformat(self.other)).total_seconds() if self.other else _OTHER_S
        return show_seconds(max(0.0, age)) if age < _OTHER_S else ""


def _looked(f: Following) -> str | None:
    return watching.looked if (watching := f.ledger.watching()) else None


def _follow(f: Following, until_stopped: bool, show: Callable[[Standing], None], looks: _Looks) -> Standing:
    told: set[str] = set()
    while True:
        if not f.folder.ledger.is_file():
            raise RunFolderError(f"the run folder {f.folder.path} has gone while it was followed")
        turn = _turn(f, looks)
        for problem in turn.problems:
            if (words := problem.partition(", in ")[0]) not in told:  # the time left of a proxy is always another
                f.hand.tell(problem)
                told.add(words)
        tell_holds(f, told)
        standing = standing_of(f)
        show(standing)
        if turn.finished or standing.stuck or (until_stopped and standing.at_rest):
            return standing
        if not turn.events:
            time.sleep(float(os.environ.get("FERMIGRID_POLL_S", POLL_S)))


def tell_holds(f: Following, told: set[str]) -> None:
    """A line for each reason for which jobs are held, unless it was `told`; those with the same gist are one."""
    found: dict[str, tuple[int, str, str]] = {}
    for reason, jobs, first in f.ledger.holds():
        key = f"held: {gist(reason)}"
        known, first, reason = found.get(key, (0, first, reason))
        found[key] = known + jobs, first, reason
    for key, (jobs, first, reason) in found.items():
        if key not in told:
            why = f"fermigrid why {f.assembled.campaign.campaign} {first}"
            f.hand.tell(f"{show_count(jobs, 'job')} held: {reason or 'no reason given'} ({why})")
    told.update(found)


def _turn(f: Following, looks: _Looks) -> Turn:
    try:
        with writing(f.folder.ledger):
            looks.see(f)
            looks.at_work = True
            try:
                return look_and_care(f)
            finally:  # what was written while we have the lock is ours
                looks.mine = _looked(f)
                looks.at_work = False
    except LedgerBusy as error:  # the other one looks for us too
        return Turn(0, 0, 0, False, (str(error),))


@contextmanager
def _screen(f: Following, looks: _Looks) -> Iterator[tuple[Following, Callable[[Standing], None]]]:
    """A live screen on a terminal, which also has what is told meanwhile: it is told again when the screen has gone.
    Elsewhere nothing but what is told."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield f, lambda _: None
        return
    from rich.console import Console
    from rich.live import Live

    from fermigrid.screen import Screen, View

    said = deque[str](maxlen=SAID)
    screen = Screen(View(f.assembled.campaign.campaign, standing_of(f)), f.hand.now)

    def show(standing: Standing) -> None:
        screen.view = View(screen.view.name, standing, top_failures(f, standing), tuple(said), f.hand.now())
        pause.if_wanted()

    size = {"COLUMNS", "LINES"}  # rich believes them; exported by a shell, they are what the terminal was once
    console = Console(stderr=True, _environ={name: value for name, value in os.environ.items() if name not in size})
    before = signal.signal(signal.SIGTERM, _end)  # else it would leave the terminal as it is
    pause = _Pause(console, looks)
    try:
        with pause, Live(screen, console=console, screen=True, redirect_stdout=False, redirect_stderr=False) as live:
            try:
                yield replace(f, hand=replace(f.hand, tell=said.append)), show
            finally:
                live.update("", refresh=True)  # tmux gives lines back to the terminal that a change of its size cut off
    finally:
        signal.signal(signal.SIGTERM, before)
        for text in said:
            f.hand.tell(text)


class _Pause:
    """Ctrl-Z on the live screen: the terminal is as it was until `fg`. Not during a look: others could not work."""

    def __init__(self, console: Console, looks: _Looks) -> None:
        self._console, self._looks, self._wanted = console, looks, False

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGTSTP, self._want)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTSTP, self._before)

    def _want(self, *_: object) -> None:
        self._wanted = True
        if not self._looks.at_work:
            self.if_wanted()

    def if_wanted(self) -> None:
        if not self._wanted:
            return
        file, self._wanted = self._console.file, False
        os.write(file.fileno(), _LEAVE)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        while os.tcgetpgrp(file.fileno()) != os.getpgrp():  # `bg`: a screen is for the foreground
            os.kill(os.getpid(), signal.SIGSTOP)
        signal.signal(signal.SIGTSTP, self._want)
        os.write(file.fileno(), _ENTER)  # and it is drawn anew, as always some times a second


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


def control_campaign(
    campaign: str, action: str, steps: tuple[str, ...], runs: tuple[str, ...], jobs: tuple[str, ...]
) -> int:
    """Remove, hold or release; returns the number of jobs."""
    from fermigrid.control import control
    from fermigrid.redo import known_runs

    folder = locate(campaign)
    with following(folder, make_hand()) as f, writing(folder.ledger, BUSY_S):
        unknown = sorted(set(steps) - set(f.assembled.campaign.steps))
        if unknown:
            raise click.UsageError(f"no step {unknown[0]!r}; there are {', '.join(f.assembled.campaign.steps)}")
        known_runs(f, runs)
        look(f)
        count = control(f, action, steps, jobs, runs)
        look(f)
        return count
