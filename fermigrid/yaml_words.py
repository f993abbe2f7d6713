"""What is wrong with a text that is no YAML, in the words of who wrote it. Pure."""

from __future__ import annotations

import re

import yaml

_WORDS = (  # what the parser says, as a pattern -> what it means and what to do; {where}: where the thing begins
    (
        r"mapping values are not allowed here",
        "a ': ' too many, a ':' without its blank before, or not indented like its neighbours (a text with ': ' needs "
        "quotes)",
    ),
    (r"found character '\\t' .*", "a tab: indent with blanks"),
    (r"found character (.+) that cannot start any token", "a text that begins with {0} needs quotes"),
    (r"found unexpected end of stream", "the quote that is opened{where} is not closed"),
    (
        r"expected ',' or '(.)', but got .*",
        "the list or mapping that is opened{where} is not closed with {0}, or a ',' is missing",
    ),
    (
        r"found undefined alias '(.*)'",
        "'*{0}' means a value with the mark '&{0}', and there is none; a text that begins with '*' needs quotes",
    ),
    (r"but found another document", "a line '---' begins a second document: write one into a file"),
    (
        r"expected <block end>, but found '<(?:block .*|scalar)>'",
        "it fits neither the line before nor what begins{where}: indent it like its neighbours, and write nothing "
        "behind a closing quote",
    ),
    (
        r"sequence entries are not allowed here",
        "a list does not begin behind a key: write '- ' into the next line, or [a, b]",
    ),
    (
        r"found unknown escape character (.*)",
        "in \"...\" a backslash is an escape, and {0} is none: write \\\\, or use '...'",
    ),
)


def in_words(error: yaml.MarkedYAMLError) -> tuple[int, str]:
    """The line (from 1; 0: unknown) and what is wrong there."""
    line = error.problem_mark.line + 1 if error.problem_mark else 0
    where = f" in line {error.context_mark.line + 1}" if error.context_mark else ""
    said = error.problem or error.context or "nobody knows what it is"
    for pattern, meaning in _WORDS:
        if match := re.fullmatch(pattern, said):
            return line, meaning.format(*match.groups(), where=where)
    return line, f"{said} ({error.context}{where})" if error.context else said
