"""What a person must be told of a campaign that nobody looks at, and when again. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from fermigrid.campaign import Alerts
from fermigrid.records import Halt, StuckJob, Told, Watching
from fermigrid.units import show_count, show_seconds

END = "end"
KINDS = ("breaker", "space", "held", "stuck", "stall", "silence", "doubt", "problem", END)
DOUBT_S = 600  # a batch may be in doubt for so long: the next look settles it as a rule
TRY_AGAIN_S = 300  # after a route that did not take a message
_HINTS = {
    "breaker": "fermigrid status {name} --failed; when it is mended: fermigrid resume {name} --reason '...'",
    "space": "make room, or give more: fermigrid resume {name} --quota SITE='20 TB'",
    "held": "fermigrid status {name}; fermigrid why {name} JOB; then fermigrid retry, release or remove",
    "stuck": "fermigrid why {name} JOB; a rule `when: {{stuck: true}}` begins such jobs anew",
    "stall": "fermigrid why {name} JOB, for a job that waits or runs",
    "silence": "nothing is lost: fermigrid goes on when it answers again",
    "doubt": "fermigrid watch {name} --once says what is in the way",
    "problem": "fermigrid watch {name} --once says whether it is still so",
    END: "fermigrid status {name}",
}


@dataclass(frozen=True)
class Concern:
    """One thing that a person must know. `about` tells two of a kind apart: of each a person hears once."""

    kind: str
    about: str
    text: str

    def hint(self, name: str) -> str:
        """What to do next."""
        return _HINTS[self.kind].format(name=name)


@dataclass(frozen=True)
class View:
    """A campaign as `watch` has just seen it. `held`: reason -> jobs, without those that fermigrid holds itself;
    `running`, `waiting`: jobs; `doubtful`: (name, since when) of batches; `walltime`: the longest of a step, s."""

    time: datetime
    watching: Watching
    halts: Sequence[Halt]
    held: Mapping[str, int]
    running: int
    waiting: int
    doubtful: Sequence[tuple[str, str]]
    problems: Sequence[str]
    walltime: int
    stuck: Sequence[StuckJob] = ()
    finished: str = ""  # in words, when nothing is left to wait for


def find_concerns(view: View, alerts: Alerts) -> list[Concern]:
    """What a person must know now, the gravest first."""
    found = [
        Concern(halt.kind, halt.since, f"nothing more is sent since {halt.since}: {halt.why}")
        for halt in view.halts
        if halt.kind in KINDS
    ]
    if view.held:
        reason = next(iter(view.held))
        others = f", and {show_count(len(view.held) - 1, 'other reason')}" if len(view.held) > 1 else ""
        found.append(Concern("held", "", f"{show_count(sum(view.held.values()), 'job')} held: {reason}{others}"))
    if view.stuck:
        what = f"{show_count(len(view.stuck), 'job')} stuck, such as {view.stuck[0].name}: {view.stuck[0].why}"
        found.append(Concern("stuck", "", what))
    found += [*_stall(view, alerts), *_silence(view, alerts)]
    if not view.watching.silent:
        for name, since in view.doubtful:
            if _age(since, view.time) >= DOUBT_S:
                found.append(Concern("doubt", name, f"since {since} nobody knows whether {name} was submitted"))
    found += [Concern("problem", _gist(problem), problem) for problem in view.problems]
    if view.finished:
        found.append(Concern(END, view.finished.partition(":")[0], view.finished))
    return found


def _stall(view: View, alerts: Alerts) -> list[Concern]:
    """Nothing has changed for longer than it may. Jobs that run may take their walltime."""
    may_start = view.waiting and not any(halt.kind == "breaker" for halt in view.halts)
    if view.finished or not (view.running or may_start):
        return []
    patience = max(alerts.stall, view.walltime) if view.running else alerts.stall
    age = _age(view.watching.changed, view.time)
    if age < patience:
        return []
    jobs = f"{show_count(view.running, 'job')} should run and {show_count(view.waiting, 'job')} wait"
    return [Concern("stall", view.watching.changed, f"nothing has changed for {show_seconds(age)}, though {jobs}")]


def _silence(view: View, alerts: Alerts) -> list[Concern]:
    since = view.watching.silent
    if since is None or (age := _age(since, view.time)) < alerts.silence:
        return []
    text = f"the batch system has not answered for {show_seconds(age)}: {view.watching.why}"
    return [Concern("silence", since, text)]


def _age(since: str, now: datetime) -> float:
    """Seconds; a clock that was set back makes it small, never negative."""
    return max(0.0, (now - datetime.fromisoformat(since)).total_seconds())


def _gist(problem: str) -> str:
    """A problem without its numbers: the time left of a proxy is always another."""
    return re.sub(r"[0-9]+", "#", problem)[:200]


def find_due(concerns: Sequence[Concern], told: Sequence[Told], route: str, now: int, repeat: int) -> list[Concern]:
    """The concerns that are to be told by a route now.

    Each once, again after `repeat` seconds; the end once and for all; after a route failed, again some minutes later. A
    clock that was set back by more than that is no reason to be silent until it has come round.
    """
    known = {(one.kind, one.about): one for one in told if one.route == route}

    def is_due(concern: Concern) -> bool:
        before = known.get((concern.kind, concern.about))
        if before is None:
            return True
        age = abs(now - before.tried)
        return age >= (repeat if before.told else TRY_AGAIN_S) and not (concern.kind == END and before.told)

    return [concern for concern in concerns if is_due(concern)]


def find_over(concerns: Sequence[Concern], told: Sequence[Told], now: int, repeat: int) -> list[Told]:
    """What may be forgotten: it is over, and was told so long ago that it may be told anew when it comes again."""
    current = {(concern.kind, concern.about) for concern in concerns}
    return [
        one
        for one in told
        if (one.kind, one.about) not in current and one.kind != END and abs(now - one.tried) >= repeat
    ]


def write_subject(name: str, concerns: Sequence[Concern]) -> str:
    """`fermigrid P400: 3 jobs held: ...`, one line of a mail's header."""
    more = f" (and {len(concerns) - 1} more)" if len(concerns) > 1 else ""
    return f"fermigrid {name}: {_plain(concerns[0].text)[:120]}{more}"


def write_text(name: str, headline: str, folder: str, host: str, concerns: Sequence[Concern]) -> str:
    """The message itself."""
    lines = [f"{concern.text}\n    {concern.hint(name)}" for concern in concerns]
    return "\n\n".join([*lines, f"{name}: {headline}\nrun folder {folder} on {host}"]) + "\n"


def _plain(text: str) -> str:
    return "".join(char if 32 <= ord(char) < 127 else "?" for char in " ".join(text.split()))
