"""Files on XRootD and HTTP (WebDAV) servers, asked from here with `xrdfs`, `xrdcp` and `curl`, as the worker does.

The programs come with their own time limits, so that a server that keeps silent is an answer, too.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

_XRD = {
    "XRD_CONNECTIONWINDOW": "15", "XRD_CONNECTIONRETRY": "1", "XRD_REQUESTTIMEOUT": "120", "XRD_STREAMTIMEOUT": "60",
    "XRD_TIMEOUTRESOLUTION": "5",
}  # fmt: skip
_CURL = ("curl", "-q", "-sS", "-f", "-g", "-L", "--connect-timeout", "20", "--speed-limit", "1", "--speed-time", "60")
_ABSENT = re.compile(r"\[3011\]|error: (?:404|410)\b")
_PIECE = 1 << 20


class Unreachable(Exception):
    """Nothing is known of the file: no program here to ask with, no answer, or one that says neither yes nor no."""


class Absent(Exception):
    """The server says that there is no such file."""


def is_remote(place: str) -> bool:
    """Is it a URL that this module can ask?"""
    return place.startswith(("http://", "https://", "root://", "xroot://"))


def size_of(url: str) -> int:
    """How many bytes the file has, as its server says. Raises Absent, Unreachable."""
    if url.startswith("http"):
        heads = _ask([*_CURL, "-I", "--", url])
        found = re.findall(r"^content-length:\s*([0-9]+)\s*$", heads, re.I | re.M)
    else:
        server, path = _parts(url)
        found = re.findall(r"^Size:\s*([0-9]+)\s*$", _ask(["xrdfs", server, "stat", path]), re.M)
    if not found:
        raise Unreachable("its server does not tell its size")
    return int(found[-1])


def digest_of(url: str) -> tuple[int, str]:
    """The file's bytes and sha256, read to its end. Raises Absent, Unreachable."""
    digest, count = hashlib.sha256(), 0
    with _started(_reading(url), subprocess.PIPE) as process:
        assert process.stdout is not None
        while piece := process.stdout.read(_PIECE):
            digest.update(piece)
            count += len(piece)
        _end(process)
    return count, digest.hexdigest()


def fetch(url: str, path: Path) -> None:
    """A copy of the file in `path`. Raises Absent, Unreachable, OSError."""
    with path.open("wb") as file, _started(_reading(url), file) as process:
        _end(process)


def _reading(url: str) -> Sequence[str]:
    return [*_CURL, "--", url] if url.startswith("http") else ["xrdcp", "--nopbar", "--silent", url, "-"]


def _parts(url: str) -> tuple[str, str]:
    server, _, path = url.partition("://")[2].partition("/")
    return server, path


def _ask(command: Sequence[str]) -> str:
    with _started(command, subprocess.PIPE) as process:
        assert process.stdout is not None
        text = process.stdout.read().decode(errors="replace")
        _end(process)
    return text


def _started(command: Sequence[str], out: int | IO[bytes]) -> subprocess.Popen[bytes]:
    program = shutil.which(command[0])
    if program is None:
        raise Unreachable(f"there is no {command[0]} here")
    environment = {**_XRD, **os.environ}
    return subprocess.Popen(
        [program, *command[1:]], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, env=environment
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace").strip()
    if (code := process.wait()) == 0:
        return
    if _ABSENT.search(said):
        raise Absent(said)
    raise Unreachable(said.splitlines()[-1] if said else f"no answer (exit code {code})")
