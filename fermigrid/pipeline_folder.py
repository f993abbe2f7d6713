"""The job folder of a pipeline job on disk: its tries, the archive of earlier ones, and how a cluster leads back to it.

    JOB FOLDER/  script  pipeline_wrapper  ...        what the pipeline's server put there
                 pipeline_summary  pipeline_env       of the newest try, and its log, JOBCONTROL_LOGFILE
                 .fermigrid/<process instance>/       the run folder of a try; result.json when all is taken in
                 .fermigrid/lock                      held by the one `pipeline submit` that is at work here
                 archive/<n>/                         an earlier try: the same names, with its .fermigrid/
                 archive/.new/                        the archive that is being made

Files are renamed, never copied or written over, so that a kill at any point loses nothing: what is in `archive/.new` by
then gets its number with the rest, the next time.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fermigrid.access import PRIVATE, check_run_folder, masked, trust_of, usual_files
from fermigrid.errors import LedgerBusy, NotFound, RunFolderError
from fermigrid.ledger_file import writing
from fermigrid.plainfile import real_folder
from fermigrid.registry import check_registry, registry_path
from fermigrid.runfolder import RunFolder, check_path

OURS = ".fermigrid"
SUMMARY, SAVED_ENVIRONMENT, LOG = "pipeline_summary", "pipeline_env", "logFile.txt"
RESULT = "result.json"
_NUMBER = re.compile(r"[0-9]{1,18}\Z")


@dataclass(frozen=True)
class JobFolder:
    """The folder in which the pipeline's job control runs `fermigrid pipeline submit`."""

    path: Path

    def run(self, instance: str) -> RunFolder:
        """The run folder of the try with this process instance."""
        return RunFolder(self.path / OURS / instance)

    def tries(self) -> list[RunFolder]:
        """The run folders that are not archived, in the order of their process instances."""
        ours = self.path / OURS
        names = [path for path in ours.iterdir() if _NUMBER.match(path.name)] if ours.is_dir() else []
        return [RunFolder(path) for path in sorted(names, key=lambda path: int(path.name))]

    def begun(self) -> list[RunFolder]:
        """Every try that was begun, those that are archived, too."""
        archived = sorted((self.path / "archive").glob(f"*/{OURS}/[0-9]*"))
        return [run for run in (*map(RunFolder, archived), *self.tries()) if run.ledger.is_file()]

    def find(self, instance: str) -> RunFolder | None:
        """The run folder of a try that was begun, wherever it is by now; the job control archives folders, too."""
        archived = sorted((self.path / "archive").glob(f"*/{OURS}/{instance}"))
        for run in (self.run(instance), *map(RunFolder, archived)):
            if run.ledger.is_file():
                return run
        return None

    def bring_back(self, run: RunFolder) -> RunFolder:
        """A try that the job control has archived while its job was under way, back where its job knows it."""
        here = self.run(run.path.name)
        if run != here:
            here.path.parent.mkdir(mode=0o700, exist_ok=True)
            run.path.rename(here.path)
        return here

    @contextmanager
    def locked(self, limit_s: float) -> Iterator[None]:
        """Be the only `pipeline submit` here; another one is waited for. Raises LedgerBusy after `limit_s`."""
        ours = self.path / OURS
        try:
            ours.mkdir(mode=0o700, exist_ok=True)
            check_run_folder(ours, trust_of({}), way=False)  # the job folder may be the server's, or a group's
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.fdopen(os.open(ours / "lock", flags, 0o666), "a+")
        except OSError as error:
            raise RunFolderError(f"{ours} cannot be written: {error.strerror}") from error
        with file:
            deadline = time.monotonic() + limit_s
            while not _try_lock(file.fileno()):
                if time.monotonic() > deadline:
                    file.seek(0)
                    other = file.read().strip() or "?"
                    text = f"another fermigrid pipeline submit (process {other}) is at work in {self.path}"
                    raise LedgerBusy(text, "The same command again, later, prints the cluster that it got.")
                time.sleep(0.05)
            with suppress(OSError):  # a full disk: the number is for people only, and the lock holds without it
                os.truncate(file.fileno(), 0)
                os.write(file.fileno(), f"{os.getpid()}\n".encode())
            yield

    def archive(self, names: Sequence[str], but: str) -> Path | None:
        """Put the earlier tries' files and run folders into archive/<n>; None when there were none to put there.
        The try with the process instance `but` stays: its submission was cut short when it had just begun.

        The caller holds the lock, and knows that none of those tries is alive.
        """
        draft = self.path / "archive" / ".new"
        runs = [run.path for run in self.tries() if run.path.name != but]
        files = [path for name in names if os.path.lexists(path := self.path / name)]
        if not (runs or files or draft.is_dir()):
            return None
        try:
            with usual_files():  # for whoever reads the job folder; the run folders in it stay private
                for folder in (draft.parent, draft, draft / OURS):
                    folder.mkdir(exist_ok=True)
                    with real_folder(folder):
                        pass
            for path in files:
                path.rename(_free(draft / path.name))
            for path in runs:
                path.rename(_free(draft / OURS / path.name))
            return _number(draft)
        except OSError as error:
            raise RunFolderError(f"the earlier try in {self.path} cannot be archived: {error}") from error

    def saved_environment(self) -> str:
        """The text of `pipeline_env`; when a submission was cut short, it is in the newest archive by then."""
        archive = self.path / "archive"
        numbers = [int(path.name) for path in archive.glob("[0-9]*") if _NUMBER.match(path.name)]
        for folder in (self.path, archive / ".new", archive / str(max(numbers, default=0))):
            if (file := folder / SAVED_ENVIRONMENT).is_file():
                return file.read_text(encoding="utf-8", errors="replace")
        return ""


def is_folder(path: Path) -> bool:
    """Is it a folder, as far as we may see?"""
    try:
        return path.is_dir()
    except PermissionError:
        return False


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _free(path: Path) -> Path:
    """This name, or with a number behind it when it is taken."""
    number, free = 0, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free


def _number(draft: Path) -> Path:
    taken = [int(path.name) for path in draft.parent.iterdir() if _NUMBER.match(path.name)]
    final = draft.with_name(str(max(taken, default=0) + 1))
    draft.rename(final)
    return final


def locate_folder(environment: Mapping[str, str], here: Path) -> JobFolder:
    """The job folder: where we are, by the name that the job control has for it, which the nodes may know it by.

    `here` is free of symbolic links, and so perhaps a name that only this machine has (automounts). Raises
    RunFolderError for a path that a batch system cannot be given.
    """
    for name in (Path(environment.get("JOBCONTROL_LOGFILE", "")).parent, Path(environment.get("PWD", ""))):
        if name.is_absolute() and name.is_dir() and name.samefile(here):
            here = name
            break
    try:
        os.scandir(here).close()
    except OSError as error:
        text = f"the job folder {here} cannot be read: {error.strerror}"
        raise RunFolderError(text, "Nothing was changed. Its owner must be, or let in, who submits.") from error
    try:
        return JobFolder(check_path(here))
    except RunFolderError as error:
        raise RunFolderError(
            str(error), "The run folder is in the job folder: the job folder needs another name."
        ) from error


@contextmanager
def writing_patiently(path: Path, limit_s: float) -> Iterator[None]:
    """Be the one writer of the ledger at `path`; wait for another one. Raises LedgerBusy after `limit_s`."""
    deadline = time.monotonic() + limit_s
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(writing(path))
                break
            except LedgerBusy:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield


# --- cluster -> job folder


@dataclass(frozen=True)
class Entry:
    """A submitted try: the number that was printed, its process instance, its job folder."""

    cluster: str
    instance: str
    folder: JobFolder

    @property
    def name(self) -> str:
        """As the registry's links are named."""
        return f"{self.cluster}~{self.instance}~{sha256(str(self.folder.path).encode()).hexdigest()[:8]}"


class Clusters:
    """What was submitted by this user, as symbolic links in the user's state folder: `open/` those that are under way,
    a folder for each thousand clusters for all."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._path = registry_path(environment).parent / "pipeline"
        check_registry(self._path, trust_of(environment))

    def _of(self, cluster: str) -> Path:
        return self._path / str(int(cluster) // 1000)

    def remember(self, entry: Entry) -> None:
        """From now on the cluster leads to its folder; doing it again is harmless."""
        for folder in (self._of(entry.cluster), self._path / "open"):
            with masked(PRIVATE):
                folder.mkdir(parents=True, exist_ok=True)
            draft = folder / f".{entry.name}.{os.getpid()}"
            draft.unlink(missing_ok=True)
            draft.symlink_to(entry.folder.path)
            draft.rename(folder / entry.name)

    def close(self, entry: Entry) -> None:
        """Its result is taken in: nobody need look at it again."""
        (self._path / "open" / entry.name).unlink(missing_ok=True)

    def open_ones(self) -> list[Entry]:
        """Those that are under way, by process instance."""
        return sorted(_entries(self._path / "open", "*"), key=lambda entry: int(entry.instance))

    def find(self, cluster: str, here: Path) -> Entry:
        """The try with this cluster, the newest when several schedds gave the number, or the one in the folder `here`.

        Raises NotFound.
        """
        found = list(_entries(self._of(cluster), f"{cluster}~*")) if _NUMBER.match(cluster) else []
        if not found:
            raise NotFound(f"no cluster {cluster!r} was submitted by `fermigrid pipeline submit`")
        own = [entry for entry in found if entry.folder.path.is_dir() and here.samefile(entry.folder.path)]
        return max(own or found, key=lambda entry: int(entry.instance))


def _entries(folder: Path, pattern: str) -> Iterator[Entry]:
    for link in folder.glob(pattern):
        cluster, _, rest = link.name.partition("~")
        if not link.name.startswith(".") and _NUMBER.match(cluster) and _NUMBER.match(rest.partition("~")[0]):
            try:
                target = link.readlink()
            except OSError:  # closed meanwhile, or nothing of fermigrid's
                continue
            if target.is_absolute():
                yield Entry(cluster, rest.partition("~")[0], JobFolder(target))
