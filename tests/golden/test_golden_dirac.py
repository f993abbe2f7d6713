"""The documents that DIRAC is given, as plain text, a case for each thing that they can say; DIRAC's own code reads each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fermigrid.backends import RenderedBatch
from fermigrid.jdl import documents, with_sandbox
from fermigrid.planfolder import write_plan
from fermigrid.submit import options_of
from tests.campaigns import assemble, plans
from tests.dirac_parser import DiracParser
from tests.golden.test_golden import compare

HERE = Path(__file__).parent
BATCH = "0123456789abcdef0123456789abcdef"
SHARED, OWN = (f"SB:SandboxSE|/S3/sandboxes/glast.org/glast_user/fermi/sha256:{digit * 64}.tar.zst" for digit in "01")

CAMPAIGN = """\
campaign: golden
image: light
runs: {table: runs.csv}
steps:
  clump:
    foreach: clump
    split: {events: 1000}
    command: [/bin/echo, "{run}", "[ ; \\" % $(HOME)"]
    outputs: {out.fit: "{run}_{piece}.fit"}
"""
MERGE = """\
  merge:
    after: [clump]
    gather: {all: {step: clump, output: out.fit}}
    command: [/bin/cat, all.csv]
"""
LFN = 'inputs: {digi.root: ["LFN:/glast.org/digi/{run}_digi.root", "root://x.example.org//digi/{run}"], ft2.fits: "LFN:/glast.org/ft2/{run}.fits"}'
ASKS = "resources: {cpus: 8, memory: 12 GiB, walltime: 90 min}"
DIRACX = "url: https://diracx.example.org, vo: glast.org, group: glast_user"
COMMANDS = "transport: commands, vo: glast.org, group: glast_prod"
SITES = "sites: [LCG.IN2P3-CC.fr, LCG.CNAF.it], banned_sites: [LCG.PISA.it], tags: [EL9, SingularityOK]"
POSIX = "{kind: posix, root: /data/out}"
XROOTD = "{kind: xrootd, root: 'root://se.example.org//glast/out'}"


def _step(*lines: str) -> str:
    return CAMPAIGN.replace("    outputs:", "".join(f"    {line}\n" for line in lines) + "    outputs:")


CASES = {  # name: campaign, section `dirac` of the site, its output, the step
    "plain": (CAMPAIGN, DIRACX, "{kind: transfer}", 0),
    "where": (CAMPAIGN, f"{DIRACX}, {SITES}, job_type: Test", "{kind: transfer}", 0),
    "resources": (_step(ASKS) + "accounting: {priority: 3}\n", f"{DIRACX}, cpu_time_factor: 23.4", "{kind: transfer}", 0),
    "memory-in-gib": (_step(ASKS), f"{DIRACX}, memory: RAM", "{kind: transfer}", 0),
    "memory-not-asked-for": (CAMPAIGN, f"{DIRACX}, memory: none", "{kind: transfer}", 0),
    "input-data": (_step(LFN), DIRACX, "{kind: transfer}", 0),
    "outputs-at-the-site": (CAMPAIGN, DIRACX, POSIX, 0),
    "outputs-on-a-server": (CAMPAIGN, DIRACX, XROOTD, 0),
    "output-data": (CAMPAIGN, f"{COMMANDS}, output_se: [IN2P3-CC-disk, CNAF-disk], output_path: mc/2026", "{kind: transfer}", 0),
    "output-data-no-path": (CAMPAIGN, f"{COMMANDS}, output_se: [IN2P3-CC-disk]", "{kind: transfer}", 0),
    "platform": (CAMPAIGN, f"{COMMANDS}, platform: Linux_x86_64_glibc-2.17", "{kind: transfer}", 0),
    "chunks-of-50": (CAMPAIGN, f"{COMMANDS}, chunk: 50", "{kind: transfer}", 0),
    "files-of-its-own": (CAMPAIGN + MERGE, DIRACX, "{kind: transfer}", 1),
    "gathered-from-a-server": (CAMPAIGN + MERGE, DIRACX, XROOTD, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def parser() -> Iterator[DiracParser]:
    with DiracParser() as running:
        yield running


@pytest.mark.parametrize("case", CASES)
def test_documents(case: str, tmp_path: Path, update_golden: bool, parser: DiracParser) -> None:
    text, dirac, output, step = CASES[case]
    own = tmp_path / "own"
    own.mkdir()
    (own / "grid.yaml").write_text(
        f"site: grid\ntitle: t\ncontact: c\nmanual: m\nbackend: dirac\ndirac: {{{dirac}}}\n"
        f"container: {{launch: worker}}\nbinds: [{{from: /data, mode: rw}}]\noutput: {output}\n"
    )
    table = "run,events\nr0239557414,23000\nr0239559565,1000\n"
    assembled = assemble(tmp_path / "source", text, table, site="grid", own=[own])
    plan = plans(assembled, "grid")[step]
    write_plan(plan, tmp_path / "plan")
    options = options_of(assembled.sites["grid"], 3)
    batch = RenderedBatch(
        BATCH, plan.header.name, tmp_path / "plan", tmp_path / "work", tmp_path / "log", plan.header.jobs, options
    )
    found = {}
    for document in documents(batch):
        written = with_sandbox(document, [SHARED, OWN])
        found[f"{document.first_index:04d}.jdl"] = re.sub(r" [0-9a-f]{64}\b", " <sha256 of job.env>", written)
        read = parser.read(written)
        assert read.errors == [] and tuple(job["JobName"] for job in read.jobs) == document.names
        assert all(job["JobGroup"] == BATCH and job["InputSandbox"] == [SHARED, OWN] for job in read.jobs)
    compare(found, HERE / "dirac" / case, update_golden)


def test_every_case_is_one_of_these() -> None:
    assert {path.name for path in (HERE / "dirac").iterdir()} == set(CASES)
