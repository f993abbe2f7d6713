"""Sandboxes: the files that travel with DIRAC jobs, and those that come back, as archives.

What comes back was made on a node: only plain files are taken from it, by names that are tame, and no more than there
should be.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from fermigrid.errors import SubmissionRefused
from fermigrid.units import show_bytes

MOST_BYTES = 100 * 2**20  # of a sandbox, at a DiracX server
SLOWEST = 100_000  # bytes a second: one that is on its way for longer is given up
_MOST_UNPACKED = 4 * 2**30
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=@,:~-]{0,254}")
_ZSTD = b"\x28\xb5\x2f\xfd"


def pack(files: Sequence[Path]) -> tuple[bytes, str]:
    """An archive (tar.zst) of these files and folders by their base names, and its sha256: of the same files always the
    same. Raises SubmissionRefused when it is too large."""
    import zstandard

    with io.BytesIO() as out:
        compressor = zstandard.ZstdCompressor(level=6)
        with compressor.stream_writer(out, closefd=False) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
            for file in files:
                tar.add(file, file.name, filter=_plain)
        data = out.getvalue()
    if len(data) > MOST_BYTES:
        sizes = {file: sum(one.stat().st_size for one in (file, *file.rglob("*"))) for file in files}
        largest = max(sizes, key=lambda file: sizes[file])
        what = f"{show_bytes(len(data))}, and DIRAC takes {show_bytes(MOST_BYTES)}; the largest of it is {largest.name}"
        raise SubmissionRefused(
            f"the input sandbox has {what}", "Let the jobs fetch large files: `inputs`, or a mount."
        )
    return data, hashlib.sha256(data).hexdigest()


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without what differs from one plan folder to the next: times, owners, modes but for programs."""
    info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
    info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
    return info


def unpack(archive: BinaryIO, folder: Path) -> list[str]:
    """Put the plain files of an archive (tar, also compressed by zstd, gzip, bzip2 or xz) into a folder, flat; returns
    what was left out and why. Raises ValueError for one that is damaged or too large; the folder may hold some then."""
    left_out: list[str] = []
    room = _MOST_UNPACKED
    try:
        with _open_tar(archive) as tar:
            for info in tar:
                name = info.name.rpartition("/")[2]
                if info.isdir():
                    continue
                if fault := _fault(info, name):
                    left_out.append(f"{name[:60]!r} {fault}")
                    continue
                room -= info.size
                if room < 0:
                    raise ValueError(f"it holds more than {show_bytes(_MOST_UNPACKED)}")
                _take(tar, info, folder / name)
    except _damages() as error:
        raise ValueError(f"it is damaged, or cannot be put into {folder}: {error}") from error
    return left_out


def _open_tar(archive: BinaryIO) -> tarfile.TarFile:
    start = archive.read(4)
    archive.seek(0)
    if start == _ZSTD:
        import zstandard

        return tarfile.open(fileobj=zstandard.ZstdDecompressor().stream_reader(archive), mode="r|")  # type: ignore[call-overload,no-any-return,unused-ignore]
    return tarfile.open(fileobj=archive, mode="r|*")


def _damages() -> tuple[type[Exception], ...]:
    """The errors of whatever reads archives."""
    plain = (tarfile.TarError, EOFError, OSError)
    try:
        import zstandard
    except ImportError:
        return plain
    return (*plain, zstandard.ZstdError)


def _fault(info: tarfile.TarInfo, name: str) -> str:
    if not info.isreg():
        return "is no plain file"
    return "" if _NAME.fullmatch(name) else "has a name that no job of fermigrid gives"


def _take(tar: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(info)
    if source is None:
        raise ValueError(f"{info.name} has no content")
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out:
        while part := source.read(1 << 20):
            out.write(part)


def is_tame(name: str) -> bool:
    """May a file that came back have this name?"""
    return _NAME.fullmatch(name) is not None


def plain_files(folder: Path) -> Iterable[os.DirEntry[str]]:
    """The plain files below a folder that came back, with tame names; links are not followed."""
    with os.scandir(folder) as found:
        for entry in sorted(found, key=lambda each: each.name):
            if entry.is_dir(follow_symlinks=False):
                yield from plain_files(Path(entry.path))
            elif entry.is_file(follow_symlinks=False) and is_tame(entry.name):
                yield entry
