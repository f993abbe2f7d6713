"""An audit of the big campaign that shares nothing with fermigrid: events from files, jobs from SQLite, queue and history.

It reads the published files with astropy and compares each event's recorded values with the event file.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from tests.pool.big import EMIN, NAME, ZMAX, Big, crumbs_of

DRAFT = re.compile(r"\..+\.part")  # docs/reference/worker.md, Outputs


def query(big: Big, text: str) -> list[Any]:
    """Rows of the ledger."""
    with closing(sqlite3.connect(f"file:{big.run_dir / 'ledger.sqlite'}?mode=ro", uri=True, timeout=60)) as db:
        return db.execute(text).fetchall()


def published(big: Big) -> list[Path]:
    """Every file that is there under a final name; not the drafts of workers that were killed."""
    return [
        path
        for home in (big.run_dir / "outputs", big.store)
        for path in home.rglob("*")
        if path.is_file() and "retired" not in path.relative_to(home).parts and not DRAFT.fullmatch(path.name)
    ]


def recount_events(big: Big) -> int:
    """Each event of each run is in one merged file, once and unchanged, and in one photon file if it was selected.

    Returns the number of events.
    """
    with fits.open(big.product.folder / "lat_events.fits.gz") as hdus:
        source = np.array(hdus["EVENTS"].data)
    recon, photons = (
        by_run(big, r"recon/(r[0-9]{10})_v\w+\.fit"),
        by_run(big, r"ft1/gll_ph_\w+?_(r[0-9]{10})_v\w+\.fit"),
    )
    assert set(recon) == set(photons) == set(big.runs)
    for run, events in big.runs.items():
        wanted = np.sort(source[source["RUN_ID"] == int(run[1:])], order="EVENT_ID")
        assert len(wanted) == events
        same_events(run, wanted, recon[run])
        same_events(run, wanted[(wanted["ENERGY"] >= EMIN) & (wanted["ZENITH_ANGLE"] <= ZMAX)], photons[run])
    return sum(big.runs.values())


def by_run(big: Big, pattern: str) -> dict[str, Path]:
    """Run -> its one file."""
    found: dict[str, Path] = {}
    for path in published(big):
        if match := re.search(pattern, str(path)):
            assert match[1] not in found, f"{match[1]} has two files: {found[match[1]]} and {path}"
            found[match[1]] = path
    return found


def same_events(run: str, wanted: np.ndarray, path: Path) -> None:
    """The file has these events, all of them once, with the values that were recorded."""
    with fits.open(path) as hdus:
        found = np.sort(np.array(hdus["EVENTS"].data), order="EVENT_ID")
    assert list(found["EVENT_ID"]) == list(wanted["EVENT_ID"]), f"{run}: {path}"
    for name in wanted.dtype.names:
        assert np.array_equal(found[name], wanted[name]), f"{run}: {name} differs in {path}"


def recount_files(big: Big) -> int:
    """Each job has one file, and there are no others; how many there are."""
    names = Counter(re.sub(r"_[vp][0-9]+", "", path.name) for path in published(big))
    wanted = Counter(expected_files(big))
    assert names == wanted, (
        f"missing {list((wanted - names).items())[:5]}, too many {list((names - wanted).items())[:5]}"
    )
    return names.total()


def expected_files(big: Big) -> Iterator[str]:
    """The names of all outputs, without the version."""
    for run, events in big.runs.items():
        for chunk, crumb in crumbs_of(events):
            yield f"{run}_k{chunk:03d}u{crumb:03d}_recon.fit"
            if crumb == 0:
                yield from (f"{run}_k{chunk:03d}_{what}.fit" for what in ("digi", "recon"))
        yield from (f"{run}_recon.fit", f"gll_ph_{run}.fit")


def recount_jobs(big: Big) -> None:
    """Each job was accepted once, and the pool agrees: nothing is in its queue, and in its history is what was sent."""
    accepted = query(big, "SELECT count(*), count(DISTINCT job) FROM attempt WHERE accepted = 1 AND retired IS NULL")
    assert accepted == [(big.jobs, big.jobs)]
    states = dict(query(big, "SELECT state, count(*) FROM job WHERE retired IS NULL GROUP BY state"))
    assert states == {"done": big.jobs}
    assert in_pool(big, "condor_q") == Counter()
    # As sets: a schedd that is killed between writing a job's history and forgetting the job writes it again
    gone = set(in_pool(big, "condor_history"))
    clusters = query(big, "SELECT cluster, jobs FROM batch")
    wanted = {f"{cluster}.{proc}" for cluster, jobs in clusters for proc in range(jobs)}
    assert gone == wanted, (
        f"not in the history {sorted(wanted - gone)[:9]}, not in the ledger {sorted(gone - wanted)[:9]}"
    )


def in_pool(big: Big, command: str) -> Counter[str]:
    """The jobs of the campaign that queue or history has."""
    asked = f'FermigridCampaign == "{NAME}"'
    done = big.product.pool.run("fermi", command, "-constraint", asked, "-autoformat:", "ClusterId", "ProcId")
    assert done.returncode == 0, done.stderr
    return Counter(".".join(line.split()) for line in done.stdout.splitlines())
