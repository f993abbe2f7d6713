"""A text with placeholders, made for all jobs of a step at once. Pure.

What a campaign says of a job is the same text for each of a million, with a few words changed. So the text is taken
apart once, what belongs to a run is put in once a run, and for a job only the words of its piece are left to be set.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterable, Iterator, Mapping

from fermigrid.campaign import Split, Step
from fermigrid.runs import Run
from fermigrid.split import Piece, chosen_pieces, count_chunks, split_clumps

PART = 512  # jobs that are made at a time; in memory are fewer than twice as many
_EVERY: Mapping[str, frozenset[str]] = {}
_OF_PIECE: Mapping[str, Callable[[Piece], str]] = {
    "piece": lambda piece: piece.name,
    "chunk": lambda piece: piece.chunk,
    "crumb": lambda piece: piece.crumb,
    "first_event": lambda piece: str(piece.first),
    "event_count": lambda piece: str(piece.count),
}


class JobText:
    """A compiled text (`placeholder.compile_text` over `plan.variables_of`) of the step `name`.

    `encode` is for the values of a run table's other columns; all else is tame.
    """

    def __init__(self, compiled: str, name: str, step: Step, encode: Callable[[str], str] = str) -> None:
        self._step, self._encode = step, encode
        self.is_single = step.foreach == "run"  # one job for a run
        parts, fields = list[str](), list[str]()
        for literal, field, _, _ in string.Formatter().parse(compiled):
            parts.append(_safe(literal))
            if field == "job":
                parts += [_safe(f"{name}."), "{run}", *(() if self.is_single else (".", "%s"))]
                fields += () if self.is_single else ("piece",)
            elif field and field in _OF_PIECE and not self.is_single:
                parts.append("%s")
                fields.append(field)
            elif field and field != "piece":  # that of a whole run has no name
                parts.append(f"{{{field}}}")
        self._form, self._fields = "".join(parts), tuple(_OF_PIECE[field] for field in fields)
        self._head = "".join(itertools.takewhile(lambda part: part != "%s", parts))
        self._clumps: dict[int, list[tuple[str, ...]]] = {}  # by the length of their names: those that are whole

    def of(self, runs: Iterable[Run], only: Mapping[str, frozenset[str]] = _EVERY) -> Iterator[list[str]]:
        """The texts of the jobs of these runs in order, some thousands at a time; of a run that is in `only` those of
        its pieces. For two texts of a step the parts are of the same jobs."""
        texts: list[str] = []
        for run in runs:
            form = self._put_in(self._form, run)
            if self.is_single and run.name not in only:
                texts.append(form % ())
            else:
                for words in self._words(run, only):
                    texts += map(form.__mod__, words)
                    if len(texts) >= PART:
                        yield texts
                        texts = []
            if len(texts) >= PART:
                yield texts
                texts = []
        if texts:
            yield texts

    def first(self, run: Run) -> str | None:
        """The text of the first job of a run, if it has one."""
        piece = next(chosen_pieces(self._step, run), None)
        return None if piece is None else self._put_in(self._form, run) % self._pick(piece)

    def head(self, run: Run) -> str:
        """What the texts of all jobs of a run begin with; of a step that is done once for a run, all of it."""
        return self._put_in(self._head, run) % ()

    def _put_in(self, form: str, run: Run) -> str:
        """A text with all of the run put in: a format for `%`."""
        if not run.columns:
            return form.format(run=run.name, events=run.events)
        values = {key: self._encode(value).replace("%", "%%") for key, value in run.columns.items()}
        return form.format_map({**values, "run": run.name, "events": run.events})

    def _words(self, run: Run, only: Mapping[str, frozenset[str]]) -> Iterator[list[tuple[str, ...]]]:
        """What is set for each job of a run. Clumps but the last are the same in every run: they are kept."""
        if self._step.foreach != "clump" or run.name in only:
            yield from self._parts(chosen_pieces(self._step, run, only))
            return
        events, size = run.events or 0, (self._step.split or Split()).events
        if clumps := count_chunks(events, size):
            whole = min(clumps - 1, PART)
            known = self._clumps.setdefault(len(next(split_clumps(events, size)).name), [])
            more = itertools.islice(split_clumps(events, size, len(known)), max(0, whole - len(known)))
            known.extend(map(self._pick, more))
            yield known[:whole]
            yield from self._parts(split_clumps(events, size, whole))

    def _parts(self, pieces: Iterator[Piece]) -> Iterator[list[tuple[str, ...]]]:
        while part := list(map(self._pick, itertools.islice(pieces, PART))):
            yield part

    def _pick(self, piece: Piece) -> tuple[str, ...]:
        return tuple([field(piece) for field in self._fields])


def _safe(text: str) -> str:
    """A text that stands for itself in a format for `format_map` whose result is one for `%`."""
    return text.replace("{", "{{").replace("}", "}}").replace("%", "%%")
