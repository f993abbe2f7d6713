"""The bundle of a campaign's code: the same files are the same bytes; what cannot travel is refused by name."""

from __future__ import annotations

import io
import os
import random
import shutil
import socket
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fermigrid import code
from fermigrid.code import Bundle, pack_code, unpack_names
from fermigrid.config import Source
from fermigrid.errors import ConfigError

SOURCE = Source.of_lines("c.yaml", {("code",): 7, ("code", 0): 8, ("code", 1): 9})


def pack(folder: Path, *entries: str, programs: frozenset[str] = frozenset()) -> Bundle:
    bundle = pack_code(entries, folder, programs, SOURCE)
    assert bundle is not None
    return bundle


def refusal(folder: Path, *entries: str) -> str:
    with pytest.raises(ConfigError) as refused:
        pack(folder, *entries)
    return str(refused.value)


def members(bundle: Bundle) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(bundle.data)) as archive:
        return {member.name: member for member in archive}


def content(bundle: Bundle, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(bundle.data)) as archive:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


@pytest.fixture
def lib(tmp_path: Path) -> Path:
    (tmp_path / "lib" / "deep").mkdir(parents=True)
    (tmp_path / "lib" / "deep" / "b.py").write_text("b")
    (tmp_path / "lib" / "a.py").write_text("a")
    return tmp_path


def test_no_code_is_no_bundle(tmp_path: Path) -> None:
    assert pack_code([], tmp_path, frozenset(), SOURCE) is None


def test_files_and_folders_keep_their_last_name(lib: Path) -> None:
    (lib / "run.sh").write_text("x")
    assert pack(lib, "run.sh", "lib/").names == {"run.sh", "lib/a.py", "lib/deep/b.py"}
    assert pack(lib, "lib/deep", "./lib/a.py").names == {"deep/b.py", "a.py"}
    assert pack(lib / "lib", "../run.sh").names == {"run.sh"}


def test_the_same_files_are_the_same_bytes_whatever_time_order_mask_and_place(tmp_path: Path) -> None:
    names = [f"lib/{'x' * (i % 4)}{i}.py" for i in range(20)]
    bundles = []
    before = os.umask(0o022)
    try:
        for place, mask in (("one", 0o022), ("two/deeper", 0o077)):
            os.umask(mask)
            folder = tmp_path / place
            (folder / "lib").mkdir(parents=True)
            random.Random(place).shuffle(names)
            for name in names:
                (folder / name).write_text(name)
                os.utime(folder / name, (len(place), len(place)))
            bundles.append(pack(folder, "lib"))
    finally:
        os.umask(before)
    assert bundles[0] == bundles[1]


def test_the_order_in_which_code_is_named_does_not_matter(lib: Path) -> None:
    (lib / "z.py").write_text("z")
    assert pack(lib, "z.py", "lib") == pack(lib, "lib", "z.py")


def test_nobody_and_no_time_is_in_the_archive(lib: Path) -> None:
    for member in members(pack(lib, "lib")).values():
        assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", 0)
        assert member.isfile()


def test_another_content_or_name_is_another_bundle(lib: Path) -> None:
    first = pack(lib, "lib").sha256
    (lib / "lib" / "a.py").write_text("A")
    second = pack(lib, "lib").sha256
    (lib / "lib" / "a.py").rename(lib / "lib" / "c.py")
    assert len({first, second, pack(lib, "lib").sha256}) == 3


def test_programs_are_made_executable_and_others_keep_their_bit(lib: Path) -> None:
    for name, mode in (("go.py", 0o600), ("own.sh", 0o700), ("data", 0o644)):
        (lib / name).write_text("x")
        (lib / name).chmod(mode)
    found = members(pack(lib, "go.py", "own.sh", "data", "lib", programs=frozenset({"go.py", "lib/a.py"})))
    modes = {name: member.mode for name, member in found.items()}
    assert modes == {"go.py": 0o755, "own.sh": 0o755, "data": 0o644, "lib/a.py": 0o755, "lib/deep/b.py": 0o644}


def test_what_nobody_wants_stays_behind(lib: Path) -> None:
    for name in (
        ".git/config",
        "__pycache__/a.pyc",
        "deep/c.pyc",
        "a.py~",
        ".a.py.swp",
        ".DS_Store",
        ".venv/bin/python",
    ):
        (lib / "lib" / name).parent.mkdir(exist_ok=True, parents=True)
        (lib / "lib" / name).write_text("x")
    (lib / "lib" / ".hidden").write_text("this is wanted")
    assert pack(lib, "lib").names == {"lib/a.py", "lib/deep/b.py", "lib/.hidden"}


def test_two_files_with_one_name(lib: Path) -> None:
    (lib / "a.py").write_text("other")
    said = refusal(lib, "a.py", "lib/a.py")
    assert said == f"c.yaml:9: code[1]: a.py comes from {lib}/a.py and from {lib}/lib/a.py"
    assert pack(lib, "a.py", "a.py", "./a.py").names == {"a.py"}


def test_links_inside_are_followed_and_links_outside_are_refused(lib: Path) -> None:
    (lib / "lib" / "same.py").symlink_to("a.py")
    assert content(pack(lib, "lib"), "lib/same.py") == b"a"
    (lib / "secret").write_text("s")
    (lib / "lib" / "out.py").symlink_to("../secret")
    assert f"is a link to {lib}/secret, outside {lib}/lib: copy the file" in refusal(lib, "lib")


def test_a_link_that_only_looks_as_if_it_stayed_inside(lib: Path) -> None:
    (lib / "library").mkdir()
    (lib / "library" / "x").write_text("x")
    (lib / "lib" / "x").symlink_to(lib / "library" / "x")
    assert "outside" in refusal(lib, "lib")


def test_a_link_to_a_folder_is_refused(lib: Path) -> None:
    (lib / "lib" / "loop").symlink_to(".")
    assert "loop" in refusal(lib, "lib")
    (lib / "lib" / "loop").unlink()
    (lib / "lib" / "again").symlink_to("deep")
    assert "is a link to a folder: name the folder itself" in refusal(lib, "lib")


def test_links_that_lead_nowhere(lib: Path) -> None:
    (lib / "lib" / "broken").symlink_to("absent")
    assert f"{lib}/lib/broken is no plain file" in refusal(lib, "lib")
    (lib / "lib" / "broken").unlink()
    (lib / "lib" / "round").symlink_to("round")
    assert f"{lib}/lib/round is no plain file" in refusal(lib, "lib")
    (lib / "top").symlink_to("absent")
    assert "c.yaml:8: code[0]: 'top': no such file or folder" in refusal(lib, "top")


def test_pipes_sockets_and_devices_are_refused_and_never_waited_for(lib: Path) -> None:
    os.mkfifo(lib / "pipe")
    assert "'pipe' is neither a file nor a folder" in refusal(lib, "pipe")
    os.mkfifo(lib / "lib" / "pipe")
    assert "is no plain file" in refusal(lib, "lib")
    (lib / "lib" / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(lib / "lib")  # the path of a socket is short
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
    assert "is no plain file" in refusal(lib, "lib")
    assert "neither" in refusal(lib, "/dev/null")


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a\x7fb", "a\x1bb"])
def test_names_with_control_characters(lib: Path, name: str) -> None:
    (lib / "lib" / name).write_text("x")
    assert "contains a control character" in refusal(lib, "lib")
    assert "contains a control character" in refusal(lib, f"lib/{name}")


def test_names_that_are_not_utf8(lib: Path) -> None:
    (lib / "lib" / os.fsdecode(b"caf\xe9")).write_text("x")
    assert "is not UTF-8" in refusal(lib, "lib")


def test_names_in_every_script_travel(lib: Path) -> None:
    (lib / "lib" / "été $(x) 'q' \u4f60\u597d.py").write_text("x")
    assert "lib/été $(x) 'q' \u4f60\u597d.py" in members(pack(lib, "lib"))


def test_too_much_is_refused_before_it_is_read(lib: Path) -> None:
    with (lib / "lib" / "huge").open("wb") as file:
        file.truncate(code.MAX_BYTES * 1000)
    said = refusal(lib, "lib")
    assert said.startswith("c.yaml:7: code: the code has 97.7 GiB, more than the 100 MiB that travel with a job")
    assert "the largest file is lib/huge" in said


def test_the_whole_file_system_is_no_code(tmp_path: Path) -> None:
    assert "'/' is no folder of code" in refusal(tmp_path, "/")


def test_all_problems_of_all_entries_come_at_once(lib: Path) -> None:
    assert [line.split(":")[1] for line in refusal(lib, "absent", "gone").splitlines()] == ["8", "9"]


@pytest.fixture
def ordinary_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of a user who is not root (root may read everything)."""
    folder = Path(tempfile.mkdtemp(prefix="fermigrid-test-", dir="/tmp"))
    root = os.geteuid() == 0
    if root:
        os.chown(folder, 65534, -1)
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    for path in folder.rglob("*"):
        path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.mark.parametrize("locked", ["lib/a.py", "lib/deep"])
def test_what_cannot_be_read_does_not_silently_stay_behind(ordinary_user: Path, locked: str) -> None:
    (ordinary_user / "lib" / "deep").mkdir(parents=True)
    (ordinary_user / "lib" / "a.py").write_text("x")
    (ordinary_user / "lib" / "deep" / "b.py").write_text("x")
    (ordinary_user / locked).chmod(0)
    assert f"{ordinary_user}/{locked} cannot be read: Permission denied" in refusal(ordinary_user, "lib")


def test_a_kept_bundle_is_known_again(lib: Path) -> None:
    bundle = pack(lib, "lib")
    assert unpack_names(bundle.data) == bundle
