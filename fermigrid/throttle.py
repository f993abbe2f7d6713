"""Limits, priority, bans and drains in force: what the ledger says is made true at the batch systems, look by look.

What a batch may do is computed anew each time from campaign, settings and ledger, and told where it is another than
what was told last. Killed in between, the next look tells it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from fermigrid import backends
from fermigrid.advance import Work
from fermigrid.backends import WHOLE, Allowed, Handle
from fermigrid.check_dirac import limits_too_small
from fermigrid.errors import BackendUnavailable, SubmissionRefused
from fermigrid.gate import BREAKER, is_halted
from fermigrid.plan import Assembled
from fermigrid.progress import has_ended
from fermigrid.rates import Need, Scope, Share, paid_at, room_in, scopes_of, share_out
from fermigrid.records import BatchRecord
from fermigrid.setting import as_set
from fermigrid.settings_book import SettingsBook, ToldOf
from fermigrid.split import count_jobs
from fermigrid.states import State
from fermigrid.submit import handle_of
from fermigrid.units import show_count, show_seconds

if TYPE_CHECKING:
    from fermigrid.watch import Following


def as_now(f: Following) -> Following:
    """The campaign with what was set since it was submitted."""
    return replace(f, assembled=as_set(f.assembled, SettingsBook(f.ledger).values()))


@dataclass(frozen=True)
class _Batch:
    record: BatchRecord
    told: ToldOf
    left: int
    waiting: int  # jobs that the ledger knows to wait
    running: int


def keep_limits(f: Following) -> list[str]:
    """Tell the batch systems what batches may do now; returns what is in the way of that, in words."""
    f = as_now(f)
    if f.ledger.campaign().stopped:
        return []
    sent = _sent(f)
    shares = _share(f, sent, (), grow=True)
    problems = _tell(f, sent, shares)
    if not is_halted(f.ledger, BREAKER):
        problems += _drain(f, sent, shares)
    return problems


def _sent(f: Following) -> list[_Batch]:
    """The batches whose jobs have not all ended."""
    counts, told = f.ledger.counts(), SettingsBook(f.ledger).told()
    found = []
    for record in f.ledger.batches():
        by_state = counts.get(record.id, {})
        if record.submitted and not record.removed and not has_ended(record, by_state):
            left = record.counted - sum(count for state, count in by_state.items() if state.final)
            last = told.get(record.id) or _as_sent(record)
            found.append(_Batch(record, last, left, by_state.get(State.WAITING, 0), by_state.get(State.RUNNING, 0)))
    return found


def first_allowed(options: Mapping[str, object]) -> Allowed:
    """What a batch was sent with."""
    given = {name: options[name] for name in ("places", "stay", "idle", "priority") if name in options}
    banned = options.get("banned", [])
    assert isinstance(banned, list)
    return Allowed(**given, banned=tuple(banned))  # type: ignore[arg-type]


def _as_sent(record: BatchRecord) -> ToldOf:
    allowed = first_allowed(record.options)
    return ToldOf(allowed, allowed.places or record.jobs, record.jobs)


def _share(f: Following, sent: Sequence[_Batch], more: Iterable[Need], grow: bool = False) -> dict[str, Share]:
    a, book = f.assembled, SettingsBook(f.ledger)
    scopes = scopes_of(a.campaign.limits, a.sites)
    if not scopes:
        most = {batch.record.id: most_places(a, batch.record) for batch in sent}
        return {batch.record.id: Share(most[batch.record.id]) for batch in sent}
    recent = book.recent(f.hand.now() - timedelta(minutes=1))
    needs = [_need(f, batch, recent.get(batch.record.id, 0)) for batch in sent]
    now = f.hand.now().timestamp()
    before = book.growth()
    shares, after = share_out(scopes, [*needs, *more], a.campaign.sites, before, now)
    if grow and after != before:
        book.grow(after)
    return shares


def _need(f: Following, batch: _Batch, recent: int) -> Need:
    record, told, drained = batch.record, batch.told, batch.record.site in f.assembled.drained
    paused, places = record.id in f.ledger.paused(), told.allowed.places
    bound = batch.left if places is None else min(batch.left, max(places, told.bound_now(batch.left)))
    return Need(
        id=record.id,
        block=record.block,
        step=record.step,
        site=record.site,
        left=batch.left,
        given=places or 0,
        most=0 if drained else most_places(f.assembled, record),
        bound=batch.running if paused else bound,
        recent=recent,
        paused=paused,
        fixed=places is None,
    )


def most_places(a: Assembled, record: BatchRecord) -> int:
    """Of a batch, when no limit is in force."""
    site = a.sites[record.site]
    return site.htcondor.max_materialize if site.backend == "htcondor" else record.jobs


def _allowed(f: Following, batch: _Batch, share: Share | None) -> Allowed:
    """What a batch may do: places that are of no use to it are left as they are."""
    a, record, told = f.assembled, batch.record, batch.told.allowed
    site = a.sites[record.site]
    banned = f.ledger.banned(record.site)
    same = Allowed(told.places, told.stay, told.idle, a.campaign.accounting.priority, banned)
    if share is None or not share.places or told.places is None:
        return same
    places = told.places if share.places >= batch.left and told.places >= share.places else share.places
    most = site.htcondor.max_idle
    idle = most if share.idle is None else min(most, share.idle)
    return replace(same, places=places, stay=int(share.stay), idle=idle if told.idle is not None else None)


def _tell(f: Following, sent: Sequence[_Batch], shares: Mapping[str, Share]) -> list[str]:
    """Those first that give places up."""
    changed: dict[tuple[str, str, str], list[tuple[_Batch, Allowed]]] = {}
    for batch in sent:
        allowed, record = _allowed(f, batch, shares.get(batch.record.id)), batch.record
        if allowed != batch.told.allowed and record.backend not in WHOLE:
            place = (record.backend, record.place or "", str(record.options.get("schedd")))
            changed.setdefault(place, []).append((batch, allowed))
    problems = []
    for (name, _, _), group in changed.items():
        group.sort(key=lambda pair: (pair[1].places or 0) - (pair[0].told.allowed.places or 0))
        wanted: list[tuple[Handle, Allowed]] = [(handle_of(f.folder, b.record), allowed) for b, allowed in group]
        try:
            backends.load(name).adjust(wanted)
        except (BackendUnavailable, SubmissionRefused) as error:
            problems.append(f"limits, priority and bans of {len(group)} batches are not in force yet: {error}")
            continue
        book = SettingsBook(f.ledger)
        book.tell({b.record.id: _told(b, allowed) for b, allowed in group})
    return problems


def _told(batch: _Batch, allowed: Allowed) -> ToldOf:
    bound = max(allowed.places or 0, batch.told.allowed.places or 0, batch.told.bound_now(batch.left))
    return ToldOf(allowed, bound, batch.left)


def _drain(f: Following, sent: Sequence[_Batch], shares: Mapping[str, Share]) -> list[str]:
    """Keep jobs from starting at sites that are drained, and of batches without a place; let others go on."""
    paused, problems = f.ledger.paused(), list[str]()
    for batch in sent:
        record, share = batch.record, shares.get(batch.record.id)
        limited = batch.told.allowed.places is not None and share is not None and not share.places
        try:
            if (record.site in f.assembled.drained or limited) and record.backend not in WHOLE:
                if batch.waiting or record.id not in paused:
                    f.ledger.pause(record.id)  # first: what may be paused is resumed
                    backends.load(record.backend).pause([handle_of(f.folder, record)])
            elif record.id in paused:
                backends.load(record.backend).resume([handle_of(f.folder, record)])
                f.ledger.unpause(record.id)
        except (BackendUnavailable, SubmissionRefused) as error:
            problems.append(f"{record.name}: whether it may start is not as it should be yet: {error}")
    return problems


def out_of_reach(f: Following) -> list[str]:
    """The batches that a limit is about, and that it does not reach, in words."""
    f = as_now(f)
    scopes = scopes_of(f.assembled.campaign.limits, f.assembled.sites)
    sent, said = _sent(f), list[str]()
    whole = [b for b in sent if b.record.backend in WHOLE]
    fixed = [
        b for b in sent if b.told.allowed.places is None and b not in whole and any(s.has(b.record) for s in scopes)
    ]
    if fixed:
        why = "all their jobs were put into the queue at once when there was no limit"
        said.append(f"limits do not reach {_names(fixed)}: {why}")
    for site in f.assembled.sites.values():
        if site.backend in WHOLE:
            said += limits_too_small(f.assembled, site)
    if drained := [b for b in whole if b.left > b.running and b.record.site in f.assembled.drained]:
        count = show_count(sum(b.left - b.running for b in drained), "job")
        said.append(f"{count} of {_names(drained)} may still start: DIRAC has them. `fermigrid remove` takes them out")
    if others := [b for b in whole if _allowed(f, b, None) != b.told.allowed]:
        said.append(f"priority and bans are for what is sent from now on: DIRAC has the jobs of {_names(others)}")
    return said


def _names(batches: Sequence[_Batch]) -> str:
    more = f" and {len(batches) - 3} more" if len(batches) > 3 else ""
    return ", ".join(batch.record.name for batch in batches[:3]) + more


def why_kept(f: Following, record: BatchRecord) -> Iterator[str]:
    """Why no job of a batch starts now, by our own doing, in words: as long as that is so, nothing else matters."""
    f = as_now(f)
    if record.backend in WHOLE:
        return  # DIRAC has its jobs, and starts them whatever is said here
    halt, drained = next((one for one in f.ledger.halts() if one.kind == BREAKER), None), f.assembled.drained
    if halt:
        yield f"nothing more starts until `fermigrid resume`, since {halt.since}: {halt.why}"
    if record.site in drained:
        yield f"{record.site} is drained: nothing more starts there until `fermigrid set sites.{record.site}=undrain`"
    elif not halt and record.id in f.ledger.paused() and (said := _limits_of(f, record)):
        yield f"limits: no place is free for this batch now ({said}); `fermigrid set` shows what is in force"


def why_waits(f: Following, record: BatchRecord) -> Iterator[str]:
    """What the limits let a batch do, in words."""
    f = as_now(f)
    batch = next((one for one in _sent(f) if one.record.id == record.id), None)
    said = _limits_of(f, record)
    if batch is None or not said or batch.told.allowed.places is None:
        return
    allowed, running = batch.told.allowed, batch.running
    rate = f", and about {allowed.starts:.3g} start in a minute" if allowed.starts else ""
    yield f"limits: this batch may have {allowed.places} jobs in the queue{rate}; {running} run now ({said})"


def _limits_of(f: Following, record: BatchRecord) -> str:
    scopes = [s for s in scopes_of(f.assembled.campaign.limits, f.assembled.sites) if s.has(record)]
    pairs = [(f"{s.key}.running", s.running) for s in scopes] + [(f"{s.key}.starts", s.starts) for s in scopes]
    return ", ".join(f"{key} = {value}" for key, value in pairs if value)


class Throttle:
    """What may be sent now: nothing to a drained site, nothing that has no place within the limits."""

    def __init__(self, f: Following) -> None:
        self.f, self.scopes = f, scopes_of(f.assembled.campaign.limits, f.assembled.sites)
        self.begun = {batch.block for batch in f.ledger.batches()}
        self.sent = _sent(f)
        self.more: list[Need] = []

    def let_through(self, works: Iterable[Work]) -> Iterator[Work]:
        """Each that is yielded counts as sent for those after it."""
        for work in works:
            if not self.why_not(work):
                need = self._need(work)
                self.more.append(replace(need, fixed=True) if self._is_whole(work) else replace(need, given=1, bound=1))
                yield work

    def why_not(self, work: Work) -> str:
        """Why a batch is not sent now, in words; empty: it may be."""
        if work.site in self.f.assembled.drained:
            return f"{work.site} is drained: no new work goes there"
        need = self._need(work)
        mine = [scope for scope in self.scopes if scope.has(need)]
        if not mine:
            return ""
        if work.block not in self.begun and (full := self._full(mine, work.site)):
            return f"{full.key}.running is {full.running}, and blocks before it have jobs enough for that"
        if self._is_whole(work):
            return self._why_not_whole(need, mine)
        shares = _share(self.f, self.sent, [*self.more, need])
        if not shares[need.id].places:
            return f"no place is free within {' and '.join(scope.key for scope in mine)}"
        return ""

    def _is_whole(self, work: Work) -> bool:
        return self.f.assembled.sites[work.site].backend in WHOLE

    def _why_not_whole(self, need: Need, scopes: Iterable[Scope]) -> str:
        """Of a batch whose jobs are all sent together."""
        needs = [*(_need(self.f, batch, 0) for batch in self.sent), *self.more]
        together = f"and {need.site} is given the {show_count(need.left, 'job')} of this batch together"
        for scope in scopes:
            room = room_in(scope, needs)
            if room is not None and room < need.left:
                return f"{scope.key}.running has room for {show_count(max(0, room), 'job')}, {together}"
            if scope.starts and (wait := paid_at(self._sent_whole(scope), scope.starts) - self._now()) > 0:
                later = f"more may be sent in {show_seconds(math.ceil(wait))}"
                return f"{scope.key}.starts is {scope.starts}: {later}, {together}"
        return ""

    def _sent_whole(self, scope: Scope) -> Iterator[tuple[float, int]]:
        """(s, jobs) of what was sent whole."""
        for batch in self.f.ledger.batches():
            if batch.submitted and batch.backend in WHOLE and scope.has(batch):
                yield datetime.fromisoformat(batch.submitted).timestamp(), batch.jobs
        yield from ((self._now(), need.left) for need in self.more if need.fixed and scope.has(need))

    def _now(self) -> float:
        return self.f.hand.now().timestamp()

    def _full(self, scopes: Iterable[Scope], site: str) -> Scope | None:
        """The limit that the jobs on their way to the site use up: a block that has not begun may go elsewhere yet."""
        for scope in scopes:
            left = sum(b.left for b in self.sent if b.record.site == site and scope.has(b.record))
            left += sum(need.left for need in self.more if need.site == site and scope.has(need))
            if scope.running is not None and left >= scope.running:
                return scope
        return None

    def _need(self, work: Work) -> Need:
        a = self.f.assembled
        jobs = count_jobs(a.campaign.steps[work.step], work.runs, work.pieces)
        return Need(f"{work.block}.{work.step}.{work.generation}", work.block, work.step, work.site, jobs, 0, jobs, 0)
