"""The page on DIRAC is true: its commands are run, with a DiracX server of their own, and print what it shows."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dirac.server import call
from tests.docs.transcript import CHECKOUT, differences, parse_page, run_page

pytestmark = pytest.mark.dirac


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For the server that the page starts, and cleans away if all goes well."""
    folder = Path(tempfile.mkdtemp(prefix="fermigrid-diracx-page-"))
    monkeypatch.setenv("DIRACX_DIR", str(folder))
    try:
        yield
    finally:
        call(folder, "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.usefixtures("place")
def test_commands_print_what_the_page_shows(tmp_path: Path) -> None:
    items = parse_page((CHECKOUT / "docs/how-to/dirac.md").read_text())
    found = differences(items, run_page(items, tmp_path))
    assert not found, "dirac.md is not true:\n\n" + "\n\n".join(found)
