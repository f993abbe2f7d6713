"""The shipped JSON Schemas: current, true to the models, of use to an editor."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from fermigrid.cli import cli
from fermigrid.config import find_wrong, parse_yaml
from fermigrid.inherit import read_site
from fermigrid.json_schema import MODELS
from fermigrid.site import wrong_values
from tests.campaigns import ROOT, SITES, SMALL, TWO_STEPS
from tests.schemas import SCHEMAS, text_of
from tests.unit.test_inherit import BASE


class Question(str):
    """An open question, as an editor has it: its text. It is marked where no text is wanted."""


class Editor(yaml.SafeLoader):
    """YAML as editors read it (YAML 1.2): dates, `yes` and `4:30` are text, `!ask` is known."""


Editor.yaml_implicit_resolvers = {}
for tag, pattern, first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+0123456789."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    Editor.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), list(first))
Editor.add_constructor("!ask", lambda _loader, node: Question(node.value))


def complaints(file: str, text: str) -> list[str]:
    """What an editor marks in a file, with the place; open questions aside."""
    schema = json.loads((SCHEMAS / f"{file}.schema.json").read_text())
    found = jsonschema.Draft7Validator(schema).iter_errors(yaml.load(text, Editor))
    return [f"{error.json_path}: {error.message}" for error in found if not isinstance(error.instance, Question)]


@pytest.mark.parametrize("file", MODELS)
def test_the_shipped_schemas_are_current(file: str) -> None:
    path = SCHEMAS / f"{file}.schema.json"
    assert path.read_text(encoding="utf-8") == text_of(file), "make golden, and look at the diff"
    jsonschema.Draft7Validator.check_schema(json.loads(path.read_text()))


@pytest.mark.parametrize("file", MODELS)
def test_the_command_prints_the_shipped_file(file: str) -> None:
    result = CliRunner().invoke(cli, ["schema", file])
    assert (result.exit_code, result.output) == (0, text_of(file))


FILES = [
    *(("site", path) for path in sorted(SITES.glob("*.yaml")) if path.name != "images.yaml"),
    *(("site", path) for path in sorted(ROOT.glob("tests/golden/sites/*.yaml"))),
    ("images", SITES / "images.yaml"),
    *(("campaign", path) for path in sorted(ROOT.glob("examples/**/campaign*.yaml"))),
    ("campaign", ROOT / "tests/golden/campaign/campaign.yaml"),
]


@pytest.mark.parametrize(("file", "path"), [pytest.param(f, p, id=str(p.relative_to(ROOT))) for f, p in FILES])
def test_examples_and_shipped_files_are_valid(file: str, path: Path) -> None:
    assert complaints(file, path.read_text()) == []


def test_the_settings_of_the_page_find_the_schema_of_every_file() -> None:
    """As yaml-language-server reads them: the file's path from the project's folder against each pattern."""
    page = (ROOT / "docs/reference/site.md").read_text()
    (text,) = re.findall(r"^```json\n(.*?)^```", page, re.M | re.S)
    settings = json.loads(text)
    assert settings["yaml.customTags"] == ["!ask scalar"]
    for file, path in FILES:
        place = path.name if file == "campaign" else f"sites/{path.name}"
        found = []
        for schema, globs in settings["yaml.schemas"].items():
            patterns = [globs] if isinstance(globs, str) else globs
            no = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
            if any(fnmatch(place, one) for one in patterns) and not any(fnmatch(place, one) for one in no):
                found.append(Path(schema).name)
        assert found == [f"{file}.schema.json"], path


def test_there_are_examples() -> None:
    assert {file for file, _ in FILES} == set(MODELS)
    assert len(FILES) > 8


@pytest.mark.parametrize("page", ["campaign", "site", "images"])
def test_the_examples_of_the_reference_pages_are_valid(page: str) -> None:
    first = re.search(r"^```yaml\n(.*?)^```", (ROOT / f"docs/reference/{page}.md").read_text(), re.M | re.S)
    assert first is not None
    assert complaints(page, first[1]) == []


GOOD = [
    ("campaign", SMALL),
    ("campaign", TWO_STEPS),
    ("campaign", SMALL + "version: 1.5\nparameters: {emin: 100, flag: yes}\nblock: 20\nallow_uber: true\n"),
    ("campaign", SMALL.replace("    outputs", "    inputs: [/a, root://h//b]\n    outputs")),
    ("campaign", SMALL.replace("    outputs", "    inputs: {a: /a, b: [/b, /c]}\n    outputs")),
    ("campaign", SMALL.replace("    outputs", "    resources: {memory: 2.5 GiB, walltime: 90 min, cpus: '4'}\n    outputs")),
    ("campaign", SMALL.replace('[/bin/true, "{run}"]', "[sleep, 5, 1.5, true]")),
    ("site", BASE),
    ("site", BASE.replace("title: Base", "title: 2027-03-04")),
    ("site", BASE + "proxy:\n"),
    ("site", "site: own\nextends: base\n"),
    ("site", "site: own\nextends: base\ncontact:\nbinds:\nenvironment: {A: }\ncontainer: {launch: , limits: {http: 1 h}}\n"),
    ("site", "site: own\nextends: base\nimages: {light: {sif: /x.sif}}\n"),
    ("images", "images: {x: {flavour: light, http: {urls: ['https://h/x'], sha256: abc, size: 1 GiB}}}\n"),
]  # fmt: skip
WRONG = [
    ("campaign", "imgae: light\n" + SMALL, "$: Additional properties are not allowed ('imgae' was unexpected)"),
    ("campaign", SMALL.replace("image: light\n", ""), "$: 'image' is a required property"),
    ("campaign", SMALL.replace("steps:\n  go:", "steps:\n  go:\n    foreach: clmup"), "$.steps.go.foreach: 'clmup' is not one of"),
    ("campaign", SMALL.replace("    outputs", "    resources: {memory: 2}\n    outputs"), "$.steps.go.resources.memory: 2 is not of type 'string'"),
    ("campaign", SMALL.replace("    outputs", "    resources: {memory: 2 Gib}\n    outputs"), "$.steps.go.resources.memory: '2 Gib' does not match"),
    ("campaign", SMALL.replace("    outputs", "    resources: {walltime: 4 weeks}\n    outputs"), "$.steps.go.resources.walltime: '4 weeks' does not"),
    ("campaign", SMALL.replace("{count: 2}", "{count: 0}"), "$.runs.count: 0 is less than the minimum of 1"),
    ("campaign", SMALL.replace("{count: 2}", "{count: many}"), "$.runs.count: 'many' does not match"),
    ("campaign", SMALL + "block: 100001\n", "$.block: 100001 is greater than the maximum"),
    ("campaign", SMALL + "binds: [{source: /a}]\n", "$.binds[0]: 'from' is a required property"),
    ("campaign", SMALL + "binds: [{from: a}]\n", "$.binds[0].from: 'a' does not match"),
    ("campaign", SMALL + "allow_uber: perhaps\n", "$.allow_uber: 'perhaps' does not match"),
    ("campaign", SMALL + "software: light\n", "$.software: 'light' is not of type 'array'"),
    ("campaign", SMALL + "code:\n", "$.code: None is not of type 'array'"),
    ("campaign", SMALL.replace('[/bin/true, "{run}"]', "[]"), "$.steps.go.command: [] "),
    ("campaign", SMALL + "parameters: {a b: 1}\n", "'a b' does not match"),
    ("site", BASE.replace("backend: htcondor", "backend: slurm"), "$.backend: 'slurm' is not one of"),
    ("site", BASE.replace("site: base\n", ""), "$: 'site' is a required property"),
    ("site", BASE.replace("  launch: worker\n", ""), "$.container: 'launch' is a required property"),
    ("site", BASE + "staging:\n", "$.staging: None is not of type 'object'"),
    ("site", BASE.replace("kind: path", "kind: vault"), "$.secrets.db.kind: 'vault' is not one of"),
    ("site", "extends: base\n", "$: 'site' is a required property"),
    ("site", "site: own\nextends: base\ncontainer: {lanch: site}\n", "$.container: Additional properties"),
    ("site", "site: own\nextends: base\nbinds: [{to: /a}]\n", "$.binds[0]: 'from' is a required property"),
    ("site", "site: own\nextends: base\nstaging: {stage_in: 5}\n", "$.staging.stage_in: 5 is not of type"),
    ("images", "images: {x: {path: /x}}\n", "$.images.x: 'flavour' is a required property"),
    ("images", "images: {x: {flavour: light, mount_points: [a]}}\n", "$.images.x.mount_points[0]: 'a' does not match"),
    ("images", "images: {x: {flavour: light, http: {urls: []}}}\n", "$.images.x.http.urls: [] "),
]  # fmt: skip


@pytest.mark.parametrize(("file", "text"), GOOD)
def test_what_is_good_is_good_to_an_editor(file: str, text: str) -> None:
    assert complaints(file, text) == []


@pytest.mark.parametrize(("file", "text", "said"), WRONG)
def test_what_is_wrong_is_marked(file: str, text: str, said: str, tmp_path: Path) -> None:
    assert any(said in complaint for complaint in complaints(file, text)), complaints(file, text)
    if "extends" in text and "site: own" in text:
        (tmp_path / "base.yaml").write_text(BASE)
        (tmp_path / "own.yaml").write_text(text)
        assert wrong_values(read_site("own", [tmp_path]))
    elif "extends" not in text:
        assert find_wrong(MODELS[file][0], *parse_yaml(text, "f.yaml")), "the schema is stricter than fermigrid"


def test_a_key_says_what_it_is() -> None:
    schema: dict[str, Any] = json.loads(text_of("campaign"))
    memory = schema["properties"]["steps"]["additionalProperties"]["properties"]["resources"]["properties"]["memory"]
    assert memory["description"].endswith("Default: `2 GiB`.")
    for file in MODELS:
        undescribed = keys_without_description(json.loads(text_of(file)))
        assert undescribed == [], file


def keys_without_description(schema: Any, path: str = "") -> list[str]:
    """Keys of which an editor could not say anything; the page's tables leave a few to their names alone."""
    if not isinstance(schema, dict):
        return []
    found = []
    for name, value in schema.get("properties", {}).items():
        if not value.get("description") and not path.endswith(("limits", "resources")):
            found.append(f"{path}.{name}")
        found += keys_without_description(value, f"{path}.{name}")
    for below in ("additionalProperties", "items", "then", "else"):
        found += keys_without_description(schema.get(below), path)
    return found
