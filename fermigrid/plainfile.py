"""Files and folders taken for what they are: no symbolic link is followed, no pipe waited for, no device read.

What came back from a job, or lies where somebody else may write, can be anything. It is opened here first and looked at
then, so that nothing can take its place in between. All raise OSError; its words say what was found.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TextIO

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
}


def kind_of(found: os.stat_result) -> str:
    """What it is, in words."""
    return _KINDS.get(stat.S_IFMT(found.st_mode), "something unknown")


def open_plain(name: str | Path, folder: int | None = None) -> BufferedReader:
    """A plain file, open for reading; `folder` is the open folder that a relative name starts from."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        handle = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket, or a pipe that nobody reads
            raise _unfit(os.lstat(name, dir_fd=folder), "file", name) from error
        raise
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise _unfit(found, "file", name)
    return os.fdopen(handle, "rb")


def read_plain(name: str | Path, folder: int | None = None) -> bytes:
    """The content of a plain file."""
    with open_plain(name, folder) as file:
        return file.read()


def write_new(path: Path, data: bytes, mode: int = 0o666) -> None:
    """A file that was not there before, with this content; the umask takes from its `mode`."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file to be written, that gets its name when it is whole and on disk; what had the name before goes then.

    It is for its owner alone, unless a file that it takes the place of was for others, too.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", newline="", encoding="utf-8") as file:
            with suppress(OSError):  # none is there, or it is another's
                before = path.lstat()
                if stat.S_ISREG(before.st_mode) and before.st_uid == os.geteuid():
                    os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def real_folder(path: Path, below: Sequence[str] = (), *, make: bool = False) -> Iterator[int]:
    """The folder `path`/`below`..., open; neither it nor a folder of `below` is a link. `make`: those of `below`."""
    handle = _open_folder(path, None)
    try:
        for name in below:
            if make:
                _make_folder(name, handle)
            inner = _open_folder(name, handle)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def _make_folder(name: str, folder: int) -> None:
    try:
        os.mkdir(name, dir_fd=folder)
    except FileExistsError:
        return


def _open_folder(name: str | Path, folder: int | None) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _unfit(os.lstat(name, dir_fd=folder), "folder", name) from error
        raise


def _unfit(found: os.stat_result, wanted: str, name: str | Path) -> OSError:
    return OSError(errno.EINVAL, f"it is {kind_of(found)}, no plain {wanted}", str(name))
