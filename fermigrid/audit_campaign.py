"""The audit of a campaign, run by run: what the ledger accepted, what lies under the final names -> what is off.

In memory are a few runs with their reports, however many the campaign has; the names of all outputs, which tell what
lies there and nobody made, are kept in a temporary file.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fermigrid.advance import block_name, parts_of
from fermigrid.audit import (
    Expected,
    Finding,
    Found,
    Kind,
    Knowledge,
    Look,
    Result,
    RunSeen,
    SharedInputs,
    audit_run,
    result_of,
)
from fermigrid.audit_events import EventsAudit
from fermigrid.audit_expected import Expectations
from fermigrid.audit_files import Looker, Shelf, files_below, files_in
from fermigrid.audit_names import Names
from fermigrid.errors import NotFound
from fermigrid.ledger import Ledger
from fermigrid.name_book import NameBook
from fermigrid.plan import Assembled
from fermigrid.report import Output
from fermigrid.retire import RETIRED
from fermigrid.runs import Run
from fermigrid.split import run_of
from fermigrid.units import show_bytes, show_count

AHEAD = 256  # outputs that are looked at before their run's turn
_HANDS = 8  # files read at once: most of the time is the file system's or the server's


@dataclass(frozen=True)
class Subject:
    """A campaign to be audited; `outputs`: where those are that came back with their jobs."""

    ledger: Ledger
    assembled: Assembled
    outputs: Path


@dataclass
class Totals:
    """What was audited. `unlooked`: why something could not be looked at -> how many; `kinds`: findings by kind."""

    runs: int = 0
    jobs: int = 0
    outputs: int = 0
    bytes: int = 0
    steps: dict[str, list[int]] = field(default_factory=dict)  # step -> jobs, events read, events kept
    kinds: Counter[Kind] = field(default_factory=Counter)
    unlooked: Counter[str] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        """Is nothing off?"""
        return not self.kinds


@dataclass(frozen=True)
class Line:
    """An output, for the list of all: what made it, of what, and what was found of it."""

    run: str
    step: str
    expected: Expected
    result: Result | None
    output: Output | None
    look: Look | None


@dataclass(frozen=True)
class RunAudited:
    """What was found of one run, or ("" as its name) of no run."""

    run: str
    findings: Sequence[Finding]
    lines: Sequence[Line] = ()


@dataclass
class _Waiting:
    """A run whose outputs are being looked at."""

    run: Run
    expected: Mapping[str, Sequence[Expected]]
    results: Mapping[str, Sequence[Result]]
    looks: Mapping[str, Callable[[], Look]]
    findings: list[Finding]


class CampaignAudit:
    """One audit of a campaign. `runs` gives what was found, run by run; `totals` grows with it.

    `quick`: no file is read, only its size is asked for. `only`: these runs, and not what lies there beside them.
    """

    def __init__(self, subject: Subject, quick: bool = False, only: Sequence[str] = ()) -> None:
        self.totals = Totals()
        self._s, self.quick, self._only = subject, quick, frozenset(only)
        a, self._ledger = subject.assembled, subject.ledger
        self._campaign = a.campaign
        known = {run.name for run in a.runs}
        if unknown := sorted(self._only - known):
            raise NotFound(f"no run {unknown[0]!r} in the run table of {a.campaign.campaign}")
        self._expect = Expectations(a, self._ledger.batches())
        self._shelves = {name: _shelf(a, name, subject.outputs) for name in a.sites}
        self._looker = Looker(quick)
        self._shared = SharedInputs()
        self._folders: dict[Shelf, set[str]] = {}

    def runs(self) -> Iterator[RunAudited]:
        """Every run of the table, those with nothing off as well; and at the end what is of no run."""
        with ExitStack() as stack:
            book = stack.enter_context(closing(NameBook()))
            events = stack.enter_context(EventsAudit(self._campaign, self._note)) if self._reads_events else None
            hands = None if self.quick else stack.enter_context(ThreadPoolExecutor(_HANDS))
            waiting, ahead = deque[_Waiting](), 0
            for block, run in self._chosen():
                waiting.append(self._begin(block, run, hands))
                ahead += len(waiting[-1].looks)
                while ahead > AHEAD:
                    ahead -= len(waiting[0].looks)
                    yield self._judge(waiting.popleft(), book, events)
            while waiting:
                yield self._judge(waiting.popleft(), book, events)
            yield from self._beside(book, events)

    @property
    def expected_runs(self) -> int:
        """How many runs there are to audit."""
        return len(self._only) or len(self._s.assembled.runs)

    @property
    def widths(self) -> tuple[int, int]:
        """The length of the longest name of a run, and of a job as they are as a rule."""
        run = max(len(run.name) for run in self._s.assembled.runs)
        return run, run + max(len(name) for name in self._campaign.steps) + len("..k000u000")

    @property
    def _reads_events(self) -> bool:
        return bool(self._campaign.audit.events) and not self.quick

    def _note(self, why: str, count: int) -> None:
        self.totals.unlooked[why] += count

    def _chosen(self) -> Iterator[tuple[str, Run]]:
        parts = parts_of(self._campaign, self._s.assembled.runs, len(self._ledger.trial()))
        for index, part in enumerate(parts):
            yield from ((block_name(index), run) for run in part if not self._only or run.name in self._only)

    # --- one run

    def _begin(self, block: str, run: Run, hands: ThreadPoolExecutor | None) -> _Waiting:
        findings = list[Finding]()
        expected = self._expect.of_run(block, run)
        results = self._results(run, findings)
        looks: dict[str, Callable[[], Look]] = {}
        for one in (result for accepted in results.values() for result in accepted[:1]):
            shelf = self._shelves.get(self._expect.site(one.batch))
            for output in one.outputs:
                looks[output.to] = self._look(shelf, output.to, hands)
        return _Waiting(run, expected, results, looks, findings)

    def _results(self, run: Run, findings: list[Finding]) -> dict[str, list[Result]]:
        results: dict[str, list[Result]] = {}
        for name in self._campaign.steps:
            for record in self._ledger.accepted_of(name, run.name):
                try:
                    results.setdefault(record.job, []).append(result_of(record))
                except (ValueError, KeyError, TypeError) as error:
                    words = f"the report of {record.attempt} in the ledger cannot be read: {error!r}"
                    findings.append(Finding(Kind.ALTERED, run.name, record.job, words))
        return results

    def _look(self, shelf: Shelf | None, to: str, hands: ThreadPoolExecutor | None) -> Callable[[], Look]:
        if shelf is None:
            return partial(Look, to, Found.UNKNOWN, why="its site is none of the campaign's")
        if hands is None:
            return partial(_same, self._looker.look(shelf, to))
        future: Future[Look] = hands.submit(self._looker.look, shelf, to)
        return future.result

    def _judge(self, waiting: _Waiting, book: NameBook, events: EventsAudit | None) -> RunAudited:
        looks = {to: look() for to, look in waiting.looks.items()}
        seen = RunSeen(waiting.run, waiting.expected, waiting.results, looks)
        knowledge = Knowledge(self._why_missing, partial(self._superseded, waiting.run.name))
        findings = waiting.findings
        findings += audit_run(self._campaign, seen, knowledge, self._shared, self._expect.reads)
        findings += self._claim(seen, book)
        if events:
            findings += events.run(seen)
        lines = list(self._lines(seen))
        self._count(seen, findings, lines)
        return RunAudited(waiting.run.name, findings, lines)

    def _claim(self, seen: RunSeen, book: NameBook) -> Iterator[Finding]:
        """No other job has the same final name; and the folders of all are remembered."""
        owned = [(seen.looks[output.to].place, one.job) for results in seen.results.values() for one in results[:1]
                 for output in one.outputs]  # fmt: skip
        for place, first, job in book.claim(owned):
            yield Finding(Kind.DOUBLED, seen.run.name, job, f"{place} is the output of {first} as well")
        for results in seen.results.values():
            shelf = self._shelves.get(self._expect.site(results[0].batch))
            for output in results[0].outputs if shelf else ():
                self._folders.setdefault(shelf, set()).add(output.to.rpartition("/")[0])  # type: ignore[arg-type]

    def _lines(self, seen: RunSeen) -> Iterator[Line]:
        for name, jobs in seen.expected.items():
            for one in jobs:
                result = next(iter(seen.results.get(one.job, ())), None)
                for output in result.outputs if result else ():
                    yield Line(seen.run.name, name, one, result, output, seen.looks[output.to])
                if not result or not result.outputs:
                    yield Line(seen.run.name, name, one, result, None, None)

    def _count(self, seen: RunSeen, findings: Iterable[Finding], lines: Iterable[Line]) -> None:
        t = self.totals
        t.runs += 1
        t.kinds.update(finding.kind for finding in findings)
        for name, jobs in seen.expected.items():
            t.jobs += len(jobs)
            numbers = t.steps.setdefault(name, [0, 0, 0])
            numbers[0] += len(jobs)
            for result in (seen.results[one.job][0] for one in jobs if one.job in seen.results):
                numbers[1] += result.read or 0
                numbers[2] += result.kept or 0
        for line in lines:
            if line.output and line.look:
                t.outputs += 1
                t.bytes += line.output.bytes
                if line.look.found is Found.UNKNOWN:
                    self._note(line.look.why, 1)

    def _why_missing(self, job: str) -> str:
        records = {record.batch: record for record in self._ledger.jobs_named(job)}
        for batch in reversed(self._expect.batches):
            if record := records.get(batch):
                if record.retired is not None:
                    return "it is to be done again"
                return f"{record.state}: {record.reason}" if record.reason else str(record.state)
        return "nothing came of it so far"

    def _superseded(self, run: str, job: str) -> list[Result]:
        step = job.partition(".")[0]
        return [result_of(record) for record in self._ledger.rejected_of(step, run) if record.job == job]

    # --- all runs together

    def _beside(self, book: NameBook, events: EventsAudit | None) -> Iterator[RunAudited]:
        """What is of no run, or of several."""
        findings = [*self._foreign(book)]
        if not self._only:
            findings += self._foreign_jobs()
        if events:
            findings += events.across()
        self.totals.kinds.update(finding.kind for finding in findings)
        yield RunAudited("", findings)

    def _foreign_jobs(self) -> Iterator[Finding]:
        """Accepted results of jobs of which the run table or the campaign knows nothing."""
        runs, steps = {run.name for run in self._s.assembled.runs}, self._campaign.steps
        for job in self._ledger.accepted_jobs():
            name = job.partition(".")[0]
            if name not in steps or run_of(job, name, steps[name]) not in runs:
                yield Finding(Kind.FOREIGN, "", job, "has an accepted result, and there is no such run or step")

    def _foreign(self, book: NameBook) -> Iterator[Finding]:
        """What lies beside the accepted outputs: in the run folder anything at all; in a folder of a site, that others
        may use, what has the name of an output of these runs."""
        runs = self._only or {run.name for run in self._s.assembled.runs}
        names = Names(self._expect.forms(), runs)
        versions = Names(self._expect.forms_of_any_version(), runs)
        own = Shelf("transfer", str(self._s.outputs))
        if not self._only:
            for inside, found in files_below(self._s.outputs, RETIRED):
                for last, what in found:
                    to = f"{inside}/{last}".lstrip("/")
                    if what or not book.owner(own.place(to)):
                        yield self._stranger(own, to, what, names, versions)
        for shelf, folders in self._folders.items():
            if shelf.kind == "posix" or (shelf == own and self._only):
                for inside in sorted(folders):
                    for last in files_in(Path(shelf.root, inside)):
                        to = f"{inside}/{last}".lstrip("/")
                        if not book.owner(shelf.place(to)) and names.run_of(to):
                            yield self._stranger(shelf, to, "", names)

    def _stranger(self, shelf: Shelf, to: str, what: str, names: Names, versions: Names | None = None) -> Finding:
        """`versions`: names in any version, where nobody but this campaign puts anything."""
        run = names.run_of(to) or (versions.run_of(to) if versions else None) or ""
        if what:
            return Finding(Kind.FOREIGN, run, shelf.place(to), f"is {what}")
        for name in self._campaign.steps if run else ():
            for record in self._ledger.rejected_of(name, run):
                if any(output.to == to for output in result_of(record).outputs):
                    words = (
                        f"is the output of the attempt {record.attempt} of {record.job}, which does not count any more"
                    )
                    return Finding(Kind.OLDER, run, shelf.place(to), words)
        if run and not names.run_of(to):
            return Finding(Kind.OLDER, run, shelf.place(to), "has the name of an output in another version")
        return Finding(Kind.FOREIGN, run, shelf.place(to), "no accepted attempt made it")


def _same(look: Look) -> Look:
    return look


def _shelf(a: Assembled, site: str, outputs: Path) -> Shelf:
    output = a.sites[site].output
    return Shelf(output.kind, str(outputs) if output.root is None else output.root)


def clean_line(campaign: str, totals: Totals, quick: bool) -> str:
    """What a clean audit says, in one line."""
    looked = totals.outputs - sum(count for why, count in totals.unlooked.items() if not why.startswith("events of "))
    how = "asked for their sizes" if quick else "read"
    text = f"{campaign}: clean: {show_count(totals.runs, 'run')}, {show_count(totals.jobs, 'job')}, "
    text += f"{show_count(looked, 'output')} {how} ({show_bytes(totals.bytes)})"
    for name, (_, read, kept) in totals.steps.items():
        if read or kept:
            text += f"; {name}: {read} events read, {kept} kept"
    return text
