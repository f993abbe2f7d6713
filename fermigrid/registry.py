"""Where my campaigns are: name -> run folder, kept as symbolic links in the user's state folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from platformdirs import user_state_path

from fermigrid.config import nearest
from fermigrid.errors import NotFound, RunFolderError
from fermigrid.runfolder import RunFolder


def registry_path(environment: Mapping[str, str]) -> Path:
    """The folder of links: below FERMIGRID_STATE, or the platform's place for state."""
    own = environment.get("FERMIGRID_STATE")
    return (Path(own) if own else user_state_path("fermigrid")) / "campaigns"


def register(folder: RunFolder, name: str, registry: Path) -> None:
    """Remember a run folder under its campaign's name; doing it again is harmless."""
    registry.mkdir(parents=True, exist_ok=True, mode=0o700)
    link = registry / f"{name}~{hashlib.sha256(str(folder.path).encode()).hexdigest()[:8]}"
    draft = link.with_name(f".{link.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(folder.path)
    draft.rename(link)


def my_campaigns(registry: Path) -> list[tuple[str, RunFolder]]:
    """(name, run folder) of all that still exist, by name."""
    if not registry.is_dir():
        return []
    links = sorted(link for link in registry.iterdir() if "~" in link.name and not link.name.startswith("."))
    found = [(link.name.rpartition("~")[0], RunFolder(link.readlink())) for link in links]
    return [(name, folder) for name, folder in found if _has_ledger(folder)]


def _has_ledger(folder: RunFolder) -> bool:
    try:
        return folder.ledger.is_file()
    except OSError:  # somebody took away the right to look into it, or its name is too long
        return False


def refuse_second(name: str, folder: RunFolder, registry: Path) -> None:
    """Raises RunFolderError when a campaign of this name has another run folder, and nobody said which one is meant.

    The default run folder is below the current one: the same command typed elsewhere would submit everything again.
    """
    others = [other.path for known, other in my_campaigns(registry) if known == name and other.path != folder.path]
    if others and not folder.ledger.is_file():
        hint = f"To go on with it: --run-dir {others[0]}. To submit it once more: --run-dir with a new folder."
        raise RunFolderError(f"campaign {name!r} was submitted before, in {others[0]}", hint)


def find_campaign(wanted: str, registry: Path) -> RunFolder:
    """A campaign by its name or run folder. Raises NotFound, also when two have the name."""
    path = Path(wanted)
    if _has_ledger(RunFolder(path)):
        return RunFolder(Path(os.path.normpath(path.absolute())))
    known = my_campaigns(registry)
    folders = [folder for name, folder in known if name == wanted]
    if len(folders) == 1:
        return folders[0]
    if folders:
        places = ", ".join(str(folder.path) for folder in folders)
        raise NotFound(f"{len(folders)} campaigns are named {wanted!r}", f"Say which by its run folder: {places}")
    names = sorted({name for name, _ in known})
    hint = f"Known: {', '.join(names)}" if names else "No campaign was submitted yet."
    raise NotFound(f"no campaign {wanted!r}{nearest(wanted, names)}", hint)
