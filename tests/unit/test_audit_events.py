"""Events one by one: lost, doubled, foreign ones are found, in the files and across the runs."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from fermigrid.audit_campaign import CampaignAudit, Subject
from fermigrid.cli import run as fermigrid
from tests.audited import CLUMPS, ONE, TABLE, THREE, TWO, ran, sha256
from tests.unit.test_audit import FIRST, SECOND, audit, only, words

EVENTS = {ONE: range(1, 26), TWO: range(1, 11), THREE: range(1, 13)}  # a run's numbers begin anew
CLUMP = {
    name: {f"c{n:03d}": list(ids[10 * n : 10 * n + 10]) for n in range(-(-len(ids) // 10))}
    for name, ids in EVENTS.items()
}


def table(ids: Sequence[int], runs: Sequence[int] = (), name: str = "EVENTS") -> bytes:
    """A FITS file with numbers of events, and of their runs."""
    columns = [fits.Column("EVENT_ID", "J", array=np.array(ids))]
    columns += [fits.Column("RUN_ID", "K", array=np.array(runs))] if runs else []
    file = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name=name)]).writeto(file)
    return file.getvalue()


def text_of(asked: str) -> str:
    """The campaign with this in its audit."""
    return f"{CLUMPS}audit:\n  events: {asked}\n".replace("/data/{run}_digi.root", "{digi}")


def told(folder: Path, **other: Any) -> dict[str, dict[str, Any]]:
    """What jobs report that do their work: inputs and outputs are FITS files. `other`: job (`_` for `.`) -> what it
    reports or writes instead."""
    found: dict[str, dict[str, Any]] = {}
    folder.mkdir(exist_ok=True)
    for run, pieces in CLUMP.items():
        digi = folder / f"{run}_digi.fit"
        digi.write_bytes(table(list(EVENTS[run])))
        inputs = [{"name": "digi.root", "source": str(digi), "bytes": 1, "sha256": sha256(digi.read_bytes())}]
        for piece, ids in pieces.items():
            found[f"clump.{run}.{piece}"] = {"content": table(ids), "inputs": inputs}
        found[f"merge.{run}"] = {"content": table(list(EVENTS[run]))}
    for job, what in other.items():
        found[job.replace("_", ".")].update(what)
    return found


def campaign(folder: Path, asked: str, **other: Any) -> Any:
    runs = TABLE.splitlines()
    digi = "\n".join([f"{runs[0]},digi", *(f"{run},{folder}/digi/{run[:11]}_digi.fit" for run in runs[1:]), ""])
    return ran(folder, text_of(asked), digi, told(folder / "digi", **other))


BOTH = "{clump: {from: digi.root}, merge: {from: pieces}}"


def test_clean(tmp_path: Path) -> None:
    with campaign(tmp_path, BOTH) as done:
        assert audit(done) == []


def test_a_lost_event(tmp_path: Path) -> None:
    less = {"content": table(CLUMP[ONE]["c001"][:-1]), "kept": 9}
    with campaign(tmp_path, "{clump: {from: digi.root}}", **{f"clump_{ONE}_c001": less}) as done:
        text = f"missing {ONE} clump: 1 events of digi.root are lost (EVENT_ID 20)"
        assert text in words(audit(done))


def test_a_selection_may_drop_events(tmp_path: Path) -> None:
    less = {"content": table(CLUMP[ONE]["c001"][:-1]), "kept": 9}
    merged = {"content": table([n for n in EVENTS[ONE] if n != 20])}
    asked = "{clump: {from: digi.root, may_drop: true}, merge: {from: clump}}"
    with campaign(tmp_path, asked, **{f"clump_{ONE}_c001": less, f"merge_{ONE}": merged}) as done:
        assert audit(done) == []


def test_a_doubled_event(tmp_path: Path) -> None:
    more = {"content": table([*CLUMP[ONE]["c001"], 3])}
    with campaign(tmp_path, "{clump: {from: digi.root}}", **{f"clump_{ONE}_c001": more}) as done:
        found = words(audit(done))
        assert f"doubled {ONE} clump: 1 events are there more than once (EVENT_ID 3, in {FIRST}, {SECOND})" in found
        assert f"events {ONE} {SECOND}: out.fit has 11 events; the job says that it kept 10" in found


def test_a_piece_that_did_the_events_of_another(tmp_path: Path) -> None:
    """As when a job is given the wrong first event."""
    wrong = {"content": table([*reversed(CLUMP[ONE]["c000"])])}
    with campaign(tmp_path, BOTH, **{f"clump_{ONE}_c001": wrong}) as done:
        found = words(audit(done))
        assert any("10 events are there more than once (EVENT_ID 1, 2, 3 and 7 more" in text for text in found)
        assert any("10 events of digi.root are lost (EVENT_ID 11, 12, 13 and 7 more)" in text for text in found)


def test_a_foreign_event(tmp_path: Path) -> None:
    wrong = {"content": table([*CLUMP[ONE]["c002"][:-1], 99])}
    with campaign(tmp_path, "{clump: {from: digi.root, may_drop: true}}", **{f"clump_{ONE}_c002": wrong}) as done:
        assert only(done) == f"foreign {ONE} clump: 1 events that are not in digi.root (EVENT_ID 99)"


def test_a_merge_that_lost_a_piece(tmp_path: Path) -> None:
    wrong = {"content": table([*CLUMP[ONE]["c000"], *CLUMP[ONE]["c002"]])}
    with campaign(tmp_path, "{merge: {from: clump}}", **{f"merge_{ONE}": wrong}) as done:
        found = words(audit(done))
        assert f"missing {ONE} merge: 10 events of clump are lost (EVENT_ID 11, 12, 13 and 7 more)" in found


def test_events_of_another_run_in_one_file_of_all_runs(tmp_path: Path) -> None:
    """The input has all runs; the column says of which run an event is."""
    numbers = {run: int(run[1:]) for run in EVENTS}
    everything = table(
        [n for ids in EVENTS.values() for n in ids], [numbers[run] for run, ids in EVENTS.items() for _ in ids]
    )
    (tmp_path / "all.fit").write_bytes(everything)
    inputs = [{"name": "digi.root", "source": f"file://{tmp_path}/all.fit", "sha256": sha256(everything)}]
    jobs: dict[str, dict[str, Any]] = {
        f"clump.{run}.{piece}": {"content": table(ids, [numbers[run]] * len(ids)), "inputs": inputs}
        for run, pieces in CLUMP.items()
        for piece, ids in pieces.items()
    }
    text = text_of("{clump: {from: digi.root, run: RUN_ID}}").replace("{digi}", "all.fit")
    with ran(tmp_path / "good", text, TABLE, jobs) as done:
        assert audit(done) == []
    wrong = table([*CLUMP[TWO]["c000"][:-1], 5], [numbers[TWO]] * 9 + [numbers[ONE]])
    jobs[f"clump.{TWO}.c000"] = {**jobs[f"clump.{TWO}.c000"], "content": wrong}
    with ran(tmp_path / "bad", text, TABLE, jobs) as done:
        assert words(audit(done)) == [
            f"foreign {TWO} clump.{TWO}.c000: 1 events of other runs (RUN_ID 100: EVENT_ID 5)",
            f"missing {TWO} clump: 1 events of digi.root are lost (EVENT_ID 10)",
        ]


def test_an_event_of_two_runs(tmp_path: Path) -> None:
    """Where numbers are unique in the campaign."""
    pieces = [(run, piece, ids) for run, known in CLUMP.items() for piece, ids in known.items()]
    own = {f"clump.{run}.{piece}": [1000 * int(run[1:]) + n for n in ids] for run, piece, ids in pieces}
    for doubled in (False, True):
        if doubled:
            own[f"clump.{TWO}.c000"][0] = own[SECOND][4]
            own[f"clump.{THREE}.c001"][0] = own[SECOND][4]
        jobs: dict[str, dict[str, Any]] = {job: {"content": table(ids)} for job, ids in own.items()}
        for run in EVENTS:
            digi = tmp_path / f"{run}_digi.fit"
            digi.write_bytes(table([n for job, ids in own.items() if run in job for n in ids]))
            inputs = [{"name": "digi.root", "source": str(digi), "sha256": sha256(digi.read_bytes())}]
            for job in jobs:
                if run in job:
                    jobs[job]["inputs"] = inputs
        text = text_of("{clump: {from: digi.root, unique: campaign}}").replace("{digi}", "{run}.fit")
        with ran(tmp_path / str(doubled), text, TABLE, jobs) as done:
            found = words(audit(done))
        if not doubled:
            assert found == []
            continue
        which = f"(EVENT_ID {own[SECOND][4]})"
        assert found == [
            f"doubled {TWO} clump: 1 of its events are in {ONE} as well {which}",
            f"doubled {THREE} clump: 1 of its events are in {ONE} as well {which}",
        ]


# --- files that cannot be read


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (table(CLUMP[ONE]["c000"])[:-2880], "out.fit: it cannot be read as FITS, or not to its end"),
        (b"events\n", "out.fit: "),
        (table(CLUMP[ONE]["c000"], name="EVENT"), "out.fit: it has no table EVENTS; it has PRIMARY, EVENT"),
    ],
)
def test_an_output_that_is_no_table_of_events(tmp_path: Path, content: bytes, why: str) -> None:
    with campaign(
        tmp_path, "{clump: {from: digi.root, may_drop: true}}", **{f"clump_{ONE}_c000": {"content": content}}
    ) as done:
        assert any(text.startswith(f"events {ONE} {FIRST}: {why}") for text in words(audit(done)))


@pytest.mark.parametrize("column", ["EVENTID", "EVENT_ID"])
def test_a_column_that_is_not_there_or_has_no_whole_numbers(tmp_path: Path, column: str) -> None:
    form = [fits.Column("EVENT_ID", "E", array=np.arange(10.0))]
    file = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(form, name="EVENTS")]).writeto(file)
    asked = f"{{clump: {{from: digi.root, column: {column}, may_drop: true}}}}"
    with campaign(tmp_path, asked, **{f"clump_{ONE}_c000": {"content": file.getvalue()}}) as done:
        assert any(
            "no column EVENTID" in text or "has no whole number for each event" in text for text in words(audit(done))
        )


def test_an_input_that_is_another_now(tmp_path: Path) -> None:
    with campaign(tmp_path, "{clump: {from: digi.root}}") as done:
        (tmp_path / f"digi/{ONE}_digi.fit").write_bytes(table(range(1, 25)))
        assert only(done).startswith(f"inputs {ONE} clump: digi.root: {tmp_path}/digi/{ONE}_digi.fit is not any more")


def test_an_input_that_is_not_there_any_more(tmp_path: Path) -> None:
    with campaign(tmp_path, "{clump: {from: digi.root}}") as done:
        (tmp_path / f"digi/{ONE}_digi.fit").unlink()
        work = CampaignAudit(Subject(done.ledger, done.assembled, done.folder.outputs))
        assert [found for audited in work.runs() for found in audited.findings] == []
        assert dict(work.totals.unlooked) == {"events of digi.root: No such file or directory": 1}


def test_compressed_files(tmp_path: Path) -> None:
    jobs = told(tmp_path / "digi")
    for job in jobs.values():
        job["content"] = gzip.compress(job["content"], mtime=0)
    text = text_of("{clump: {from: digi.root}}").replace("{digi}", "{run}").replace(".fit", ".fit.gz")
    with ran(tmp_path / "gz", text, TABLE, jobs) as done:
        assert audit(done) == []


def test_quick_reads_no_events(tmp_path: Path) -> None:
    with campaign(tmp_path, BOTH, **{f"clump_{ONE}_c000": {"content": b"no table"}}) as done:
        assert audit(done, quick=True) == []


def test_without_astropy_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with campaign(tmp_path, BOTH):
        pass
    for name in [name for name in sys.modules if name.split(".")[0] == "astropy"] + ["fermigrid.events_fits"]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "astropy", None)
    assert fermigrid(["audit", "P400"]) == 10
    said = capsys.readouterr().err
    assert "the campaign's audit reads events, and astropy is not installed" in said
    assert "pip install 'fermigrid[fits]', or leave the events out with --quick." in said
    assert fermigrid(["audit", "P400", "--quick"]) == 0


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    with campaign(tmp_path, "{clump: {from: digi.root, unique: campaign}}") as done:
        audit(done)
    assert list((tmp_path / "tmp").iterdir()) == []
