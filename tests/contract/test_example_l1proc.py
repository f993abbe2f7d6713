"""The example of chunks and crumbs: each program does what it says, and merge and audit find every kind of fault."""

from __future__ import annotations

import csv
import importlib
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from astropy.io import fits

from fermigrid.campaign import Campaign
from fermigrid.config import parse_yaml, validate
from fermigrid.runs import Run
from fermigrid.split import group_of, pieces_of

EXAMPLES = Path(__file__).parents[2] / "examples"
SELECTION = ("--emin", "300", "--zmax", "100")


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def module(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES / "l1proc"))
        patch.syspath_prepend(str(EXAMPLES / "l1"))
        return importlib.import_module(name.removesuffix(".py"))


def program(name: str, *arguments: object) -> Done:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = module(name).main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            code = end.code
    return Done(code, out.getvalue(), err.getvalue())


def good(name: str, *arguments: object) -> str:
    done = program(name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


CAMPAIGN = validate(Campaign, *parse_yaml((EXAMPLES / "l1proc/campaign.yaml").read_text(), "campaign.yaml"))


@dataclass(frozen=True)
class Chain:
    """A folder in which the campaign's steps were done for each run by hand, as its jobs do them."""

    folder: Path

    @property
    def runs(self) -> list[Run]:
        with (self.folder / "runs.csv").open(newline="") as stream:
            return [Run(row["run"], int(row["events"])) for row in csv.DictReader(stream)]

    def lists(self, job: Path, folder: str, step: str, source: str, run: Run, piece: str, ending: str) -> None:
        """The tables of what a job gathers, and its folder."""
        steps = CAMPAIGN.steps
        mine = next(p for p in pieces_of(steps[step], run) if p.name == piece)
        others = [o for o in pieces_of(steps[source], run)
                  if group_of(steps[step], steps[source], o) == group_of(steps[step], steps[source], mine)]  # fmt: skip
        lines = [f"{o.name},{folder}/{o.name or run.name}.fit,{o.first},{o.count}" for o in others]
        (job / f"{folder}.csv").write_text("\n".join(["piece,file,first_event,events", *lines, ""]))
        (job / f"{folder}.missing.csv").write_text("piece,first_event,events\n")
        (job / folder).mkdir()
        for other in others:
            made = self.folder / source / f"{run.name}.{other.name}.fit"
            shutil.copy(made, job / folder / f"{other.name or run.name}{ending}")

    def job(self, step: str, run: Run, piece: str) -> Path:
        path = self.folder / "jobs" / f"{step}.{run.name}.{piece}"
        path.mkdir(parents=True)
        (self.folder / step).mkdir(exist_ok=True)
        return path

    def do(self, run: Run) -> None:
        steps = CAMPAIGN.steps
        for chunk in pieces_of(steps["digi"], run):
            (self.folder / "digi").mkdir(exist_ok=True)
            good("filter_run.py", "--events", self.folder / "events.fits", "--run", run.name, "--first", chunk.first,
                 "--count", chunk.count, "--version", "401", "--output", self.made("digi", run, chunk.name))  # fmt: skip
        for crumb in pieces_of(steps["recon"], run):
            (self.folder / "recon").mkdir(exist_ok=True)
            self.recon(run, crumb.name, self.made("recon", run, crumb.name))
        for chunk in pieces_of(steps["mergecrumbs"], run):
            done = self.merge("mergecrumbs", "crumbs", "recon", run, chunk.name)
            assert done.returncode == 0, done.stderr
        done = self.merge("merge", "chunks", "mergecrumbs", run, "")
        assert done.returncode == 0, done.stderr
        for name, source in (("recon", f"{run.name}_v401_recon.fit"), ("ft1", f"gll_ph_p401_{run.name}_v401.fit")):
            (self.folder / "outputs" / name).mkdir(parents=True, exist_ok=True)
            if name == "recon":
                shutil.copy(self.made("merge", run, ""), self.folder / "outputs/recon" / source)
            else:
                good("make_ft1.py", "--recon", self.made("merge", run, ""), "--run", run.name, "--version", "401",
                     *SELECTION, "--output", self.folder / "outputs/ft1" / source)  # fmt: skip

    def made(self, step: str, run: Run, piece: str) -> Path:
        return self.folder / step / f"{run.name}.{piece}.fit"

    def recon(self, run: Run, piece: str, output: Path, **other: int) -> None:
        crumb = next(p for p in pieces_of(CAMPAIGN.steps["recon"], run) if p.name == piece)
        good("recon.py", "--digi", self.made("digi", run, crumb.chunk), "--first", other.get("first", crumb.first),
             "--count", other.get("count", crumb.count), "--piece", piece, "--output", output)  # fmt: skip

    def merge(
        self, step: str, folder: str, source: str, run: Run, piece: str, spoil: Callable[[Path], None] = lambda _: None
    ) -> Done:
        """The merge of a piece, after what `spoil` did to its folder."""
        job = self.job(step, run, piece)
        self.lists(job, folder, step, source, run, piece, ".fit")
        spoil(job)
        mine = next(p for p in pieces_of(CAMPAIGN.steps[step], run) if p.name == piece)
        whole = ["--whole"] if step == "merge" else []
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(job)
            return program("merge.py", folder, "--first", mine.first, "--count", mine.count, *whole,
                           "--output", self.made(step, run, piece))  # fmt: skip

    def audit(self) -> Done:
        return program("audit_pieces.py", "--runs", self.folder / "runs.csv", "--events", self.folder / "events.fits",
                       "--outputs", self.folder / "outputs", *SELECTION)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Two runs of invented events, processed."""
    chain = Chain(tmp_path_factory.mktemp("l1proc"))
    events, table = chain.folder / "events.fits", chain.folder / "runs.csv"
    good("make_events.py", "--runs", 2, "--output", events, "--table", table)
    for run in chain.runs:
        chain.do(run)
    return chain


@pytest.fixture
def chain(made: Chain, tmp_path: Path) -> Chain:
    """A copy of it, to be spoiled."""
    shutil.copytree(made.folder, tmp_path / "chain", ignore=shutil.ignore_patterns("jobs"))
    return Chain(tmp_path / "chain")


def test_the_whole_chain_audits_clean(made: Chain) -> None:
    done = made.audit()
    assert (done.returncode, done.stdout.count("2 audited: all agree")) == (0, 2), done.stdout
    run = made.runs[0]
    with fits.open(made.folder / "outputs/recon" / f"{run.name}_v401_recon.fit", checksum=True) as hdus:
        header, events = hdus["EVENTS"].header, hdus["EVENTS"].data
        assert (header["NREAD"], header["NMISSING"], len(events)) == (run.events, 0, run.events)
        assert header["NPIECES"] == len(list(pieces_of(CAMPAIGN.steps["digi"], run)))
        assert sorted(set(events["PIECE"])) == [p.name for p in pieces_of(CAMPAIGN.steps["recon"], run)]
        assert np.allclose(events["DIR_X"] ** 2 + events["DIR_Y"] ** 2 + events["DIR_Z"] ** 2, 1)


def test_the_same_crumb_gives_the_same_bytes(made: Chain, tmp_path: Path) -> None:
    made.recon(made.runs[0], "k001u001", tmp_path / "again.fit")
    assert (tmp_path / "again.fit").read_bytes() == made.made("recon", made.runs[0], "k001u001").read_bytes()


def spoiled(chain: Chain, spoil: Callable[[Path], None]) -> Done:
    return chain.merge("mergecrumbs", "crumbs", "recon", chain.runs[0], "k001", spoil)


def test_a_merge_takes_the_good_ones_and_says_what_is_missing(chain: Chain) -> None:
    def lose(job: Path) -> None:
        head, one, two, *rest = (job / "crumbs.csv").read_text().splitlines()
        (job / "crumbs.csv").write_text("\n".join([head, one, *rest, ""]))
        piece, file, first, events = two.split(",")
        (job / "crumbs.missing.csv").write_text(f"piece,first_event,events\n{piece},{first},{events}\n")
        (job / file).unlink()

    assert spoiled(chain, lose).returncode == 0
    with fits.open(chain.made("mergecrumbs", chain.runs[0], "k001")) as hdus:
        assert hdus["EVENTS"].header["NMISSING"] == 1
    done = chain.merge("merge", "chunks", "mergecrumbs", chain.runs[0], "")
    assert (done.returncode, "1 events are missing" in done.stderr) == (5, True)


def test_a_merge_refuses_what_is_not_as_the_table_says(chain: Chain) -> None:
    run = chain.runs[0]

    def twice(job: Path) -> None:
        shutil.copy(job / "crumbs/k001u000.fit", job / "crumbs/k001u001.fit")

    def hole(job: Path) -> None:
        lines = (job / "crumbs.csv").read_text().splitlines()
        (job / "crumbs.csv").write_text("\n".join([*lines[:2], *lines[3:], ""]))

    def damage(job: Path) -> None:
        data = bytearray((job / "crumbs/k001u000.fit").read_bytes())
        with fits.open(job / "crumbs/k001u000.fit") as hdus:
            data[hdus["EVENTS"].fileinfo()["datLoc"] + 2] ^= 8
        (job / "crumbs/k001u000.fit").write_bytes(data)

    def other_values(job: Path) -> None:
        path = job / "crumbs/k001u000.fit"
        with fits.open(path, memmap=False, lazy_load_hdus=False) as hdus:
            hdus["EVENTS"].data["LOG_E"][0] += 1
            hdus["EVENTS"].add_checksum()
            hdus.writeto(path, overwrite=True)

    def other_events(job: Path) -> None:
        first = next(p for p in pieces_of(CAMPAIGN.steps["recon"], run) if p.name == "k001u001").first
        chain.recon(run, "k001u000", job / "crumbs/k001u000.fit", first=first)

    for number, (spoil, code, says) in enumerate([
        (twice, 5, "crumbs/k001u001.fit: has 1 events"),
        (hole, 5, "the one before it ends at"),
        (damage, 3, "its events are not those that were written"),
        (other_values, 5, "LOG_E is not what its events give"),
        (other_events, 5, "not 1 from"),
    ]):  # fmt: skip
        shutil.rmtree(chain.folder / "jobs", ignore_errors=True)
        done = spoiled(chain, spoil)
        assert (done.returncode, says in done.stderr) == (code, True), (number, done.stderr)
        assert "Traceback" not in done.stderr


def test_recon_refuses_events_that_its_chunk_does_not_have(made: Chain, tmp_path: Path) -> None:
    digi = made.made("digi", made.runs[0], "k001")
    base = ("--digi", digi, "--piece", "k001u000", "--output", tmp_path / "o.fit")
    done = program("recon.py", *base, "--first", 0, "--count", 1)
    assert (done.returncode, "events from 6 on, not 1 from 0 on" in done.stderr) == (5, True)
    assert program("recon.py", *base, "--first", 11, "--count", 2).returncode == 5
    assert not (tmp_path / "o.fit").exists()


def rewrite(chain: Chain, change: Callable[[np.ndarray], np.ndarray]) -> Done:
    """The merged file of the first run with other rows; what the audit says."""
    run = chain.runs[0]
    path = chain.folder / "outputs/recon" / f"{run.name}_v401_recon.fit"
    with fits.open(path, memmap=False, lazy_load_hdus=False) as hdus:
        rows = change(np.arange(len(hdus["EVENTS"].data)))
        parts = fits.HDUList([hdus[0], fits.BinTableHDU(hdus["EVENTS"].data[rows], hdus["EVENTS"].header), hdus["GTI"]])
        for part in parts:
            part.add_checksum()
        parts.writeto(path, overwrite=True)
    done = chain.audit()
    assert done.returncode == 1
    assert "2 audited, 1 differ" in done.stdout
    return done


def test_the_audit_finds_events_that_are_lost_doubled_or_out_of_order(chain: Chain) -> None:
    words = rewrite(chain, lambda rows: rows[1:]).stdout.splitlines()[1].split()
    assert words[3:5] == ["1", "0"]


def test_the_audit_finds_a_doubled_crumb(chain: Chain) -> None:
    words = rewrite(chain, lambda rows: np.concatenate([rows[:2], rows])).stdout.splitlines()[1].split()
    assert words[3:5] == ["0", "2"]


def test_the_audit_finds_crumbs_in_the_wrong_order(chain: Chain) -> None:
    assert "events out of their order" in rewrite(chain, lambda rows: np.roll(rows, 5)).stdout


def test_the_audit_finds_derived_values_of_other_events(chain: Chain) -> None:
    run = chain.runs[0]
    path = chain.folder / "outputs/recon" / f"{run.name}_v401_recon.fit"
    with fits.open(path, memmap=False, lazy_load_hdus=False) as hdus:
        hdus["EVENTS"].data["DIR_X"] = np.roll(hdus["EVENTS"].data["DIR_X"], 1)
        hdus["EVENTS"].add_checksum()
        hdus.writeto(path, overwrite=True)
    assert f"{run.events} events with derived values of others" in chain.audit().stdout


def test_the_audit_finds_a_run_that_is_not_there(chain: Chain) -> None:
    (chain.folder / "outputs/recon" / f"{chain.runs[1].name}_v401_recon.fit").unlink()
    assert "2 audited, 1 differ" in chain.audit().stdout


def test_the_programs_start_as_the_worker_starts_them(made: Chain, tmp_path: Path) -> None:
    """By their first line, with what the campaign names as code in one folder."""
    for name in CAMPAIGN.code:
        shutil.copy(EXAMPLES / "l1proc" / name, tmp_path)
    crumb = next(p for p in pieces_of(CAMPAIGN.steps["recon"], made.runs[0]) if p.name == "k001u001")
    command = [tmp_path / "recon.py", "--digi", made.made("digi", made.runs[0], "k001"), "--first", str(crumb.first),
               "--count", str(crumb.count), "--piece", crumb.name, "--output", tmp_path / "o.fit"]  # fmt: skip
    path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    subprocess.run(command, check=True, timeout=60, env=path, cwd=tmp_path, capture_output=True)
    assert (tmp_path / "o.fit").read_bytes() == made.made("recon", made.runs[0], "k001u001").read_bytes()
