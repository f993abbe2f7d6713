"""What the submit template of HTCondor's grid universe is given: where the jobs go, and what travels there. Pure.

HTCondor's blahp hands a batch system only some of a submit file: the queue, the project, the run time in whole minutes
rounded down, the memory (not to LSF and SGE). The number of CPUs goes another way for each batch system.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fermigrid.backends.htcondor_ce import SILENT
from fermigrid.campaign import Resources
from fermigrid.grid import Grid
from fermigrid.quoting import encode_submit_expression, encode_submit_value
from fermigrid.site import SiteLimits

MINUTE_S = 60


def grid_row(grid: Grid, resources: Resources, limits: SiteLimits, patience_s: int) -> dict[str, Any]:
    """The values for grid.sub.j2, encoded; None for what is not set.

    `patience_s`: so much longer than the job's walltime the batch system waits for a worker that cannot end it.
    """
    return {
        "kind": grid.kind,
        "resource": encode_submit_value(_resource(grid), "grid_resource"),
        "queue": grid.queue,
        "rte": ", ".join(grid.rte) or None,
        "project": grid.project,
        "runtime_s": _whole_minutes(resources.walltime, limits.walltime, patience_s),
        "extra": _extra(grid, resources.cpus) if grid.is_batch else None,
        "silent": SILENT,
        "remote": {**_remote_cpus(grid, resources.cpus), **_attributes(grid)},
    }


def _attributes(grid: Grid) -> Mapping[str, str]:
    """The site's own attributes for the ad that the other side gets."""
    return {name: encode_submit_expression(value, name) for name, value in grid.attributes.items()}


def _resource(grid: Grid) -> str:
    if grid.is_batch:
        return f"batch {grid.kind}"
    return f"condor {grid.ce} {grid.pool}" if grid.kind == "condor" else f"arc {grid.url}"


def _whole_minutes(walltime: int, limit: int | None, patience_s: int) -> int:
    """Seconds of the batch system's own limit: the walltime and the patience, not more than the site gives a job."""
    wanted = -(-(walltime + patience_s) // MINUTE_S) * MINUTE_S
    return wanted if limit is None else max(MINUTE_S, min(wanted, limit // MINUTE_S * MINUTE_S))


def _extra(grid: Grid, cpus: int) -> str | None:
    """Options on the batch system's command line, in one line: the site's, and what HTCondor has no words for."""
    options = [encode_submit_value(option, "option of the batch system") for option in grid.options]
    if grid.kind == "slurm":
        options += [f"--cpus-per-task={cpus}"] if cpus > 1 else []
        # A gridmanager that dies before it writes down what it sent sends it again: that waits for the end of the first
        options += ["--job-name=$(fg_job).$(fg_batch)", "--dependency=singleton", "$(fg_exclude)"]  # and banned nodes
    if not options:
        return None
    # blahp writes them into the job's script, after `#SBATCH`, `#BSUB` or `#PBS`; for SGE it leaves the mark out
    return " ".join(["#$", *options] if grid.kind == "sge" else options)


def _remote_cpus(grid: Grid, cpus: int) -> Mapping[str, str]:
    """Attributes by which blahp asks for the CPUs of one machine: LSF `-n`, PBS `nodes=1:ppn`, SGE `-pe`."""
    if grid.kind not in ("lsf", "pbs", "sge"):
        return {}
    return {"NodeNumber": str(cpus), "SMPGranularity": str(cpus)}
