"""Where my campaigns are: name -> run folder, kept as symbolic links in the user's state folder, and in the team's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from platformdirs import user_state_path

from fermigrid.access import (
    PRIVATE,
    Trust,
    check_folder,
    group_name,
    masked,
    share_folder,
    team_folder,
    team_of,
    trust_of,
)
from fermigrid.config import nearest
from fermigrid.errors import NotFound, RunFolderError
from fermigrid.runfolder import RunFolder


def registry_path(environment: Mapping[str, str]) -> Path:
    """The folder of links: below FERMIGRID_STATE, or the platform's place for state."""
    own = environment.get("FERMIGRID_STATE")
    return (Path(own) if own else user_state_path("fermigrid")) / "campaigns"


def registries(environment: Mapping[str, str]) -> list[Path]:
    """The folders of links to look in: one's own, and the team's (FERMIGRID_TEAM). Raises AccessRefused."""
    team = team_folder(environment)
    found = [registry_path(environment), *([team / "campaigns"] if team else [])]
    for registry in found:
        check_registry(registry, trust_of(environment))
    return found


def check_registry(registry: Path, trust: Trust) -> None:
    """Refuse a registry that others can write: a name would lead where they like. Raises AccessRefused."""
    if os.path.lexists(registry):
        foreign = registry.stat().st_gid in trust.groups  # a team's: whoever made it is one of the team
        check_folder(registry, "the registry", trust.with_owner(registry.stat().st_uid) if foreign else trust)


def register(folder: RunFolder, name: str, registry: Path, gid: int | None = None) -> None:
    """Remember a run folder under its campaign's name; doing it again is harmless. `gid`: in a team's registry."""
    with masked(PRIVATE), suppress(FileExistsError):
        registry.parent.mkdir(parents=True, exist_ok=True)
        registry.mkdir()
        if gid is not None:
            share_folder(registry, gid)
    link = registry / f"{name}~{hashlib.sha256(str(folder.path).encode()).hexdigest()[:8]}"
    draft = link.with_name(f".{link.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(folder.path)
    draft.rename(link)


def remember(folder: RunFolder, name: str, environment: Mapping[str, str]) -> list[str]:
    """Make the campaign known by its name: to me, and to the team that its run folder is shared with.

    Returns in words where it will not be known.
    """
    gid, team = team_of(folder.path), team_folder(environment)
    problems = []
    if gid is not None and (team is None or team.stat().st_gid != gid):
        hint = "they name it by its run folder (FERMIGRID_TEAM is no folder of that group)"
        problems.append(f"{name} is not listed for the group {group_name(gid)}: {hint}")
        team = None
    try:
        register(folder, name, registry_path(environment))
        if team is not None and gid is not None:
            register(folder, name, team / "campaigns", gid)
    except OSError as error:
        problems.append(f"{name} will be known by its run folder only, not by its name: {error}")
    return problems


def my_campaigns(*registries: Path) -> list[tuple[str, RunFolder]]:
    """(name, run folder) of all that still exist, by name."""
    found = {(name, folder.path): folder for registry in registries for name, folder in _links(registry)}
    return [(name, folder) for (name, _), folder in sorted(found.items()) if _has_ledger(folder)]


def _links(registry: Path) -> Iterator[tuple[str, RunFolder]]:
    """The entries of a registry: links with an absolute path; anything else in it is not fermigrid's."""
    for link in registry.iterdir() if registry.is_dir() else ():
        name = link.name.rpartition("~")[0]
        if name and not name.startswith(".") and link.is_symlink() and (target := link.readlink()).is_absolute():
            yield name, RunFolder(target)


def _has_ledger(folder: RunFolder) -> bool:
    """Is it a run folder with a campaign, or one whose campaign was archived?"""
    try:
        return folder.ledger.is_file() or folder.pointer.is_file()
    except OSError:  # somebody took away the right to look into it, or its name is too long
        return False


def refuse_second(name: str, folder: RunFolder, *registries: Path) -> None:
    """Raises RunFolderError when a campaign of this name has another run folder, and nobody said which one is meant.

    The default run folder is below the current one: the same command typed elsewhere would submit everything again.
    """
    others = [other.path for known, other in my_campaigns(*registries) if known == name and other.path != folder.path]
    if others and not folder.ledger.is_file():
        hint = f"To go on with it: --run-dir {others[0]}. To submit it once more: --run-dir with a new folder."
        raise RunFolderError(f"campaign {name!r} was submitted before, in {others[0]}", hint)


def _no_run_folder(wanted: str) -> NotFound:
    """For a path that a person wrote."""
    path = Path(wanted)
    if os.path.lexists(path):
        return NotFound(f"{wanted} is no run folder of a campaign: there is no ledger in it")
    beside = list[str]()
    with suppress(OSError):
        beside = sorted(one.name for one in path.parent.iterdir() if _has_ledger(RunFolder(one)))
    return NotFound(f"there is no {wanted}{nearest(path.name, beside)}")


def find_campaign(wanted: str, *registries: Path) -> RunFolder:
    """A campaign by its name, run folder or archive. Raises NotFound, also when two have the name."""
    path = Path(wanted)
    if _has_ledger(RunFolder(path)):
        return RunFolder(Path(os.path.normpath(path.absolute())))
    known = my_campaigns(*registries)
    folders = [folder for name, folder in known if name == wanted]
    if len(folders) == 1:
        return folders[0]
    if folders:
        places = ", ".join(str(folder.path) for folder in folders)
        raise NotFound(f"{len(folders)} campaigns are named {wanted!r}", f"Say which by its run folder: {places}")
    with suppress(OSError):  # no name of a file
        if path.is_file():
            return RunFolder(path.absolute())
    if os.sep in wanted:
        raise _no_run_folder(wanted)
    names = sorted({name for name, _ in known})
    hint = f"Known: {', '.join(names)}" if names else "No campaign was submitted yet."
    raise NotFound(f"no campaign {wanted!r}{nearest(wanted, names)}", hint)
