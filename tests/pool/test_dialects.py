"""The ways to ask a site for its container that are not a native pool's: pilots that read the job's ad as text, and
HTCondor's container universe. Real pilots differ; the one here reads and starts as GlideinWMS's and OSG's wrappers do.
"""

from __future__ import annotations

import json

import pytest

from tests.pool.conftest import START_LIMIT_S, Pool, call_pool, describe
from tests.pool.product import Product
from tests.pool.sites import finish, printed, report, send, site_like, wait_for, wait_for_words, why

pytestmark = [pytest.mark.pool, pytest.mark.usefixtures("grid")]
PILOT = "pool-pilot"
UNIVERSE = "pool-universe"
SHOW = """#!/bin/sh
cat /etc/fermigrid-image
env | grep -E '^(PILOT|GLIDEIN|OSG|BASH_ENV|_CONDOR|APPTAINER)' && echo "the pilot is seen"
ls > /dev/null && cat lib/words.txt
python3 -c 'import astropy; print(astropy.__name__)'
printf '%s\\n' "$@"
pwd > out.txt
"""


@pytest.fixture(scope="module")
def grid(running_pool: Pool) -> Pool:
    """The pool of this test run, with a pilot."""
    done = call_pool(running_pool.directory, "start", "grid", timeout=START_LIMIT_S)
    assert done.returncode == 0, done.stderr
    return describe(running_pool.directory)


def run_full(product: Product, site: str) -> None:
    """A campaign of one job with code, software, arguments of all kinds and an output, to its end."""
    product.write("lib/words.txt", "from the bundle\n")
    (product.folder / "sites").mkdir(exist_ok=True)
    product.write("show.sh", SHOW)
    product.write(
        "c.yaml",
        """campaign: full
image: light
code: [show.sh, lib]
software: [lat-python]
runs: {count: 1}
steps:
  go:
    command: [./show.sh, "a b", "$HOME", "&(x)", "`id`", "a=b", '"']
    outputs: {out.txt: "deep/{run}.txt"}
""",
    )
    product.run("submit", "c.yaml", "--site", site, "--sites", "sites", "--run-dir", "full", "--wait")


@pytest.mark.parametrize("style", ["osg", "gwms"])
def test_a_pilot_that_reads_the_ad_as_text_runs_the_job_in_its_image(product: Product, style: str) -> None:
    style_too = ("DESIRED_Sites: SITEP", f"DESIRED_Sites: SITEP, PilotStyle: {style}")
    run_full(product, site_like(product, PILOT, "pilot-x", style_too))
    printed_there = product.log("full", "go.0000")
    assert printed_there == ["light-1", "from the bundle", "astropy", "a b", "$HOME", "&(x)", "`id`", "a=b", '"']
    found = product.reports("full", "go.0000")[-1]
    assert (found["container"], found["where"], found["image"]["rung"]) == ("site", "image", "site")
    assert (product.folder / "full/outputs/deep/0000.txt").read_text() == "/srv/work\n"


def test_a_pilot_that_follows_links_to_an_image_without_a_marker_is_recognized(product: Product) -> None:
    """Such a pilot starts /cvmfs/.../.images/ab/cdef where /cvmfs/.../name:latest was asked for."""
    product.write(
        "sites/images.yaml",
        f"images:\n  moving: {{flavour: light, path: {product.pool.facts['moving_image']}, mount_points: [/srv, /cvmfs]}}\n",
    )
    send(product, "moving", PILOT, "cat", "/etc/fermigrid-image", image="moving")
    finish(product, "moving")
    assert printed(product, "moving") == ["light-1"]
    assert report(product, "moving")["where"] == "image"


@pytest.mark.parametrize(
    ("image", "changes"), [("light-broken", ()), ("light", (("dialect: plain", "dialect: self-healing"),))],
    ids=["an image that does not start", "an expression instead of a text"],
)  # fmt: skip
def test_a_job_whose_container_a_pilot_cannot_start_is_held_in_words(
    product: Product, image: str, changes: tuple[tuple[str, str], ...]
) -> None:
    """The pilot's failure is all that HTCondor sees: the job is held, and tried some times."""
    send(product, "bad", site_like(product, PILOT, "pilot-bad", *changes), "true", image=image)
    wait_for(product, "bad", "held")
    wait_for_words(product, "bad", "the worker never began")
    product.run("remove", "bad")


def test_a_path_that_pilots_would_cut_off_is_refused(product: Product) -> None:
    product.write("sites/images.yaml", 'images:\n  odd: {flavour: light, path: "/cvmfs/a=b/image"}\n')
    done = product.run(
        "submit", "--site", PILOT, "--sites", "sites", "--image", "odd", "--name", "odd", "--", "true", code=None
    )
    assert done.returncode == 12
    assert "pilots read the job's ad as text" in done.stderr


def test_the_container_universe_runs_the_job_in_its_image(product: Product) -> None:
    run_full(product, UNIVERSE)
    assert product.log("full", "go.0000")[:3] == ["light-1", "from the bundle", "astropy"]
    found = product.reports("full", "go.0000")[-1]
    assert (found["container"], found["where"]) == ("site", "image")
    assert (product.folder / "full/outputs/deep/0000.txt").read_text().startswith("/srv/")


@pytest.mark.drill
@pytest.mark.parametrize("image", ["light-broken", "light-absent"])
def test_the_container_universe_does_not_heal_itself_and_is_given_up(product: Product, image: str) -> None:
    send(product, "never", UNIVERSE, "true", image=image)
    finish(product, "never", code=1)
    assert json.loads(product.run("status", "never", "--json").stdout)["states"]["held"] == 1
    told = why(product, "never")
    assert "it left the queue, and waits for a person" in told
    assert "could start the container, 5 tried" in told


@pytest.mark.drill
def test_the_container_universe_behind_a_ce(product: Product) -> None:
    """There it is the job's ad that says so: the submit file's `container_image` is not for the grid universe."""
    site = site_like(
        product, "pool-ce", "ce-universe",
        ("requirements: HasSingularity", 'requirements: GLIDEIN_Site == "SITEA" && HasContainer'),
        ("dialect: self-healing", "dialect: universe"),
    )  # fmt: skip
    run_full(product, site)
    assert product.log("full", "go.0000")[:3] == ["light-1", "from the bundle", "astropy"]
    assert product.reports("full", "go.0000")[-1]["container"] == "site"
