"""The bundle: scripts and folders that a campaign names, as one deterministic archive known by its digest."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from fermigrid.access import Trust, fault_of, item_fault, trust_of
from fermigrid.config import Source
from fermigrid.errors import ConfigError, Problem
from fermigrid.plainfile import open_plain
from fermigrid.units import show_bytes

MAX_BYTES = 100 * 2**20  # every job carries it; larger things belong on CVMFS or behind `inputs`
EXCLUDED = (
    ".git",
    ".svn",
    ".hg",
    "__pycache__",
    "*.pyc",
    ".DS_Store",
    "*~",
    ".*.swp",
    ".venv",
    ".ipynb_checkpoints",
)


@dataclass(frozen=True)
class Bundle:
    """`data` is a .tar.gz, the same bytes for the same files; `names` are their paths in the job's working folder."""

    data: bytes
    sha256: str
    names: frozenset[str]


def pack_code(
    entries: Sequence[str], folder: Path, programs: frozenset[str], source: Source, trust: Trust | None = None
) -> Bundle | None:
    """The files and folders `entries` (relative to `folder`) in one archive; None when there are none.

    `programs` are made executable: the first words of the commands. Raises ConfigError for what is missing, is a link
    that leaves its folder, is no file, or is too large altogether; and for what others than `trust` tells can write.
    """
    if not entries:
        return None
    trust = trust or trust_of({})
    files: dict[str, Path] = {}
    problems: list[Problem] = []
    for index, entry in enumerate(entries):
        key = ("code", index)
        try:
            for name, path in _find(folder, entry, trust):
                if files.setdefault(name, path) != path:
                    problems.append(source.problem(key, f"{name} comes from {files[name]} and from {path}"))
        except ValueError as error:
            problems.append(source.problem(key, str(error)))
        except OSError as error:
            problems.append(source.problem(key, f"{error.filename} cannot be read: {error.strerror}"))
    size = sum(path.stat().st_size for path in files.values())
    if size > MAX_BYTES:
        large = max(files.items(), key=lambda item: item[1].stat().st_size)
        largest = f"{large[0]} ({show_bytes(large[1].stat().st_size)})"
        text = (
            f"the code has {show_bytes(size)}, more than the {show_bytes(MAX_BYTES)} that travel with a job; "
            f"the largest file is {largest}: put it on CVMFS or name it under inputs"
        )
        problems.append(source.problem(("code",), text))
    if problems:
        raise ConfigError(problems)
    try:
        data = _archive(files, programs)
    except OSError as error:
        text = f"{error.filename} cannot be read: {error.strerror}"
        raise ConfigError([source.problem(("code",), text)]) from error
    return Bundle(data, hashlib.sha256(data).hexdigest(), frozenset(files))


def _find(folder: Path, entry: str, trust: Trust) -> Iterator[tuple[str, Path]]:
    """(name in the bundle, file) of one entry. A file or folder keeps its last name; `dir/` and `dir` are the same."""
    top = Path(os.path.normpath(folder / entry))
    if not top.name:
        raise ValueError(f"{entry!r} is no folder of code")
    if not top.exists():
        raise ValueError(f"{entry!r}: no such file or folder: {top}")
    if top.is_file() or top.is_dir():
        _check_way(top, trust)
    if top.is_file():
        _check_name(top.name)
        yield top.name, top.resolve()
        return
    if not top.is_dir():
        raise ValueError(f"{entry!r} is neither a file nor a folder")
    for parent, folders, names in os.walk(top, onerror=_refuse):
        _check_item(Path(parent), trust)
        folders[:] = sorted(name for name in folders if not _excluded(name))
        for name in sorted(names + [d for d in folders if Path(parent, d).is_symlink()]):
            if _excluded(name):
                continue
            path = Path(parent, name)
            _check_item(path, trust)
            inside = f"{top.name}/{path.relative_to(top)}"
            _check_name(inside)
            _check_link(path, top)
            if path.is_file():
                yield inside, path.resolve()
            elif not path.is_dir():
                raise ValueError(f"{path} is no plain file (a socket, a pipe, a device or a broken link)")


def _refuse(error: OSError) -> None:
    """What cannot be read may not silently stay behind."""
    raise error


def _check_way(top: Path, trust: Trust) -> None:
    """Code acts in the name of who submits it: nobody else may be able to change it, or what lies on the way to it."""
    if fault := fault_of(top, trust):
        raise ValueError(f"{fault.words}. {fault.fix}")


def _check_item(path: Path, trust: Trust) -> None:
    if path.is_symlink() and not path.exists():
        return  # a broken link: `_find` says so
    if fault := item_fault(path, path.stat(), trust):
        raise ValueError(f"{fault.words}. {fault.fix}")


def _check_link(path: Path, top: Path) -> None:
    if not path.is_symlink():
        return
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(top.resolve()):
        raise ValueError(f"{path} is a link to {target}, outside {top}: copy the file, or name its folder too")
    if target.is_dir():
        raise ValueError(f"{path} is a link to a folder: name the folder itself")


def _check_name(name: str) -> None:
    if any(ord(char) < 32 or ord(char) == 127 for char in name):
        raise ValueError(f"{name!r}: the file's name contains a control character")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name!r}: the file's name is not UTF-8") from error


def _excluded(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in EXCLUDED)


def _archive(files: Mapping[str, Path], programs: frozenset[str]) -> bytes:
    """Owner, time and order of the file system leave no trace."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in sorted(files.items()):
            info = tarfile.TarInfo(name)
            with open_plain(path) as file:
                data, mode = file.read(), os.fstat(file.fileno()).st_mode
            info.size = len(data)
            runs = name in programs or mode & 0o100
            info.mode = 0o755 if runs else 0o644
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(plain.getvalue(), compresslevel=6, mtime=0)


def unpack_names(data: bytes) -> Bundle:
    """A bundle that was packed before, from its bytes."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        names = frozenset(archive.getnames())
    return Bundle(data, hashlib.sha256(data).hexdigest(), names)
