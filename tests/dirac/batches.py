"""Batches for DIRAC as the product makes them: a campaign, its plan on disk, ready to be sent."""

from __future__ import annotations

import uuid
from pathlib import Path

from fermigrid.backends import Cursor, Handle, JobSeen, RenderedBatch, dirac
from fermigrid.backends.dirac_book import open_book
from fermigrid.jdl import names_of
from fermigrid.planfolder import make_work, write_plan
from fermigrid.states import Seen
from fermigrid.submit import options_of
from tests.campaigns import assemble, plans
from tests.dirac.server import Server

SITE = """\
site: grid
title: A site behind DIRAC
contact: the tests
manual: https://dirac.readthedocs.io
backend: dirac
dirac:
  transport: diracx
  url: {url}
  vo: glast.org
  group: glast_user
container: {{launch: worker}}
output: {{kind: transfer}}
"""
CAMPAIGN = """\
campaign: small
image: light
runs: {{count: {jobs}}}
block: 100000
steps:
  go:
    command: [/bin/true, "{{run}}"]
    outputs: {{out.fit: "{{run}}.fit"}}
"""


def write_batch(folder: Path, url: str, jobs: int = 5, **options: object) -> RenderedBatch:
    """A batch of one step with so many jobs; `options` replace those of its site."""
    sites = folder / "sites"
    sites.mkdir(parents=True, exist_ok=True)
    (sites / "grid.yaml").write_text(SITE.format(url=url))
    assembled = assemble(folder / "campaign", CAMPAIGN.format(jobs=jobs), site="grid", own=[sites])
    (plan,) = plans(assembled, "grid")
    place = folder / uuid.uuid4().hex
    place.mkdir()
    write_plan(plan, place / "plan")
    settings = options_of(assembled.sites["grid"], 0) | {"timeout_s": 10, "settle_s": 0} | options
    batch = RenderedBatch(
        uuid.uuid4().hex,
        plan.header.name,
        place / "plan",
        place / "work",
        place / "events.log",
        plan.header.jobs,
        settings,
    )
    make_work(batch.work_dir, batch.plan_dir)
    return batch


class Watch:
    """What was seen of a batch so far, read on from where it was read last."""

    def __init__(self, *handles: Handle) -> None:
        self.handles, self.cursor = handles, Cursor()
        self.seen = list[JobSeen]()
        self.problems = list[str]()

    def look(self) -> list[JobSeen]:
        """What is new, until nothing is."""
        new = list[JobSeen]()
        self.problems = []
        while True:
            found = dirac.observe(self.handles, self.cursor)
            self.problems += [each for each in found.problems if each not in self.problems]
            new += found.seen
            if found.cursor == self.cursor:
                self.seen += new
                return new
            self.cursor = found.cursor

    def states(self, index: int = 0) -> list[Seen]:
        return [each.seen for each in self.seen if each.index == index]


def ids_of(batch: RenderedBatch) -> tuple[int, ...]:
    """The DIRAC ids of a batch's jobs, as they are kept here."""
    book = open_book(batch)
    assert book is not None
    return book.ids


def once(server: Server, batch: RenderedBatch) -> None:
    """Every job may run, once; what is known here is what the server has."""
    assert server.confirmed(batch.batch_id) == dict.fromkeys(names_of(batch), 1)
    by_id = {job["JobID"]: job["JobName"] for job in server.jobs(batch.batch_id)}
    assert [by_id[job] for job in ids_of(batch)] == names_of(batch)
    assert dirac.find(batch) is not None
