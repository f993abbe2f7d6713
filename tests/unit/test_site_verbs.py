"""`fermigrid site list | show | new | check`, as a person meets them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import click
import pytest

from fermigrid import cli
from fermigrid.inherit import read_site, site_names
from fermigrid.kinds import KINDS, kind_of
from fermigrid.site import load_site, wrong_values
from tests.campaigns import ROOT, SITES, SMALL
from tests.unit.test_inherit import ASKS, BASE, put

Result = tuple[int, str, str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    capsys.readouterr()
    code = cli.run([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def answer(text: str) -> str:
    """Every `!ask` of a file answered with something that a person might write."""
    answers = {
        "ce": "ce.example.org", "pool": "ce.example.org:9619", "url": "https://arc.example.org:443/arex",
        "manual": "https://example.org/", "requirements": "HasSingularity", "root": "/data",
    }  # fmt: skip
    lines = []
    for line in text.splitlines():
        before, asked, _ = line.partition("!ask")
        lines.append(before + answers.get(before.strip(" :"), "Ada") if asked else line)
    return "\n".join(lines) + "\n"


# --- list


def test_the_list_says_kind_parent_and_how_many_questions_are_open(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(here / "own", {"base": ASKS, "own": "site: own\nextends: base\ntitle: Mine\n"})
    code, out, _ = call(capsys, "site", "list", "--sites", "own")
    assert code == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert rows["site"] == ["site", "kind", "extends", "open", "title"]
    assert rows["base"][1:5] == ["pool", "-", "2", "Base"]
    assert rows["own"][1:] == ["pool", "base", "2", "Mine"]
    assert rows["local"][1:4] == ["local", "-", "0"]
    found = {row["site"]: row for row in json.loads(call(capsys, "site", "list", "--sites", "own", "--json")[1])}
    assert found["own"] == {
        "site": "own", "kind": "pool", "extends": "base", "open": 2, "title": "Mine", "backend": "htcondor",
        "contact": "ada@example.org", "manual": "https://example.org/",
    }  # fmt: skip


def test_a_broken_file_does_not_hide_the_others(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(here / "own", {"base": BASE, "broken": "site: [", "orphan": "site: orphan\nextends: nobody\n"})
    code, out, err = call(capsys, "site", "list", "--sites", "own")
    assert code == 11
    assert "\nbase " in out and "\npool " in out
    assert "own/broken.yaml:" in err and "own/orphan.yaml:2: extends: no site 'nobody'" in err


# --- check


def test_without_a_name_open_questions_are_no_error_of_the_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(here / "own", {"base": ASKS})
    code, out, err = call(capsys, "site", "check", "--sites", "own")
    assert (code, err) == (0, "")
    assert f"{here}/own/base.yaml: good, 2 values still to be asked for\n" in out


def test_a_named_site_with_open_questions_is_not_complete(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(here / "own", {"base": ASKS})
    code, out, err = call(capsys, "site", "check", "base", "local", "--sites", "own")
    assert code == 11
    assert out == f"{SITES}/local.yaml: good\n"
    assert f"{here}/own/base.yaml:7: htcondor.requirements: ask ada@example.org: which slots run containers?\n" in err
    assert f"Answer these in {here}/own/base.yaml:7, 13: put each answer in the place of its !ask." in err
    assert "site new" not in err


def test_questions_of_a_shipped_file_go_into_the_own_one_that_is_there(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(here / "own", {"slac": 'site: slac\nextends: slac\nproxy: !ask "the proxy"\n'})
    code, _, err = call(capsys, "site", "check", "slac", "--sites", "own")
    assert code == 11
    assert f"Answer these in {here}/own/slac.yaml:3: " in err
    assert f"Those of a shipped file: write their keys with your answers into {here}/own/slac.yaml." in err
    assert "site new" not in err


@pytest.mark.parametrize(
    ("site", "text", "said"),
    [
        ("pool", "container:\n  launch: worker\n", "a.yaml:4: container.launch: launch: worker starts the container itself, "
         f"and has no use for dialect: self-healing; an empty `dialect:` takes away one that is inherited. container.dialect is at {SITES}/pool.yaml:11\n"),
        ("slac", "container: {dialect: plain}\n", f"container.launch is at {SITES}/slac.yaml:18\n"),
        ("slac", "container: {launch: site}\n", "a.yaml:3: container.launch: launch: site needs a dialect"),
    ],
)  # fmt: skip
def test_two_keys_that_do_not_go_together_are_told_where_each_stands(
    here: Path, capsys: pytest.CaptureFixture[str], site: str, text: str, said: str
) -> None:
    put(here / "own", {"a": f"site: a\nextends: {site}\n{text}"})
    code, _, err = call(capsys, "site", "check", "a", "--sites", "own")
    assert code == 11
    assert said in err
    put(here / "own", {"a": f"site: a\nextends: {site}\n{text}".replace("worker\n", "worker\n  dialect:\n")})
    if site == "pool":
        assert call(capsys, "site", "check", "a", "--sites", "own")[0] == 0


# --- where site files are looked for


def test_every_folder_of_the_variable_must_be_there(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "file").write_text("")
    (here / "own").mkdir()
    (here / "c.yaml").write_text(SMALL)
    monkeypatch.setenv("FERMIGRID_SITES", f"{here}/own:{here}/gone:{here}/file:{here}/file/in")
    for verb in (["site", "list"], ["site", "check"], ["site", "show", "pool"], ["check", "c.yaml"],
                 ["render", "c.yaml", "-s", "pool", "-o", "plan"], ["submit", "c.yaml", "-s", "pool"]):  # fmt: skip
        code, out, err = call(capsys, *verb)
        assert (code, out) == (19, ""), verb
        assert f"FERMIGRID_SITES names {here}/gone: there is no such folder\n" in err
        assert f"FERMIGRID_SITES names {here}/file: is a file, not a folder\n" in err
        assert f"FERMIGRID_SITES names {here}/file/in: cannot be reached: Not a directory\n" in err
        assert f"names {here}/own" not in err and "Correct the variable" in err


def test_a_folder_of_the_variable_that_may_not_be_read(here: Path) -> None:
    (here / "own").mkdir(mode=0o300)
    command = [sys.executable, "-m", "fermigrid", "site", "check"]
    if os.geteuid() == 0:  # who may read everything otherwise
        caps = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={caps}", f"--inh-caps={caps}", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FERMIGRID_SITES": str(here / "own")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (19, "")
    assert f"FERMIGRID_SITES names {here}/own: you may not read it\n" in done.stderr


@pytest.mark.parametrize("verb", ["check", "submit"])
def test_an_empty_name_of_a_site_is_no_name(here: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    (here / "c.yaml").write_text(SMALL)
    code, out, err = call(capsys, verb, "c.yaml", "--site", "")
    assert (code, out) == (2, "") and "Invalid value for '--site' / '-s': it is empty" in err


def test_a_new_site_makes_the_first_folder_of_the_variable_alone(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERMIGRID_SITES", f"{here}/own:{here}/gone")
    assert call(capsys, "site", "new", "mine")[0] == 19
    monkeypatch.setenv("FERMIGRID_SITES", f"{here}/own")
    assert call(capsys, "site", "new", "mine")[:2] == (0, f"{here}/own/mine.yaml\n")
    assert call(capsys, "site", "new", "other")[0] == 0


# --- how wide


def on_screen(columns: int, *arguments: str) -> str:
    """What fermigrid shows on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    with subprocess.Popen(
        [sys.executable, "-m", "fermigrid", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    assert process.returncode == 0
    return click.unstyle(shown.decode())


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's word for the end of a terminal
        return b""


@pytest.mark.parametrize("columns", [100, 80])
def test_tables_fit_the_screen_and_hide_nothing(columns: int, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "c.yaml").write_text(SMALL.replace("image: light", "image: fermi-rhel6"))
    for verb in (["site", "list"], ["check", "c.yaml", "--site", "slac", "--explain"]):
        everything = call(capsys, *verb)[1]
        shown = on_screen(columns, *verb)
        assert max(map(len, shown.splitlines())) <= columns, verb
        assert sorted(shown.split()) == sorted(everything.split()), verb


def test_what_is_wrong_is_an_error_with_or_without_a_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(here / "own", {"base": ASKS.replace("backend: htcondor", "backend: slurm"), "own": "site: own\nextends: own\n"})
    for names in ([], ["base", "own"]):
        code, _, err = call(capsys, "site", "check", *names, "--sites", "own")
        assert code == 11
        assert "base.yaml:5: backend: 'slurm' is not allowed" in err
        assert "own.yaml:2: extends: 'own' is this site itself" in err


def test_every_shipped_site_is_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "site", "check")
    assert (code, err) == (0, "")
    assert out.count(": good") == len(site_names([SITES]))


@pytest.mark.parametrize("name", [name for name in site_names([SITES]) if read_site(name, [SITES]).blocks])
def test_a_shipped_site_with_questions_takes_no_job_and_says_them_all(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "c.yaml").write_text(SMALL)
    site = read_site(name, [SITES])
    for verb in (["site", "check", name], ["check", "c.yaml", "--site", name], ["render", "c.yaml", "--site", name, "-o", "plan"],
                 ["submit", "c.yaml", "--site", name]):  # fmt: skip
        code, out, err = call(capsys, *verb)
        assert (code, out) == (11, ""), verb
        assert all(f"{problem.file}:{problem.line}: {problem.key}: ask " in err for problem in site.open_problems())
        assert f"`fermigrid site new {name} --extends {name}`" in err
    assert sorted(path.name for path in here.iterdir()) == ["c.yaml"]


def test_slac_takes_a_job_that_names_no_secret(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "c.yaml").write_text(SMALL.replace("image: light", "image: fermi-rhel6"))
    assert call(capsys, "check", "c.yaml", "--site", "slac")[0] == 0
    assert call(capsys, "site", "check", "slac")[0] == 11


# --- new


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_each_kind_is_valid_but_for_its_questions(
    kind: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "site", "new", "mine", "--kind", kind, "-o", "own")
    assert (code, out) == (0, "own/mine.yaml\n")
    assert "--sites own" in err
    path = here / "own/mine.yaml"
    site = read_site("mine", [here / "own"])
    assert wrong_values(site) == []
    assert {key[0] for key, _ in site.questions} >= {"title", "contact", "manual"}
    assert kind_of(site.data) == kind
    path.write_text(answer(path.read_text()))
    assert call(capsys, "site", "check", "mine", "--sites", "own") == (0, f"{path}: good\n", "")
    (here / "c.yaml").write_text(SMALL)
    code, _, err = call(capsys, "check", "c.yaml", "--site", "mine", "--sites", "own")
    assert code == 0, err


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_says_in_comments_is_true(kind: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line that is commented out can be put in."""
    call(capsys, "site", "new", "mine", "--kind", kind, "-o", "own")
    path = here / "own/mine.yaml"
    text = answer(path.read_text())
    head, site, body = text.partition("site: mine")
    lines = [line.replace("# ", "", 1) if line.lstrip().startswith("# ") else line for line in body.splitlines()]
    path.write_text(head + site + "\n".join(lines) + "\n")
    code, out, err = call(capsys, "site", "check", "mine", "--sites", "own")
    assert (code, out) == (0, f"{path}: good\n"), f"{err}\n{path.read_text()}"


@pytest.mark.parametrize("name", [name for name in site_names([SITES]) if read_site(name, [SITES]).questions])
def test_a_file_over_a_shipped_site_has_all_its_questions(
    name: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERMIGRID_SITES", str(here / "own"))
    code, out, err = call(capsys, "site", "new", name, "--extends", name)
    assert (code, out) == (0, f"{here}/own/{name}.yaml\n")
    assert "--sites" not in err  # it is found there already
    own, shipped = read_site(name, [here / "own", SITES]), read_site(name, [SITES])
    assert own.parents[0] == name
    assert {key for key, _ in own.questions} == {key for key, _ in shipped.questions}
    assert all(own.source.place(key).file == f"{here}/own/{name}.yaml" for key, _ in own.questions)
    assert call(capsys, "site", "check", name)[0] == 11


def test_a_question_within_a_list_is_asked_for_the_whole_list(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(here / "base", {"base": ASKS})
    assert call(capsys, "site", "new", "mine", "--extends", "base", "-o", "own", "--sites", "base")[0] == 0
    text = (here / "own/mine.yaml").read_text()
    assert 'binds: !ask "where is pbs (write the whole list)"' in text
    folders = [here / "own", here / "base"]
    (here / "own/mine.yaml").write_text(text.replace('!ask "where is pbs (write the whole list)"', "[{from: /pbs}]"))
    assert [key for key, _ in read_site("mine", folders).questions] == [("htcondor", "requirements")]


def test_over_a_site_without_questions(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "site", "new", "mine", "--extends", "pool", "-o", "own")[0] == 0
    assert load_site("mine", [here / "own", SITES])[0].container == load_site("pool", [SITES])[0].container


@pytest.mark.parametrize("question", ['say "this": now', "a: b # c", "back\\slash", "Größe?"])
def test_any_question_is_written_again_as_it_is(here: Path, capsys: pytest.CaptureFixture[str], question: str) -> None:
    put(here / "base", {"base": BASE.replace("A: base", f"A: !ask {json.dumps(question, ensure_ascii=False)}")})
    assert call(capsys, "site", "new", "mine", "--extends", "base", "-o", "own", "--sites", "base")[0] == 0
    assert read_site("mine", [here / "own", here / "base"]).questions[0][1].question == question


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["mine", "--extends", "pool", "--kind", "pool"], 2, "--extends or --kind, not both"),
        (["mine", "--kind", "pbspro"], 2, "'pbspro' is not one of"),
        (["mine", "--extends", "pol"], 19, "no site 'pol'; did you mean 'pool'"),
        (["a b"], 11, "'a b' may hold only letters"),
        (["../mine"], 11, "'../mine' may hold only letters"),
        (["images"], 11, "images.yaml is the image catalogue"),
    ],
)
def test_what_is_refused_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    found, out, err = call(capsys, "site", "new", *arguments, "-o", "own")
    assert (found, out) == (code, "")
    assert said in err
    assert list(here.iterdir()) == []


def test_a_file_is_never_written_over(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(here / "own", {"mine": "precious: yes\n"})
    code, _, err = call(capsys, "site", "new", "mine", "-o", "own")
    assert (code, (here / "own/mine.yaml").read_text()) == (11, "precious: yes\n")
    assert "own/mine.yaml: is there already" in err


def test_a_folder_that_cannot_be_made(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file").write_text("")
    code, _, err = call(capsys, "site", "new", "mine", "-o", "file/own")
    assert code == 11
    assert "file/own/mine.yaml: cannot be written: Not a directory" in err
