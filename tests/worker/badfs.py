#!/usr/bin/env python3
"""badfs.py MOUNT SOURCE: a file system that behaves like a sick CVMFS or Lustre.

Serves SOURCE, readable and writable. A part of a path that is
`hang` never answers, `slowN` answers after N seconds, `eio`, `enotconn`, `estale` or `eacces` fail with that error;
in `fickle` all look-ups fail with EIO for FICKLE seconds after the first.
A file whose name begins with `readhang` or `readeio` opens, but never gives its content, or fails;
a file whose name contains `writehang` never takes any. All folders have the attributes that CVMFS hides in a listing.
Runs with any Python 3 that has mfusepy beside this file and libfuse.
"""
# ruff: noqa: ARG002, PTH101, PTH102, PTH104, PTH106, PTH108, PTH115, PTH208  (the methods are libfuse's, and pass paths on as they are)

from __future__ import annotations

import errno
import os
import sys
import threading
import time

import mfusepy

ATTRIBUTES = {
    "user.revision": "4711",
    "user.nioerr": os.environ.get("NIOERR", "0"),
    "user.proxy": "http://127.0.0.1:3128",
    "user.fqrn": "fermi.test",
}
ERRORS = {"eio": errno.EIO, "enotconn": errno.ENOTCONN, "estale": errno.ESTALE, "eacces": errno.EACCES}
FIELDS = ("st_mode", "st_size", "st_nlink", "st_uid", "st_gid", "st_ino")
fickle_until = 0.0


def hang() -> None:
    threading.Event().wait()


class BadFS(mfusepy.Operations):
    """Passes everything on to the folder `source`, but for paths that are to misbehave."""

    use_ns = True

    def __init__(self, source: str) -> None:
        self.source = source

    def real(self, path: str) -> str:
        """The path in the source, unless the path misbehaves here."""
        global fickle_until
        for part in path.split("/"):
            if part == "hang":
                hang()
            if part.startswith("slow"):
                time.sleep(float(part[4:]))
            if part == "fickle":
                fickle_until = fickle_until or time.monotonic() + float(os.environ.get("FICKLE", "1"))
                if time.monotonic() < fickle_until:
                    raise mfusepy.FuseOSError(errno.EIO)
            if part in ERRORS:
                raise mfusepy.FuseOSError(ERRORS[part])
        return self.source + path

    def getattr(self, path, fh=None):
        status = os.lstat(self.real(path))
        times = {name: getattr(status, f"{name}_ns") for name in ("st_atime", "st_mtime", "st_ctime")}
        return {name: getattr(status, name) for name in FIELDS} | times

    def readdir(self, path, fh):
        return [".", "..", *os.listdir(self.real(path))]

    def readlink(self, path):
        return os.readlink(self.real(path))

    def open(self, path, flags):
        return os.open(self.real(path), flags)

    def create(self, path, mode, fi=None):
        return os.open(self.real(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, path, size, offset, fh):
        name = path.rsplit("/", 1)[-1]
        if name.startswith("readhang"):
            hang()
        if name.startswith("readeio"):
            raise mfusepy.FuseOSError(errno.EIO)
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        if "writehang" in path.rsplit("/", 1)[-1]:
            hang()
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        os.truncate(self.real(path), length)

    def fsync(self, path, datasync, fh):
        os.fsync(fh)

    def release(self, path, fh):
        os.close(fh)

    def mkdir(self, path, mode):
        os.mkdir(self.real(path), mode)

    def rmdir(self, path):
        os.rmdir(self.real(path))

    def unlink(self, path):
        os.unlink(self.real(path))

    def rename(self, old, new):
        os.rename(self.real(old), self.real(new))

    def link(self, target, source):
        os.link(self.real(source), self.real(target))

    def chmod(self, path, mode):
        os.chmod(self.real(path), mode)

    def chown(self, path, uid, gid):
        os.chown(self.real(path), uid, gid)

    def utimens(self, path, times=None):
        os.utime(self.real(path), ns=times)

    def statfs(self, path):
        status = os.statvfs(self.source)
        return {name: getattr(status, name) for name in dir(status) if name.startswith("f_")}

    def listxattr(self, path):
        return []

    def getxattr(self, path, name, position=0):
        self.real(path)
        if "HANGING_ATTRIBUTES" in os.environ:
            hang()
        if name in ATTRIBUTES and "NO_ATTRIBUTES" not in os.environ:
            return ATTRIBUTES[name].encode()
        raise mfusepy.FuseOSError(errno.ENODATA)


if __name__ == "__main__":
    mount, source = sys.argv[1:]
    # no default_permissions: anybody may do anything, as the source lets the daemon
    mfusepy.FUSE(
        BadFS(source), mount, foreground=True, allow_other=True, fsname="badfs", nothreads="ONE_THREAD" in os.environ
    )
