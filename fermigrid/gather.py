"""What a job is given of the steps before it: the good pieces, and the names of the lost ones. Pure.

In a shard the lines after a job's row tell it, one for each piece (docs/architecture.md, "Gathered outputs").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from fermigrid.campaign import Campaign, Gather, Step
from fermigrid.errors import LedgerError, SubmissionRefused
from fermigrid.quoting import encode_field
from fermigrid.runs import Run
from fermigrid.site import Site
from fermigrid.split import Piece, group_of, pieces_of

_ENDINGS = re.compile(r"(?:\.[A-Za-z0-9]+)*")
CAME_BACK = "outputs:"  # of a file that comes with the job: what follows is its name in the run folder's outputs/


@dataclass(frozen=True, slots=True)
class Good:
    """An accepted output: the name that it was published under, at which site, what is known of its content."""

    to: str
    site: str
    bytes: int | None = None
    sha256: str = ""


Given = Callable[[str, str, Run], Mapping[str, Good]]  # (step, its output, run) -> name of a piece -> its good output


def file_in_folder(source: Gather, piece: Piece, run: str) -> str:
    """The name of a gathered file in its folder: the piece (of a whole run: the run), with the output's endings."""
    return f"{piece.name or run}{_endings(source.output)}"


@lru_cache
def _endings(output: str) -> str:
    endings = "".join(PurePosixPath(output).suffixes)
    return endings if _ENDINGS.fullmatch(endings) else ""


class Gathering:
    """The lines of the jobs of a step at a site. Keeps what is known of one run."""

    def __init__(self, campaign: Campaign, name: str, sites: Mapping[str, Site], here: str, given: Given) -> None:
        self._campaign, self._name, self._step = campaign, name, campaign.steps[name]
        self._sites, self._here, self._given = sites, here, given
        self._run = ""
        self._known: dict[str, tuple[dict[str, list[Piece]], Mapping[str, Good]]] = {}

    def lines(self, run: Run, piece: Piece) -> Iterator[str]:
        """A line for each piece that belongs to the job of this piece, in the order of events, folder by folder.

        Raises LedgerError when a piece lacks that all was to be accepted of, SubmissionRefused when a file cannot be
        had at this site.
        """
        if run.name != self._run:
            self._run, self._known = run.name, {name: self._of_run(source, run) for name, source in self._gathers()}
        for folder, gather in self._gathers():
            source = self._campaign.steps[gather.step]
            groups, goods = self._known[folder]
            for other in groups.get(group_of(self._step, source, piece), ()):
                good = goods.get(other.name)
                key = "in" if good else "lost"
                local = f"{key}={folder}/{file_in_folder(gather, other, run.name)}"  # tame words all of them
                which = f"{key}.piece={other.name}\t{key}.first={other.first}\t{key}.events={other.count}"
                if good:
                    yield f"{local}\t{self._fields(good)}\t{which}"
                elif self._step.after[gather.step] == "done":
                    yield f"{local}\t{which}"
                else:
                    self._lacks(gather, run, other)

    def _gathers(self) -> Iterator[tuple[str, Gather]]:
        return iter(self._step.gather.items())

    def _of_run(self, gather: Gather, run: Run) -> tuple[dict[str, list[Piece]], Mapping[str, Good]]:
        source = self._campaign.steps[gather.step]
        groups: dict[str, list[Piece]] = {}
        for piece in pieces_of(source, run):
            groups.setdefault(group_of(self._step, source, piece), []).append(piece)
        return groups, self._given(gather.step, gather.output, run)

    def _fields(self, good: Good) -> str:
        size = "" if good.bytes is None else f"\tin.bytes={good.bytes}"
        digest = f"\tin.sha256={good.sha256}" if good.sha256 else ""
        return f"in.from={encode_field(self._place(good))}{size}{digest}"

    def _place(self, good: Good) -> str:
        """Where the worker at this site finds the file: it comes along, is at the same place, or on a server."""
        made, here = self._sites.get(good.site), self._sites[self._here]
        if made and made.output.kind == "transfer" and not (here.htcondor.grid and here.htcondor.grid.kind == "arc"):
            return f"{CAME_BACK}{good.to}"
        if made and (
            made.output.is_remote or (made.output.kind, made.output.root) == (here.output.kind, here.output.root)
        ):
            return f"{made.output.root}/{good.to}"
        where = f"in {made.output.root or 'the run folder'} (site {good.site})" if made else f"at site {good.site}"
        text = f"{self._name} at site {self._here} cannot be given {good.to}: it is {where}"
        raise SubmissionRefused(text, "Let the run's steps go to one site.")

    def _lacks(self, gather: Gather, run: Run, piece: Piece) -> None:
        job = ".".join(filter(None, (gather.step, run.name, piece.name)))
        text = f"{self._name} of {run.name} is to gather {gather.output} of {job}, which has no accepted result"
        raise LedgerError(text, "`fermigrid why` tells what became of it; `after: {STEP: done}` goes on without.")


def lines_of_row(shard: Sequence[str], row: int) -> Sequence[str]:
    """The lines of a shard that belong to the job whose row has this number, from 1."""
    _, found, more = shard[row - 1].rpartition("\tmore=")
    return shard[row : row + int(more)] if found else ()


def come_with_jobs(step: Step, sites: Mapping[str, Site]) -> bool:
    """May gathered files of this step have to travel with its jobs? Those of sites without a place for outputs do."""
    return bool(step.gather) and any(site.output.kind == "transfer" for site in sites.values())
