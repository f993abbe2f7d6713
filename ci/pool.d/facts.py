"""Describes a running pool in files: `facts.json` for tests, `sites/*.yaml` for fermigrid.

Usage: facts.py POOL_DIR BUILT_ROOTFS
"""

import json
import sys
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).resolve().parent
IMAGES = "/cvmfs/fermi.test/images"
SOFTWARE = "/cvmfs/fermi.test/software"
# What the tests were written against; others are used with a word of warning.
TESTED = {"condor": "25.", "apptainer": "1."}
SITE_TITLES = {
    "a": "does as the job asks",
    "b": "neither overlay nor underlay",
    "c": "user bind control = no",
    "d": "no container runtime",
    "e": "an image of its own for jobs that ask for none",
    "f": "ignores the job's image; the worker starts it",
}


def read_settings(file: Path) -> dict[str, str]:
    """The NAME=value lines of a file."""
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def image_facts(pool: Path, name: str, http_url: str) -> dict[str, Any]:
    """Where an image is, its marker, sha256 and size of the SIF (bytes), and its mount points."""
    directory = pool / IMAGES[1:] / name
    sif = pool / "http/images" / f"{name}.sif"
    sums = {file: digest for digest, file in map(str.split, (sif.parent / "SHA256SUMS").open())}
    return {
        "cvmfs": f"{IMAGES}/{name}",
        "sif_url": f"{http_url}/images/{sif.name}",
        "sha256": sums[sif.name],
        "bytes": sif.stat().st_size,
        "marker": (directory / "etc/fermigrid-image").read_text().strip(),
        "mount_points": mount_points(directory),
    }


def mount_points(directory: Path) -> list[str]:
    """Those of the well-known mount points that an image has."""
    known = (RECIPES / "mount-points").read_text().split()
    return [path for path in known if (directory / path[1:]).is_dir()]


def grid_facts(pool: Path, port: str) -> dict[str, Any]:
    """What `ci/pool start grid` adds: the resources as submit files name them, and what Slurm has."""
    if not (pool / "etc/config.d/grid").exists():
        return {}
    slurm = {
        "resource": "batch slurm",
        "partitions": ["milano", "roma"],
        "account": "fermi:L1",
        "licences": {"sps": 10},
        "node": "milan01",
    }
    return {"grid": {"slurm": slurm, "ce": {"resource": f"condor ce@fermigrid.test 127.0.0.1:{port}"}}}


def pool_facts(pool: Path, built: Path) -> dict[str, Any]:
    """Everything about the pool in one mapping. Paths on CVMFS are as jobs see them."""
    ports = read_settings(pool / "etc/ports")
    http_url = f"http://127.0.0.1:{ports['HTTP_PORT']}"
    python = {
        "cvmfs": f"{SOFTWARE}/lat-python",
        "to": "/opt/fermi/lat-python",
        "env": {"PYTHONPATH": "/opt/fermi/lat-python"},
    }
    return {
        "port": int(ports["PORT"]),
        "http_url": http_url,
        "http_log": str(pool / "log/http-access.log"),
        "images": {name: image_facts(pool, name, http_url) for name in ("light-1", "tiny-1")},
        "site_default": {"cvmfs": "/cvmfs/site/default", "marker": "site-default"},
        "broken_image": f"{IMAGES}/broken-1",
        "absent_image": f"{IMAGES}/absent-1",
        "moving_image": f"{IMAGES}/light-latest",
        "software": {"lat-python": python},
        "sites": {f"SITE{letter.upper()}": title for letter, title in SITE_TITLES.items()},
        "node_folders": {"cache": "/var/cache/fermigrid", "scratch": "/lscratch", "shared": "/sps"},
        "users": {"fermi": 20001, "prod": 20002},
        "versions": read_settings(built / "versions"),
        **grid_facts(pool, ports["PORT"]),
    }


def catalogue_entry(name: str, title: str, path: str, image: dict[str, Any]) -> str:
    """An image of the catalogue, as YAML: `path` may be another place than the image's own."""
    return f"""\
  {name}:
    title: {title}
    flavour: light
    distribution: cvmfs
    path: {path}
    marker: {image["marker"]}
    http:
      urls: ["{image["sif_url"]}"]
      sha256: {image["sha256"]}
      size: {image["bytes"]} B
    mount_points: [{", ".join(image["mount_points"])}]
"""


def catalogue(facts: dict[str, Any]) -> str:
    """The pool's image catalogue."""
    light, tiny = facts["images"]["light-1"], facts["images"]["tiny-1"]
    python = facts["software"]["lat-python"]
    return "\n".join(
        [
            "# Written by ci/pool start: the images of this pool.\nimages:",
            catalogue_entry("light", "a small Debian with bash and Python", light["cvmfs"], light),
            catalogue_entry("tiny", "busybox, no bash", tiny["cvmfs"], tiny),
            catalogue_entry("light-broken", "its path on CVMFS is no image", facts["broken_image"], light),
            catalogue_entry("light-absent", "its path on CVMFS is not there", facts["absent_image"], light),
            "software:\n  lat-python:",
            f"    from: {python['cvmfs']}\n    to: {python['to']}",
            "    environment: {PYTHONPATH: '{path}'}\n",
        ]
    )


def site_file(letter: str) -> str:
    """One of the six sites as fermigrid's site file: `pool-a` to `pool-f`."""
    natively = letter in "abe"
    return f"""\
site: pool-{letter}
title: "The test pool, SITE{letter.upper()} only: {SITE_TITLES[letter]}"
contact: the fermigrid developers
manual: https://apptainer.org/docs/admin/latest/configfiles.html
backend: htcondor
htcondor:
  requirements: GLIDEIN_Site == "SITE{letter.upper()}"
container:
  launch: {"site" if natively else "worker"}
  dialect: {"self-healing" if natively else "none"}
  binds_anywhere: {"false" if letter == "b" else "true"}
  node_cache: {{path: /var/cache/fermigrid, limit: 2 GiB}}
output: {{kind: transfer}}
"""


def slurm_site() -> str:
    """The real Slurm behind HTCondor's blahp as fermigrid's site file, `pool-slurm`."""
    return """\
site: pool-slurm
title: The test pool's Slurm, through HTCondor's grid universe
contact: the fermigrid developers
manual: https://htcondor.readthedocs.io/en/latest/grid-computing/
backend: htcondor
htcondor:
  grid: {kind: slurm, queue: milano, project: "fermi:L1", options: ["-L sps:1"]}
container:
  launch: worker
  scratch: /lscratch
  node_cache: {path: /var/cache/fermigrid, limit: 2 GiB}
binds:
  - {from: /sps, to: /sps, mode: rw}
output: {kind: transfer}
limits: {cpus: 8, memory: 16000 MiB, walltime: 7 d}
"""


def ce_site(resource: str) -> str:
    """The second schedd as fermigrid's site file, `pool-ce`: it starts the container, or fermigrid's worker does."""
    _, ce, collector = resource.split()
    return f"""\
site: pool-ce
title: The test pool through a second schedd, which stands for an HTCondor-CE
contact: the fermigrid developers
manual: https://htcondor.readthedocs.io/en/latest/grid-computing/
backend: htcondor
htcondor:
  grid: {{kind: condor, ce: "{ce}", pool: "{collector}"}}
  requirements: HasSingularity
container:
  launch: site
  dialect: self-healing
  node_cache: {{path: /var/cache/fermigrid, limit: 2 GiB}}
output: {{kind: transfer}}
"""


def pilot_site() -> str:
    """The pilot as fermigrid's site file, `pool-pilot`: its wrapper reads the job's ad as text."""
    return """\
site: pool-pilot
title: "The test pool, SITEP only: a pilot whose wrapper starts the container"
contact: the fermigrid developers
manual: https://glideinwms.fnal.gov/
backend: htcondor
htcondor:
  requirements: HAS_SINGULARITY == true
  attributes: {DESIRED_Sites: SITEP}
  expressions: {SingularityBindCVMFS: "true"}
container:
  launch: site
  dialect: plain
  node_cache: {path: /var/cache/fermigrid, limit: 2 GiB}
output: {kind: transfer}
"""


def universe_site() -> str:
    """HTCondor's own container universe as fermigrid's site file, `pool-universe`."""
    return """\
site: pool-universe
title: "The test pool, SITEA only: HTCondor's container universe"
contact: the fermigrid developers
manual: https://htcondor.readthedocs.io/en/latest/users-manual/env-of-job.html
backend: htcondor
htcondor:
  requirements: GLIDEIN_Site == "SITEA"
container:
  launch: site
  dialect: universe
  node_cache: {path: /var/cache/fermigrid, limit: 2 GiB}
output: {kind: transfer}
"""


def write_text(path: Path, text: str) -> None:
    """Replaces a file as a whole: a reader sees the old one or the new one."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    temporary.replace(path)


def write_grid_sites(pool: Path, facts: dict[str, Any]) -> None:
    """The sites behind the grid's engines, where these run; none are left of an earlier start."""
    for name in ("slurm", "ce", "pilot"):
        (pool / f"sites/pool-{name}.yaml").unlink(missing_ok=True)
    if "grid" in facts:
        write_text(pool / "sites/pool-slurm.yaml", slurm_site())
        write_text(pool / "sites/pool-ce.yaml", ce_site(facts["grid"]["ce"]["resource"]))
        write_text(pool / "sites/pool-pilot.yaml", pilot_site())


def main(pool: Path, built: Path) -> None:
    """Writes the files, and warns when the versions are not those that the tests know."""
    facts = pool_facts(pool, built)
    for name, prefix in TESTED.items():
        if not facts["versions"][name].startswith(prefix):
            print(f"pool: {name} is {facts['versions'][name]}, the tests know {prefix}x", file=sys.stderr)
    write_text(pool / "sites/images.yaml", catalogue(facts))
    for letter in SITE_TITLES:
        write_text(pool / f"sites/pool-{letter}.yaml", site_file(letter))
    write_text(pool / "sites/pool-universe.yaml", universe_site())
    write_grid_sites(pool, facts)
    write_text(pool / "facts.json", json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
