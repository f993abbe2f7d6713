"""The example of chunks and crumbs on this machine: through the command line to an audit of every event."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import astropy

from tests.campaigns import ROOT, fermigrid
from tests.docs.transcript import write_local_site

REAL = ROOT.parent / "shared/data/lat_events_2008_2011.fits.gz"
SOFTWARE = """\
software:
  lat-python:
    from: {folder}
    to: /opt/fermi/lat-python
    environment: {{PYTHONPATH: "{{path}}"}}
"""
RUNS = 2


def run(*command: object, code: int = 0) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def prepare(folder: Path) -> tuple[Path, Path]:
    """The example and the run table of the runs with the most events; the event file."""
    for name in ("l1", "l1proc"):
        shutil.copytree(ROOT / "examples" / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    events, table, l1 = folder / "events.fits", folder / "all.csv", folder / "l1"
    if REAL.is_file():
        events = REAL
        run(sys.executable, l1 / "make_runs.py", "--events", events, "--output", table)
    else:
        run(sys.executable, l1 / "make_events.py", "--runs", RUNS, "--output", events, "--table", table)
    head, *lines = table.read_text().splitlines()
    most = sorted(lines, key=lambda line: -int(line.split(",")[1]))[:RUNS]
    (folder / "l1proc/runs.csv").write_text("\n".join([head, *sorted(most), ""]))
    return folder / "l1proc", events


def test_real_runs_go_through_chunks_and_crumbs_and_audit_clean(tmp_path: Path) -> None:
    example, events = prepare(tmp_path)
    write_local_site(tmp_path / "sites")
    (tmp_path / "sites/images.yaml").write_text(SOFTWARE.format(folder=Path(astropy.__file__).parents[1]))
    surroundings = {
        "FERMIGRID_SITES": str(tmp_path / "sites"),
        "FERMIGRID_POLL_S": "0.2",
        "TMPDIR": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    where = ("--site", "local", "--run-dir", "run", "--set", f"events_file={events}")
    code, out, err = fermigrid("submit", "campaign.yaml", *where, "--wait", cwd=example, env=surroundings, limit=240)
    assert code == 0, out + err
    outputs = example / "run/outputs"
    audit = (sys.executable, example / "audit_pieces.py", "--runs", example / "runs.csv", "--events", events,
             "--outputs", outputs, "--emin", "300", "--zmax", "100")  # fmt: skip
    assert run(*audit).count(f"{RUNS} audited: all agree") == 2
    code, out, err = fermigrid("audit", "run", cwd=example, env=surroundings)
    assert (code, out[:22]) == (0, "P401-L1PROC: clean: 2 "), out + err
    crumbs = sorted((outputs / "crumbs").rglob("*_recon.fit"))
    assert len(crumbs) > 2 * RUNS
    merged = sorted((outputs / "recon").iterdir())
    shutil.copy(merged[0], merged[1])  # and the audit is one that can fail
    assert f"{RUNS} audited, 1 differ" in run(*audit, code=1)
    code, out, _ = fermigrid("audit", "run", cwd=example, env=surroundings)
    assert (code, merged[1].name in out) == (1, True), out
    assert "events of other runs" in out and "events of chunks are lost" in out, out
