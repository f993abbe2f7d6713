"""Remove, hold and release: a person's hand on jobs that are submitted, and on what is not sent yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import product

from fermigrid import backends, watch_job
from fermigrid.advance import Withheld, needed_places
from fermigrid.errors import SubmissionRefused
from fermigrid.find_job import find_job, jobs_of_places
from fermigrid.progress import progress_of
from fermigrid.records import Asked, JobRecord
from fermigrid.redo import decide, plan_retry
from fermigrid.retry_book import RetryBook
from fermigrid.split import count_jobs, run_of
from fermigrid.standing import standing_of
from fermigrid.states import State
from fermigrid.submit import certainly_not_sent, give_up, handle_of
from fermigrid.units import show_count
from fermigrid.watch import Following
from fermigrid.withheld_book import WithheldBook

_KINDS = {"remove": Withheld.REMOVED, "hold": Withheld.HELD, "release": None}


def control(f: Following, action: str, steps: Sequence[str], jobs: Sequence[str], runs: Sequence[str] = ()) -> int:
    """Do `action` (remove, hold, release) to all jobs, those of some steps or runs, or some by name; returns how many:
    of those that are not sent yet, too, and for release of those that were held.

    The caller holds the writer's lock. Raises NotFound for a job that was not submitted, BackendUnavailable when the
    batch system does not answer: then some may be done and others not, and doing it again is harmless. A campaign whose
    removal the batch system refused (SubmissionRefused) goes on.
    """
    whole = action == "remove" and not (steps or jobs or runs)
    before = f.ledger.campaign().stopped
    if whole:
        for record in certainly_not_sent(f.ledger, f.folder, f.hand):
            give_up(f.ledger, f.folder, record, f.hand, "its campaign was removed before it was sent")
        f.ledger.stop(f.hand.now(), f.hand.who)
    wanted: dict[str, list[int] | None] = {}
    batches = {batch.id: batch for batch in f.ledger.batches() if batch.submitted}
    counts = {standing.batch.id: standing.counts for standing in standing_of(f).batches}
    concerned = (State.HELD,) if action == "release" else tuple(state for state in State if not state.final)
    total = 0 if jobs or whole else _withhold(f, action, steps, runs)
    if jobs:
        by_batch = defaultdict[str, list[int]](list)
        for name in jobs:
            found = find_job(f.ledger, f.folder, name)[-1]
            by_batch[found.batch.id].append(found.index)
        wanted.update(by_batch)
        total = len(jobs)
    elif runs:
        by_batch = defaultdict[str, list[int]](list)
        places = product(steps or f.assembled.campaign.steps, runs)
        for job in jobs_of_places(f.ledger, f.folder, f.assembled, places):
            if job.batch in batches and not job.state.final:
                by_batch[job.batch].append(job.index)
                total += job.state in concerned
        wanted.update(by_batch)
    else:
        for batch in batches.values():
            alive = sum(count for state, count in counts[batch.id].items() if not state.final)
            if alive and (not steps or batch.step in steps):
                wanted[batch.id] = None
                total += sum(counts[batch.id][state] for state in concerned)
    _decide_asked(f, action, wanted)
    if action == "remove" and not whole:
        _give_up_undecided(f, steps, jobs, runs)
    for batch_id, indices in wanted.items():
        if indices == []:
            continue
        batch = batches[batch_id]
        backend = backends.load(batch.backend)
        act = {"remove": backend.remove, "hold": backend.hold, "release": backend.release}[action]
        try:
            act([handle_of(f.folder, batch)], indices)
        except SubmissionRefused as error:
            if whole and not before:
                f.ledger.go_on(f.hand.now(), f.hand.who, f"its removal was refused: {error}")
            raise
        if action == "remove" and indices is None:
            f.ledger.remove(batch.id, f.hand.now(), f.hand.who)
        else:
            what = f"{action} {batch.name}" + (f": {show_count(len(indices), 'job')}" if indices else "")
            f.ledger.note(f.hand.now(), f.hand.who, what)
    if whole:
        watch_job.end(f)
    return total


def _withhold(f: Following, action: str, steps: Sequence[str], runs: Sequence[str]) -> int:
    """Write down what is to become of the jobs that are not sent yet; returns how many these are."""
    a, book, known = f.assembled, WithheldBook(f.ledger), progress_of(f.ledger, f.assembled)
    before, kind = book.places(), _KINDS[action]
    places, count = list[tuple[str, str]](), 0
    for block, run, step in needed_places(a.campaign, a.runs, known, a.trial):
        place = step, run.name
        now = before.get(place)
        if (steps and step not in steps) or (runs and run.name not in runs) or now in (kind, Withheld.REMOVED):
            continue
        pieces = known[block, step].pieces if (block, step) in known else {}
        if jobs := count_jobs(a.campaign.steps[step], [run], pieces):
            places.append(place)
            count += jobs
    if places:
        of = ", ".join(dict.fromkeys(step for step, _ in places))
        what = f"{action} of {show_count(count, 'job')} not sent yet: {of}"
        if kind:
            book.withhold(kind, places, f.hand.now(), f.hand.who, what)
        else:
            book.give_back(places, f.hand.now(), f.hand.who, what)
        f.hand.tell(what)
    return count


def _give_up_undecided(f: Following, steps: Sequence[str], jobs: Sequence[str], runs: Sequence[str]) -> None:
    """Jobs that ended badly, and that a rule would begin again later: a person does not want them any more."""
    step_of, known = {batch.id: batch.step for batch in f.ledger.batches()}, f.assembled.campaign.steps
    chosen = list[JobRecord]()
    for job in RetryBook(f.ledger).unjudged(held=False):
        step = step_of[job.batch]
        mine = (not steps or step in steps) and (not runs or run_of(job.name, step, known[step]) in runs)
        if job.name in jobs if jobs else mine:
            chosen.append(job)
    if chosen:
        RetryBook(f.ledger).judged(chosen)
        what = f"gave up {show_count(len(chosen), 'job')} that a rule would have begun again, such as {chosen[0].name}"
        f.ledger.note(f.hand.now(), f.hand.who, what)


def _decide_asked(f: Following, action: str, wanted: dict[str, list[int] | None]) -> None:
    """What a person wants of the jobs among these that left the queue and wait for one: removed, they are given up;
    released, they are done again. In the queue there is nothing of them to act on."""
    chosen = list[Asked]()
    for asked in RetryBook(f.ledger).asked():
        indices = wanted.get(asked.batch, [])
        if indices is None or asked.index in indices:
            chosen.append(asked)
            if indices is not None:
                indices.remove(asked.index)
    if not chosen:
        return
    if action == "remove":
        RetryBook(f.ledger).give_up(chosen, f.hand.now(), f.hand.who)
    elif action == "release":
        decide(f, plan_retry(f, (), (), [asked.name for asked in chosen]))
        f.hand.tell(f"{show_count(len(chosen), 'job')} had left the queue: done again, fermigrid watch sends them")
