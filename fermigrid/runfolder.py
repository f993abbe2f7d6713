"""The run folder: every path in it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fermigrid.errors import RunFolderError
from fermigrid.plainfile import real_folder

EVENTS = "events.log"
_TAME_PATH = re.compile(r"[A-Za-z0-9/._+@=-]+\Z")


@dataclass(frozen=True)
class RunFolder:
    """A campaign's folder (docs/architecture.md, "The run folder").

    `archive`: the file that it was unpacked from, to be read only; `home`: where it was, and its outputs still are.
    """

    path: Path
    archive: Path | None = None
    home: Path | None = None

    @property
    def pointer(self) -> Path:
        """The file that tells, in place of all but the outputs, where the campaign was archived to."""
        return self.path / "archived.json"

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.path / "ledger.sqlite"

    @property
    def logs(self) -> Path:
        """The packed logs of good jobs."""
        return self.path / "logs.sqlite"

    @property
    def campaign(self) -> Path:
        """The copy of the campaign file."""
        return self.path / "campaign.yaml"

    @property
    def runs(self) -> Path:
        """The copy of the run table."""
        return self.path / "runs.csv"

    @property
    def bundle(self) -> Path:
        """The copy of the campaign's code, as it was packed."""
        return self.path / "bundle.tar.gz"

    @property
    def sites(self) -> Path:
        """Copies of site files and image catalogues: a numbered folder for each that was searched, in that order."""
        return self.path / "sites"

    @property
    def outputs(self) -> Path:
        """Accepted outputs that came back with their jobs."""
        return (self.home or self.path) / "outputs"

    def batch(self, block: str, step: str, generation: int) -> Path:
        """`blocks/b0000/clump.g0`: holds plan/ and work/."""
        return self.path / "blocks" / block / f"{step}.g{generation}"

    def event_log(self, block: str, name: str = EVENTS) -> Path:
        """The event log of a block; `name`: of batches of it that went to another schedd."""
        return self.path / "blocks" / block / name

    def make_inside(self, path: Path) -> None:
        """Make a folder of this run folder. Raises RunFolderError, also when one on the way is a link."""
        try:
            with real_folder(self.path, path.relative_to(self.path).parts, make=True):
                return
        except OSError as error:
            text = f"{path} in the run folder cannot be used: {error.filename or path}: {error.strerror}"
            raise RunFolderError(text) from error


def check_path(path: Path) -> Path:
    """The absolute path of a run folder that every batch system can be given. Raises RunFolderError."""
    absolute = Path(os.path.normpath(path.absolute()))
    if not _TAME_PATH.match(str(absolute)):
        bad = sorted(set(re.findall(r"[^A-Za-z0-9/._+@=-]", str(absolute))))
        what = " ".join(map(repr, bad))
        text = f"the run folder {str(absolute)!r} has {what} in its path, which HTCondor splits or expands"
        raise RunFolderError(text, "Choose another with --run-dir; letters, digits and / . _ + @ = - are safe.")
    return absolute
