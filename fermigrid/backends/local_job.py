"""A job on this machine, but for its processes: its slots, its scratch folder, its secrets, what it brings back."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from fermigrid.access import hand_over
from fermigrid.backends import Allowed, RenderedBatch
from fermigrid.backends.local_events import folder_of, say, try_lock
from fermigrid.errors import SubmissionRefused
from fermigrid.plainfile import kind_of, open_plain
from fermigrid.report import INFRASTRUCTURE

MEMORY = Path("/dev/shm")  # where the copies of secrets are, on a machine that has it


@dataclass(frozen=True)
class Options:
    """The site's settings: CPUs for jobs, starts after failures and the exit codes that call for one, s to KILL; and
    how many jobs of the batch may run, and start, at first."""

    slots: int
    allowed: Allowed
    retries: int
    again: frozenset[int]
    grace: float
    scratch: Path


def read_options(options: Mapping[str, object]) -> Options:
    """The settings with their defaults; what is None counts as not given. Raises SubmissionRefused."""

    def number(name: str, default: int, least: int) -> int:
        value = options.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SubmissionRefused(f"local: {name}: {value!r} is no number of {least} or more")
        return value

    scratch = options.get("scratch")
    return Options(
        slots=number("slots", len(os.sched_getaffinity(0)), 1),
        allowed=Allowed(number("places", 0, 1) or None, number("stay", 0, 0)),
        retries=number("retries", 1, 0),
        again=_codes(options.get("again")),
        grace=number("grace", 20, 0),
        scratch=_private(Path(str(scratch)) if scratch else Path(tempfile.gettempdir())),
    )


def _codes(written: object) -> frozenset[int]:
    """Exit codes; those that charge the machine where none are given, as in batches of an older fermigrid."""
    if written is None:
        return INFRASTRUCTURE
    if not isinstance(written, list) or not all(isinstance(code, int) for code in written):
        raise SubmissionRefused(f"local: again: {written!r} is no list of exit codes")
    return frozenset(written)


def _private(parent: Path) -> Path:
    """This user's own folder in a scratch area that others may write to as well."""
    folder = parent.absolute() / f"fermigrid-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        hint = "Set local: {scratch: FOLDER} in the site file, or TMPDIR, to a folder where you may write."
        raise SubmissionRefused(f"local: no scratch space: {error}", hint) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        hint = "Remove it, or set local: {scratch: FOLDER} in the site file."
        raise SubmissionRefused(f"local: {folder} is not a folder that belongs to you alone", hint)
    return folder


class Slots:
    """The slots of this machine: lock files in the scratch folder, shared by all batches of a user."""

    def __init__(self, scratch: Path, count: int) -> None:
        self._folder = scratch / "slots"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self.count = count

    def take(self, wanted: int) -> tuple[int, ...] | None:
        """That many slots (all, when more are wanted), as open locks; None when they are not free now."""
        wanted, taken = min(wanted, self.count), list[int]()
        for number in range(self.count):
            handle = try_lock(self._folder / str(number))
            if handle is not None:
                taken.append(handle)
            if len(taken) == wanted:
                return tuple(taken)
        self.give(taken)
        return None

    @staticmethod
    def give(taken: tuple[int, ...] | list[int]) -> None:
        """Free them; unlocked first, for keepers of other jobs have inherited the open files."""
        for handle in taken:
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)

    def in_use(self) -> int:
        """How many are taken now, by whichever batch."""
        tried = [try_lock(self._folder / str(number)) for number in range(self.count)]
        free = [handle for handle in tried if handle is not None]
        self.give(free)
        return self.count - len(free)


@dataclass(frozen=True)
class Item:
    """A line of items.txt: the job, the shard that holds its row, and the row's number from 1."""

    index: int
    name: str
    shard: str
    row: str


@dataclass(frozen=True)
class Execution:
    """A job that runs: its keeper's process id, its slots, its folder (the scratch folder and the log)."""

    item: Item
    start: int
    keeper: int
    slots: tuple[int, ...]
    folder: Path


def folder_prefix(batch_id: str, place: str) -> str:
    """How the names of the folders of a batch in the folder `place` begin: two run folders can have one batch id."""
    return f"{batch_id}.{zlib.crc32(place.encode()):08x}"


def folder_name(batch: RenderedBatch, index: int, start: int) -> str:
    """The name of an execution's folder."""
    return f"{folder_prefix(batch.batch_id, str(folder_of(batch).path))}.{index}.{start}"


def prepare(batch: RenderedBatch, item: Item, start: int, scratch: Path) -> Path:
    """Make the scratch folder with all that the worker needs: copies, so that no job can alter the plan."""
    folder = scratch / folder_name(batch, item.index, start)
    remove_job(folder)
    inside = folder / "scratch"
    inside.mkdir(mode=0o700, parents=True)
    shutil.copyfile(batch.plan_dir / "job.env", inside / "job.env")
    shutil.copyfile(batch.plan_dir / "shards" / item.shard, inside / item.shard)
    bundle = batch.plan_dir / "bundle.tar.gz"
    if bundle.exists():
        shutil.copyfile(bundle, inside / bundle.name)
    gathered = batch.work_dir / item.shard / "in" / item.name / "gathered"
    if gathered.is_dir():
        shutil.copytree(gathered, inside / gathered.name)
    sealed = batch.plan_dir / "secrets"
    for secret in sorted(sealed.iterdir()) if sealed.is_dir() else ():
        shutil.copyfile(secret, inside / secret.name)
    _make_secrets(folder)
    return folder


def _make_secrets(folder: Path) -> None:
    """The private place for the secrets of the job with this folder: in memory, else on the disk with its scratch."""
    memory = _memory()
    (folder / "secrets" if memory is None else memory / folder.name).mkdir(mode=0o700)


def _memory() -> Path | None:
    """This user's own folder in memory; None where there can be none."""
    try:
        return _private(MEMORY)
    except SubmissionRefused:
        return None


def secrets_of(folder: Path) -> Path:
    """Where the worker of the job with this folder is to put its copies of secrets."""
    memory, disk = _memory(), folder / "secrets"
    return disk if memory is None or disk.is_dir() else memory / folder.name


def remove_job(folder: Path) -> None:
    """Remove the folder of a job, its secrets first: whatever killed the worker and its guard, no secret is left."""
    remove_secrets(folder)
    remove_tree(folder)


def remove_secrets(folder: Path) -> None:
    """Remove the copies of secrets of the job with this folder."""
    if (memory := _memory()) is not None:
        remove_tree(memory / folder.name)
    remove_tree(folder / "secrets")


def remove_left(prefix: str, scratch: Path) -> None:
    """Remove what an earlier runner left of all jobs whose folders' names begin so."""
    for parent in filter(None, (_memory(), scratch)):
        for left in parent.glob(f"{prefix}.*"):
            remove_job(scratch / left.name)


def bring_back(run: Execution, work_dir: Path) -> None:
    """Outputs first, the log last, each whole or not at all. Raises OSError, such as for a full disk.

    The shard's folder was made before the submission. Where it is not, the run folder has been moved or removed, and
    nothing may be made in its old place.
    """
    target = work_dir / run.item.shard
    (target / "out").mkdir(exist_ok=True)
    out = run.folder / "scratch" / "out"
    for path in sorted(out.iterdir()) if out.is_dir() and not out.is_symlink() else ():
        if not path.name.startswith(f"{run.item.name}."):
            say(f"{run.item.name}: {path.name!r} in its out folder has no name of this job's: left behind")
        elif not stat.S_ISREG(path.lstat().st_mode):
            say(f"{run.item.name}: {path.name!r} in its out folder is {kind_of(path.lstat())}: left behind")
        else:
            _move(path, target / "out" / path.name)
    if not stat.S_ISREG((run.folder / "log").lstat().st_mode):
        raise OSError(errno.EINVAL, f"its log is {kind_of((run.folder / 'log').lstat())}")
    _move(run.folder / "log", target / f"{run.item.name}.log")


def _move(source: Path, target: Path) -> None:
    """Like rename, also to another file system. A file that has more names is copied: none reaches the target."""
    with open_plain(source) as stream:
        os.fsync(stream.fileno())
        several = os.fstat(stream.fileno()).st_nlink > 1
        try:
            if not several:
                source.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            several = True
        if several:
            _copy(stream, target)
            source.unlink()
    hand_over(target)


def _copy(stream: BufferedReader, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as to:
            shutil.copyfileobj(stream, to)
            to.flush()
            os.fsync(to.fileno())
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Remove a job's folder, also what the payload made unwritable. Nothing there: nothing done."""
    for path, names, _ in os.walk(folder):
        for name in names:
            below = Path(path, name)
            if not below.is_symlink():
                with contextlib.suppress(OSError):  # of another user: rmtree then leaves it
                    below.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        say(f"not all of {folder} could be removed")
