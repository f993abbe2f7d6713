"""A campaign that really ran on this machine, was rolled back in part, is audited and archived; by the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.campaigns import fermigrid
from tests.docs.transcript import write_local_site

CAMPAIGN = """\
campaign: squares
version: 1
image: light
code: [squares.sh, merge.sh]
parameters: {factor: "1"}
runs: {table: runs.csv}
block: 2
steps:
  clump:
    foreach: clump
    split: {events: 10}
    command: [squares.sh, "{first_event}", "{event_count}", "{factor}"]
    outputs: {out.txt: "clump/{run}_{piece}_v{version}.txt"}
  merge:
    after: [clump]
    gather: {clumps: {step: clump, output: out.txt}}
    command: [merge.sh]
    outputs: {out.txt: "{run}_v{version}.txt"}
"""
SQUARES = """\
#!/bin/bash
for ((i = $1; i < $1 + $2; i++)); do echo "$i $((i * i * $3))"; done > out.txt
printf 'events_read: %d\\nevents_kept: %d\\n' "$2" "$2" >> "$FERMIGRID_SUMMARY"
"""
MERGE = """\
#!/bin/bash
cat clumps/* > out.txt
n=$(wc -l < out.txt)
printf 'events_read: %d\\nevents_kept: %d\\n' "$n" "$n" >> "$FERMIGRID_SUMMARY"
"""


@pytest.fixture
def ask(tmp_path: Path):  # type: ignore[no-untyped-def]
    """The command line in a folder with the campaign: (exit code, stdout, stderr)."""
    for name, text in (("c.yaml", CAMPAIGN), ("squares.sh", SQUARES), ("merge.sh", MERGE)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "runs.csv").write_text("run,events\nr1,25\nr2,10\nr3,11\n")
    write_local_site(tmp_path / "sites")
    around = {"FERMIGRID_SITES": str(tmp_path / "sites"), "FERMIGRID_POLL_S": "0.2", "TMPDIR": str(tmp_path)}
    return lambda *words: fermigrid(*words, cwd=tmp_path, env=around, limit=120)


def test_from_submission_to_archive(ask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = ask("submit", "c.yaml", "--site", "local", "--run-dir", "run", "--wait")
    assert code == 0, out + err
    code, out, err = ask("audit", "run")
    assert (code, err) == (0, "") and out.startswith("squares: clean: 3 runs, 9 jobs, 9 outputs read"), out + err
    assert out.endswith("clump: 46 events read, 46 kept; merge: 46 events read, 46 kept\n")
    outputs = tmp_path / "run/outputs"
    before = (outputs / "clump/r1_c001_v1.txt").read_bytes()

    code, out, err = ask("rollback", "run", "--run", "r1", "--set", "factor=3", "--yes")
    assert code == 0, out + err
    assert ask("audit", "run", "--quick")[0] == 1  # it is on its way
    code, out, err = ask("watch", "run")
    assert code == 0, out + err
    code, out, err = ask("audit", "run", "--csv", "all.csv")
    assert code == 0, out + err
    rows = [line.split(",") for line in (tmp_path / "all.csv").read_text().splitlines()[1:]]
    assert sorted({row[3] for row in rows if row[0] == "r1"}) == ["1"] and {row[10] for row in rows} == {"ok"}

    new = next(outputs.glob("clump/r1_c001_*"))
    good = new.read_bytes()
    assert good != before
    new.write_bytes(before)  # what was rolled back comes back
    code, out, err = ask("audit", "run")
    assert code == 1 and "which does not count any more" in out, out + err
    new.write_bytes(good)
    stray = outputs / "clump/r1_c001_v1.txt"
    if stray != new:
        shutil.copy(new, stray)
        assert ask("audit", "run")[0] == 1
        stray.unlink()

    status = json.loads(ask("status", "run", "--json")[1])
    code, out, err = ask("archive", "run", "--output", "squares.tar.gz")
    assert code == 0, out + err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["archived.json", "outputs"]
    after = json.loads(ask("status", "squares.tar.gz", "--json")[1])
    assert after.pop("archive") == str(tmp_path / "squares.tar.gz") and status.pop("archive") is None
    assert after == status
    code, out, err = ask("audit", "squares")
    assert code == 0 and "9 outputs read" in out, out + err
    code, out, err = ask("logs", "squares", "merge.r1")
    assert code == 0 and "batch" in out and err.count("---") == 2, out + err
    assert ask("why", "squares", "merge.r1")[0] == 0
    code, _, err = ask("rollback", "squares", "--run", "r1", "--yes")
    assert code == 14 and "is archived in" in err
