"""Placeholders (`{run}`) in what a person writes. Pure.

A text is taken apart once, when the campaign is checked; for each job only a `str.format_map` is left to do.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping

from fermigrid.config import nearest


def compile_text(
    text: str, constants: Mapping[str, str], variables: frozenset[str], encode: Callable[[str], str] = str
) -> str:
    """A person's text -> a format string whose fields are only names of `variables`.

    `constants` are put in now; everything but the fields is passed through `encode` (the row's escapes), so that the
    values of the fields must be encoded by the caller. Raises ValueError for a placeholder that does not exist.
    """
    parts: list[str] = []
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}; a literal brace is written twice: {{{{ or }}}}") from error
    for literal, name, spec, conversion in pieces:
        parts.append(_double(encode(literal)))
        if name is None:
            continue
        if spec or conversion or not name.isidentifier():
            raise ValueError(f"{text!r}: {{{name}}} is no placeholder; a literal brace is written twice: {{{{ or }}}}")
        if name in constants:
            parts.append(_double(encode(constants[name])))
        elif name in variables:
            parts.append(f"{{{name}}}")
        else:
            known = sorted({*constants, *variables})
            raise ValueError(f"{text!r}: no placeholder {{{name}}}{nearest(name, known)} There are: {', '.join(known)}")
    return "".join(parts)


def _double(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def fields_of(compiled: str) -> frozenset[str]:
    """The variables that a compiled text uses."""
    return frozenset(name for _, name, _, _ in string.Formatter().parse(compiled) if name)
