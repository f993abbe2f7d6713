"""Who may read and write what fermigrid makes and uses: private by default, shared with a team where that is asked for.

What fermigrid makes is private by the umask that `cli` sets, whatever the person's own is. What it uses (run folders,
code, site files, its registry) decides which programs run in the person's name: others may not be able to write it.
See docs/reference/access.md.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fermigrid.errors import AccessRefused

PRIVATE, SHARED = 0o077, 0o007  # umasks
SHARED_FOLDER = 0o2770  # setgid: what is made in it belongs to the group, too
NOBODY = 65534  # to whom a file server that squashes root gives what root makes
_TEAM, _TRUST = "FERMIGRID_TEAM", "FERMIGRID_TRUST"
_usual = PRIVATE  # the umask of the person's shell: the one thing of a process that cannot be asked without a change


@dataclass(frozen=True)
class Trust:
    """Whose files are as good as one's own: of `me`, root and `owners`; and what members of `groups` may write."""

    me: int
    owners: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()

    def with_group(self, gid: int | None) -> Trust:
        """The same, and the members of one more group."""
        return self if gid is None else Trust(self.me, self.owners, self.groups | {gid})

    def with_owner(self, uid: int) -> Trust:
        """The same, and one more account."""
        return Trust(self.me, self.owners | {uid}, self.groups)

    def is_mine(self, uid: int) -> bool:
        """Does it belong to whoever asks? Root's own files are nobody's on a server that squashes root."""
        return uid == self.me or (self.me == 0 and uid == NOBODY)

    def is_owner(self, uid: int) -> bool:
        """May it belong to this account?"""
        return self.is_mine(uid) or uid == 0 or uid in self.owners


def trust_of(environment: Mapping[str, str]) -> Trust:
    """What the person's environment says: FERMIGRID_TRUST (accounts), FERMIGRID_TEAM (the team's folder)."""
    names = [name.strip() for name in environment.get(_TRUST, "").split(",") if name.strip()]
    folder = team_folder(environment)
    groups = frozenset({folder.stat().st_gid} if folder else ())
    return Trust(os.geteuid(), frozenset(map(_uid, names)), groups)


def _uid(name: str) -> int:
    with suppress(KeyError):
        return pwd.getpwnam(name).pw_uid
    if name.isdigit():
        return int(name)
    raise AccessRefused(f"{_TRUST}: there is no account {name!r} on this machine", "It takes names, separated by ','.")


def team_folder(environment: Mapping[str, str]) -> Path | None:
    """The folder in which a team's campaigns are known: its group is the team. Raises AccessRefused."""
    text = environment.get(_TEAM, "")
    if not text:
        return None
    path = Path(text).absolute()
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise AccessRefused(f"{_TEAM}: {path} cannot be used: {error.strerror}", _MAKE_TEAM) from error
    if not stat.S_ISDIR(mode) or mode & 0o2070 != 0o2070 or mode & stat.S_IWOTH:
        text = f"{_TEAM}: {path} (mode {_octal(mode)}) is no folder that a group, and nobody else, can write"
        raise AccessRefused(text, _MAKE_TEAM)
    return path


_MAKE_TEAM = "One of the team makes it once: mkdir FOLDER; chgrp GROUP FOLDER; chmod 2770 FOLDER"


def gid_of(group: str) -> int:
    """The number of a group, by its name or number. Raises AccessRefused when whoever asks is not in it."""
    try:
        gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise AccessRefused(f"there is no group {group!r} on this machine", "`id` lists yours.") from None
    if os.geteuid() != 0 and gid not in (os.getegid(), *os.getgroups()):
        raise AccessRefused(f"you are not in the group {group!r}", "`id` lists yours.")
    return gid


def group_name(gid: int) -> str:
    """A group for a person: its name, or its number."""
    with suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)


def owner_name(uid: int) -> str:
    """An account for a person: its name, or its number."""
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


# --- what is made


@contextmanager
def private_files() -> Iterator[None]:
    """What is made meanwhile is for its owner alone, whatever the umask was."""
    global _usual
    _usual = os.umask(PRIVATE)
    try:
        yield
    finally:
        os.umask(_usual)


@contextmanager
def masked(umask: int) -> Iterator[None]:
    """What is made meanwhile has the modes that this umask leaves."""
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


def usual_files() -> AbstractContextManager[None]:
    """What is made meanwhile has the modes that the person is used to: files for others, such as a job's log."""
    return masked(_usual)


def usual_umask() -> int:
    """The umask of the person's shell."""
    return _usual


@contextmanager
def at_work_in(folder: Path, trust: Trust) -> Iterator[None]:
    """What is made meanwhile is for those that the run folder is for. Raises AccessRefused."""
    check_run_folder(folder, trust)
    with masked(PRIVATE if team_of(folder) is None else SHARED):
        yield


def make_run_folder(path: Path, gid: int | None, trust: Trust) -> None:
    """A run folder for its owner alone, or for a group; one with something in it stays as it is.

    Raises AccessRefused and OSError.
    """
    made = [parent for parent in (path, *path.parents) if not os.path.lexists(parent)]
    if made == [path] and (fault := _fault_upwards(path.parent, trust.with_group(gid))):
        text = f"no run folder can be made in {path.parent}: {fault.words}, and so put another in its place"
        raise AccessRefused(text, f"{fault.fix}. Or give a folder below one of your own with --run-dir.")
    for folder in reversed(made):
        with suppress(FileExistsError):  # another fermigrid was faster
            folder.mkdir(mode=0o700)
            _give(folder, gid)
    check_run_folder(path, trust.with_group(gid))
    if trust.is_mine(path.stat().st_uid) and not any(path.iterdir()):
        _give(path, gid)
    if gid is not None and team_of(path) != gid:
        text = f"the run folder {path} is there already, and not shared with the group {group_name(gid)}"
        raise AccessRefused(text, "Give another folder with --run-dir, or leave out --group.")
    if gid is not None and (closed := _closed_for(path, gid)):
        text = f"the group {group_name(gid)} cannot reach the run folder {path}: {closed} is closed for it"
        raise AccessRefused(text, f"chgrp {group_name(gid)} {closed}; chmod g+x {closed}. Or another --run-dir.")


def _closed_for(path: Path, gid: int) -> Path | None:
    """The folder on the way that does not let the group pass."""
    for parent in path.parents:
        found = parent.stat()
        if not found.st_mode & (stat.S_IXGRP if found.st_gid == gid else stat.S_IXOTH):
            return parent
    return None


def _give(path: Path, gid: int | None) -> None:
    for name in ("system.posix_acl_access", "system.posix_acl_default"):  # inherited: they let others in, past the mode
        with suppress(OSError):
            os.removexattr(path, name)
    if gid is None:
        path.chmod(0o700)
    else:
        share_folder(path, gid)


def share_folder(path: Path, gid: int) -> None:
    """Give a folder to a group, and with it what is made in it. Raises AccessRefused, OSError."""
    os.chown(path, -1, gid)
    path.chmod(SHARED_FOLDER)  # after chown, which may take the setgid bit away
    if team_of(path) != gid:
        raise AccessRefused(f"{path} cannot be shared: its file system keeps no group and mode 2770", "Choose another.")


def team_of(folder: Path) -> int | None:
    """The group that a run folder is shared with; None: it is private."""
    found = folder.stat()
    return found.st_gid if found.st_mode & 0o2020 == 0o2020 else None


def hand_over(path: Path) -> None:
    """Give a file that was moved into a shared folder to the group of that folder."""
    folder = path.parent.stat()
    if folder.st_mode & 0o2020 == 0o2020:
        with suppress(PermissionError):  # somebody else's: who made it decides
            os.chown(path, -1, folder.st_gid, follow_symlinks=False)
            path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o660)


# --- what is used


@dataclass(frozen=True)
class Fault:
    """Who may do what should not be possible, and the command that ends it."""

    words: str
    fix: str


def write_fault(path: Path, found: os.stat_result, trust: Trust) -> Fault | None:
    """Can anybody else write it?"""
    mode = found.st_mode
    if mode & stat.S_IWOTH:
        return Fault(f"everybody can write {path} (mode {_octal(mode)})", f"chmod o-w {path}")
    if mode & stat.S_IWGRP and found.st_gid not in trust.groups and not _is_own_group(found):
        who = group_name(found.st_gid)
        return Fault(f"the group {who} can write {path} (mode {_octal(mode)})", f"chmod g-w {path}")
    return None


def _is_own_group(found: os.stat_result) -> bool:
    """Is it the group that has its owner as its only member, as many systems give each account?"""
    try:
        owner, group = pwd.getpwuid(found.st_uid), grp.getgrgid(found.st_gid)
    except KeyError:
        return False
    same = owner.pw_name == group.gr_name and owner.pw_gid == group.gr_gid
    return same and set(group.gr_mem) <= {owner.pw_name}


def _octal(mode: int) -> str:
    return f"{stat.S_IMODE(mode):04o}"


def fault_of(path: Path, trust: Trust) -> Fault | None:
    """Why a file or folder that a person named, or one on the way to it, may not be used. Raises OSError.

    The way ends at a folder that is one's own or sticky: there nobody else can put another in its place.
    """
    lexical = Path(os.path.normpath(path.absolute()))
    for way in dict.fromkeys((lexical, Path(os.path.realpath(lexical)))):
        if fault := item_fault(way, way.stat(), trust) or _fault_on_the_way(way, trust):
            return fault
    return None


def item_fault(path: Path, found: os.stat_result, trust: Trust) -> Fault | None:
    """Does it belong to somebody else, or can anybody else write it?"""
    if not trust.is_owner(found.st_uid):
        who = owner_name(found.st_uid)
        return Fault(f"{path} belongs to {who}", f"If you trust {who}: export {_TRUST}={who}. Or take a copy")
    return write_fault(path, found, trust)


def _fault_on_the_way(path: Path, trust: Trust) -> Fault | None:
    link = path.lstat()
    if stat.S_ISLNK(link.st_mode) and not trust.is_owner(link.st_uid):
        return Fault(f"{path} is a link of {owner_name(link.st_uid)}", "Name the folder that it leads to")
    return _fault_upwards(path.parent, trust)


def _fault_upwards(start: Path, trust: Trust) -> Fault | None:
    for folder in (start, *start.parents):
        found = folder.stat()
        if found.st_mode & stat.S_ISVTX:
            return None
        if fault := write_fault(folder, found, trust):
            return fault
        if trust.is_mine(found.st_uid):
            return None
    return None


def check_folder(path: Path, what: str, trust: Trust) -> None:
    """Refuse a folder that somebody else can write; `what` says what it is for. Raises AccessRefused."""
    try:
        fault = fault_of(path, trust)
    except OSError as error:
        raise AccessRefused(f"{what} {path} cannot be used: {error.strerror}") from error
    if fault:
        raise AccessRefused(f"{what} {path}: {fault.words}: what is in it would act in your name", f"{fault.fix}.")


def check_run_folder(path: Path, trust: Trust, *, way: bool = True) -> None:
    """Refuse a run folder that is a link, another person's, or one that others can write. Raises AccessRefused.

    A folder that is shared with a group may be used by who trusts that group (FERMIGRID_TEAM), and by its owner.
    `way`: the folders on the way to it count, too.
    """
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            target = os.path.realpath(path)
            raise AccessRefused(f"the run folder {path} is a symbolic link, to {target}", f"Name that: {target}")
        shared = found.st_mode & 0o2020 == 0o2020
        mine = trust.is_mine(found.st_uid)
        if not mine and not (shared and found.st_gid in trust.groups):
            raise AccessRefused(*_foreign(path, found, shared))
        everybody = trust.with_group(found.st_gid if shared else None)
        fault = write_fault(path, found, everybody)
        if way and not fault:
            fault = _fault_on_the_way(path, everybody)
    except OSError as error:
        raise AccessRefused(f"the run folder {path} cannot be used: {error.strerror}") from error
    if fault:
        raise AccessRefused(f"the run folder {path}: {fault.words}", f"{fault.fix}, and look what is in it before.")


def _foreign(path: Path, found: os.stat_result, shared: bool) -> tuple[str, str]:
    who, group = owner_name(found.st_uid), group_name(found.st_gid)
    if shared:
        hint = f"If {group} is your team: export {_TEAM}=FOLDER, a folder of that group (docs/reference/access.md)."
    else:
        hint = f"Only {who} can go on with it. For a team's campaigns: fermigrid submit --group GROUP."
    return f"the run folder {path} belongs to {who}", hint


def check_team(path: Path, team: str | None) -> None:
    """Refuse a folder that is not shared as its ledger says: somebody opened it, or closed it. Raises AccessRefused."""
    gid = team_of(path)
    if gid is None and team is None:
        return
    if team is None and gid is not None:
        text = f"the run folder {path} was made private, and now the group {group_name(gid)} can write it"
        raise AccessRefused(text, f"chmod 0700 {path}, and look what is in it before.")
    if gid is None or group_name(gid) != team:
        text = f"the run folder {path} was made for the group {team}, and now is not shared with it"
        raise AccessRefused(text, f"chgrp {team} {path}; chmod 2770 {path}")
