"""What there should be of a campaign: jobs by the run table, who does each last, how its outputs are named. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fermigrid.audit import Expected, Made, Reads, reads_of
from fermigrid.placeholder import compile_text, fields_of
from fermigrid.plan import Assembled, constants_of, jobs_of, variables_of
from fermigrid.records import BatchRecord
from fermigrid.runs import Run
from fermigrid.split import pieces_of


class Expectations:
    """Of a campaign with these batches. `batches`: their ids, in order; `reads`: on what the inputs of steps depend."""

    def __init__(self, assembled: Assembled, batches: Sequence[BatchRecord]) -> None:
        self._assembled, self._campaign = assembled, assembled.campaign
        self.batches = [batch.id for batch in batches]
        self.reads = {name: self._reads_of(name) for name in self._campaign.steps}
        self._sites = {batch.id: batch.site for batch in batches}
        self._runs = {batch.id: frozenset(batch.runs) for batch in batches if batch.runs is not None}
        self._of: dict[tuple[str, str], list[tuple[Made, BatchRecord]]] = {}
        for batch in sorted(batches, key=lambda each: -each.generation):
            made = Made(batch.id, batch.generation, batch.site, tuple(sorted(batch.parameters.items())))
            self._of.setdefault((batch.block, batch.step), []).append((made, batch))
        self._forms: dict[tuple[str, str, tuple[tuple[str, str], ...]], dict[str, str]] = {}

    def site(self, batch: str) -> str:
        """Where a batch runs."""
        return self._sites.get(batch, "")

    def of_run(self, block: str, run: Run) -> dict[str, list[Expected]]:
        """The jobs of a run, by step, in the order of events."""
        return {name: list(self._jobs(block, name, run)) for name in self._campaign.steps}

    def _jobs(self, block: str, name: str, run: Run) -> Iterator[Expected]:
        step = self._campaign.steps[name]
        for piece, values in zip(pieces_of(step, run), jobs_of(name, step, (run,)), strict=True):
            made = self._newest(block, name, run.name, piece.name)
            forms = self._named(name, made) if made else {}
            outputs = tuple((local, form.format_map(values)) for local, form in forms.items())
            yield Expected(values["job"], piece, made, outputs)

    def _newest(self, block: str, step: str, run: str, piece: str) -> Made | None:
        """The batch that does a job last; None: it was never sent."""
        for made, batch in self._of.get((block, step), ()):
            whole = run not in batch.pieces or piece in batch.pieces[run]
            if whole and (made.id not in self._runs or run in self._runs[made.id]):
                return made
        return None

    def forms(self) -> Iterator[tuple[str, str]]:
        """(step, compiled text of an output's name) in all batches, those that were done again as well."""
        for (_, name), batches in self._of.items():
            for made, _ in batches:
                yield from ((name, form) for form in self._named(name, made).values())

    def forms_of_any_version(self) -> Iterator[tuple[str, str]]:
        """The same, with a placeholder where the version is."""
        for name, step in self._campaign.steps.items():
            for site in sorted(set(self._sites.values())):
                constants = constants_of(self._campaign, name, site)
                variables = variables_of(step, self._assembled.runs[0]) | {"version"}
                del constants["version"]
                yield from ((name, compile_text(to, constants, variables)) for to in step.outputs.values())

    def _named(self, name: str, made: Made) -> dict[str, str]:
        """The step's outputs as they are named in a batch: local name -> compiled text."""
        key = name, made.site, made.parameters
        if key not in self._forms:
            step = self._campaign.steps[name]
            constants = constants_of(self._campaign, name, made.site, dict(made.parameters))
            variables = variables_of(step, self._assembled.runs[0])
            self._forms[key] = {local: compile_text(to, constants, variables) for local, to in step.outputs.items()}
        return self._forms[key]

    def _reads_of(self, name: str) -> Reads:
        step = self._campaign.steps[name]
        constants, variables = constants_of(self._campaign, name, ""), variables_of(step, self._assembled.runs[0])
        used = {
            local: frozenset[str]().union(*(fields_of(compile_text(place, constants, variables)) for place in places))
            for local, places in step.inputs.items()
        }
        return reads_of(used)
