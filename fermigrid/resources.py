"""Finds what travels with the package, `submit_templates/` say, in a checkout and in an installation."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The folder `submit_templates`, `sites` or `schemas` that belongs to this fermigrid."""
    for parent in (_PACKAGE, _PACKAGE.parent):  # a wheel has it inside the package, a checkout beside it
        if (parent / name).is_dir():
            return parent / name
    raise FileNotFoundError(f"{name}/ is missing: fermigrid at {_PACKAGE} is not installed completely")
