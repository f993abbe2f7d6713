"""One look of a `watch` that nobody looks at: what it saw is written down, and who must know it is told."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime

from fermigrid import backends
from fermigrid.alerts import View, find_concerns
from fermigrid.backends import PAUSED
from fermigrid.campaign import Alerts
from fermigrid.errors import FermigridError, LedgerError
from fermigrid.gate import TRIAL, is_halted
from fermigrid.metrics import write_metrics
from fermigrid.records import Watching
from fermigrid.retry_book import RetryBook
from fermigrid.standing import Standing, standing_of
from fermigrid.states import State
from fermigrid.submit import handle_of
from fermigrid.telling import alerts_or_none, metrics_file, tell, write_metrics_file
from fermigrid.watch import Following, Turn, look_again, watch_once

CARE_S = 60  # from telling to telling, while `watch` looks every 2 s
QUIET_S = 1800  # without an event: queue and history are asked how the jobs stand
ASK_S = 300  # a batch system that answers is asked again after this


def look_and_care(f: Following, alone: bool = False) -> Turn:
    """`watch_once`, with what follows from it for people; `alone`: no other look follows soon, as with a timer.

    A look that fails is told, too, and raises as it did.
    """
    try:
        turn = watch_once(f)
        if not (turn.events or turn.finished) and _was_quiet_for_long(f):
            turn = replace(turn, problems=(*turn.problems, *look_again(f)))
    except LedgerError:  # nothing can be written down: what was told would be told again and again
        raise
    except FermigridError as error:
        _care(f, Turn(0, 0, 0, False, (str(error),)), always=True)
        raise
    return replace(turn, problems=(*turn.problems, *_care(f, turn, always=alone or turn.finished)))


def _was_quiet_for_long(f: Following) -> bool:
    """Has nothing happened for half an hour, or for one more since the last look?"""
    seen = f.ledger.watching()
    if seen is None:
        return False
    changed, looked = datetime.fromisoformat(seen.changed), datetime.fromisoformat(seen.looked)
    before, now = ((then - changed).total_seconds() // QUIET_S for then in (looked, f.hand.now()))
    return 0 <= before < now


def _care(f: Following, turn: Turn, always: bool) -> list[str]:
    """Write down that `watch` looked; every minute, and when a person is needed, ask, tell and write metrics. Returns
    problems, in words."""
    now, before = f.hand.now(), f.ledger.watching()
    stamp = now.isoformat(timespec="seconds")
    moved = bool(turn.events or turn.judged or turn.submitted)
    if before is None or _age(before.changed, now) is None:  # the first look, or the clock was set back
        moved = True
    changed = stamp if moved or before is None else before.changed
    age = _age(before.cared, now) if before and before.cared else None
    if before and not (always or age is None or age >= CARE_S or _is_needed(f, before)):
        f.ledger.watched(replace(before, looked=now.isoformat(), changed=changed))
        return []
    alerts, problems = alerts_or_none(f.assembled.campaign, f.hand.environment)
    heard = _listen(f, before, now, min(ASK_S, alerts.silence / 4))
    watching = Watching(now.isoformat(), changed, heard.asked, heard.silent, heard.why, stamp)
    f.ledger.watched(watching)
    return [*problems, *_tell(f, turn, watching, alerts)]


def _is_needed(f: Following, before: Watching) -> bool:
    """Is a person needed since the last look? `watch` may end before it tells in its turn."""
    since = [*(halt.since for halt in f.ledger.halts()), *(asked.since for asked in RetryBook(f.ledger).asked())]
    looked = datetime.fromisoformat(before.looked).replace(microsecond=0)
    return any(datetime.fromisoformat(one) >= looked for one in since)


@dataclass(frozen=True)
class _Heard:
    asked: str | None
    silent: str | None
    why: str


def _listen(f: Following, before: Watching | None, now: datetime, every: float) -> _Heard:
    """Do the batch systems answer? The event log is a file, and says nothing of a schedd that has gone.

    One that answers is not asked again before `every` seconds have gone by.
    """
    stamp = now.isoformat(timespec="seconds")
    if before and before.asked and not before.silent:
        age = _age(before.asked, now)
        if age is not None and age < every:
            return _Heard(before.asked, None, "")
    systems = {}
    for one in standing_of(f).batches:
        if one.batch.submitted and one.words != "ended":
            systems[one.batch.backend, one.batch.place, json.dumps(one.batch.options, sort_keys=True)] = one.batch
    said = [backends.load(batch.backend).silence(handle_of(f.folder, batch)) for batch in systems.values()]
    why = "; ".join(filter(None, said))
    since = (before.silent if before else None) or stamp
    if (age := _age(since, now)) is None:
        since = stamp
    return _Heard(stamp, since if why else None, why)


def _tell(f: Following, turn: Turn, watching: Watching, alerts: Alerts) -> list[str]:
    now = f.hand.now()
    name, standing = f.assembled.campaign.campaign, standing_of(f)
    concerns = find_concerns(_view(f, turn, standing, watching, now), alerts)
    problems = tell(
        f.ledger, name, f.folder.path, standing.headline, concerns, alerts, now, f.hand.environment
    )  # fmt: skip
    if alerts.metrics:
        text = write_metrics(name, now.timestamp(), turn.finished, standing.by_step, concerns)
        problem = write_metrics_file(metrics_file(alerts.metrics, name, f.folder.path), text)
        problems += [problem] if problem else []
    return problems


def _view(f: Following, turn: Turn, standing: Standing, watching: Watching, now: datetime) -> View:
    ended = "the trial has ended" if is_halted(f.ledger, TRIAL) else "it has ended"
    return View(
        time=now,
        watching=watching,
        halts=f.ledger.halts(),
        held={why: count for why, count in f.ledger.held_reasons().items() if not why.startswith(PAUSED)},
        running=standing.counts[State.RUNNING],
        waiting=standing.counts[State.WAITING] - len(standing.returning),  # those wait for their time
        doubtful=f.ledger.doubtful(),
        problems=turn.problems,
        walltime=max(step.resources.walltime for step in f.assembled.campaign.steps.values()),
        stuck=standing.idle,
        finished=f"{ended}: {standing.headline}" if turn.finished else "",
    )


def _age(since: str, now: datetime) -> float | None:
    """Seconds since then; None when it is still to come: the clock was set back."""
    age = (now - datetime.fromisoformat(since)).total_seconds()
    return age if age >= 0 else None
