"""Outputs under their final names, looked at: opened, read, their digests made; and what else lies beside them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fermigrid.audit import Found, Look
from fermigrid.plainfile import kind_of, open_plain, real_folder
from fermigrid.remote_files import Absent, Unreachable, digest_of, fetch, is_remote, size_of

_WORKING_NAME = re.compile(r"\..*\.(?:part|lock)")  # of an attempt that is at work, or was killed


@dataclass(frozen=True)
class Shelf:
    """Where the outputs of a site are: `kind` and `root` of its `output`. Those that come back: the run folder's."""

    kind: str
    root: str

    def place(self, to: str) -> str:
        """The path or URL of the output with this final name."""
        return f"{self.root}/{to}"


@dataclass
class Looker:
    """Looks at outputs. `quick`: at their sizes only. Has no state but which folders can be seen from here."""

    quick: bool
    _seen: dict[str, str] = field(default_factory=dict)

    def look(self, shelf: Shelf, to: str) -> Look:
        """What lies under a final name."""
        place = shelf.place(to)
        if is_remote(place):
            return self._look_far(place)
        if why := self._out_of_sight(shelf):
            return Look(place, Found.UNKNOWN, why=why)
        *above, last = to.split("/")
        try:
            if shelf.kind == "transfer":
                with real_folder(Path(shelf.root), above) as home, open_plain(last, home) as file:
                    return self._read(place, file.fileno())
            with open_plain(Path(place)) as file:
                return self._read(place, file.fileno())
        except FileNotFoundError:
            return Look(place, Found.NOTHING)
        except OSError as error:
            return Look(place, Found.OTHER, why=str(error.strerror))

    def _read(self, place: str, file: int) -> Look:
        size = os.fstat(file).st_size
        if self.quick:
            return Look(place, Found.FILE, size)
        digest, count = hashlib.sha256(), 0
        while piece := os.read(file, 1 << 20):
            digest.update(piece)
            count += len(piece)
        return Look(place, Found.FILE, count, digest.hexdigest())

    def _look_far(self, url: str) -> Look:
        try:
            if self.quick:
                return Look(url, Found.FILE, size_of(url))
            return Look(url, Found.FILE, *digest_of(url))
        except Absent:
            return Look(url, Found.NOTHING)
        except Unreachable as error:
            return Look(url, Found.UNKNOWN, why=str(error))

    def _out_of_sight(self, shelf: Shelf) -> str:
        """Why nothing of a shelf can be looked at, in words: a site's file system that is not mounted here."""
        if shelf.kind == "transfer":
            return ""
        if shelf.root not in self._seen:
            there = Path(shelf.root).is_dir()
            self._seen[shelf.root] = "" if there else f"{shelf.root} is not to be seen on this machine"
        return self._seen[shelf.root]


@contextmanager
def copy_here(place: str) -> Iterator[Path]:
    """A file to be read here: itself, or a copy of it while it is needed. Raises Absent, Unreachable, OSError."""
    if not is_remote(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="fermigrid-audit-") as folder:
        path = Path(folder, "copy")
        fetch(place, path)
        yield path


def files_below(folder: Path, without: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Every folder below (and itself, as ""), with what is in it but folders: (name, "" or what it is if no file).

    Links are not followed. The folder `without`, and names with which attempts work (`.x.part`, `.x.lock`), are left
    out. A folder that is not there has nothing in it.
    """
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        names = []
        try:
            with os.scandir(folder / inside) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting += [below] if (below := f"{inside}/{entry.name}".lstrip("/")) != without else []
                    elif not _WORKING_NAME.fullmatch(entry.name):
                        names.append((entry.name, _what(entry)))
        except FileNotFoundError:
            continue
        yield inside, sorted(names)


def files_in(folder: Path) -> list[str]:
    """The names of the files in a folder, those of attempts at work left out; none when it cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        files = (entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
        return sorted(name for name in files if not _WORKING_NAME.fullmatch(name))
    return []


def _what(entry: os.DirEntry[str]) -> str:
    found = entry.stat(follow_symlinks=False)
    return "" if stat.S_ISREG(found.st_mode) else kind_of(found)
