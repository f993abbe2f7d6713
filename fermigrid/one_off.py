"""One command from the command line -> the data of a campaign."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from fermigrid.errors import Unrepresentable


def describe(
    words: Sequence[str],
    folder: Path,
    now: datetime,
    *,
    image: str,
    name: str | None,
    jobs: int,
    code: Sequence[str],
    software: Sequence[str],
    secrets: Sequence[str],
    outputs: Sequence[str],
    cpus: int | None,
    memory: str | None,
    disk: str | None,
    walltime: str | None,
    retries: int | None,
) -> dict[str, Any]:
    """What a campaign file for this command would say. A program that is a file here travels with the job.

    The command's words are no placeholders: braces arrive as they are. Raises Unrepresentable for a line break.
    """
    for number, word in enumerate(words, 1):
        _check_word(word, f"word {number} of the command")
    program = words[0]
    travels = list(code)
    if (folder / program).is_file() and not program.startswith("/"):
        travels.insert(0, program)
        program = f"./{Path(program).name}"
    resources = {"cpus": cpus, "memory": memory, "disk": disk, "walltime": walltime}
    step: dict[str, Any] = {
        "command": [_literal(word) for word in (program, *words[1:])],
        "secrets": list(secrets),
        "resources": {key: str(value) for key, value in resources.items() if value is not None},
    }
    if outputs:
        pattern = "{job}." if jobs > 1 else ""
        step["outputs"] = {_literal(output): pattern + _literal(output) for output in outputs}
    return {
        "campaign": name or _name(words[0], now),
        "image": image,
        "software": list(software),
        "code": travels,
        "runs": {"count": str(jobs)},
        "retries": {} if retries is None else {"max": str(retries)},
        "steps": {"command": step},
    }


def _literal(word: str) -> str:
    return word.replace("{", "{{").replace("}", "}}")


def _name(program: str, now: datetime) -> str:
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(program).stem).strip("-")[:30] or "command"
    return f"{stem}-{now:%Y%m%d-%H%M%S-%f}"  # two commands in one second are two commands


def _check_word(word: str, where: str) -> None:
    for char, what in (("\n", "a line break"), ("\r", "a carriage return")):
        if char in word:
            raise Unrepresentable(where, word, f"it contains {what}; put the text into a script and name the script")
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise Unrepresentable(where, word, "it is not UTF-8") from error
