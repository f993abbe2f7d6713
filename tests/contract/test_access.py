"""Who can write what fermigrid uses: refused with words and the command that ends it; links are not followed.

Needs root: files are given to other accounts and groups.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from fermigrid.access import (
    SHARED_FOLDER,
    Trust,
    at_work_in,
    check_folder,
    check_run_folder,
    check_team,
    fault_of,
    gid_of,
    item_fault,
    make_run_folder,
    private_files,
    share_folder,
    team_folder,
    team_of,
    trust_of,
    usual_files,
    write_fault,
)
from fermigrid.errors import AccessRefused, LedgerError, RunFolderError
from fermigrid.ledger import open_ledger
from fermigrid.ledger_file import writing
from fermigrid.packed_logs import PackedLogs
from fermigrid.pipeline_folder import JobFolder
from fermigrid.plainfile import open_plain, read_plain, real_folder, write_new
from fermigrid.planfolder import is_plan, make_work, plan_faults, read_manifest, write_plan
from fermigrid.registry import my_campaigns, registries
from fermigrid.runfolder import RunFolder
from tests.campaigns import ROOT, assemble, plans

ME = Trust(os.geteuid())
TEAM = 34567  # a group that nobody has an entry for
FOREIGN = os.stat_result((stat.S_IFDIR | 0o755, 0, 0, 1, 54321, 54321, 0, 0, 0, 0))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A private run folder in a folder of one's own."""
    folder = tmp_path / "runs" / "P400"
    with private_files():
        make_run_folder(folder, None, ME)
    return folder


# --- what is made


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077, 0o777])
def test_what_is_made_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with private_files():
            make_run_folder(tmp_path / "runs" / "P400", None, ME)
            (tmp_path / "runs/P400/file").touch()
            with usual_files():
                (tmp_path / "for-others").touch()
        (tmp_path / "afterwards").touch()
    finally:
        os.umask(before)
    assert [mode(tmp_path / name) for name in ("runs", "runs/P400", "runs/P400/file")] == [0o700, 0o700, 0o600]
    assert mode(tmp_path / "for-others") == mode(tmp_path / "afterwards") == 0o666 & ~umask


def test_a_folder_that_was_made_for_it_becomes_private(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    make_run_folder(tmp_path / "run", None, ME)
    assert mode(tmp_path / "run") == 0o700


def test_lists_of_who_may_enter_are_not_inherited(tmp_path: Path) -> None:
    everybody = bytes.fromhex("0200000001000700ffffffff04000700ffffffff10000700ffffffff20000700ffffffff")
    os.setxattr(tmp_path, "system.posix_acl_default", everybody)
    make_run_folder(tmp_path / "run", None, ME)
    (tmp_path / "run/file").touch()
    assert mode(tmp_path / "run") == 0o700
    assert os.listxattr(tmp_path / "run") == []


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody can reach."""
    with TemporaryDirectory(prefix="fermigrid-access-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_shared_folder_hands_its_group_on(public: Path) -> None:
    folder = public / "runs/P400"
    make_run_folder(folder, TEAM, ME)
    with at_work_in(folder, ME.with_group(TEAM)):
        (folder / "blocks").mkdir()
        (folder / "blocks/file").touch()
    found = {path: (path.stat().st_gid, mode(path)) for path in (folder, folder / "blocks", folder / "blocks/file")}
    assert list(found.values()) == [(TEAM, SHARED_FOLDER), (TEAM, SHARED_FOLDER), (TEAM, 0o660)]
    assert team_of(folder) == TEAM


def test_a_group_that_cannot_reach_the_folder_is_told_where_the_door_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    with pytest.raises(AccessRefused, match="cannot reach the run folder") as refused:
        make_run_folder(tmp_path / "mine/run", TEAM, ME)
    assert f"chmod g+x {tmp_path}" in refused.value.hint


def test_a_private_run_folder_is_not_shared_by_saying_so_later(run: Path) -> None:
    (run / "ledger.sqlite").touch()
    with pytest.raises(AccessRefused, match="is there already, and not shared with the group"):
        make_run_folder(run, TEAM, ME)


# --- who may write


WRITERS: dict[str, tuple[int, str]] = {
    "everybody": (0o777, "chmod o-w"),
    "everybody, sticky": (0o1777, "chmod o-w"),
    "everybody but the group": (0o702, "chmod o-w"),
    "a group": (0o770, "chmod g-w"),
    "a group that cannot read": (0o720, "chmod g-w"),
}


@pytest.mark.parametrize("who", WRITERS)
def test_a_run_folder_that_others_can_write(run: Path, who: str) -> None:
    bits, fix = WRITERS[who]
    os.chown(run, -1, TEAM)
    run.chmod(bits)
    with pytest.raises(AccessRefused, match="can write") as refused:
        check_run_folder(run, ME)
    assert f"{fix} {run}" in refused.value.hint


@pytest.mark.parametrize("who", [who for who in WRITERS if "sticky" not in who])
def test_a_folder_on_the_way_that_others_can_write(run: Path, who: str) -> None:
    bits, fix = WRITERS[who]
    os.chown(run.parent, -1, TEAM)
    run.parent.chmod(bits)
    with pytest.raises(AccessRefused, match=f"can write {run.parent}") as refused:
        check_run_folder(run, ME)
    assert f"{fix} {run.parent}" in refused.value.hint
    with pytest.raises(AccessRefused, match="no run folder can be made"):
        make_run_folder(run.parent / "another", None, ME)
    assert not (run.parent / "another").exists()


def test_the_way_ends_at_a_sticky_folder_or_at_ones_own(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    make_run_folder(tmp_path / "open/mine/run", None, ME)  # `mine` is made, and then nobody else's
    (tmp_path / "open").chmod(0o1777)
    make_run_folder(tmp_path / "open/run", None, ME)


@pytest.mark.parametrize("bits", [0o700, 0o755, 0o750, 0o500])
def test_what_others_can_read_only_is_used(run: Path, bits: int) -> None:
    run.chmod(bits)
    check_run_folder(run, ME)


@pytest.mark.parametrize("who", WRITERS)
@pytest.mark.parametrize("what", ["sites", "registry", "team"])
def test_folders_that_tell_what_to_run(tmp_path: Path, what: str, who: str) -> None:
    folder = tmp_path / "campaigns"
    folder.mkdir()
    os.chown(folder, -1, TEAM)
    folder.chmod(WRITERS[who][0])
    use: dict[str, Callable[[], object]] = {
        "sites": lambda: check_folder(folder, "the folder of site files", ME),
        "registry": lambda: registries({"FERMIGRID_STATE": str(tmp_path)}),
        "team": lambda: team_folder({"FERMIGRID_TEAM": str(folder)}),
    }
    with pytest.raises(AccessRefused) as refused:
        use[what]()
    assert "chmod" in refused.value.hint


def test_a_group_that_is_trusted_may_write(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    os.chown(tmp_path / "sites", -1, TEAM)
    (tmp_path / "sites").chmod(0o775)
    check_folder(tmp_path / "sites", "sites", ME.with_group(TEAM))
    (tmp_path / "sites").chmod(0o777)
    with pytest.raises(AccessRefused, match="everybody can write"):
        check_folder(tmp_path / "sites", "sites", ME.with_group(TEAM))


def test_the_group_of_one_person_is_that_person(tmp_path: Path) -> None:
    """Many systems give each account a group of its own, and a umask of 002."""
    (tmp_path / "work").mkdir()
    os.chown(tmp_path / "work", 0, 0)
    (tmp_path / "work").chmod(0o775)
    assert write_fault(tmp_path / "work", (tmp_path / "work").stat(), Trust(0)) is None


def test_what_is_somebody_elses(tmp_path: Path) -> None:
    said = item_fault(tmp_path, FOREIGN, ME)
    assert said is not None
    assert said.words == f"{tmp_path} belongs to 54321"
    assert "FERMIGRID_TRUST=54321" in said.fix
    assert item_fault(tmp_path, FOREIGN, trust_of({"FERMIGRID_TRUST": "54321"})) is None
    nobody = os.stat_result((stat.S_IFDIR | 0o700, 0, 0, 1, 65534, 65534, 0, 0, 0, 0))
    assert item_fault(tmp_path, nobody, Trust(0)) is None, "root's files on a server that squashes root"
    assert item_fault(tmp_path, nobody, Trust(1000)) is not None


@pytest.mark.parametrize("name", ["no such account", "nobody-here"])
def test_accounts_and_groups_that_are_not_there(name: str) -> None:
    with pytest.raises(AccessRefused, match="there is no account"):
        trust_of({"FERMIGRID_TRUST": f"root, {name}"})
    with pytest.raises(AccessRefused, match="there is no group"):
        gid_of(name)


def test_a_ledger_and_its_folder_agree_on_who_it_is_for(run: Path) -> None:
    check_team(run, None)
    with pytest.raises(AccessRefused, match=f"was made for the group {TEAM}, and now is not shared"):
        check_team(run, str(TEAM))
    share_folder(run, TEAM)
    check_team(run, str(TEAM))
    with pytest.raises(AccessRefused, match=f"was made private, and now the group {TEAM} can write it"):
        check_team(run, None)


# --- links, pipes and other things that are not what they seem


THINGS: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: path.symlink_to("victim"),
    "a broken link": lambda path: path.symlink_to("/nonexistent"),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
}


@pytest.mark.parametrize("thing", THINGS)
def test_only_plain_files_are_read_and_nothing_is_waited_for(tmp_path: Path, thing: str) -> None:
    (tmp_path / "victim").write_text("secret")
    THINGS[thing](tmp_path / "x")
    with pytest.raises(OSError, match="no plain file"):
        open_plain(tmp_path / "x")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "x", b"overwritten")
    assert (tmp_path / "victim").read_text() == "secret"


@pytest.mark.parametrize("where", ["blocks", "blocks/b0000", "blocks/b0000/go.g0", "blocks/b0000/go.g0/work"])
def test_a_folder_of_the_run_folder_replaced_by_a_link(run: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (run / where).parent.mkdir(parents=True, exist_ok=True)
    (run / where).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match="symbolic link"):
        RunFolder(run).make_inside(run / "blocks/b0000/go.g0/work")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("where", ["work", "work/shard", "work/shard/out", "events.log"])
def test_folders_of_a_batch_replaced_by_links(tmp_path: Path, where: str) -> None:
    (plan,) = plans(assemble(tmp_path / "c"))
    write_plan(plan, tmp_path / "b/plan")
    (tmp_path / "elsewhere").mkdir()
    shard = next((tmp_path / "b/plan/shards").iterdir()).name
    path = tmp_path / "b" / where.replace("shard", shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(tmp_path / "elsewhere" / ("log" if where == "events.log" else ""))
    with pytest.raises(RunFolderError):
        make_work(tmp_path / "b/work", tmp_path / "b/plan", tmp_path / "b/events.log")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_run_folder_replaced_by_a_link(run: Path) -> None:
    run.rename(run.with_name("moved"))
    run.symlink_to(run.with_name("moved"))
    with pytest.raises(AccessRefused, match="is a symbolic link") as refused:
        check_run_folder(run, ME)
    assert refused.value.hint == f"Name that: {run.with_name('moved')}"
    with pytest.raises(AccessRefused, match="is a symbolic link"):
        make_run_folder(run, None, ME)


@pytest.mark.parametrize("name", ["ledger.sqlite", "ledger.lock", "logs.sqlite"])
def test_files_of_the_ledger_replaced_by_links(run: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"")
    (run / name).symlink_to(victim)
    use: dict[str, Callable[[Path], object]] = {
        "ledger.sqlite": open_ledger,
        "ledger.lock": lambda path: writing(path.with_suffix(".sqlite")).__enter__(),
        "logs.sqlite": PackedLogs,
    }
    with pytest.raises(LedgerError):
        use[name](run / name)
    assert victim.read_bytes() == b""


def _move_and_link(path: Path) -> None:
    aside = path.with_name("aside") if path.name == "plan" else path.parents[1] / "aside"
    path.rename(aside)
    path.symlink_to(aside)


def _make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


PLAN_ATTACKS: dict[str, Callable[[Path], object]] = {
    "job.env is a link to the same": lambda plan: _move_and_link(plan / "job.env"),
    "the folder of shards is a link": lambda plan: _move_and_link(plan / "shards"),
    "the manifest is a link": lambda plan: _move_and_link(plan / "plan.json"),
    "the plan is a link": _move_and_link,
    "worker.sh is a pipe": lambda plan: _make_pipe(plan / "worker.sh"),
    "one file more": lambda plan: (plan / "bundle.tar.gz").write_bytes(b"x"),
    "one shard more": lambda plan: (plan / "shards/s9999-0.rows").write_bytes(b"x"),
    "one link more": lambda plan: (plan / "more").symlink_to("/etc"),
    "another worker": lambda plan: (plan / "worker.sh").write_text("#!/bin/sh\n"),
    "other items": lambda plan: (plan / "items.txt").write_text("go.0000 x 1\n"),
}


@pytest.mark.parametrize("attack", PLAN_ATTACKS)
def test_a_plan_that_somebody_altered(tmp_path: Path, attack: str) -> None:
    (plan,) = plans(assemble(tmp_path / "c"))
    digest = write_plan(plan, tmp_path / "plan")
    assert is_plan(tmp_path / "plan", digest)
    PLAN_ATTACKS[attack](tmp_path / "plan")
    assert plan_faults(tmp_path / "plan", digest)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a//b", "./x"])
def test_a_manifest_that_names_what_is_not_in_the_plan(tmp_path: Path, name: str) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"files": {name: "0" * 64}}))
    with pytest.raises(ValueError, match="which is not in the plan"):
        read_manifest(tmp_path)


def test_real_folders_only(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/link").symlink_to("b")
    with real_folder(tmp_path, ("a", "b")) as inside:
        assert os.path.samestat(os.fstat(inside), (tmp_path / "a/b").stat())
    with pytest.raises(OSError, match="symbolic link"), real_folder(tmp_path, ("a", "link")):
        pass
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        with pytest.raises(OSError, match="symbolic link"), real_folder(tmp_path, ("a", "link")):
            pass
        with pytest.raises(OSError, match="no plain file"):
            read_plain(tmp_path / "a")
    assert len(list(Path("/proc/self/fd").iterdir())) == before, "files are left open"


# --- the registry


def test_entries_that_are_no_links_of_fermigrid(tmp_path: Path, run: Path) -> None:
    registry = tmp_path / "campaigns"
    registry.mkdir()
    (run / "ledger.sqlite").touch()
    (registry / "good~1").symlink_to(run)
    (registry / "relative~1").symlink_to("../runs/P400")
    (registry / "folder~1").mkdir()
    (registry / "file~1").touch()
    (registry / "~1").symlink_to(run)
    (registry / "loop~1").symlink_to(registry / "loop~1")
    assert my_campaigns(registry) == [("good", RunFolder(run))]


def test_a_link_of_the_registry_to_a_folder_of_somebody_else(run: Path) -> None:
    os.chown(run, 54321, 54321)
    with pytest.raises(AccessRefused, match="belongs to 54321") as refused:
        check_run_folder(run, ME)
    assert "fermigrid submit --group" in refused.value.hint
    share_folder(run, TEAM)
    with pytest.raises(AccessRefused, match="belongs to 54321") as refused:
        check_run_folder(run, ME)
    assert "FERMIGRID_TEAM" in refused.value.hint
    check_run_folder(run, ME.with_group(TEAM))


def test_a_link_on_the_way_in_a_sticky_folder(tmp_path: Path, run: Path) -> None:
    link = tmp_path / "sites"
    link.symlink_to(run)
    os.lchown(link, 54321, 54321)
    said = fault_of(link, ME)
    assert said is not None
    assert "is a link of 54321" in said.words
    shutil.rmtree(run)


# --- the whole program

CAMPAIGN = """\
campaign: small
image: light
runs: {count: 2}
code: [go.sh]
steps:
  go:
    command: [./go.sh, "{run}"]
    outputs: {out.fit: "{run}.fit"}
  fail:
    command: [./go.sh, no]
"""
SCRIPT = "#!/bin/sh\numask; [ $1 != no ] && echo $1 > out.fit\n"
FERMI, PROD, STRANGER = 20001, 20002, 20003  # accounts that this machine does not have


@dataclass(frozen=True)
class Person:
    """Somebody on this machine, with a shell, some groups and a folder of his own."""

    uid: int
    home: Path
    groups: tuple[int, ...] = ()
    team: Path | None = None

    def run(self, *command: object, cwd: Path | None = None, code: int | None = 0, tools: bool = False) -> str:
        """fermigrid, or (`tools`) a program that only has the person's own rights; what it said."""
        groups = [f"--groups={','.join(map(str, self.groups))}"] if self.groups else ["--clear-groups"]
        # Python may live in a folder that only root can enter; nothing can be written by this right
        rights = [] if tools else ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        who = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", *groups, *rights]
        words = [*who, *([] if tools else [sys.executable, "-m", "fermigrid"]), *map(str, command)]
        own = {"FERMIGRID_STATE": str(self.home / "state"), "HOME": str(self.home), "TMPDIR": str(self.home)}
        own |= {"FERMIGRID_TEAM": str(self.team)} if self.team else {}
        done = subprocess.run(
            words, cwd=cwd or self.home, env={**os.environ, "PYTHONPATH": str(ROOT), "FERMIGRID_POLL_S": "0.1", **own},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        if code is not None:
            assert done.returncode == code, f"exit {done.returncode}\n{said}"
        return said


@pytest.fixture
def people(public: Path) -> Callable[..., Person]:
    """Makes persons, each with a home."""

    def make(uid: int, *groups: int, team: Path | None = None) -> Person:
        home = public / str(uid)
        home.mkdir()
        os.chown(home, uid, uid)
        home.chmod(0o755)
        (home / "campaign.yaml").write_text(CAMPAIGN)
        (home / "go.sh").write_text(SCRIPT)
        return Person(uid, home, groups, team)

    return make


def modes_in(*folders: Path) -> dict[str, int]:
    """Every file and folder, links aside."""
    found = (path for folder in folders for path in (folder, *folder.rglob("*")) if not path.is_symlink())
    return {str(path): mode(path) for path in found}


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_every_file_of_every_verb_is_private(people: Callable[..., Person], umask: int) -> None:
    fermi = people(FERMI)
    before = os.umask(umask)
    try:
        fermi.run("check", "campaign.yaml", "--site", "local")
        fermi.run("render", "campaign.yaml", "--site", "local", "-o", "plan")
        fermi.run("submit", "campaign.yaml", "--site", "local", "--wait", code=1)
        for verb in ("status", "watch", "logs", "why"):
            job = ["go.0000"] if verb in ("logs", "why") else []
            said = fermi.run(verb, "small", *job, code=None)
        fermi.run("status", "small", "--history")
        assert f"{umask:04o}" in fermi.run("logs", "small", "go.0000"), "the payload's own umask is the person's"
        for verb in ("hold", "release", "remove"):
            fermi.run(verb, "small")
        fermi.run("submit", "--site", "local", "--image", "light", "--name", "one", "--wait", "--", "/bin/true")
    finally:
        os.umask(before)
    run = fermi.home / "fermigrid-runs"
    found = modes_in(run, fermi.home / "state", fermi.home / "plan", *fermi.home.glob("fermigrid-*"))
    open_ = {name: oct(bits) for name, bits in found.items() if bits & 0o077}
    assert open_ == {}
    assert {"outputs", "ledger.sqlite", "logs.sqlite", "blocks"} <= {path.name for path in (run / "small").iterdir()}
    assert len(found) > 60, said


def test_nobody_else_reads_a_private_run_folder(people: Callable[..., Person]) -> None:
    fermi, prod = people(FERMI), people(PROD, FERMI)  # the owner's own group is of no use
    fermi.run("submit", "campaign.yaml", "--site", "local", "--wait", code=1)
    run = fermi.home / "fermigrid-runs/small"
    assert "Permission denied" in prod.run("ls", run, tools=True, code=2)
    assert "Permission denied" in prod.run("cat", run / "ledger.sqlite", tools=True, code=1)
    assert "Permission denied" in prod.run("ls", fermi.home / "state", tools=True, code=2)
    for verb in ("status", "watch", "remove"):
        assert f"belongs to {FERMI}" in prod.run(verb, run, code=20)


@pytest.fixture
def team(public: Path) -> Path:
    """The folder of a production team, which one of them has made."""
    folder = public / "team"
    folder.mkdir()
    os.chown(folder, FERMI, TEAM)
    folder.chmod(SHARED_FOLDER)
    return folder


def test_a_team_goes_on_with_each_others_campaigns(people: Callable[..., Person], team: Path) -> None:
    fermi, prod, stranger = people(FERMI, TEAM, team=team), people(PROD, TEAM, team=team), people(STRANGER)
    before = os.umask(0o077)  # whatever the members' own
    try:
        fermi.run("submit", "campaign.yaml", "--site", "local", "--group", TEAM)
        assert "2 done, 2 failed" in prod.run("watch", "small", code=1)
        prod.run("status", "small", "--check", code=1)
        assert "umask" not in prod.run("logs", "small", "go.0000")
        assert "small" in prod.run("status")
        fermi.run("status", "small")
        prod.run("remove", "small")
        fermi.run("status", "small", "--history")
    finally:
        os.umask(before)
    run = fermi.home / "fermigrid-runs/small"
    found = modes_in(run)
    assert {bits for name, bits in found.items() if Path(name).is_dir()} == {SHARED_FOLDER}
    assert {bits & 0o666 for name, bits in found.items() if Path(name).is_file()} == {0o660}
    assert {path.stat().st_gid for path in run.rglob("*")} == {TEAM}
    assert {path.stat().st_uid for path in run.rglob("*")} == {FERMI, PROD}
    assert "Permission denied" in stranger.run("ls", run, tools=True, code=2)
    assert f"belongs to {FERMI}" in stranger.run("status", run, code=20)
    assert "Permission denied" in stranger.run("ls", team, tools=True, code=2)
    assert "was submitted before" in prod.run("submit", "campaign.yaml", "--site", "local", "--group", TEAM, code=14)


def test_a_group_that_one_is_not_in(people: Callable[..., Person]) -> None:
    said = people(FERMI).run("submit", "campaign.yaml", "--site", "local", "--group", TEAM, code=20)
    assert f"you are not in the group '{TEAM}'" in said


def test_a_shared_folder_that_was_opened_or_closed(people: Callable[..., Person], team: Path) -> None:
    fermi = people(FERMI, TEAM, team=team)
    fermi.run("submit", "campaign.yaml", "--site", "local", "--group", TEAM, "--wait", code=1)
    run = fermi.home / "fermigrid-runs/small"
    run.chmod(0o2777)
    assert "everybody can write" in fermi.run("status", "small", code=20)
    run.chmod(0o700)
    assert "now is not shared with it" in fermi.run("status", "small", code=20)
    run.chmod(SHARED_FOLDER)
    fermi.run("status", "small")


CODE_ATTACKS: dict[str, tuple[int, str]] = {
    "go.sh": (0o777, "everybody can write"),
    ".": (0o777, "everybody can write"),
}


@pytest.mark.parametrize("where", CODE_ATTACKS)
def test_code_that_others_can_write(people: Callable[..., Person], where: str) -> None:
    fermi = people(FERMI)
    bits, words = CODE_ATTACKS[where]
    (fermi.home / where).chmod(bits)
    said = fermi.run("submit", "campaign.yaml", "--site", "local", code=11)
    assert f"campaign.yaml:4: code[0]: {words}" in said
    assert f"chmod o-w {fermi.home / where}" in said
    assert not (fermi.home / "fermigrid-runs").exists()


def test_code_of_somebody_else(people: Callable[..., Person]) -> None:
    fermi = people(FERMI)
    os.chown(fermi.home / "go.sh", PROD, PROD)
    assert f"belongs to {PROD}" in fermi.run("check", "campaign.yaml", "--site", "local", code=11)


def test_site_files_that_others_can_write(people: Callable[..., Person]) -> None:
    fermi = people(FERMI)
    (fermi.home / "sites").mkdir()
    (fermi.home / "sites").chmod(0o755)
    os.chown(fermi.home / "sites", PROD, PROD)
    said = fermi.run("check", "campaign.yaml", "--site", "local", "--sites", "sites", code=20)
    assert f"belongs to {PROD}" in said
    os.chown(fermi.home / "sites", FERMI, FERMI)
    (fermi.home / "sites").chmod(0o777)
    said = fermi.run("site", "list", "--sites", "sites", code=20)
    assert "everybody can write" in said


@pytest.mark.parametrize("thing", ["link", "foreign", "open"])
def test_the_folder_in_a_job_folder_of_the_pipeline(public: Path, thing: str) -> None:
    ours = public / ".fermigrid"
    if thing == "link":
        (public / "elsewhere").mkdir()
        ours.symlink_to(public / "elsewhere")
    else:
        ours.mkdir(mode=0o700)
        if thing == "foreign":
            os.chown(ours, PROD, PROD)
        else:
            ours.chmod(0o777)
    with pytest.raises(AccessRefused), JobFolder(public).locked(1):
        pass
    assert not (public / "elsewhere/lock").exists()


def test_the_lock_of_a_job_folder_is_no_link(public: Path) -> None:
    (public / ".fermigrid").mkdir(mode=0o700)
    (public / "victim").write_text("mine")
    (public / ".fermigrid/lock").symlink_to(public / "victim")
    with pytest.raises(RunFolderError), JobFolder(public).locked(1):
        pass
    assert (public / "victim").read_text() == "mine"
