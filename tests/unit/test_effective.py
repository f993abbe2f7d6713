"""`check --explain` and `site show`: every effective value, and the file and line that it comes from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from fermigrid import cli
from fermigrid.campaign import Campaign
from fermigrid.config import parse_yaml, validate
from fermigrid.effective import CommandLine, Section, explain, site_values
from fermigrid.inherit import read_site, site_names
from fermigrid.plan import Assembled
from fermigrid.site import Site, load_site
from fermigrid.units import exact_bytes, exact_seconds, parse_bytes, parse_seconds
from fermigrid.values import Layer, Origin, Value, as_tree, as_yaml_text, values_of
from tests.campaigns import ROOT, SITES, assemble
from tests.unit.test_inherit import BASE, put

TEMPLATES = ROOT / "submit_templates"
CAMPAIGN = """\
campaign: c
image: light
software: [tools]
parameters: {emin: 100, zmax: 90}
environment:
  A: campaign
  EMIN: "{emin}"
  WHERE: "{site}"
binds: [{from: /data, mode: rw}]
runs: {count: 3}
steps:
  go:
    command: [/bin/true, "{run}"]
    environment: {A: step}
    secrets: [db]
    resources: {memory: 2500 MiB, walltime: 90 min}
  then:
    after: [go]
    command: [/bin/true]
sites: {pool: 1}
"""
IMAGES = """\
images:
  light:
    flavour: light
    path: /cvmfs/light
    http:
      urls: [https://a.example.org/light.sif, https://b.example.org/light.sif]
      sha256: "%s"
      size: 1 GiB
software:
  tools:
    from: /cvmfs/tools
    to: /opt/tools
    environment: {PYTHONPATH: "{path}/lib", A: software}
""" % ("a" * 64)  # fmt: skip
OWN = """\
site: own
extends: base
htcondor: {requirements: }
environment: {B: own}
output: {kind: transfer}
"""
CommandLineOf = Callable[..., tuple[Assembled, list[Section]]]


@pytest.fixture
def explained(tmp_path: Path) -> CommandLineOf:
    """The sections of CAMPAIGN at site own."""

    def run(site: str | None = "own", **parameters: str) -> tuple[Assembled, list[Section]]:
        folder = put(tmp_path / "sites", {"base": BASE, "own": OWN, "images": IMAGES})
        text = CAMPAIGN.replace("sites: {pool: 1}", "sites: {own: 1}")
        assembled = assemble(tmp_path, text, site=site, own=[folder], parameters=parameters)
        texts = {name: read_site(name, [folder, SITES]) for name in assembled.sites}
        return assembled, list(explain(assembled, texts, CommandLine(site, parameters), TEMPLATES))

    return run


def of(sections: Sequence[Section], title: str) -> dict[str, Value]:
    (section,) = (section for section in sections if section.title == title)
    assert len({value.name for value in section.values}) == len(section.values)
    return {value.name: value for value in section.values}


def said(value: Value) -> tuple[str, str, str]:
    """Text, layer, and `file:line` with the file's name only."""
    place = f"{Path(value.place.file).name}:{value.place.line}" if value.place else ""
    return value.text, value.layer.value, place


def test_the_campaign_the_command_line_and_what_is_built_in(explained: CommandLineOf) -> None:
    rows = of(explained(emin="300")[1], "campaign c")
    assert said(rows["image"]) == ("light", "campaign", "campaign.yaml:2")
    assert said(rows["parameters.emin"]) == ("300", "command line", "--set emin:0")
    assert said(rows["parameters.zmax"]) == ("90", "campaign", "campaign.yaml:4")
    assert said(rows["sites"]) == ("own", "command line", "--site:0")
    assert said(rows["retries.max"]) == ("3", "built-in", "")
    assert said(rows["limits.running"]) == ("none", "built-in", "")
    assert said(of(explained(None)[1], "campaign c")["sites.own"]) == ("1", "campaign", "campaign.yaml:20")


def test_the_site_over_its_parent(explained: CommandLineOf) -> None:
    rows = of(explained()[1], "site own")
    assert said(rows["title"]) == ("Base", "parent site", "base.yaml:2")
    assert said(rows["container.limits.http"]) == ("20 min", "parent site", "base.yaml:11")
    assert said(rows["container.limits.jitter"]) == ("none", "built-in", "")
    assert said(rows["htcondor.requirements"]) == ("none", "built-in", "own.yaml:3")  # taken away there
    assert said(rows["output.kind"]) == ("transfer", "site", "own.yaml:5")
    assert said(rows["output.root"]) == ("none", "built-in", "")
    assert said(rows["secrets.db.point.TNS_ADMIN"]) == (".", "parent site", "base.yaml:15")


def test_the_environment_is_merged_as_the_payload_gets_it(explained: CommandLineOf) -> None:
    sections = explained(emin="300")[1]
    go = {name.partition(".")[2]: said(v) for name, v in of(sections, "step go at own").items() if name[:4] == "envi"}
    assert go == {
        "PYTHONPATH": ("/opt/tools/lib", "catalogue", "images.yaml:13"),
        "A": ("step", "campaign", "campaign.yaml:14"),
        "B": ("own", "site", "own.yaml:4"),
        "EMIN": ("300", "campaign", "campaign.yaml:7"),
        "WHERE": ("own", "campaign", "campaign.yaml:8"),
        "TNS_ADMIN": ("{secret db}", "parent site", "base.yaml:15"),
    }
    then = of(sections, "step then at own")
    assert said(then["environment.A"]) == ("campaign", "campaign", "campaign.yaml:6")
    assert "environment.TNS_ADMIN" not in then


def test_binds_of_site_campaign_and_software(explained: CommandLineOf) -> None:
    rows = of(explained()[1], "binds at own")
    assert {name: said(value) for name, value in rows.items()} == {
        "/sps": ("/sps (rw)", "parent site", "base.yaml:13"),
        "/pbs": ("/pbs (ro)", "parent site", "base.yaml:13"),
        "/data": ("/data (rw)", "campaign", "campaign.yaml:9"),
        "/opt/tools": ("/cvmfs/tools (software tools)", "catalogue", "images.yaml:10"),
    }


def test_the_images_sources_in_the_order_of_the_worker(explained: CommandLineOf) -> None:
    rows = of(explained()[1], "image light at own")
    assert [said(rows[f"source {number}"]) for number in (1, 2, 3)] == [
        ("/cvmfs/light", "catalogue", "images.yaml:4"),
        ("https://a.example.org/light.sif", "catalogue", "images.yaml:6"),
        ("https://b.example.org/light.sif", "catalogue", "images.yaml:6"),
    ]
    assert "source 4" not in rows


@pytest.mark.parametrize(
    ("formats", "sources"),
    [
        ("[sif]", ["/sps/light.sif", "cache /var/cache", "https://a.example.org/light.sif", "https://b.example.org/light.sif"]),
        ("[directory]", ["/sps/light", "cache /var/cache", "https://a.example.org/light.tar"]),
    ],
)  # fmt: skip
def test_the_images_sources_are_those_that_the_site_accepts(tmp_path: Path, formats: str, sources: list[str]) -> None:
    tar = f"    tar: {{urls: [https://a.example.org/light.tar], sha256: {'b' * 64}, size: 1 GiB}}\nsoftware:"
    here = "images: {light: {path: /sps/light, sif: /sps/light.sif}}\n"
    here += f"container: {{node_cache: {{path: /var/cache}}, formats: {formats}}}\n"
    other = {"base": BASE, "other": f"site: other\nextends: base\n{here}", "images": IMAGES.replace("software:", tar)}
    folder = put(tmp_path / "sites", other)
    assembled = assemble(tmp_path, CAMPAIGN, site="other", own=[folder])
    sections = explain(assembled, {"other": read_site("other", [folder])}, CommandLine("other", {}), TEMPLATES)
    rows = of(list(sections), "image light at other")
    assert [value.text for name, value in rows.items() if name.startswith("source ")] == sources
    assert said(rows["source 1"])[1:] == ("site", "other.yaml:3")


def test_steps_and_what_the_batch_system_is_asked_for(explained: CommandLineOf) -> None:
    sections = explained()[1]
    rows = of(sections, "step go at own")
    assert said(rows["resources.memory"]) == ("2500 MiB", "campaign", "campaign.yaml:16")
    assert rows["resources.memory"].value == 2500 * 2**20
    assert said(rows["resources.disk"]) == ("4 GiB", "built-in", "")
    asked = of(sections, "step go at own: what the batch system is asked for")
    assert said(asked["request_memory"]) == ("2500M, and more after a hold for want of it", "rendered", "")
    assert "+SingularityImage" not in asked  # the worker starts the container
    assert not [name for name in asked if name.startswith(("fg_", "periodic", "+Fermigrid", "log"))]


def test_the_request_of_each_dialect_is_the_submit_files_own_line(tmp_path: Path) -> None:
    text = CAMPAIGN.replace("software: [tools]", "").replace("    secrets: [db]\n", "")
    assembled = assemble(tmp_path, text, site="pool")
    sections = explain(assembled, {"pool": read_site("pool", [SITES])}, CommandLine("pool", {}), TEMPLATES)
    row = of(list(sections), "step go at pool: what the batch system is asked for")["+SingularityImage"]
    assert row.text.startswith("ifThenElse((NumVacatesByReason.SingularityTestFailed ?: 0) >= 1, undefined,")


def test_nothing_of_the_models_is_left_out(explained: CommandLineOf) -> None:
    """Every leaf of the validated models is a row, with the model's value."""
    assembled, _ = explained()
    data, source = parse_yaml(assembled.text, "c")
    rows = as_tree(values_of(Campaign, data, Origin(source, Layer.CAMPAIGN)))
    assert rows == assembled.campaign.model_dump(mode="json", by_alias=True)


@pytest.mark.parametrize("name", site_names([ROOT / "tests/golden/sites", SITES]))
def test_a_shipped_site_as_a_tree_and_as_a_file_of_its_own(name: str, tmp_path: Path) -> None:
    folders = [ROOT / "tests/golden/sites", SITES]
    site, _ = load_site(name, folders)
    values = list(site_values(read_site(name, folders)))
    assert as_tree(values) == site.model_dump(mode="json", by_alias=True)
    data, source = parse_yaml(as_yaml_text(values), "again.yaml")
    assert validate(Site, data, source) == site.model_copy(update={"extends": None})


@pytest.mark.parametrize("name", site_names([SITES]))
def test_every_value_of_a_shipped_site_stands_where_it_says(name: str) -> None:
    for value in site_values(read_site(name, [SITES])):
        assert (value.layer is Layer.BUILT_IN) == (value.place is None or value.value is None), value
        if value.place:
            line = Path(value.place.file).read_text().splitlines()[value.place.line - 1]
            written = value.key[-1] if isinstance(value.key[-1], str) else value.value["from"]
            assert str(written) in line, (value, line)


def test_a_site_with_open_questions_is_shown(tmp_path: Path) -> None:
    text = BASE.replace("HasSingularity", '!ask "which slots?"').replace("{from: /pbs}", "{from: !ask where}")
    text = text.replace("secrets: {db", "secrets: {wallet: !ask the wallet, db")
    put(tmp_path, {"base": text.replace("A: base", "A: !ask which A")})
    values = list(site_values(read_site("base", [tmp_path])))
    tree = as_tree(values)
    assert tree["htcondor"]["requirements"] == {"ask": "which slots?"}
    assert tree["binds"][1] == {"from": {"ask": "where"}}
    assert tree["environment"] == {"A": {"ask": "which A"}, "B": "base"}
    assert tree["secrets"]["wallet"] == {"ask": "the wallet"}
    (tmp_path / "again.yaml").write_text(as_yaml_text(values).replace("site: base", "site: again"))
    assert read_site("again", [tmp_path]).questions == read_site("base", [tmp_path]).questions


@pytest.mark.parametrize(
    ("count", "text"), [(2**31, "2 GiB"), (2500 * 2**20, "2500 MiB"), (10**9, "1 GB"), (1001, "1001 B")]
)
def test_bytes_are_shown_with_nothing_rounded_away(count: int, text: str) -> None:
    assert exact_bytes(count) == text
    assert parse_bytes(text) == count


@pytest.mark.parametrize(("count", "text"), [(14400, "4 h"), (5400, "90 min"), (61, "61 s"), (172800, "2 d")])
def test_times_are_shown_with_nothing_rounded_away(count: int, text: str) -> None:
    assert exact_seconds(count) == text
    assert parse_seconds(text) == count


# --- on the screen


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.run([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    put(tmp_path / "sites", {"base": BASE, "own": OWN, "images": IMAGES})
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN)
    return tmp_path


def test_check_explain_is_a_table_with_the_value_at_its_end(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(
        capsys, "check", "campaign.yaml", "--explain", "--site", "own", "--sites", "sites", "--set", "emin=5"
    )
    assert code == 0
    lines = out.splitlines()
    assert [line for line in lines if line and line[0] != " "][:4] == [
        "campaign c", "site own", "image light at own", "binds at own",
    ]  # fmt: skip
    rows = {line.split()[0]: line.split() for line in lines if line.startswith("  ") and line[2] != " "}
    assert rows["parameters.emin"][1:] == ["--set", "emin", "5"]
    assert rows["resources.walltime"][1:] == ["built-in", "4", "h"]
    assert rows["container.runtimes"][1:4] == ["sites/base.yaml:12", "(parent", "site)"]
    assert rows["environment.WHERE"][1:3] == ["campaign.yaml:8", "(campaign)"]


def test_check_explain_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "check", "campaign.yaml", "--explain", "--json", "--site", "own", "--sites", "sites")
    rows = json.loads(out)
    assert code == 0
    (memory,) = (row for row in rows if row["key"] == "resources.memory" and row["step"] == "go")
    assert memory == {
        "section": "step go at own", "site": "own", "step": "go", "key": "resources.memory", "value": 2500 * 2**20,
        "text": "2500 MiB", "from": {"layer": "campaign", "file": "campaign.yaml", "line": 16},
    }  # fmt: skip
    assert {row["from"]["layer"] for row in rows} == {layer.value for layer in Layer} - {"command line"} | {
        "command line"
    }


def test_what_is_wrong_is_not_explained(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "campaign.yaml").write_text(CAMPAIGN.replace("image: light", "image: lihgt"))
    code, out, err = call(capsys, "check", "campaign.yaml", "--explain", "--site", "own", "--sites", "sites")
    assert (code, out) == (11, "")
    assert "did you mean 'light'" in err


def test_check_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "check", "campaign.yaml", "--json", "--site", "own", "--sites", "sites")
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    assert found == {
        "file": "campaign.yaml", "campaign": "c", "runs": 3, "blocks": 1, "jobs": {"go": 3, "then": 3}, "sites": ["own"],
    }  # fmt: skip


def test_site_show(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "site", "show", "own", "--sites", "sites")
    assert code == 0
    assert json.loads(out) == json.loads(call(capsys, "site", "show", "own", "--sites", "sites", "--json")[1])
    assert json.loads(out)["staging"]["stage_in"] == 7200
    assert err.splitlines() == [f"# {here}/sites/own.yaml", f"# extends {here}/sites/base.yaml"]
    as_yaml = yaml.safe_load(call(capsys, "site", "show", "own", "--sites", "sites", "--yaml")[1])
    assert as_yaml["staging"]["stage_in"] == "2 h"
    assert "extends" not in as_yaml
    table = call(capsys, "site", "show", "own", "--sites", "sites", "--explain")[1]
    assert "sites/own.yaml:3 (taken away)" in table
    rows = json.loads(call(capsys, "site", "show", "own", "--sites", "sites", "--explain", "--json")[1])
    assert rows[0]["from"]["line"] == 1
    assert call(capsys, "site", "show", "own", "--sites", "sites", "--yaml", "--json")[0] == 2
