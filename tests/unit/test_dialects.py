"""What each dialect of docs/reference/dialects.md puts into the submit file: the lines that ask for the container."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fermigrid.errors import ConfigError, Unrepresentable
from fermigrid.render import render_submit
from tests.campaigns import ROOT, SMALL, assemble, plans

SITE = """\
site: mine
title: T
contact: c
manual: m
backend: htcondor
htcondor: {requirements: HasSingularity, expressions: {SingularityBindCVMFS: "True"}}
container: {CONTAINER}
output: {kind: transfer}
"""
ASKS = re.compile(
    r"^(?:universe|container_\w+|transfer_container|\+(?:remote_)?(?:SingularityImage|Want\w+|Container\w+|TransferContainer))\b"
)
SIF = "  light: {flavour: light, path: /cvmfs/x.sif}\n"


def asks(folder: Path, container: str, grid: str = "", images: str = "") -> dict[str, str]:
    """The lines of the submit file that ask for the container: command -> value."""
    own = folder / "own"
    own.mkdir()
    site = SITE.replace("CONTAINER", container).replace("htcondor: {", f"htcondor: {{{grid}")
    (own / "mine.yaml").write_text(site)
    (own / "images.yaml").write_text(f"images:\n{images}" if images else "images: {}\n")
    (plan,) = plans(assemble(folder, SMALL, site="mine", own=[own]), "mine")
    text = render_submit(plan.header, ROOT / "submit_templates")
    assert text.count("SingularityBindCVMFS = True") == 1
    lines = [line for line in text.splitlines() if ASKS.match(line)]
    return dict(re.split(r"\s*=\s*", line, maxsplit=1) for line in lines)


LIGHT = "/cvmfs/fermi.test/images/light-1"
CE = "grid: {kind: condor, ce: ce.example.org, pool: 'ce.example.org:9619'}, "


@pytest.mark.parametrize(
    ("container", "wanted"),
    [
        ("launch: worker", {"universe": "vanilla"}),
        ("launch: site, dialect: plain", {"universe": "vanilla", "+SingularityImage": f'"{LIGHT}"'}),
        (
            "launch: site, dialect: self-healing",
            {
                "universe": "vanilla",
                "+SingularityImage": "ifThenElse((NumVacatesByReason.SingularityTestFailed ?: 0) >= 1, undefined, "
                f'"{LIGHT}")',
            },
        ),
        (
            "launch: site, dialect: self-healing, vacate_counter: NumVacates",
            {"universe": "vanilla", "+SingularityImage": f'ifThenElse((NumVacates ?: 0) >= 1, undefined, "{LIGHT}")'},
        ),
        (
            "launch: site, dialect: universe, workdir: /job",
            {
                "universe": "container",
                "container_image": LIGHT,
                "container_target_dir": "/job",
                "transfer_container": "false",
            },
        ),
    ],
)
def test_in_a_pool(tmp_path: Path, container: str, wanted: dict[str, str]) -> None:
    assert asks(tmp_path, container) == wanted


@pytest.mark.parametrize("kind", ["slurm", "lsf", "pbs", "sge"])
def test_a_batch_system_is_not_asked(tmp_path: Path, kind: str) -> None:
    assert asks(tmp_path, "launch: worker", f"grid: {{kind: {kind}}}, ") == {"universe": "grid"}


@pytest.mark.parametrize(
    ("container", "images", "wanted"),
    [
        ("launch: worker", "", {}),
        ("launch: site, dialect: plain", "", {"+SingularityImage": f'"{LIGHT}"'}),
        ("launch: site, dialect: universe", "", {"+WantSandboxImage": "true", "+ContainerImage": f'"{LIGHT}"'}),
        ("launch: site, dialect: universe", SIF, {"+WantSIF": "true", "+ContainerImage": '"/cvmfs/x.sif"'}),
    ],
)
def test_behind_a_ce(tmp_path: Path, container: str, images: str, wanted: dict[str, str]) -> None:
    """There the job is no longer of the container universe: its ad says what that would have said."""
    if "universe" in container:
        wanted = wanted | {"+WantContainer": "true", "+ContainerTargetDir": '"/srv"', "+TransferContainer": "false"}
    assert asks(tmp_path, container, CE, images) == {"universe": "grid", **wanted}


def submit_file(folder: Path, grid: str, output: str = "{kind: transfer}") -> str:
    """The submit file of a campaign at a site with this `grid`, continued lines joined."""
    own = folder / "own"
    own.mkdir()
    site = SITE.replace("CONTAINER", "launch: worker").replace("requirements: HasSingularity, ", f"grid: {grid}, ")
    (own / "mine.yaml").write_text(site.replace("{kind: transfer}", output))
    (plan,) = plans(assemble(folder, SMALL, site="mine", own=[own]), "mine")
    assert dict(plan.header.worker).get("batch_system") == ("arc" if "arc" in grid else None)
    return render_submit(plan.header, ROOT / "submit_templates").replace("\\\n", " ")


def commands(text: str) -> dict[str, str]:
    """The commands of a submit file: name -> value."""
    found = (line.partition("=") for line in text.splitlines() if not line.startswith(("#", "queue")) and "=" in line)
    return {name.strip(): value.strip() for name, _, value in found}


def test_the_policies_that_a_ce_has_to_follow_travel_and_the_others_stay(tmp_path: Path) -> None:
    """HTCondor's gridmanager holds a job whose own `on_exit_remove` says no, and passes on no policy but `remote_` ones."""
    lines = commands(
        submit_file(tmp_path, "{kind: condor, ce: ce.example.org, pool: p, attributes: {queue: '\"long\"'}}")
    )
    assert lines["grid_resource"] == "condor ce.example.org p"
    assert (lines["+remote_queue"], lines["use_scitokens"]) == ('"long"', "auto")
    assert not {"on_exit_remove", "periodic_hold", "allowed_execute_duration"} & set(lines)
    assert {"+remote_OnExitRemove", "+remote_PeriodicHold", "+remote_AllowedExecuteDuration"} <= set(lines)
    assert {"requirements", "rank", "periodic_release", "periodic_remove", "+PeriodicRemoveReason"} <= set(lines)
    assert int(lines["+maxWallTime"]) * 60 == int(lines["+BatchRuntime"])


def test_an_arc_ce_gets_files_a_queue_and_runtime_environments(tmp_path: Path) -> None:
    grid = "{kind: arc, url: 'https://arc.example.org/arex', queue: grid, rte: [ENV/PROXY USE_DELEGATION_DB, ENV/RTE]}"
    lines = commands(submit_file(tmp_path, grid, "{kind: posix, root: /data}"))
    assert lines["grid_resource"] == "arc https://arc.example.org/arex"
    assert (lines["batch_queue"], lines["arc_rte"]) == ("grid", "ENV/PROXY USE_DELEGATION_DB, ENV/RTE")
    assert lines["transfer_input_files"] == "$(fg_plan)/job.env, $(fg_plan)/shards/$(fg_shard)"
    assert (lines["transfer_output_files"], lines["error"], lines["on_exit_remove"]) == ("", "/dev/null", "true")
    assert "environment" not in lines


@pytest.mark.parametrize(
    "grid",
    [
        "{kind: slurm, rte: [ENV/PROXY]}",
        "{kind: condor, ce: c, pool: p, queue: q}",
        "{kind: arc, url: 'https://x/', project: p}",
        "{kind: arc, url: 'https://x/', rte: ['<x>']}",
    ],
)
def test_what_a_kind_does_not_have_is_refused(tmp_path: Path, grid: str) -> None:
    with pytest.raises(ConfigError):
        submit_file(tmp_path, grid, "{kind: posix, root: /data}")


@pytest.mark.parametrize("path", ["/cvmfs/a b", "/cvmfs/a=b", "/cvmfs/a'b", '/cvmfs/a"b'])
def test_a_path_that_pilots_would_cut_or_alter_is_refused(tmp_path: Path, path: str) -> None:
    entry = path.replace("'", "''")
    with pytest.raises(Unrepresentable):
        asks(tmp_path, "launch: site, dialect: plain", images=f"  light: {{flavour: light, path: '{entry}'}}\n")
