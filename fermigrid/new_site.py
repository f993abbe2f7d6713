"""A site file to start from: what its kind needs, a question wherever only the site's people know."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fermigrid.campaign import Word
from fermigrid.config import Ask
from fermigrid.errors import ConfigError, Problem
from fermigrid.inherit import SiteText, read_site
from fermigrid.kinds import KINDS, output_of

_HEAD = """\
# Begun by `fermigrid site new`. Put the answer in the place of each !ask, then: fermigrid site check {name}
# Every key: docs/reference/site.md, or `fermigrid schema site` for an editor.
site: {name}
"""
_WHO = """\
title: !ask "what this site is, in one line"
contact: !ask "whom to ask: a name, or a mail address"
manual: !ask "the URL of the site's own manual"
"""
_TAIL = """\
# binds:                            # folders of the nodes that every job sees
#   - {from: /data, to: /data, mode: ro, required: true}
# limits: {cpus: 8, memory: 32 GiB, walltime: 3 d}     # the most that one job may ask for
"""
_OVER = """\
extends: {parent}{meaning}
# What is written here lies over {parent}: keys are merged, lists and single values replaced; `key:` takes one away.
"""
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")


def begin_site(name: str, extends: str | None, kind: str, folder: Path, search: Sequence[Path]) -> Path:
    """Write `folder`/NAME.yaml, which must not be there yet; gives its path. Raises ConfigError, NotFound."""
    path = folder / f"{name}.yaml"
    try:
        TypeAdapter(Word).validate_python(name)
    except ValidationError as error:
        raise ConfigError([Problem("command line", 0, "", f"{name!r} {error.errors()[0]['ctx']['error']}")]) from error
    if name == "images":
        raise ConfigError([Problem("command line", 0, "", "images.yaml is the image catalogue: choose another name")])
    text = _HEAD.format(name=name)
    text += _over(read_site(extends, search), name) if extends else f"{_WHO}{KINDS[kind]}{_TAIL}{output_of(kind)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        why = "is there already: remove it, or choose another name" if isinstance(error, FileExistsError) else ""
        raise ConfigError([Problem(str(path), 0, "", why or f"cannot be written: {error.strerror}")]) from error
    return path


def _over(parent: SiteText, name: str) -> str:
    """A file that extends another site: its open questions, in their nested keys."""
    meaning = "                      # the one of a later folder" if parent.name == name else ""
    text = _OVER.format(parent=parent.name, meaning=meaning)
    if not parent.questions:
        return text + "# environment: {FERMI_GROUP: mine}\n"
    asked: dict[str, Any] = {}
    for key, ask in parent.questions:
        names = [str(part) for part in key]
        numbers = [index for index, part in enumerate(key) if isinstance(part, int)]
        if numbers:  # a list is replaced as a whole
            names, ask = names[: numbers[0]], Ask(f"{ask.question} (write the whole list)")
        inner = asked
        for part in names[:-1]:
            inner = inner.setdefault(part, {})
        inner.setdefault(names[-1], ask)
    return text + "".join(_lines(asked, ""))


def _lines(asked: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for name, value in asked.items():
        key = name if _PLAIN_KEY.match(name) else json.dumps(name, ensure_ascii=False)
        if isinstance(value, Ask):
            lines.append(f"{indent}{key}: !ask {json.dumps(value.question, ensure_ascii=False)}\n")
        else:
            lines += [f"{indent}{key}:\n", *_lines(value, f"{indent}  ")]
    return lines
