"""Runs into pieces: clumps, or chunks and their crumbs. Pure.

A piece's name is a letter and a number: `c003` a clump, `k003` a chunk (k, because c is taken), `k003u012` a crumb of
that chunk. Names depend on nothing but the run's number of events and the step's `split`; in the order of their names
the pieces of a run are in the order of its events.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fermigrid.campaign import Split, Step
from fermigrid.runs import Run

CLUMPS = 100_000  # the most of a run: more is a slip of the pen in the table or the split
CHUNKS = 1000  # the most of a run, as in L1 processing: k000 to k999
_THOUSANDTHS = 1000
_EVERY: Mapping[str, frozenset[str]] = {}


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a run: `count` events from `first` on (from 0 in the run). `name` is "" for the whole run."""

    name: str
    first: int
    count: int

    @property
    def chunk(self) -> str:
        """The chunk that a chunk or crumb is, or is of: `k003`."""
        return self.name[:4]

    @property
    def crumb(self) -> str:
        """Which crumb of its chunk it is: `u012`."""
        return self.name[4:]


def split_clumps(events: int, size: int, begin: int = 0) -> Iterator[Piece]:
    """Clumps of `size` events, `c000` on; the last has what is left. A run of no events has no clump. `begin`: the
    index of the first one that is wanted."""
    width = max(3, len(str((events - 1) // size)))
    for index, first in enumerate(range(begin * size, events, size), begin):
        yield Piece(f"c{index:0{width}d}", first, min(size, events - first))


def split_chunks(events: int, most: int) -> Iterator[Piece]:
    """As few chunks as there can be of at most `most` events, `k000` on, as equal as whole events allow, larger ones
    first. A run of no events has no chunk."""
    first, chunks = 0, count_chunks(events, most)
    for index in range(chunks):
        count = _size_of_chunk(events, chunks, index)
        yield Piece(f"k{index:03d}", first, count)
        first += count


def count_chunks(events: int, most: int) -> int:
    """How many chunks a run of so many events has."""
    return -(-events // most)


def _size_of_chunk(events: int, chunks: int, index: int) -> int:
    return events // chunks + (index < events % chunks)


def split_crumbs(chunk: Piece, split: Split) -> Iterator[Piece]:
    """The crumbs of a chunk, `u000` on, each at least as large as the one before it.

    Their sizes grow linearly, the last `split.ratio` times the first, as exactly as whole events allow; where the first
    would have no event, each is given one and the rest grows.
    """
    crumbs, first = _count_crumbs(chunk.count, split), chunk.first
    grows = round((split.ratio - 1) * _THOUSANDTHS)
    weights = [(crumbs - 1) * _THOUSANDTHS + grows * index for index in range(crumbs)] if crumbs > 1 else [1]
    whole = sum(weights)
    least = 1 if chunk.count * weights[0] < whole else 0
    ends = [(chunk.count - least * crumbs) * sum_ // whole for sum_ in itertools.accumulate(weights, initial=0)]
    sizes = sorted(least + end - begin for begin, end in itertools.pairwise(ends))  # each rounded up or down
    for index, size in enumerate(sizes):
        yield Piece(f"{chunk.name}u{index:03d}", first, size)
        first += size


def _count_crumbs(events: int, split: Split) -> int:
    return max(1, min(split.crumbs, events // split.crumb_events))


def pieces_of(step: Step, run: Run) -> Iterator[Piece]:
    """What a step does of a run, in the order of its events: the run itself, its clumps, its chunks or their crumbs."""
    if step.foreach == "run":
        yield Piece("", 0, run.events or 0)
        return
    assert run.events is not None, "check.py refuses pieces of runs without a number of events"
    split = step.split or Split()
    if step.foreach == "clump":
        yield from split_clumps(run.events, split.events)
        return
    for chunk in split_chunks(run.events, split.events):
        if step.foreach == "chunk":
            yield chunk
        else:
            yield from split_crumbs(chunk, split)


def chosen_pieces(step: Step, run: Run, only: Mapping[str, frozenset[str]] = _EVERY) -> Iterator[Piece]:
    """The same, but of a run that is in `only` no other pieces than those."""
    names = only.get(run.name)
    if names is None:
        return pieces_of(step, run)
    pieces = _named_clumps(step, run, names) if step.foreach == "clump" else pieces_of(step, run)
    return (piece for piece in pieces if piece.name in names)


def _named_clumps(step: Step, run: Run, names: frozenset[str]) -> Iterator[Piece]:
    """The clumps with the numbers of these, without those in between."""
    size = (step.split or Split()).events
    for number in sorted({int(name[1:]) for name in names if name[1:].isdecimal()}):
        yield from itertools.islice(split_clumps(run.events or 0, size, number), 1)


def count_jobs(step: Step, runs: Sequence[Run], only: Mapping[str, frozenset[str]] = _EVERY) -> int:
    """How many jobs a step has for these runs; of a run that is in `only` there are no other pieces than those."""
    if not only:
        return len(runs) if step.foreach == "run" else sum(_count_pieces(step, run.events or 0) for run in runs)
    whole = [run for run in runs if run.name not in only]
    some = (run for run in runs if run.name in only)
    return (count_jobs(step, whole) if whole else 0) + sum(1 for run in some for _ in chosen_pieces(step, run, only))


def _count_pieces(step: Step, events: int) -> int:
    split = step.split or Split()
    chunks = count_chunks(events, split.events)
    if step.foreach != "crumb" or not chunks:
        return chunks
    larger = events % chunks
    sizes = ((larger, events // chunks + 1), (chunks - larger, events // chunks))
    return sum(many * _count_crumbs(size, split) for many, size in sizes if many)


def group_of(job: Step, source: Step, piece: Piece) -> str:
    """Pieces of these two steps that are of one run and in one group belong together: a run and all that is of it, a
    chunk and its crumbs, or the same piece. The steps are not `unrelated`."""
    if "run" in (job.foreach, source.foreach):
        return ""
    return piece.name if job.foreach == source.foreach else piece.chunk


def unrelated(job: Step, source: Step) -> str:
    """Why pieces of these two steps have nothing to do with each other, in words; "" where they have."""
    kinds = {job.foreach, source.foreach}
    if "run" in kinds:
        return ""
    if len(kinds) > 1 and "clump" in kinds:
        return f"a {job.foreach} is no part of a {source.foreach}, nor the other way round"
    mine, theirs = job.split or Split(), source.split or Split()
    if mine.events != theirs.events:
        what = "clumps" if kinds == {"clump"} else "chunks"
        return f"its {what} are of {mine.events} events, those of that step of {theirs.events}"
    if kinds == {"crumb"} and mine != theirs:
        return "the two steps have another split"
    return ""


def run_of(job: str, name: str, step: Step) -> str:
    """The run of a job of the step `name`, from the job's name."""
    rest = job.removeprefix(f"{name}.")
    return rest if step.foreach == "run" else rest.rpartition(".")[0]
