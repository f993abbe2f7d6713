"""docs/sites: each shipped site has its page, and what the page says to fill in is what the site asks for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from fermigrid.config import Key, parse_yaml
from fermigrid.grid import Grid
from fermigrid.inherit import read_site, site_names
from fermigrid.site import load_site
from tests.campaigns import ANSWERS, ROOT, SITES

NAMES = site_names([SITES])
EXAMPLE = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    return (ROOT / "docs/sites" / f"{name}.md").read_text(encoding="utf-8")


def test_there_is_a_page_for_each_site_and_for_nothing_else() -> None:
    assert sorted(path.stem for path in (ROOT / "docs/sites").iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_what_is_asked_of_it(name: str) -> None:
    site, text = load_site(name, [ANSWERS, SITES])[0], page(name)
    assert text.startswith(f"# {name}: ")
    for word in ("| Contact", "| Manual", "| Image", "Binds", "Scratch", "## What was proven", f"sites/{name}.yaml"):
        assert word in text or (name == "slac-lsf" and word == "| Image"), word
    assert f"tests/golden/plans/{name}" in text
    assert site.site == name
    for bind in site.binds:
        assert f"`{bind.source}`" in text or f"[in2p3]({name})" in text, bind
    assert site.backend == "local" or name == "pool" or re.search("Not tried|Golden only", text)


@pytest.mark.parametrize("name", NAMES)
def test_the_example_answers_every_question_and_no_other(name: str, tmp_path: Path) -> None:
    asked = {key for key, _ in read_site(name, [SITES]).questions}
    found = EXAMPLE.search(page(name))
    if not asked:
        assert found is None
        return
    assert found is not None
    (tmp_path / f"{name}.yaml").write_text(found[1])
    data, source = parse_yaml(found[1], "page")
    assert (data["site"], data["extends"]) == (name, name)
    assert read_site(name, [tmp_path, SITES]).questions == ()
    written = {key for key in source.places if key and not isinstance(_at(data, key), dict)}
    answers = {key for key in written if key[0] not in ("site", "extends")}
    assert all(any(question[: len(key)] == key for question in asked) for key in answers - {REQUIREMENTS}), answers


def test_the_tests_that_are_named_as_proof_are_there() -> None:
    pages = [ROOT / "docs/reference/dialects.md", *(ROOT / "docs/sites").iterdir()]
    files, names = set[str](), set[str]()
    for path in pages:
        files |= set(re.findall(r"`(tests/[\w/-]+(?:\.py)?)`", path.read_text()))
        names |= set(re.findall(r"`(test_\w+)`", path.read_text()))
    assert [file for file in sorted(files) if not (ROOT / file).exists()] == []
    there = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert names and sorted(names - there) == []


def test_every_way_to_a_site_is_a_dialect_of_the_page() -> None:
    text = (ROOT / "docs/reference/dialects.md").read_text()
    for dialect in ("self-healing", "plain", "universe"):
        assert f"`dialect: {dialect}`" in text
    for kind in get_args(Grid.model_fields["kind"].annotation):
        assert re.search(rf"(?:kind: |`){kind}[`}}]", text), kind
    _, _, *dialects = re.split(r"^## ", text, flags=re.MULTILINE)  # the first is what holds for all
    assert len(dialects) == 8
    for section in dialects:
        assert re.search(r"\*\*(?:run|golden only)\*\*", section, re.IGNORECASE), section.partition("\n")[0]


REQUIREMENTS = ("htcondor", "requirements")  # the page of pilots adds a repository


def _at(data: object, key: Key) -> object:
    for part in key:
        data = data[part]  # type: ignore[index]
    return data
