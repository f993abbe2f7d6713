"""What is known to be wrong before anything is sent, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns import ANSWERS, SMALL, TWO_STEPS, complaints

TABLE = "run,events\nr1,25\nr2,5\nr3,7\n"
SITE = """\
site: mine
title: T
contact: c
manual: m
backend: htcondor
container: {launch: worker}
output: {kind: transfer}
"""
REGISTRY = f"  web: {{flavour: light, registry: 'docker://r/web@sha256:{'a' * 64}'}}\n"


def step(lines: str) -> str:
    return SMALL.replace("    outputs:", f"    {lines}\n    outputs:")


def outputs(pattern: str, runs: str = "{count: 2}", more: str = "") -> str:
    return SMALL.replace('"{run}.fit"', f'"{pattern}"').replace("{count: 2}", runs) + more


def test_good_campaigns(tmp_path: Path) -> None:
    assert complaints(tmp_path, SMALL) == []
    assert complaints(tmp_path, TWO_STEPS, TABLE) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            SMALL.replace("light", "ligth"),
            "2: image: no image 'ligth'; did you mean 'light'? There are: cc-sl6, fermi-rhel6, light",
        ),
        (SMALL + "software: [lat-pyton]\n", "8: software[0]: no software 'lat-pyton'; did you mean 'lat-python'?"),
        (
            SMALL.replace("{run}", "{rnu}", 1),
            "6: steps.go.command[1]: '{rnu}': no placeholder {rnu}; did you mean 'run'?",
        ),
        (SMALL.replace("{run}", "{piece}", 1), "6: steps.go.command[1]: '{piece}': no placeholder {piece}"),
        (SMALL.replace("{run}", "{run", 1), "a literal brace is written twice"),
        (step("environment: {A: '{nope}'}"), "7: steps.go.environment.A: '{nope}': no placeholder"),
        (step("inputs: {a: '/x/{nope}'}"), "7: steps.go.inputs.a: '/x/{nope}': no placeholder"),
        (step("inputs: {'{nope}': /x}"), "steps.go.inputs.{nope}: '{nope}': no placeholder"),
        (step("inputs: {/a: /x}"), "7: steps.go.inputs./a: must be a relative path without '..'"),
        (step("inputs: {a/../b: /x}"), "must be a relative path without '..'"),
        (SMALL.replace("{out.fit:", "{../out.fit:"), "7: steps.go.outputs.../out.fit: must be a relative path"),
        (SMALL.replace('"{run}.fit"', '"retired/{run}.fit"'), "in retired/ lies what a rollback moved away"),
        (SMALL + "environment: {A: '{run}'}\n", "8: environment.A: '{run}': no placeholder {run}"),
        (SMALL + "parameters: {run: x}\n", "8: parameters.run: is the name of a placeholder that exists already"),
        (SMALL + "parameters: {job: x}\n", "8: parameters.job: is the name of a placeholder"),
        (step("after: [gone]"), "7: steps.go.after[0]: no step 'gone'; did you mean 'go'? There are: go"),
        (step("after: [go]"), "7: steps.go.after[0]: 'go' must be written above 'go'"),
        (step("foreach: clump\n    split: {events: 5}"), "7: steps.go.foreach: clumps need the column 'events'"),
        (step("secrets: [oracle]"), "7: steps.go.secrets[0]: site 'local' offers no secret 'oracle'. It offers: none"),
    ],
)
def test_what_does_not_fit_together(tmp_path: Path, text: str, said: str) -> None:
    found = complaints(tmp_path, text)
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize(
    "column", ["site", "job", "piece", "version", "campaign", "step", "first_event", "event_count"]
)
def test_a_column_that_would_be_hidden_by_a_placeholder(tmp_path: Path, column: str) -> None:
    (said,) = complaints(tmp_path, SMALL.replace("{count: 2}", "{table: runs.csv}"), f"run,{column}\nr1,x\n")
    assert f"3: runs.table: its column '{column}' has the name of a placeholder" in said


def test_a_column_that_is_a_parameter_too(tmp_path: Path) -> None:
    text = SMALL.replace("{count: 2}", "{table: runs.csv}") + "parameters: {season: x}\n"
    assert "8: parameters.season: is the name of a placeholder" in complaints(tmp_path, text, "run,season\nr1,x\n")[0]


def test_parameters_of_the_command_line(tmp_path: Path) -> None:
    text = SMALL + "parameters: {emin: x}\n"
    assert complaints(tmp_path, text, parameters={"emin": "3"}) == []
    (said,) = complaints(tmp_path, text, parameters={"emni": "3"})
    assert "8: parameters: --set emni: the campaign has no such parameter; did you mean 'emin'? It has: emin" in said


def test_an_input_with_the_name_of_a_file_of_the_code(tmp_path: Path) -> None:
    (tmp_path / "go.py").write_text("x")
    (said,) = complaints(tmp_path, step("inputs: {go.py: /x}") + "code: [go.py]\n")
    assert "steps.go.inputs.go.py: has the same name as a file of the campaign's code" in said


# --- two jobs, one output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (outputs("same.fit"), "'same.fit' is the same for every run: put {run} or {job} into it"),
        (outputs("{step}.fit"), "is the same for every run"),
        (outputs("{run}/../x"), "go.0000 would write the output '0000/../x': it must be a relative path"),
        (outputs("/data/{run}"), "it must be a relative path"),
        (outputs("{run}/"), "it must be a relative path"),
        (outputs("./{run}"), "it must be a relative path"),
        (outputs("a//{run}"), "it must be a relative path"),
    ],
)
def test_names_of_outputs(tmp_path: Path, text: str, said: str) -> None:
    (found,) = complaints(tmp_path, text)
    assert found.startswith("campaign.yaml:7: steps.go.outputs.out.fit: ")
    assert said in found


def test_one_run_needs_no_placeholder(tmp_path: Path) -> None:
    assert complaints(tmp_path, outputs("same.fit", "{count: 1}")) == []


def test_two_outputs_of_one_job(tmp_path: Path) -> None:
    (said,) = complaints(tmp_path, SMALL.replace('{out.fit: "{run}.fit"}', '{a: "{run}", b: "{run}"}'))
    assert "go.0000 would write the output '0000' twice" in said


def test_two_pieces_of_one_run(tmp_path: Path) -> None:
    (said,) = complaints(tmp_path, TWO_STEPS.replace('"{run}_{piece}.fit"', '"{run}.clump"'), TABLE)
    assert "two jobs would write the same output 'r1.clump': clump.r1.c000 and clump.r1.c001" in said


def test_two_steps(tmp_path: Path) -> None:
    (said,) = complaints(tmp_path, TWO_STEPS.replace('"{run}.fit"', '"{run}_c000.fit"'), TABLE)
    assert said.startswith(
        "campaign.yaml:14: steps.merge.outputs.out.fit: two jobs would write the same output 'r1_c000.fit'"
    )
    assert said.endswith("clump.r1.c000 and merge.r1")


@pytest.mark.parametrize("block", [1, 2, 10])
def test_two_runs_whose_names_run_into_each_other_in_one_block_or_in_two(tmp_path: Path, block: int) -> None:
    text = outputs("{run}{events}", "{table: runs.csv}", f"block: {block}\n")
    (said,) = complaints(tmp_path, text, "run,events\nr1,23\nother,1\nr12,3\n")
    assert said.endswith("two jobs would write the same output 'r123': go.r1 and go.r12")


@pytest.mark.parametrize("block", [1, 10])
def test_two_steps_of_different_runs(tmp_path: Path, block: int) -> None:
    text = (
        SMALL.replace("{count: 2}", "{list: [r1_x, r1]}")
        + f'  to: {{command: [x], outputs: {{o: "{{run}}_x.fit"}}}}\nblock: {block}\n'
    )
    (said,) = complaints(tmp_path, text)
    assert "two jobs would write the same output 'r1_x.fit'" in said
    assert {"go.r1_x", "to.r1"} == set(said.split(": ")[-1].split(" and "))


# --- images and sites


def with_site(
    tmp_path: Path, text: str = SMALL, *, site: str = SITE, images: str = "", table: str | None = None
) -> list[str]:
    own = tmp_path / "own"
    own.mkdir()
    (own / "mine.yaml").write_text(site)
    (own / "images.yaml").write_text(f"images:\n  plain: {{flavour: light}}\n{images}")
    return complaints(tmp_path, text, table, site="mine", own=[own])


def test_an_image_that_the_site_cannot_get(tmp_path: Path) -> None:
    (said,) = with_site(tmp_path, SMALL.replace("light", "plain"))
    assert "2: image: 'plain' has no source that site 'mine' can use" in said


def test_an_image_that_the_site_cannot_start(tmp_path: Path) -> None:
    http = "  web: {flavour: light, http: {urls: ['http://h/x'], sha256: " + "a" * 64 + ", size: 1 GiB}}\n"
    site = SITE.replace("{launch: worker}", "{launch: site, dialect: plain}")
    (said,) = with_site(tmp_path, SMALL.replace("light", "web"), site=site, images=http)
    assert "2: image: 'web' has no path (on CVMFS or at the site), which site 'mine' needs to start it" in said


@pytest.mark.parametrize(
    ("runs", "more", "image", "good"),
    [
        (49, "", "http", True),
        (50, "", "http", False),
        (50, "allow_uber: true\n", "http", True),
        (50, "", "cvmfs", True),
    ],
)
def test_uber_images_for_many_jobs(tmp_path: Path, runs: int, more: str, image: str, good: bool) -> None:
    uber = f"  big: {{flavour: uber, path: /cvmfs/big, distribution: {image}}}\n"
    text = SMALL.replace("light", "big").replace("{count: 2}", f"{{count: {runs}}}") + more
    found = with_site(tmp_path, text, images=uber)
    assert (found == []) is good
    if not good:
        assert "2: image: 'big' is an uber image that each node fetches whole; for 50 jobs" in found[0]
        assert "allow_uber: true" in found[0]


def test_binds_that_hide_each_other(tmp_path: Path) -> None:
    site = SITE + "binds: [{from: /sdf/a, to: /afs/slac}, {from: /sdf/a, to: /afs/slac.stanford.edu}, {from: /sps}]\n"
    binds = "binds: [{from: /sps}, {from: /d, to: /afs/slac}, {from: /e, to: /srv}, {from: /f, to: /srv/.fermigrid/x}, {from: /g, to: /srv/g}]\n"
    found = with_site(tmp_path, SMALL + binds, site=site)
    assert [line.split(": ")[1] for line in found] == ["binds[1].to", "binds[2].to", "binds[3].to"]
    assert "/sdf/a and /d would both be bound to /afs/slac at site 'mine'" in found[0]
    assert "/srv at site 'mine' would hide the job's working folder /srv" in found[1]


def test_binds_where_the_site_has_neither_overlay_nor_underlay(tmp_path: Path) -> None:
    site = (
        SITE.replace("{launch: worker}", "{launch: worker, binds_anywhere: false}")
        + "binds: [{from: /sps}, {from: /x, required: false}]\n"
    )
    images = "  bare: {flavour: light, path: /cvmfs/x, mount_points: [/data]}\n"
    text = (
        SMALL.replace("light", "bare")
        + "binds: [{from: /d, to: /data}, {from: /e, to: /nowhere}]\nsoftware: [lat-python]\n"
    )
    found = with_site(tmp_path, text, site=site, images=images)
    assert [line.split(": ")[1] for line in found] == ["image", "binds[1].to", "software[0]"]
    assert "no mount point /sps; it has /data, /srv" in found[0]


def test_more_than_the_site_gives(tmp_path: Path) -> None:
    text = step("resources: {cpus: 9, memory: 17 GiB, walltime: 2 d}")
    found = with_site(tmp_path, text, site=SITE + "limits: {cpus: 8, memory: 16 GiB, walltime: 1 d}\n")
    assert "7: steps.go.resources.cpus: 9 cpus is more than the 8 cpus that site 'mine' gives a job" in found[0]
    assert "17 GiB is more than the 16 GiB" in found[1]
    assert "2 d is more than the 1 d" in found[2]


def test_every_site_of_the_campaign_is_checked(tmp_path: Path) -> None:
    text = SMALL.replace("light", "fermi-rhel6") + "sites: {slac: 1, in2p3: 1}\n"
    (said,) = complaints(tmp_path, text, site=None, own=[ANSWERS])
    assert "'fermi-rhel6' has no source that site 'in2p3' can use" in said


def test_a_site_of_the_campaign_that_does_not_exist_is_a_problem_of_its_file(tmp_path: Path) -> None:
    said = complaints(tmp_path, SMALL + "sites: {slca: 1, local: 2}\ncode: [absent]\n", site=None)
    assert said[0].startswith(
        "campaign.yaml:8: sites.slca: no site 'slca'; did you mean 'slac'? Known sites: dirac-like, in2p3, in2p3-ce, local"
    )
    assert "code[0]" in said[1]


def test_all_that_is_wrong_comes_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = SMALL.replace("light", "nope").replace("{run}", "{a}", 1).replace("{run}", "{b}") + "software: [nope]\n"
    assert [int(line.split(":")[1]) for line in complaints(tmp_path, text)] == [2, 6, 7, 8]


@pytest.mark.parametrize(("output", "count"), [("sub/{run}.fit", 0), ("{run} a.fit", 1), ("{run}%.fit", 1)])
def test_names_of_outputs_on_servers(tmp_path: Path, output: str, count: int) -> None:
    site = SITE.replace("{kind: transfer}", "{kind: xrootd, root: 'root://h:1094//x'}").replace(
        "worker}", "worker, registry: true}"
    )
    said = with_site(tmp_path, outputs(output).replace("light", "web"), site=site, images=REGISTRY)
    assert len(said) == count and all("there may be letters, digits" in each for each in said), said


@pytest.mark.parametrize(
    ("binds", "count"),
    [("[]", 1), ("[{from: /data, mode: rw}]", 0), ("[{from: /dat, mode: rw}]", 1), ("[{from: /data}]", 1)],
)
def test_outputs_of_a_wrapper_in_the_container_need_a_bind(tmp_path: Path, binds: str, count: int) -> None:
    site = SITE.replace("{launch: worker}", "{launch: worker, order: wrapper-inside, registry: true}")
    site = site.replace("{kind: transfer}", "{kind: posix, root: /data/out}") + f"binds: {binds}\n"
    said = with_site(tmp_path, SMALL.replace("light", "web"), site=site, images=REGISTRY)
    assert len(said) == count and all("no bind with mode rw has it" in each for each in said), said
