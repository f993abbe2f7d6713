"""`--update-golden` writes the golden files anew. Look at the diff before you commit it."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew instead of comparing")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written; the option exists where this folder was named on the command line."""
    return bool(request.config.getoption("--update-golden", default=False))
