"""The canary: marked values are planted where secrets are, and looked for everywhere else, in every disguise.

A value is a word that nobody else writes, with a number that tells where it was planted, and characters around it that
need quoting. What is looked for is the word alone, so that no quoting hides it: plain, reversed, in UTF-16, base64 (at
each of its three alignments), hexadecimal, URL-encoded; in files, their names, links and attributes; in what is
compressed or archived; in every cell of a database and its free pages. A search that finds nothing proves something
only where it would have found: `plant_controls` and `Seen.proves` hold each place to that.
"""

from __future__ import annotations

import base64
import bz2
import io
import lzma
import os
import random
import re
import shutil
import sqlite3
import stat
import tarfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_LETTERS = "abcdefghjkmnpqrstuvwxyz"
_PIECE, _OVERLAP = 4 << 20, 4096  # bytes of a large file that are looked at together
_UNPACKED = 256 << 20  # no archive of ours is larger
_DEPTH = 5  # a log in a gzip file in a tar file in a database


@dataclass(frozen=True)
class Found:
    """A canary where none should be. `how`: the disguise, and the archives that it was in."""

    place: str
    name: str
    how: str
    near: str

    def __str__(self) -> str:
        return f"{self.name} in {self.place} ({self.how}): {self.near}"


class Canaries:
    """The marked values of one test: `value(name)` is always the same for a name."""

    def __init__(self, seed: str = "") -> None:
        dice = random.Random(seed or os.urandom(16))
        self.word = "".join(dice.choices(_LETTERS, k=18))
        self.names: list[str] = []
        self._needles = [("", disguise, needle) for disguise, needle in _disguises(self.word.encode())]

    def watch(self, name: str, secret: bytes) -> None:
        """Looks for something that a test cannot choose: some bytes of a key, of a token that others made."""
        assert len(secret) >= 16, f"{name} is too short to be told from other bytes"
        kinds = ("plain", "reversed", "hexadecimal", "HEXADECIMAL", "base64", "base64url")
        needles = ((disguise, needle) for disguise, needle in _disguises(secret) if disguise.split(" at ")[0] in kinds)
        self._needles += [(name, disguise, needle) for disguise, needle in needles]

    def core(self, name: str) -> str:
        """What is planted without the characters that need quoting, where none can be (a token, a variable)."""
        if name not in self.names:
            self.names.append(name)
        return f"{self.word}{self.names.index(name):03d}"

    def value(self, name: str) -> str:
        """What is planted."""
        return f"k&n%{self.core(name)}=/+ '\"$(é"

    def hits(self, data: bytes) -> Iterator[tuple[str, str, int]]:
        """(what is watched or "", disguise, offset) of what is in these bytes as they are."""
        for name, disguise, needle in self._needles:
            at = data.find(needle)
            while at >= 0:
                yield name, disguise, at
                at = data.find(needle, at + 1)

    def search(self, data: bytes, place: str, how: str = "", depth: int = 0) -> list[Found]:
        """Every canary in the bytes, and in what they unpack to."""
        found = self._plain(data, place, how)
        joined = data.translate(None, b"\r\n\t ") if b"\n" in data else b""
        found += [each for each in self._plain(joined, place, f"{how}in lines, ") if not found or "base" in each.how]
        if depth < _DEPTH:
            for inner, content in _unpack(data):
                found += self.search(content, place, f"{how}{inner} > ", depth + 1)
        return found

    def _plain(self, data: bytes, place: str, how: str) -> list[Found]:
        return [
            Found(place, name or self._name(data, at, kind), f"{how}{kind}", repr(data[max(0, at - 90) : at + 60]))
            for name, kind, at in self.hits(data)
        ]

    def _name(self, data: bytes, at: int, disguise: str) -> str:
        digits = data[at + len(self.word) : at + len(self.word) + 3]
        if disguise == "plain" and digits.isdigit() and int(digits) < len(self.names):
            return self.names[int(digits)]
        return "a canary"


def _disguises(word: bytes) -> Iterator[tuple[str, bytes]]:
    yield "plain", word
    if word.isalnum():
        yield "upper case", word.upper()
    yield "reversed", word[::-1]
    yield "UTF-16", b"".join(bytes((byte, 0)) for byte in word)
    yield "hexadecimal", word.hex().encode()
    yield "HEXADECIMAL", word.hex().upper().encode()
    yield "hexadecimal with gaps", " ".join(f"{byte:02x}" for byte in word).encode()
    yield "URL-encoded", "".join(f"%{byte:02X}" for byte in word).encode()
    yield "url-encoded", "".join(f"%{byte:02x}" for byte in word).encode()
    yield "octal escapes", "".join(f"\\{byte:03o}" for byte in word).encode()
    yield "hexadecimal escapes", "".join(f"\\x{byte:02x}" for byte in word).encode()
    for shift in range(3):  # what stands before moves the letters; those at the ends depend on the neighbours
        whole = base64.b64encode(bytes(shift) + word)
        first, last = -(-shift * 8 // 6), (shift + len(word)) * 8 // 6
        yield f"base64 at {shift}", whole[first:last]
        if (web := whole[first:last].translate(bytes.maketrans(b"+/", b"-_"))) != whole[first:last]:
            yield f"base64url at {shift}", web
    for shift in range(5):
        whole = base64.b32encode(bytes(shift) + word)
        first, last = -(-shift * 8 // 5), (shift + len(word)) * 8 // 5
        yield f"base32 at {shift}", whole[first:last]


# --- what is in what ---------------------------------------------------------------------------------------


def _unpack(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What is compressed or archived in the bytes, wherever it begins: a database's pages have it in their middle."""
    view = memoryview(data)
    for at in _starts(data, b"\x1f\x8b\x08"):
        yield from _expanded("gzip", zlib.decompressobj(31), view[at:])
    for magic in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"):
        for at in _starts(data, magic):
            yield from _expanded("zlib", zlib.decompressobj(), view[at:])
    for at in _starts(data, b"BZh"):
        yield from _expanded("bzip2", bz2.BZ2Decompressor(), view[at:])
    for at in _starts(data, b"\xfd7zXZ\0"):
        yield from _expanded("xz", lzma.LZMADecompressor(), view[at:])
    if b"PK\x03\x04" in data[:4096]:
        with suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield f"zip {name}", name.encode() + b"\n" + archive.read(name)
    if data[257:262] == b"ustar":
        with suppress(tarfile.TarError, OSError), tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                yield f"tar {member.name}", member.name.encode() + b"\n" + (content.read() if content else b"")


def _starts(data: bytes, magic: bytes) -> Iterator[int]:
    at = data.find(magic)
    while at >= 0:
        yield at
        at = data.find(magic, at + 1)


def _expanded(what: str, engine: Any, data: memoryview) -> Iterator[tuple[str, bytes]]:
    """As far as it goes: what is cut short or overwritten at its end still tells its beginning."""
    content = bytearray()
    for at in range(0, len(data), 65536):
        try:
            content += engine.decompress(data[at : at + 65536])
        except (zlib.error, OSError, EOFError, lzma.LZMAError):
            break
        if engine.eof or len(content) > _UNPACKED:
            break
    if content:
        yield what, bytes(content)


def _cells(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every value of a SQLite database, with what its write-ahead log has."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        database.text_factory = bytes
        tables = [row[0].decode() for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in database.execute(f'SELECT * FROM "{table}"'):
                yield table, b"\n".join(v if isinstance(v, bytes) else str(v).encode() for v in row)


# --- places ------------------------------------------------------------------------------------------------


def search_file(canaries: Canaries, path: Path) -> list[Found]:
    """A file's name, where its link leads, its attributes and content; a file that has gone has nothing."""
    place = str(path)
    found = canaries.search(os.fsencode(path.name), f"the name of {place}", depth=_DEPTH)
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return found + canaries.search(os.fsencode(path.readlink()), f"the link {place}", depth=_DEPTH)
        with suppress(OSError):
            for name in os.listxattr(path, follow_symlinks=False):
                value = os.getxattr(path, name, follow_symlinks=False)
                found += canaries.search(name.encode() + b"=" + value, f"an attribute of {place}")
        if not stat.S_ISREG(mode):
            return found
        found += _search_content(canaries, path)
    except FileNotFoundError:
        return found
    return found


def _search_content(canaries: Canaries, path: Path) -> list[Found]:
    found = list[Found]()
    with path.open("rb") as file:
        data = file.read(_PIECE)
        if data.startswith(b"SQLite format 3\0"):
            with suppress(sqlite3.DatabaseError):
                for table, cell in _cells(path):
                    found += canaries.search(cell, str(path), f"table {table} > ", 1)
        while data:
            found += canaries.search(data, str(path))
            more = file.read(_PIECE - _OVERLAP)
            data = data[-_OVERLAP:] + more if more else b""
    return found


def files_below(places: Iterable[Path]) -> Iterator[Path]:
    """Every file, link and folder below the places, and the places themselves."""
    for place in places:
        if not place.is_dir() or place.is_symlink():
            if os.path.lexists(place):
                yield place
            continue
        yield place
        for folder, folders, names in os.walk(place):
            for name in (*folders, *names):
                path = Path(folder, name)
                if name in names or path.is_symlink() or name in folders:
                    yield path


def search_places(
    canaries: Canaries, places: Iterable[Path], allowed: Collection[Path] = (), since: float = 0.0
) -> list[Found]:
    """Every canary below the places but in the files (and below the folders) `allowed`. `since`: files that were not
    changed after that time (of time.time()) are others'."""
    found = list[Found]()
    for path in files_below(places):
        if any(path == own or own in path.parents for own in allowed):
            continue
        try:
            if since and path.lstat().st_mtime < since and path.lstat().st_ctime < since:
                continue
        except FileNotFoundError:
            continue
        found += search_file(canaries, path)
    return found


def search_words(canaries: Canaries, **texts: str | bytes) -> list[Found]:
    """Every canary in what was printed."""
    return [
        each
        for place, text in texts.items()
        for each in canaries.search(text.encode() if isinstance(text, str) else text, place)
    ]


def shared_places() -> list[Path]:
    """Where programs leave things on a machine."""
    return [
        Path(name) for name in ("/dev/shm", "/dev/mqueue", "/run/lock", "/var/crash", "/var/tmp") if Path(name).is_dir()
    ]


def search_shared(canaries: Canaries, since: float, allowed: Collection[Path] = ()) -> list[Found]:
    """What lies about on the machine, changed since then: /tmp but for the folders of test runs, and the others."""
    own = [
        path
        for path in Path("/tmp").iterdir()
        if not path.name.startswith(("pytest-of-", "bash_jobs", "fermigrid-pool"))
    ]
    loose = [
        path for path in own if not path.is_dir() or path.name.startswith(("fermigrid", "condor", "tmp", "apptainer"))
    ]
    return search_places(canaries, [*shared_places(), *loose], allowed, since)


CONTROLS: dict[str, Callable[[Path, str], object]] = {
    "plain": lambda path, value: path.write_text(f"x{value}y"),
    "name": lambda path, value: path.with_name(re.sub(r"\W", "", value)).touch(),
    "link": lambda path, value: path.symlink_to(f"/nowhere/{value.replace('/', '')}"),
    "base64": lambda path, value: path.write_bytes(base64.encodebytes(f"  {value}".encode())),
    "hex": lambda path, value: path.write_text(value.encode().hex()),
    "reversed": lambda path, value: path.write_text(f"a\n{value[::-1]}\nb"),
    "utf16": lambda path, value: path.write_bytes(value.encode("utf-16")),
    "gzip": lambda path, value: path.write_bytes(b"before" + _gzip(value.encode())),
    "tar": lambda path, value: path.write_bytes(_gzip(_tar("log.gz", _gzip(value.encode())))),
    "sqlite": lambda path, value: _database(path, value, keep=True),
    "free pages": lambda path, value: _database(path, value, keep=False),
    "far": lambda path, value: path.write_bytes(bytes(_PIECE - 10) + value.encode()),
}


def plant_controls(canaries: Canaries, folder: Path) -> dict[str, Path]:
    """A canary in each disguise, in a folder that is then searched: what was planted how, and where. SQLite cannot be
    led through /proc to another's files."""
    places = {}
    for name, plant in CONTROLS.items():
        if folder.is_relative_to("/proc") and name in ("sqlite", "free pages"):
            continue
        place = folder / f"control-{name.replace(' ', '-')}"
        place.mkdir(parents=True)
        plant(place / "file", canaries.value(f"control {name}"))
        places[name] = place
    return places


def prove_search(canaries: Canaries, folder: Path) -> None:
    """The search finds in this folder whatever is planted in it; nothing of it stays."""
    places = plant_controls(canaries, folder)
    try:
        missed = [name for name, place in places.items() if not search_places(canaries, [place])]
        assert missed == [], f"the search is blind in {folder}: {missed}"
    finally:
        for place in places.values():
            shutil.rmtree(place)


def _gzip(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=31)
    return engine.compress(data) + engine.flush()


def _tar(name: str, data: bytes) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return plain.getvalue()


def _database(path: Path, value: str, *, keep: bool) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA secure_delete = OFF")
        database.execute("CREATE TABLE t (a TEXT, b BLOB)")
        packed = zlib.compress((value + " log line" * 99).encode())
        database.execute("INSERT INTO t VALUES ('x', ?)", (packed if keep else value.encode() + bytes(9000),))
        database.commit()
        if not keep:
            database.execute("DELETE FROM t")
            database.commit()


# --- processes ---------------------------------------------------------------------------------------------

_WRITE = re.compile(rb"^\d+ +(?:p?writev?(?:64)?|sendto|sendmm?sg)\(\d+<((?:[^>\\]|->|\\.)*)>")
_EXECUTE = re.compile(rb"^\d+ +execve(?:at)?\(.*?, (\[.*?\]), \[", re.S)


@dataclass
class Trace:
    """Every program that was started below a command, with its arguments and environment, however short it lived, and
    every byte that any of them wrote, with the file or socket it went to. strace writes it to `folder`."""

    folder: Path
    count: int = 0

    def prefix(self) -> list[str]:
        """What goes before a command."""
        self.count += 1
        return [*_strace(), "--seccomp-bpf", "-o", str(self.folder / f"trace.{self.count}")]

    def lines(self) -> Iterator[bytes]:
        """Each call of the system."""
        for path in sorted(self.folder.glob("trace.*")):
            yield from path.read_bytes().splitlines()

    def started(self) -> list[bytes]:
        """The programs that were started: the line of each."""
        return [line for line in self.lines() if b" execve" in line and b"= 0" in line[-30:]]

    def search(self, canaries: Canaries, allowed: Callable[[bytes], bool] = lambda _: False) -> list[Found]:
        """Every canary in arguments, environments and what was written, but for the lines that are `allowed`."""
        found = list[Found]()
        for line in self.lines():
            if any(True for _ in canaries.hits(line)) and not allowed(line):
                found += canaries.search(line, "a system call", depth=_DEPTH)
        return found


def _strace() -> list[str]:
    if shutil.which("strace") is None:
        pytest.fail("this test needs strace: apt-get install strace")
    calls = "execve,execveat,write,writev,pwrite64,pwritev,sendto,sendmsg,sendmmsg,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mkdir,mkdirat,setxattr"
    return ["strace", "-f", "-qq", "-y", "-v", "-s", "1000000", "-e", f"trace={calls}", "-e", "signal=none"]


def attach(pid: int, file: Path) -> list[str]:
    """The command that traces a running process and all that it starts."""
    return [*_strace(), "-o", str(file), "-p", str(pid)]


def target_of(line: bytes) -> str | None:
    """Where a write went: a path, `pipe:[...]`, `socket:[...]`; None when the line is no write."""
    match = _WRITE.match(line)
    return match[1].decode(errors="replace") if match else None


def arguments_of(line: bytes) -> bytes | None:
    """The arguments of a program that was started, without its environment; None when the line is another call."""
    match = _EXECUTE.match(line)
    return match[1] if match else None


class Sampler(threading.Thread):
    """Looks at the arguments and the environment of every process of the machine, all the time. What lives for less
    than a look is Trace's affair; this one sees what strace was not asked to follow: daemons and what they start."""

    def __init__(self, canaries: Canaries, allowed: Callable[[int, bytes], bool] = lambda _, __: False) -> None:
        super().__init__(name="canary-sampler", daemon=True)
        self.canaries, self.allowed = canaries, allowed
        self.found: dict[tuple[int, str, str], Found] = {}
        self.looks = 0
        self._over = threading.Event()

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(10)

    def run(self) -> None:
        """Until the `with` ends."""
        own = os.getpid()
        while not self._over.is_set():
            for folder in Path("/proc").iterdir():
                if folder.name.isdigit() and int(folder.name) != own:
                    self._look(int(folder.name))
            self.looks += 1
            time.sleep(0.002)

    def _look(self, pid: int) -> None:
        for what in ("cmdline", "environ"):
            try:
                data = Path(f"/proc/{pid}/{what}").read_bytes()
            except OSError:
                continue  # it has ended
            for each in self.canaries.search(data, f"{what} of {pid}", depth=_DEPTH) if data else ():
                if not self.allowed(pid, data):
                    words = data.replace(b"\0", b" ")[:200] if what == "cmdline" else each.near.encode()
                    self.found[pid, what, each.name] = Found(
                        f"{what} of process {pid}", each.name, each.how, str(words)
                    )
