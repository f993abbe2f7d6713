"""A campaign that has run, made in an instant: its ledger, its outputs, reports as the worker writes them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fermigrid.advance import block_name, parts_of
from fermigrid.gather import file_in_folder
from fermigrid.ledger import Ledger
from fermigrid.placeholder import compile_text
from fermigrid.plan import constants_of, jobs_of, variables_of
from fermigrid.records import BatchRecord, JobRecord
from fermigrid.registry import register, registry_path
from fermigrid.report import MARK, Report, outputs_of, parse_report
from fermigrid.runfolder import RunFolder
from fermigrid.split import group_of, pieces_of
from fermigrid.states import State
from fermigrid.submit import begin, prepare
from tests.campaigns import NOW, SITES, assemble, make_hand

CLUMPS = """\
campaign: P400
version: 400
image: light
runs: {table: runs.csv}
block: 2
steps:
  clump:
    foreach: clump
    split: {events: 10}
    command: [/bin/true, "{run}", "{piece}"]
    inputs: {digi.root: "/data/{run}_digi.root", calib.root: /data/calib.root}
    outputs: {out.fit: "clump/{run}_{piece}_v{version}.fit"}
  merge:
    after: [clump]
    gather: {pieces: {step: clump, output: out.fit}}
    command: [/bin/true, "{run}"]
    outputs: {ft1.fit: "ft1/gll_{run}_v{version}.fit"}
"""
TABLE = "run,events\nr0000000100,25\nr0000000200,10\nr0000000300,12\n"
ONE, TWO, THREE = "r0000000100", "r0000000200", "r0000000300"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Ran:
    """The campaign. `told` is what of a job's report is not as usual: job -> {"read": 7, "content": b"..."}."""

    ledger: Ledger
    folder: RunFolder
    assembled: Any
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    batches: dict[tuple[str, str, int], BatchRecord] = field(default_factory=dict)
    clock: int = 1_800_000_000
    served: Path | None = None

    @property
    def outputs(self) -> Path:
        """Where outputs get their final names."""
        site = self.assembled.sites["local"].output
        return self.served or (Path(site.root) if site.root else self.folder.outputs)

    def run_all(self, leave: frozenset[str] = frozenset()) -> None:
        """Every step of every block, but for these blocks."""
        for index, part in enumerate(parts_of(self.assembled.campaign, self.assembled.runs)):
            if block_name(index) not in leave:
                for step in self.assembled.campaign.steps:
                    self.run_step(block_name(index), step, tuple(run.name for run in part))

    def run_step(
        self,
        block: str,
        step: str,
        runs: tuple[str, ...],
        pieces: Mapping[str, frozenset[str]] | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> BatchRecord:
        """A batch, sent and done: its jobs of these runs, of those in `pieces` only these."""
        generation = sum(1 for known in self.batches if known[:2] == (block, step))
        batch = BatchRecord(
            id=sha256(f"{block} {step} {generation}".encode())[:32], block=block, step=step, generation=generation,
            site="local", backend="local", name=f"P400.{block}.{step}.g{generation}", digest="0" * 64, jobs=0,
            options={}, runs=runs, pieces=pieces or {}, parameters=parameters or {},
        )  # fmt: skip
        jobs = list(self._jobs(batch))
        batch = replace(batch, jobs=len(jobs), digest=self._plan(batch, jobs))
        self.batches[block, step, generation] = batch
        self.ledger.intend(batch, NOW, "me", [job["job"] for job in jobs])
        self.ledger.record(batch.id, "here", 1, NOW, "me", "submitted")
        for index, job in enumerate(jobs):
            self.end(batch, index, dict(job))
        return batch

    def _jobs(self, batch: BatchRecord) -> Iterator[dict[str, str]]:
        wanted = [run for run in self.assembled.runs if run.name in (batch.runs or ())]
        step = self.assembled.campaign.steps[batch.step]
        yield from (dict(values) for values in jobs_of(batch.step, step, wanted, batch.pieces))

    def _plan(self, batch: BatchRecord, jobs: list[dict[str, str]]) -> str:
        """As much of a plan and its work folder as `why` and `logs` read; returns the plan's digest."""
        place = self.folder.batch(batch.block, batch.step, batch.generation)
        (place / "plan/shards").mkdir(parents=True)
        (place / "work/s0000").mkdir(parents=True)
        items = "".join(f"{job['job']} s0000 {n}\n" for n, job in enumerate(jobs, 1))
        files = {"items.txt": items.encode(), "shards/s0000": b"rows\n"}
        for name, data in files.items():
            (place / "plan" / name).write_bytes(data)
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        manifest = json.dumps({"files": digests}).encode()
        (place / "plan/plan.json").write_bytes(manifest)
        return hashlib.sha256(manifest).hexdigest()

    def end(self, batch: BatchRecord, index: int, values: dict[str, str]) -> None:
        """A job ends, with an output under its final name."""
        job, told = values["job"], self.told.get(values["job"], {})
        if "failed" in told:
            place = self.folder.batch(batch.block, batch.step, batch.generation)
            (place / f"work/s0000/{job}.log").write_text(f"{job} has failed\n")
            record = JobRecord(batch.id, index, job, State.FAILED, "", 1, "n1", told["failed"], "1")
            self.ledger.take_in([(record, None)])
            return
        report = self.report(batch, values, told)
        for output in outputs_of(report.data):
            path = self.outputs / output.to
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(told.get("content", self.content(batch, values)))
        self.ledger.take_in([(JobRecord(batch.id, index, job, State.DONE, "", 1, "n1", "", "0"), report)])
        self.ledger.published(each for each in self.ledger.attempts(job) if each.accepted)

    def content(self, batch: BatchRecord, values: dict[str, str]) -> bytes:
        """What a job writes: other bytes in each generation."""
        return f"{values['job']} of generation {batch.generation}\n".encode()

    def report(self, batch: BatchRecord, values: dict[str, str], told: Mapping[str, Any]) -> Report:
        step = self.assembled.campaign.steps[batch.step]
        constants = constants_of(self.assembled.campaign, batch.step, "local", batch.parameters)
        variables = variables_of(step, self.assembled.runs[0])
        content = told.get("content", self.content(batch, values))
        kind, outputs = self.assembled.sites["local"].output.kind, []
        for number, (name, to) in enumerate(step.outputs.items()):
            to = compile_text(to, constants, variables).format_map(values)
            attempt = f"g{batch.generation}.s1.aaaaaaaa"
            file = (
                f"{values['job']}.{number}.{attempt}"
                if kind == "transfer"
                else f"{self.assembled.sites['local'].output.root}/{to}"
            )
            outputs.append({"name": name, "to": to, "file": file, "bytes": len(content), "sha256": sha256(content),
                            "result": "ours"})  # fmt: skip
        read = self._events(batch, values)
        self.clock += 2
        kept = told.get("kept", read)
        summary = {"events_read": str(told.get("read", read)), "events_kept": str(kept)}
        data = {
            "format": 1, "job": values["job"], "batch": batch.id, "attempt": f"g{batch.generation}.s1.aaaaaaaa",
            "start": 1, "host": "n1", "where": "image", "rehearsal": told.get("rehearsal", False), "exit": 0, "payload_exit": 0, "message": "",
            "image": {"name": "light", "rung": "path"}, "begin": self.clock,
            "end": self.clock + 1, "outputs": outputs,
            "inputs": told.get("inputs", self._inputs(batch, values)), "summary": told.get("summary", summary),
        }  # fmt: skip
        text = json.dumps(data).encode()
        return parse_report(MARK + b"1 %d %s\n" % (len(text), text), values["job"], batch.id)

    def _events(self, batch: BatchRecord, values: dict[str, str]) -> int:
        """The events that a job reads: those of its piece, or those that the step before kept."""
        step = self.assembled.campaign.steps[batch.step]
        if not step.gather or step.foreach == "crumb":
            return int(values.get("event_count", values.get("events", "0")))
        (gather,) = step.gather.values()
        accepted = self.ledger.accepted_of(gather.step, values["run"])
        mine = [each for each in accepted if values.get("piece", "") in each.job]
        return sum(int(json.loads(each.report)["summary"]["events_kept"]) for each in mine)

    def _inputs(self, batch: BatchRecord, values: dict[str, str]) -> list[dict[str, Any]]:
        step, campaign = self.assembled.campaign.steps[batch.step], self.assembled.campaign
        found = []
        for name, places in step.inputs.items():
            source = places[0].replace("{run}", values["run"])
            found.append({"name": name, "source": source, "bytes": 1, "sha256": sha256(source.encode())})
        for folder, gather in step.gather.items():
            run = next(run for run in self.assembled.runs if run.name == values["run"])
            mine = next(p for p in pieces_of(step, run) if p.name == values.get("piece", ""))
            before = campaign.steps[gather.step]
            accepted = {each.job: outputs_of(each.report) for each in self.ledger.accepted_of(gather.step, run.name)}
            lines, files = "", 0
            for piece in pieces_of(before, run):
                outputs = accepted.get(f"{gather.step}.{run.name}.{piece.name}")
                if outputs and group_of(step, before, piece) == group_of(step, before, mine):
                    lines += f"{outputs[0].sha256}  {folder}/{file_in_folder(gather, piece, run.name)}\n"
                    files += 1
            found.append({"name": folder, "source": "gathered", "files": files, "lost": 0, "bytes": 1,
                          "sha256": sha256(lines.encode())})  # fmt: skip
        return found

    def retire(self, *jobs: str) -> int:
        """These jobs do not count any more: they are to be done again."""
        records = [self.ledger.jobs_named(job)[-1] for job in jobs]
        number = self.ledger.decide("rollback", "a test", records, {}, NOW, "me")
        self.ledger.finish(number, NOW, "me", "at once")
        return number


@contextmanager
def ran(
    folder: Path,
    text: str = CLUMPS,
    table: str | None = TABLE,
    told: Mapping[str, dict[str, Any]] | None = None,
    *,
    site: str = "",
    served: Path | None = None,
    leave: frozenset[str] = frozenset(),
) -> Iterator[Ran]:
    """A campaign that has run, in `folder`/run, known by its name; `site`: the text of a site file `local.yaml`;
    `served`: the folder in which the site's server has its files."""
    own = []
    if site:
        (folder / "sites").mkdir(parents=True, exist_ok=True)
        (folder / "sites/local.yaml").write_text(site)
        own = [folder / "sites"]
    assembled = assemble(folder, text, table, own=own)
    run = RunFolder(folder / "run")
    prepare(run)
    search = [str(path) for path in (*own, SITES)]
    ledger = begin(assembled, run, "local", search, make_hand())
    register(run, assembled.campaign.campaign, registry_path(os.environ))
    try:
        campaign = Ran(ledger, run, assembled, dict(told or {}), served=served)
        campaign.run_all(leave)
        yield campaign
    finally:
        ledger.close()
