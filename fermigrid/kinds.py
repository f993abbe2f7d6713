"""The kinds of sites, by how jobs reach them, and what a file of each begins with (`site new`). Quick to import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_POOL = """\
backend: htcondor
htcondor:
  # schedd: schedd.example.org      # without it: the schedd of this machine
  # pool: cm.example.org            # without it: the collector of HTCondor's configuration
  requirements: {requirements}
container:
  launch: site                      # the batch system starts the container
  dialect: {dialect}
"""
_GRID = """\
backend: htcondor
htcondor:
  grid:
    kind: {grid}
{where}
container:
  launch: worker                    # nobody else starts one there
  # preamble: ["module load apptainer"]
"""
_BATCH = """\
    # queue: batch                  # its partition or queue; without it: the site's own choice
    # project: fermi                # its account
    # options: [--licenses=sps]     # more options of its submit command"""
_CE = """\
    ce: !ask "the host name of the HTCondor-CE"
    pool: !ask "the collector of the CE: mostly its host name with :9619"
    # attributes: {queue: '"long"'} # what the job's ad gets there, as ClassAd expressions"""
_ARC = """\
    url: !ask "the URL of the ARC CE: https://host:443/arex\""""
_BACK = """\
output: {kind: transfer}            # back with the job; posix, xrootd and http: to a folder
"""
_TO_A_FOLDER = """\
output:                             # an ARC CE brings back files, no folders
  kind: posix                       # or xrootd or http
  root: !ask "the folder for outputs, under the path by which the nodes see it"
"""
_LOCAL = """\
backend: local
# local: {slots: 4, scratch: /scratch}
container:
  launch: worker
  # rehearsal: true                 # without a container runtime the payload runs on the host, and says so
"""


_DIRAC = """\
backend: dirac
dirac:
  url: !ask "the URL of the DiracX server"
  vo: !ask "the virtual organization, such as glast.org"
  group: !ask "your group in DIRAC, such as glast_user"
  # transport: diracx               # commands: by DIRAC's own commands, and without url
  # sites: [LCG.IN2P3-CC.fr]        # DIRAC's own sites; without it: any
  # tags: [EL9]                     # what the machines must have, by DIRAC's names for it
  # cpu_time_factor: 10             # what a core does in a second, in DIRAC's units
container:
  launch: worker                    # nothing in DIRAC's JDL asks for a container
  # runtimes: [apptainer, /cvmfs/oasis.opensciencegrid.org/mis/apptainer/current/bin/apptainer]
"""


def _batch(kind: str) -> str:
    return _GRID.format(grid=kind, where=_BATCH)


KINDS: Mapping[str, str] = {  # kind -> how its file goes on behind title, contact and manual
    "pool": _POOL.format(requirements="HasSingularity", dialect="self-healing        # it evaluates the attribute"),
    "pilots": _POOL.format(requirements="HAS_SINGULARITY", dialect="plain               # pilots read it as text"),
    "condor-ce": _GRID.format(grid="condor", where=_CE),
    "slurm": _batch("slurm"),
    "lsf": _batch("lsf"),
    "pbs": _batch("pbs"),
    "sge": _batch("sge"),
    "arc": _GRID.format(grid="arc", where=_ARC),
    "dirac": _DIRAC,
    "local": _LOCAL,
}


def output_of(kind: str) -> str:
    """Where outputs go, in a new file of this kind."""
    return _TO_A_FOLDER if kind == "arc" else _BACK


def kind_of(data: Mapping[str, Any]) -> str:
    """The kind of a site by its file; empty where the file does not say."""
    if data.get("backend") != "htcondor":
        return str(data["backend"]) if data.get("backend") in ("local", "dirac") else ""
    grid = _within(data, "htcondor").get("grid")
    if isinstance(grid, dict):
        kind = grid.get("kind")
        return "condor-ce" if kind == "condor" else kind if isinstance(kind, str) else ""
    return "pilots" if _within(data, "container").get("dialect") == "plain" else "pool"


def _within(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = data.get(name)
    return found if isinstance(found, dict) else {}
