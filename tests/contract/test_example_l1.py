"""The example campaign's programs: selection, provenance, same bytes, and an audit that finds every kind of fault."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

PROJECT = Path(__file__).parents[2]
EXAMPLE = PROJECT / "examples" / "l1"
REAL = PROJECT.parent / "shared" / "data" / "lat_events_2008_2011.fits.gz"
SELECTION = ("--emin", "300", "--zmax", "100")


@dataclass(frozen=True)
class Done:
    """How a program ended."""

    returncode: int
    stdout: str
    stderr: str


def program(name: str, *arguments: object, **environment: str) -> Done:
    """Run a program of the example in this process: importing astropy costs more than all the work."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.syspath_prepend(str(EXAMPLE))
        for key, value in environment.items():
            patch.setenv(key, value)
        try:
            code = importlib.import_module(name.removesuffix(".py")).main([str(a) for a in arguments])
        except SystemExit as end:  # argparse
            code = end.code
    return Done(code, out.getvalue(), err.getvalue())


def good(name: str, *arguments: object, **environment: str) -> str:
    done = program(name, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def name_of(run: str) -> str:
    return f"gll_ph_p400_{run}_v400.fit"


@dataclass(frozen=True)
class Data:
    """An event file with its run table; `outputs`: what the payload made of each run."""

    events: Path
    table: Path
    outputs: Path

    @property
    def runs(self) -> dict[str, int]:
        with self.table.open(newline="") as stream:
            return {row["run"]: int(row["events"]) for row in csv.DictReader(stream)}

    def filter(self, run: str, output: Path, *arguments: object, **environment: str) -> str:
        base = ("--events", self.events, "--run", run, "--output", output, "--version", "400")
        return good("filter_run.py", *base, *arguments, **environment)

    def audit(self, *arguments: object) -> Done:
        return program("audit.py", "--runs", self.table, "--events", self.events, "--outputs", self.outputs, *arguments)

    def filter_all(self, *selection: object) -> None:
        self.outputs.mkdir()
        for run in self.runs:
            self.filter(run, self.outputs / name_of(run), *selection)


def make_data(folder: Path, runs: int) -> Data:
    data = Data(folder / "events.fits", folder / "runs.csv", folder / "outputs")
    good("make_events.py", "--runs", runs, "--output", data.events, "--table", data.table)
    return data


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Five runs, all filtered. Not to be changed: `copy` is."""
    data = make_data(tmp_path_factory.mktemp("l1"), 5)
    data.filter_all(*SELECTION)
    return data


@pytest.fixture
def copy(small: Data, tmp_path: Path) -> Data:
    """The same outputs, to be damaged."""
    shutil.copytree(small.outputs, tmp_path / "outputs")
    shutil.copy(small.table, tmp_path / "runs.csv")
    return Data(small.events, tmp_path / "runs.csv", tmp_path / "outputs")


def first_run(data: Data) -> str:
    return next(iter(data.runs))


# --- make_events, make_runs


def test_the_same_seed_makes_the_same_bytes(small: Data, tmp_path: Path) -> None:
    again = make_data(tmp_path, 5)
    assert again.events.read_bytes() == small.events.read_bytes()
    assert again.table.read_bytes() == small.table.read_bytes()
    good("make_events.py", "--runs", 5, "--seed", 2, "--output", again.events, "--table", again.table)
    assert again.events.read_bytes() != small.events.read_bytes()


def test_invented_events_look_like_the_real_ones(small: Data) -> None:
    with fits.open(small.events, checksum=True) as hdus:
        events, intervals = hdus["EVENTS"].data, hdus["GTI"].data
    assert (np.diff(events["TIME"]) > 0).all()
    assert ((events["TIME"] - events["RUN_ID"]) > 0).all()
    assert len({(e["RUN_ID"], e["EVENT_ID"]) for e in events}) == len(events)
    inside = (events["TIME"][:, None] >= intervals["START"]) & (events["TIME"][:, None] <= intervals["STOP"])
    assert (inside.sum(axis=1) == 1).all()


def test_directions_are_turned_to_galactic_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sagittarius A* and the galactic north pole (SIMBAD; J2000, degrees)."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    make_events = importlib.import_module("make_events")
    longitude, latitude = make_events.to_galactic(np.array([266.41684, 192.85948]), np.array([-29.00781, 27.12825]))
    assert longitude[0] == pytest.approx(359.9442, abs=1e-3)
    assert latitude == pytest.approx([-0.0462, 90.0], abs=1e-3)


def test_the_run_table_has_each_run_with_its_number_of_events(small: Data, tmp_path: Path) -> None:
    good("make_runs.py", "--events", small.events, "--output", tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_bytes() == small.table.read_bytes()
    with fits.open(small.events) as hdus:
        assert sum(small.runs.values()) == len(hdus["EVENTS"].data)
    good("make_runs.py", "--events", small.events, "--output", tmp_path / "r.csv", "--limit", 2)
    assert (tmp_path / "r.csv").read_text() == "".join(small.table.read_text().splitlines(keepends=True)[:3])


# --- filter_run


def test_a_run_is_selected_with_all_its_columns(small: Data) -> None:
    run = first_run(small)
    with fits.open(small.events) as hdus, fits.open(small.outputs / name_of(run), checksum=True) as made:
        events = hdus["EVENTS"].data
        want = events[rows_of(small, run)]
        have, header = made["EVENTS"].data, made["EVENTS"].header
        assert 0 < len(want) < small.runs[run]
        assert have.columns.names == want.columns.names
        assert have.tobytes() == want.tobytes()
        expected = {"RUN": run, "SEL_EMIN": 300, "SEL_ZMAX": 100, "NREAD": small.runs[run], "NKEPT": len(want)}
        expected |= {"VERSION": "400", "PROC_VER": 400, "FILENAME": name_of(run), "TELESCOP": "GLAST"}
        expected |= {"MJDREFI": 51910, "SRCSUM": hdus["EVENTS"].header["DATASUM"]}
        assert {key: header[key] for key in expected} == expected
        assert not {"DATE", "DATE-OBS"} & set(header)
        assert header["TSTART"] <= have["TIME"].min() <= have["TIME"].max() <= header["TSTOP"]


def test_the_good_time_intervals_of_all_runs_are_those_of_the_event_file(small: Data) -> None:
    parts = [interval for run in small.runs for interval in fits.getdata(small.outputs / name_of(run), "GTI").tolist()]
    assert parts == fits.getdata(small.events, "GTI").tolist()
    assert len(parts) == 5


def test_the_same_run_gives_the_same_bytes(small: Data, tmp_path: Path) -> None:
    run = first_run(small)
    told = small.filter(run, tmp_path / "again.fit", *SELECTION)
    assert (tmp_path / "again.fit").read_bytes() == (small.outputs / name_of(run)).read_bytes()
    assert told.startswith(f"{run}: {small.runs[run]} events read, ")


def test_the_summary_is_added_to(small: Data, tmp_path: Path) -> None:
    run, summary = first_run(small), tmp_path / "summary"
    summary.write_text("earlier: 1\n")
    small.filter(run, tmp_path / "out.fit", FERMIGRID_SUMMARY=str(summary))
    events = small.runs[run]
    assert summary.read_text() == f"earlier: 1\nevents_read: {events}\nevents_kept: {events}\n"


def test_pieces_of_a_run_make_the_run(small: Data, tmp_path: Path) -> None:
    run, ids = first_run(small), list[int]()
    for first in range(0, small.runs[run], 10):
        small.filter(run, tmp_path / "piece.fit", *SELECTION, "--first", first, "--count", 10)
        ids += list(fits.getdata(tmp_path / "piece.fit", "EVENTS")["EVENT_ID"])
    assert ids == list(fits.getdata(small.outputs / name_of(run), "EVENTS")["EVENT_ID"])


def test_a_selection_that_keeps_nothing_is_an_empty_table(small: Data, tmp_path: Path) -> None:
    small.filter(first_run(small), tmp_path / "none.fit", "--emin", "1e12")
    assert len(fits.getdata(tmp_path / "none.fit", "EVENTS")) == 0


def fails(arguments: list[object], code: int, message: str) -> None:
    done = program("filter_run.py", *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_what_goes_wrong_is_told_by_exit_code_and_message(small: Data, tmp_path: Path) -> None:
    run, out = first_run(small), ["--version", "400", "--output", tmp_path / "o.fit"]
    events = ["--events", small.events]
    fails([*events, *out, "--run", "r0000000001"], 1, "has no event of run r0000000001")
    fails([*events, *out, "--run", run, "--first", 99], 1, f"has {small.runs[run]} events, so none from 99 on")
    fails([*events, *out, "--run", "239557414"], 2, "is no run")
    fails([*events, *out, "--run", run, "--first", "-1"], 2, "is no number of events")
    fails([*events, "--output", tmp_path / "o.fit", "--run", run, "--version", "4/0"], 2, "is no version")
    fails(["--events", small.table, *out, "--run", run], 3, "is no FITS file")
    fails(["--events", tmp_path / "none", *out, "--run", run], 3, "No such file")
    lost = ["--version", "400", "--output", tmp_path / "no" / "o.fit"]
    fails([*events, *lost, "--run", run], 4, "cannot be written")
    assert not (tmp_path / "o.fit").exists()


def test_a_file_that_was_cut_short_is_not_taken_for_whole(small: Data, tmp_path: Path) -> None:
    whole = small.events.read_bytes()
    blocks = len(whole) // 2880
    (tmp_path / "cut.fits").write_bytes(whole[: len(whole) // 2 + 1])
    (tmp_path / "block.fits").write_bytes(whole[: blocks // 2 * 2880])
    (tmp_path / "last.fits").write_bytes(whole[:-2880])
    (tmp_path / "cut.fits.gz").write_bytes(gzip.compress(whole)[:-2000])
    (tmp_path / "end.fits.gz").write_bytes(gzip.compress(whole)[:-4])
    for name in ("cut.fits", "block.fits", "last.fits", "cut.fits.gz", "end.fits.gz"):
        base = ["--run", first_run(small), "--output", tmp_path / "o", "--version", "4"]
        fails(["--events", tmp_path / name, *base], 3, "cut short" if name == "cut.fits" else "or not to its end")


def test_a_wrong_checksum_in_the_event_file_is_a_warning(small: Data, tmp_path: Path) -> None:
    with fits.open(small.events) as hdus:
        hdus["EVENTS"].data["ENERGY"][0] *= 2
        hdus.writeto(tmp_path / "changed.fits")
    base = ("--run", first_run(small), "--output", tmp_path / "o.fit", "--version", "400")
    done = program("filter_run.py", "--events", tmp_path / "changed.fits", *base)
    assert (done.returncode, "the data of EVENTS do not have the DATASUM" in done.stderr) == (0, True)
    source = fits.getheader(tmp_path / "changed.fits", "EVENTS")["DATASUM"]
    assert fits.getheader(tmp_path / "o.fit", "EVENTS")["SRCSUM"] != source


def test_a_compressed_event_file_gives_the_same(small: Data, tmp_path: Path) -> None:
    (tmp_path / "events.fits.gz").write_bytes(gzip.compress(small.events.read_bytes()))
    run = first_run(small)
    Data(tmp_path / "events.fits.gz", small.table, small.outputs).filter(run, tmp_path / "o.fit", *SELECTION)
    assert (tmp_path / "o.fit").read_bytes() == (small.outputs / name_of(run)).read_bytes()


def test_the_payload_runs_as_a_program(small: Data, tmp_path: Path) -> None:
    """As the worker starts it: by its first line, with its folder nowhere in Python's path."""
    run, output = first_run(small), tmp_path / "out.fit"
    shutil.copy(EXAMPLE / "filter_run.py", tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [tmp_path / "filter_run.py", "--events", small.events, "--run", run, "--output", output]
    command += ["--version", "400", *SELECTION]
    subprocess.run(command, check=True, timeout=60, env={"PATH": path}, cwd=tmp_path, capture_output=True)
    assert output.read_bytes() == (small.outputs / name_of(run)).read_bytes()


# --- audit


def test_two_hundred_runs_audit_clean(tmp_path: Path) -> None:
    data = make_data(tmp_path, 200)
    data.filter_all(*SELECTION)
    done = data.audit(*SELECTION)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "200 audited: all agree"


def rewrite(data: Data, run: str, rows: list[int], *, warmer: bool = False, **cards: object) -> None:
    """Make a run's output anew, with these rows of the event file, and otherwise in order."""
    path = data.outputs / name_of(run)
    with fits.open(path, memmap=False, lazy_load_hdus=False) as old, fits.open(data.events, memmap=False) as source:
        events = source["EVENTS"].data[rows]
        if warmer:
            events["ENERGY"][0] *= 1.0001
        header = old["EVENTS"].header.copy()
        header.update(cards)
        parts = fits.HDUList([old[0], fits.BinTableHDU(data=events, header=header), old["GTI"]])
        for part in parts:
            part.add_checksum()
        parts.writeto(path, overwrite=True)


def rows_of(data: Data, run: str) -> list[int]:
    """Which rows of the event file an output should have."""
    events = fits.getdata(data.events, "EVENTS")
    own = (events["RUN_ID"] == int(run[1:])) & (events["ENERGY"] >= 300) & (events["ZENITH_ANGLE"] <= 100)
    return list(np.flatnonzero(own))


def row_of(stdout: str, run: str) -> tuple[list[int], str]:
    """(expected, found, lost, doubled, foreign, changed) of a run, and the remarks."""
    (line,) = [line for line in stdout.splitlines() if line.startswith(run)]
    words = line.split(maxsplit=7)
    return [int(word) for word in words[1:7]], (words[7] if len(words) > 7 else "")


def differs(data: Data, run: str) -> tuple[list[int], str]:
    done = data.audit(*SELECTION)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("audited, 1 differ")
    return row_of(done.stdout, run)


def kept(data: Data, run: str) -> int:
    return int(fits.getheader(data.outputs / name_of(run), "EVENTS")["NKEPT"])


def test_audit_finds_a_missing_file(copy: Data) -> None:
    run = first_run(copy)
    n = kept(copy, run)
    (copy.outputs / name_of(run)).unlink()
    assert differs(copy, run) == ([n, 0, n, 0, 0, 0], "no file")


def test_audit_finds_a_lost_event(copy: Data) -> None:
    run = first_run(copy)
    n = kept(copy, run)
    rewrite(copy, run, rows_of(copy, run)[1:])
    assert differs(copy, run) == ([n, n - 1, 1, 0, 0, 0], f"NKEPT is {n}, not {n - 1}")


def test_audit_finds_a_lost_event_whatever_the_header_says(copy: Data) -> None:
    run = first_run(copy)
    n = kept(copy, run)
    rewrite(copy, run, rows_of(copy, run)[1:], NKEPT=n - 1)
    assert differs(copy, run) == ([n, n - 1, 1, 0, 0, 0], "")


def test_audit_finds_a_doubled_event(copy: Data) -> None:
    run = first_run(copy)
    n = kept(copy, run)
    rows = rows_of(copy, run)
    rewrite(copy, run, [*rows, rows[0]], NKEPT=n + 1)
    assert differs(copy, run) == ([n, n + 1, 0, 1, 0, 0], "")


def test_audit_finds_an_event_of_another_run(copy: Data) -> None:
    run, other = list(copy.runs)[:2]
    n = kept(copy, run)
    rewrite(copy, run, [*rows_of(copy, run), rows_of(copy, other)[0]], NKEPT=n + 1)
    assert differs(copy, run) == ([n, n + 1, 0, 0, 1, 0], "")


def test_audit_finds_a_changed_value(copy: Data) -> None:
    run = first_run(copy)
    n = kept(copy, run)
    rewrite(copy, run, rows_of(copy, run), warmer=True)
    assert differs(copy, run) == ([n, n, 0, 0, 0, 1], "")


def test_audit_finds_the_file_of_another_run(copy: Data) -> None:
    run, other = list(copy.runs)[:2]
    n, m = kept(copy, run), kept(copy, other)
    shutil.copy(copy.outputs / name_of(other), copy.outputs / name_of(run))
    counts, remarks = differs(copy, run)
    assert counts == [n, m, n, 0, m, 0]
    assert f"RUN is {other}, not {run}" in remarks
    assert f"calls itself {name_of(other)}" in remarks


def test_audit_finds_a_flipped_byte(copy: Data) -> None:
    path = copy.outputs / name_of(first_run(copy))
    with fits.open(path) as hdus:
        at = hdus["EVENTS"].fileinfo()["datLoc"]
    data = bytearray(path.read_bytes())
    data[at + 1] ^= 0x10
    path.write_bytes(data)
    counts, remarks = differs(copy, first_run(copy))
    assert counts[-1] == 1
    assert "damaged: the data of EVENTS do not have the DATASUM" in remarks


def test_audit_finds_a_file_cut_short(copy: Data) -> None:
    run = first_run(copy)
    path = copy.outputs / name_of(run)
    whole = path.read_bytes()
    for size in (len(whole) - 5000, len(whole) // 2, 100, 0):  # within the last part, within EVENTS, next to nothing
        path.write_bytes(whole[:size])
        remarks = differs(copy, run)[1]
        assert "cut short: " in remarks or "cannot be read as FITS" in remarks or "is no FITS file" in remarks


def test_audit_finds_missing_good_time_intervals(copy: Data) -> None:
    run = first_run(copy)
    with fits.open(copy.outputs / name_of(run), memmap=False, lazy_load_hdus=False) as hdus:
        hdus.pop()
        hdus.writeto(copy.outputs / name_of(run), overwrite=True)
    assert differs(copy, run)[1] == "its good time intervals are not those of the run"


def test_audit_finds_files_that_should_not_be_there(copy: Data) -> None:
    run = first_run(copy)
    (copy.outputs / "more").mkdir()
    shutil.copy(copy.outputs / name_of(run), copy.outputs / "more" / name_of(run))
    shutil.copy(copy.outputs / name_of(run), copy.outputs / name_of("r0000000007"))
    (copy.outputs / "core").touch()
    done = copy.audit(*SELECTION)
    assert done.returncode == 1
    assert "7 audited, 3 differ" in done.stdout
    assert "2 files: " in row_of(done.stdout, run)[1]
    assert "not in the run table: " in row_of(done.stdout, "r0000000007")[1]
    assert "no run's file: " in done.stdout


def test_audit_looks_at_one_version_if_told(copy: Data) -> None:
    run = first_run(copy)
    shutil.copy(copy.outputs / name_of(run), copy.outputs / f"gll_ph_p401_{run}_v401.fit")
    assert copy.audit(*SELECTION).returncode == 1
    assert copy.audit(*SELECTION, "--version", "400").returncode == 0


def test_audit_finds_a_table_that_is_wrong(copy: Data) -> None:
    run = first_run(copy)
    events = copy.runs[run]
    copy.table.write_text(copy.table.read_text().replace(f"{run},{events}", f"{run},{events + 1}"))
    assert differs(copy, run)[1] == f"the table says {events + 1} events, the event file has {events}"


def test_audit_with_another_selection_finds_every_run(copy: Data) -> None:
    done = copy.audit("--emin", "200", "--zmax", "100")
    assert done.returncode == 1
    assert "5 audited, 5 differ" in done.stdout
    assert "SEL_EMIN is 300.0, not 200.0" in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run,events\n", "names no run"),
        ("name,events\nr0239557414,1\n", "no column 'run'"),
        ("run,events\nr0239557414,1\nr0239557414,1\n", "names 1 runs twice"),
        ("run,events\n42,1\n", "'42' is no run"),
        ("run,events\nr0239557414,many\n", "cannot be used as a run table"),
    ],
)
def test_audit_refuses_a_table_that_is_none(copy: Data, text: str, message: str) -> None:
    copy.table.write_text(text)
    done = copy.audit()
    assert done.returncode == 3
    assert message in done.stderr
    assert "Traceback" not in done.stderr


# --- real events, where the checkout has them beside it


@pytest.mark.drill
def test_real_runs_audit_clean(tmp_path: Path) -> None:
    """200 runs of public LAT events above 50 GeV (13,579 runs, 29,232 events)."""
    data = Data(REAL, tmp_path / "runs.csv", tmp_path / "outputs")
    good("make_runs.py", "--events", REAL, "--output", data.table)
    assert (len(data.runs), sum(data.runs.values()), max(data.runs.values())) == (13_579, 29_232, 10)
    good("make_runs.py", "--events", REAL, "--output", data.table, "--limit", 200)
    data.filter_all("--emin", "60000", "--zmax", "100")
    done = data.audit("--emin", "60000", "--zmax", "100")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "200 audited: all agree"
