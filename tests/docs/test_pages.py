"""The tutorial and the how-tos are true: their commands are run, in order, and print what the pages show."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fermigrid.campaign import Campaign
from fermigrid.config import parse_yaml, validate
from tests.docs.transcript import CHECKOUT, Command, File, Outcome, differences, matches, parse_page, run_page

DOCS = CHECKOUT / "docs"
OTHER_ENGINES = {"sandbox-pool.md", "dirac.md"}  # theirs are run by tests/pool and tests/dirac, which start them
PAGES = [
    page
    for page in sorted([*DOCS.glob("tutorial/*.md"), *DOCS.glob("how-to/*.md")])
    if "```console" in page.read_text() and page.name not in OTHER_ENGINES
]
OURS = [CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(DOCS.rglob("*.md"))
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)?(?:#([^)\s]+))?\)")


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])
def test_commands_print_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    items = parse_page(page.read_text())
    found = differences(items, run_page(items, tmp_path))
    assert not found, f"{page.name} is not true:\n\n" + "\n\n".join(found)


def test_the_pages_that_show_commands_are_run() -> None:
    names = {page.name for page in PAGES}
    assert {"first-campaign.md", "one-off-command.md", "resume-after-a-crash.md", "write-a-site.md"} <= names


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(CHECKOUT))) for page in OURS])
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {path}, which is not there"
        if anchor:
            assert anchor in anchors_of(target.read_text()), f"{page.name} links to {path}#{anchor}, which is not there"


def anchors_of(text: str) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_page_can_be_found_from_the_index() -> None:
    index = DOCS / "index.md"
    linked = {(DOCS / path).resolve() for path, _ in LINK.findall(index.read_text()) if path}
    assert {page.resolve() for page in DOCS.rglob("*.md")} - linked - {index.resolve()} == set()


# -- the comparison itself


def test_a_page_is_taken_apart() -> None:
    written = "```yaml file=a.yaml\nx: 1\n```\n"
    shown = "<!-- varies -->\n```console\n$ one \\\n    two\nout\n$ three\n```\n"
    not_run = "```\n$ no\n```\n"
    file, first, second = parse_page(written + shown + not_run)
    assert file == File("a.yaml", "x: 1\n")
    assert isinstance(first, Command)
    assert isinstance(second, Command)
    assert (first.text, first.shown, first.varies) == ("one \\\n    two", ("out",), True)
    assert (second.text, second.shown) == ("three", ())


@pytest.mark.parametrize(
    ("shown", "printed", "good"),
    [
        ("a|b", "a|b", True),
        ("a|...", "a|b|c", True),
        ("...|c", "a|b|c", True),
        ("a|...|c", "a|c", True),
        ("a", "a|b", False),
        ("a|b", "a", False),
        ("a|...|d", "a|b|c", False),
        ("", "a", False),
    ],
)
def test_lines_are_compared(shown: str, printed: str, good: bool) -> None:
    assert matches(shown.split("|") if shown else [], printed.split("|")) is good


def test_an_untrue_page_is_found_out() -> None:
    command = Command("run", ("10 jobs, 10 done",), False, 0)
    (difference,) = differences([command], [Outcome(("10 jobs, 9 done",), 0)])
    assert "10 jobs, 9 done" in difference


def test_a_failure_that_the_page_does_not_show_is_found_out() -> None:
    command = Command("run", (), False, 0)
    assert differences([command], [Outcome((), 3)])
    asked = Command("echo $?", ("3",), False, 0)
    assert not differences([command, asked], [Outcome((), 3), Outcome(("3",), 0)])


def test_times_and_digests_may_differ_and_numbers_may_not() -> None:
    command = Command("run", ("at 2026-01-01T00:00:00Z: g0.s1.00000000, 3 s",), False, 0)
    assert not differences([command], [Outcome(("at 2027-02-02T01:02:03Z: g0.s1.89abcdef, 12 s",), 0)])
    assert differences([command], [Outcome(("at 2027-02-02T01:02:03Z: g0.s2.89abcdef, 12 s",), 0)])


def test_the_campaign_of_the_readme_is_valid() -> None:
    written = re.search(r"^```yaml\n(.*?)^```", (CHECKOUT / "README.md").read_text(), re.M | re.S)
    assert written is not None
    data, source = parse_yaml(written[1], "README.md")
    assert validate(Campaign, data, source).campaign == "P400-L1"


def test_the_units_of_systemd_are_valid(tmp_path: Path) -> None:
    """Sections and keys that systemd knows; with systemd here, in its own words."""
    text = (DOCS / "how-to/unattended.md").read_text()
    units = dict(
        zip(("fermigrid.service", "fermigrid.timer"), re.findall(r"^```ini\n(.*?)^```", text, re.M | re.S), strict=True)
    )
    assert [re.findall(r"^\[(\w+)\]", unit, re.M) for unit in units.values()] == [
        ["Unit", "Service"],
        ["Unit", "Timer", "Install"],
    ]
    assert "ExecStart=/usr/local/bin/fermigrid watch --all\n" in units["fermigrid.service"]
    assert "fermigrid watch --all" in next(line for line in text.splitlines() if line.startswith("*/5 * * * * "))
    for name, unit in units.items():
        (tmp_path / name).write_text(unit.replace("/usr/local/bin/fermigrid", sys.executable))
    if verify := shutil.which("systemd-analyze"):
        command = [verify, "verify", "--man=no", "--recursive-errors=no", *(str(tmp_path / name) for name in units)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
