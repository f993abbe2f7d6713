"""The worker for a batch: one file, made of submit_templates/worker/worker.sh and the parts that the batch needs. Pure.

What a batch needs is read from its job.env, so that a job without messages or secrets does not carry their code to the
node. Comments and indentation stay behind: the node's bash reads the file for every job.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Fields = Sequence[tuple[str, str]]

_PART = re.compile(r'\. "\$here/(?P<name>\w+)\.sh"')
_COMMENT = re.compile(r"(?P<code>.*?)  # [^\"'`]*")
_ENDS = re.compile(r"(?:X509_USER_PROXY|BEARER_TOKEN_FILE)=")
_NEEDED: Mapping[str, Callable[[Fields], bool]] = {
    "download": lambda fields: any(_has(fields, key) for key in ("image.url", "image.registry", "node_cache")),
    "fetch": lambda fields: (
        any(_has(fields, key) for key in ("image.url", "stage.http")) or ("output.kind", "http") in fields
    ),
    "cache": lambda fields: _has(fields, "node_cache"),
    "adler32": lambda fields: ("verify", "adler32") in fields,
    "gather": lambda fields: _has(fields, "gather"),
    "unpack": lambda fields: ("image.format", "directory") in fields,
    "registry": lambda fields: _has(fields, "image.registry"),
    "messages": lambda fields: _has(fields, "message.to"),
    "oci": lambda fields: any(name == "runtime" and re.search(r"(?:^|/)podman[^/]*$", value) for name, value in fields),
    "preamble": lambda fields: _has(fields, "preamble"),
    "inside": lambda fields: ("order", "wrapper-inside") in fields,
    "stage_names": lambda fields: any(name == "output.kind" and value != "transfer" for name, value in fields),
    "stage_posix": lambda fields: ("output.kind", "posix") in fields,
    "stage_remote": lambda fields: ("output.kind", "xrootd") in fields or ("output.kind", "http") in fields,
    "scratch": lambda fields: (
        _has(fields, "scratch") or any(name == "batch_system" and value != "dirac" for name, value in fields)
    ),
    "dirac": lambda fields: ("batch_system", "dirac") in fields,
    "secrets": lambda fields: any(name.startswith("secret") for name, _ in fields),
    "secrets_sealed": lambda fields: ("secret.kind", "sealed") in fields,
    "secrets_live": lambda fields: any(
        value in ("token", "proxy")
        if name == "secret.kind"
        else name == "secret.point" and _ENDS.match(value) is not None
        for name, value in fields
    ),
    "secrets_wallet": lambda fields: any(
        name == "secret.point" and value.startswith("TNS_ADMIN=") for name, value in fields
    ),
}
OPTIONAL = tuple(_NEEDED)


def _has(fields: Fields, key: str) -> bool:
    return any(name == key for name, _ in fields)


def parts_needed(fields: Fields) -> frozenset[str]:
    """The optional parts of the worker that a batch with this job.env needs."""
    return frozenset(name for name, is_needed in _NEEDED.items() if is_needed(fields))


def assemble_worker(templates: Path, fields: Fields) -> str:
    """The text of worker.sh for a batch; `fields` are those of its job.env."""
    folder = templates / "worker"
    needed = parts_needed(fields)
    head, *lines = (folder / "worker.sh").read_text().splitlines()
    text = [head, "# fermigrid's worker; its source, with comments: submit_templates/worker/"]
    for line in lines:
        part = _PART.fullmatch(line)
        if part is None:
            text += _code(line) if not line.startswith("here=") else []
        elif part["name"] not in _NEEDED or part["name"] in needed:
            for inner in (folder / f"{part['name']}.sh").read_text().splitlines():
                text += _code(inner)
    return "\n".join([*text, ""])


def _code(line: str) -> list[str]:
    """The line without its indentation and its comment; nothing when nothing else is on it."""
    bare = line.strip()
    if bare.startswith("#"):
        return []
    comment = _COMMENT.fullmatch(bare)
    if comment and not any(comment["code"].count(quote) % 2 for quote in "\"'"):
        bare = comment["code"]
    return [bare.replace("> /dev/null", ">/dev/null")] if bare else []
