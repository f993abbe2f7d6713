"""A finished campaign as one file: ledger, plans, campaign, sites, logs and audit; and that file read again.

The file is a gzipped tar. Same content, same bytes: members in a fixed order, without times and owners. First the small
ones and the ledger, so that who only wants to know where the campaign stands reads no plan.

Whatever is killed when, the campaign is whole in one place at least: the file is written under another name, synced,
read back and compared, and only then renamed; the run folder gets its pointer to the file, and then loses the rest.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import IO, Any

from fermigrid.access import Trust, fault_of, team_of
from fermigrid.errors import AccessRefused, FermigridError, RunFolderError
from fermigrid.packed_logs import PackedLogs
from fermigrid.plainfile import open_plain, read_plain, real_folder
from fermigrid.planfolder import names_in
from fermigrid.records import BatchRecord
from fermigrid.runfolder import RunFolder

DIGESTS = "digests.json"  # the last member: the sha256 of every other
_ABOUT = "archive.json"  # the first
EXTRA = ("audit.json", "outputs.csv")  # what the audit said, and its list of all outputs
_OPENED = ("ledger.sqlite", "logs.sqlite", "campaign.yaml", "runs.csv", "bundle.tar.gz")
_LEFT = ("blocks", "sites", "bundle.tar.gz", "runs.csv", "campaign.yaml", "logs.sqlite", "logs.sqlite-wal",
         "logs.sqlite-shm", "ledger.sqlite-wal", "ledger.sqlite-shm", "ledger.sqlite")  # fmt: skip
_UNREAD = frozenset({"shards", "secrets", "worker.sh", "bundle.tar.gz"})  # of a plan: no verb that reads needs them
_PIECE, _AT_ONCE = 1 << 20, 500


@dataclass(frozen=True)
class About:
    """What an archive is of. `folder`: the run folder; `audit`: `clean`, or what was off and archived all the same."""

    campaign: str
    instance: str
    folder: str
    time: str
    who: str
    version: str
    audit: str
    state: str  # `12 done, 1 failed`
    jobs: int


@dataclass(frozen=True)
class Pointer:
    """What is left in the run folder: where its archive is, and the sha256 of that."""

    file: str
    sha256: str
    about: About


# --- made


def make_archive(folder: RunFolder, file: Path, about: About, extra: Mapping[str, Path]) -> Pointer:
    """Write the archive, verify it and give it its name. The caller holds the writer's lock, the databases are settled.

    `extra`: more members by name. Raises RunFolderError; the run folder is as it was then, and `file`, too.
    """
    draft = file.with_name(f".{file.name}.part")
    gid = team_of(folder.path)
    try:
        digests = _write(draft, folder, about, extra)
        if gid is not None:
            os.chown(draft, -1, gid)
            draft.chmod(0o640)
        if (found := _digests_in(draft)) != digests:
            raise RunFolderError(f"{draft} is not what was written: {_first_difference(digests, found)}")
        pointer = Pointer(str(file), _sha256(draft), about)
        draft.replace(file)
        _sync(file.parent)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise RunFolderError(f"the archive {file} cannot be written: {error}", "Nothing was removed.") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return pointer


def _write(draft: Path, folder: RunFolder, about: About, extra: Mapping[str, Path]) -> dict[str, str]:
    """The file, on disk; the sha256 of its members as they were read."""
    digests: dict[str, str] = {}
    draft.unlink(missing_ok=True)
    with (
        os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        _add_text(tar, _ABOUT, _json(asdict(about)), digests)
        for name, path in _members(folder, extra):
            with _opened(folder.path, name) if path is None else path.open("rb") as source:
                _add(tar, name, os.fstat(source.fileno()).st_size, source, digests)
        _add_text(tar, DIGESTS, _json(digests), {})
        tar.close()
        packed.close()
        raw.flush()
        os.fsync(raw.fileno())
    return digests


def _members(folder: RunFolder, extra: Mapping[str, Path]) -> Iterator[tuple[str, Path | None]]:
    """(name, file elsewhere) of what is to be kept, in order."""
    yield from ((name, None) for name in _OPENED if os.path.lexists(folder.path / name))
    yield from sorted(extra.items())
    yield from ((f"sites/{name}", None) for name in sorted(names_in(folder.sites)))
    for plan in sorted(folder.path.glob("blocks/*/*/plan")):
        above = plan.relative_to(folder.path).as_posix()
        yield from ((f"{above}/{name}", None) for name in sorted(names_in(plan)))


def _opened(top: Path, name: str) -> BufferedReader:
    *above, last = name.split("/")
    with real_folder(top, above) as inside:
        return open_plain(last, inside)


def _add_text(tar: tarfile.TarFile, name: str, data: bytes, digests: dict[str, str]) -> None:
    _add(tar, name, len(data), io.BytesIO(data), digests)


def _add(tar: tarfile.TarFile, name: str, size: int, source: IO[bytes], digests: dict[str, str]) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    reading = _Reading(source)
    tar.addfile(member, reading)
    digests[name] = reading.digest.hexdigest()


class _Reading:
    """A file that is read, with the digest of what was read of it."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self.digest = source, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        return data


def _digests_in(file: Path) -> dict[str, str]:
    """The sha256 of each member of an archive, read back to its end. Raises OSError, EOFError, tarfile.TarError."""
    found = {}
    with tarfile.open(file, "r|gz") as tar:
        for member in tar:
            source = tar.extractfile(member)
            if source is not None and member.name != DIGESTS:
                found[member.name] = _digest_of(source)
    return found


def _digest_of(source: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while piece := source.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def _first_difference(written: Mapping[str, str], found: Mapping[str, str]) -> str:
    names = sorted(name for name in {*written, *found} if written.get(name) != found.get(name))
    return f"{names[0]} (and {len(names) - 1} more)" if len(names) > 1 else names[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def pack_left_logs(folder: RunFolder, batches: Iterable[BatchRecord]) -> None:
    """The logs that were left whole, those of failures, beside the packed ones. Raises LedgerError, RunFolderError."""
    try:
        with closing(PackedLogs(folder.logs)) as packed:
            for batch in batches:
                logs = _left_logs(folder.batch(batch.block, batch.step, batch.generation) / "work")
                while some := list(islice(logs, _AT_ONCE)):
                    packed.pack((path.stem, batch.id, read_plain(path)) for path in some)
            packed.settle_file()
    except OSError as error:
        raise RunFolderError(f"the logs in {folder.path} cannot be read: {error}") from error


def _left_logs(work: Path) -> Iterator[Path]:
    if not work.is_dir():
        return
    with os.scandir(work) as shards:
        for shard in shards:
            if shard.is_dir(follow_symlinks=False):
                yield from sorted(
                    path for path in Path(shard).glob("*.log") if path.is_file() and not path.is_symlink()
                )


# --- the rest goes


def point(folder: RunFolder, pointer: Pointer) -> None:
    """From here on the campaign is in its archive. Raises RunFolderError."""
    draft = folder.pointer.with_suffix(".draft")
    try:
        with draft.open("wb") as file:
            file.write(_json(asdict(pointer)))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(folder.pointer)
        _sync(folder.path)
    except OSError as error:
        raise RunFolderError(f"{folder.pointer} cannot be written: {error.strerror}", "Nothing was removed.") from error


def remove_rest(folder: RunFolder, pointer: Pointer) -> None:
    """Remove what the archive has from the run folder; outputs, and what is not fermigrid's, stay. May be cut short and
    done again. Raises RunFolderError: also when the archive is not the one that was verified."""
    try:
        if _sha256(Path(pointer.file)) != pointer.sha256:
            raise RunFolderError(
                f"{pointer.file} is not the archive that was made of {folder.path}: nothing is removed"
            )
        for name in _LEFT:
            path = folder.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        text = f"not all that was archived could be removed from {folder.path}: {error.filename}: {error.strerror}"
        raise RunFolderError(text, "The same command again goes on.") from error


def refuse_place(file: Path, folder: RunFolder, instance: str) -> None:
    """Raises RunFolderError for an archive's name that is taken, or that lies in what will be removed or audited."""
    inside = Path(os.path.realpath(file))
    if inside.is_relative_to(os.path.realpath(folder.path)) and inside.parent != Path(os.path.realpath(folder.path)):
        raise RunFolderError(f"{file} lies in a folder of the campaign's run folder", "Choose a place outside.")
    if not file.parent.is_dir():
        raise RunFolderError(f"there is no folder {file.parent}")
    if os.path.lexists(file):
        with suppress(FermigridError):
            if about_of(file).instance == instance:
                return  # made before, by a fermigrid that was killed then
        raise RunFolderError(f"{file} exists already", "Choose another name: nothing is overwritten.")


# --- read again


def read_pointer(folder: RunFolder) -> Pointer | None:
    """Where a run folder was archived to; None: it was not. Raises RunFolderError for what cannot be read."""
    try:
        data = json.loads(folder.pointer.read_bytes())
        return Pointer(str(data["file"]), str(data["sha256"]), About(**data["about"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{folder.pointer} cannot be read: {error}") from error


def archive_of(folder: RunFolder) -> Path | None:
    """The archive in which a campaign is: what was named is one itself, or points to one. Raises RunFolderError."""
    if folder.path.is_file():
        return folder.path
    pointer = read_pointer(folder)
    if pointer is None:
        return None
    file = Path(pointer.file)
    if not file.is_file():
        text = f"{pointer.about.campaign} was archived to {file} on {pointer.about.time}, and that is not there"
        raise RunFolderError(text, "Has it been moved? Give the file in place of the campaign's name.")
    return file


def about_of(file: Path) -> About:
    """What an archive is of. Raises RunFolderError for a file that is none."""
    try:
        with tarfile.open(file, "r|gz") as tar:
            first = tar.next()
            source = tar.extractfile(first) if first is not None and first.name == _ABOUT else None
            if source is None:
                raise RunFolderError(f"{file} is no archive of a campaign")
            return About(**json.loads(source.read()))
    except (OSError, EOFError, tarfile.TarError, ValueError, TypeError) as error:
        raise RunFolderError(f"{file} is no archive of a campaign: {error}") from error


def check_archive(file: Path, trust: Trust) -> None:
    """Refuse an archive that others can write or that is somebody else's, but for a team's. Raises AccessRefused."""
    try:
        found = file.stat()
        of_team = found.st_gid in trust.groups and found.st_mode & stat.S_IRGRP
        fault = fault_of(file, trust.with_owner(found.st_uid) if of_team else trust)
    except OSError as error:
        raise AccessRefused(f"the archive {file} cannot be used: {error.strerror}") from error
    if fault:
        raise AccessRefused(f"the archive {file}: {fault.words}", f"{fault.fix}.")


@contextmanager
def unpacked(file: Path) -> Iterator[RunFolder]:
    """The run folder that an archive was made of, without what only a submission needs, while it is read.

    Raises RunFolderError for a file that is no archive, or is damaged.
    """
    about = about_of(file)
    with tempfile.TemporaryDirectory(prefix="fermigrid-archive-") as folder:
        try:
            with gzip.open(file) as packed, tarfile.open(fileobj=packed, mode="r|") as tar:
                found = {member.name: digest for member in tar if (digest := _unpack(tar, member, Path(folder)))}
                while packed.read(_PIECE):  # to its end, where the checksum of all of it is
                    pass
            written = json.loads(Path(folder, DIGESTS).read_bytes())
            if damaged := sorted(name for name, digest in found.items() if digest != written.get(name)):
                raise tarfile.TarError(f"{damaged[0]} is damaged")
        except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
            raise RunFolderError(f"the archive {file} cannot be read: {error}") from error
        yield RunFolder(Path(folder), file, Path(about.folder))


def _unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> str:
    """Unpack a member that is wanted; its sha256, "" for one that is not, and for the list of these."""
    parts = member.name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise tarfile.TarError(f"{member.name!r} is no name of a member")
    if member.name in EXTRA or (parts[0] == "blocks" and _UNREAD & set(parts[4:])):
        return ""
    source = tar.extractfile(member)
    if source is None:
        raise tarfile.TarError(f"{member.name} is no file")
    reading = _Reading(source)
    path = folder.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        while piece := reading.read(_PIECE):
            file.write(piece)
    return "" if member.name == DIGESTS else reading.digest.hexdigest()


def summary(pointer: Pointer) -> Mapping[str, Any]:
    """An archived campaign for the list of all: jobs, state, run folder."""
    about = pointer.about
    return {"jobs": about.jobs, "state": f"archived to {pointer.file}: {about.state}", "folder": about.folder}
