"""What a batch system is asked for, from the site's `grid` and the campaign's resources."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fermigrid.campaign import Resources
from fermigrid.grid import Grid
from fermigrid.grid_row import grid_row
from fermigrid.site import SiteLimits


def row(
    kind: str = "slurm", cpus: int = 1, walltime: int = 3600, limit: str | None = None, **grid: Any
) -> dict[str, Any]:
    resources = Resources.model_validate({"cpus": cpus, "walltime": f"{walltime} s"})
    limits = SiteLimits.model_validate({"walltime": limit} if limit else {})
    return grid_row(Grid(kind=kind, **grid), resources, limits, 300)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("walltime", "limit", "seconds"),
    [
        (3600, None, 3900),
        (1, None, 360),
        (61, None, 420),
        (3600, "1 h", 3600),
        (3600, "65 min", 3900),
        (20, "59 s", 60),
    ],
)
def test_the_run_time_is_whole_minutes_never_none_and_within_the_sites_limit(
    walltime: int, limit: str | None, seconds: int
) -> None:
    assert row(walltime=walltime, limit=limit)["runtime_s"] == seconds


def test_slurm_gets_cpus_the_sites_options_and_a_name_that_only_one_job_has_at_a_time() -> None:
    once = "--job-name=$(fg_job).$(fg_batch) --dependency=singleton $(fg_exclude)"
    assert row(cpus=4, options=("-L sps:1", "-C cvmfs"))["extra"] == f"-L sps:1 -C cvmfs --cpus-per-task=4 {once}"
    assert row()["extra"] == once
    assert row(cpus=4)["remote"] == {}


@pytest.mark.parametrize("kind", ["lsf", "pbs", "sge"])
def test_the_others_get_cpus_as_attributes(kind: str) -> None:
    assert row(kind, cpus=4)["remote"] == {"NodeNumber": "4", "SMPGranularity": "4"}
    assert row(kind)["extra"] is None


def test_grid_engine_gets_the_mark_that_blahp_leaves_out() -> None:
    assert row("sge", options=("-l h_vmem=2G",))["extra"] == "#$ -l h_vmem=2G"
    assert row("pbs", options=("-l pmem=2gb",))["extra"] == "-l pmem=2gb"


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("slurm", "--array=1-3"),
        ("slurm", "-a 1-3"),
        ("slurm", "-a1-3"),
        ("slurm", "--wrap=evil"),
        ("slurm", "--job-name=foo"),
        ("slurm", "--dependency=after:1"),
        ("slurm", "-p roma"),
        ("slurm", "-t 1"),
        ("slurm", "--mem=1"),
        ("lsf", "-J job[1-3]"),
        ("pbs", "-t 1-3"),
        ("sge", "-t 1-3"),
    ],
)
def test_an_option_that_multiplies_a_job_or_takes_the_place_of_fermigrids_is_refused(kind: str, option: str) -> None:
    with pytest.raises(ValidationError, match="fermigrid's own affair"):
        Grid.model_validate({"kind": kind, "options": [option]})


@pytest.mark.parametrize(
    ("kind", "option"),
    [("slurm", "--licenses=sps"), ("slurm", "-L sps:1"), ("slurm", "-C cvmfs"), ("slurm", "--qos=long"),
     ("lsf", "-M 4000000"), ("pbs", "-l pmem=2gb"), ("sge", "-P P_glast"), ("sge", "-l sps=1,os=cl7")],
)  # fmt: skip
def test_other_options_are_the_sites_own(kind: str, option: str) -> None:
    assert Grid.model_validate({"kind": kind, "options": [option]}).options == (option,)
