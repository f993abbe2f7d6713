"""The command line as people and scripts meet it: messages, exit codes, JSON, pipes that close, Ctrl-C."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fermigrid import __version__, backends, cli, errors
from fermigrid.ledger import open_ledger
from fermigrid.ledger_file import writing
from fermigrid.runfolder import RunFolder
from fermigrid.states import State
from tests import stand_in
from tests.campaigns import ROOT, SMALL, TWO_STEPS, fermigrid, write
from tests.stand_in import Memory

Result = tuple[int, str, str]
SHIPPED = sorted(path.stem for path in (ROOT / "sites").glob("*.yaml") if path.stem != "images")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FERMIGRID_POLL_S", "0")
    return tmp_path


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """A batch system in the place of this machine's."""
    monkeypatch.setitem(backends.BACKENDS, "local", "tests.stand_in")
    yield stand_in.forget()
    stand_in.forget()


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """The command line in this process, up to its exit code."""
    capsys.readouterr()
    code = cli.run([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


# --- usage


@pytest.mark.parametrize("verb", ["", *cli.VERBS])
def test_every_verb_has_a_help_page(verb: str) -> None:
    result = CliRunner().invoke(cli.cli, [*verb.split(), "--help"])
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: cli {verb}".rstrip())


def test_the_list_of_verbs_is_the_list_of_modules() -> None:
    shared = {"__init__", "auditing", "following", "options", "redoing", "tables", "watching"}
    assert {path.stem for path in (ROOT / "fermigrid/commands").glob("*.py")} - shared == set(cli.VERBS)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"fermigrid, version {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chekc"], "no such command 'chekc'. Did you mean 'check'?"),
        (["--nope"], "No such option"),
        (["check"], "Missing argument 'FILE'"),
        (["check", "a", "b"], "unexpected extra argument"),
        (["check", "c.yaml", "--set", "x"], "--set takes NAME=VALUE, not 'x'"),
        (["check", "c.yaml", "--sites", "absent"], "does not exist"),
        (["render", "c.yaml"], "Missing option '--site'"),
        (["submit"], "give a campaign FILE, or -- COMMAND"),
        (["submit", "c.yaml", "--", "x"], "give a campaign FILE, or -- COMMAND"),
        (["submit", "--site", "local", "--image", "light", "--"], "there is no command behind --"),
        (["submit", "--image", "light", "--", "x"], "a command needs --site"),
        (["submit", "--site", "local", "--", "x"], "a command needs --image"),
        (["submit", "c.yaml", "--cpus", "1"], "--cpus goes with -- COMMAND"),
        (["submit", "c.yaml", "--output", "x"], "--output goes with -- COMMAND"),
        (["submit", "c.yaml", "--jobs", "2"], "--jobs goes with -- COMMAND"),
        (["submit", "--jobs", "two", "--", "x"], "is not a valid integer"),
        (["site"], "Usage:"),
        (["why", "small"], "Missing argument 'JOB'"),
    ],
)
def test_a_wrong_command_line_is_2(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    write(here, name="c.yaml")
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert said in out + err


# --- exit codes


def test_each_class_of_errors_has_its_code_and_the_page_says_so() -> None:
    page = (ROOT / "docs/reference/exit-codes.md").read_text()
    written = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)}
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.FermigridError)]
    assert written == {c.__name__: c.exit_code for c in classes}
    assert all(c.exit_code >= 10 for c in classes)
    own = [c.exit_code for c in classes if c.__base__ is errors.FermigridError]
    assert len(own) == len(set(own))
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == {0, 1, 2, 130, *written.values()}


@pytest.mark.parametrize(
    ("text", "arguments", "code", "said"),
    [
        (SMALL, ["check", "c.yaml", "--site", "local"], 0, ""),
        (SMALL, ["check", "absent.yaml"], 11, "absent.yaml: cannot be read: No such file or directory"),
        (
            SMALL.replace("image", "imgae"),
            ["check", "c.yaml"],
            11,
            "c.yaml:2: imgae: unknown key; did you mean 'image'?",
        ),
        (SMALL, ["check", "c.yaml", "--set", "p=1"], 11, "--set p: the campaign has no such parameter"),
        (SMALL, ["check", "c.yaml", "--set", "p=a\nb"], 12, "--set p: 'a\\nb' cannot be used: it has a newline"),
        (SMALL, ["submit", "--site", "local", "--image", "light", "--", "a\rb"], 12, "word 1 of the command"),
        (SMALL, ["submit", "c.yaml", "--site", "local", "--run-dir", "a b"], 14, "has ' ' in its path"),
        (SMALL, ["submit", "c.yaml"], 11, "names no site: write sites: {slac: 70, in2p3: 30}, or give --site"),
        (SMALL, ["render", "c.yaml", "--site", "local", "-o", "."], 14, "exists"),
        (SMALL, ["check", "c.yaml", "--site", "locl"], 19, "no site 'locl'; did you mean 'local'?"),
        (SMALL, ["status", "nothing"], 19, "no campaign 'nothing'"),
        (SMALL, ["site", "show", "nothing"], 19, "no site 'nothing'"),
        (SMALL, ["logs", "nothing", "job"], 19, "no campaign 'nothing'"),
    ],
)
def test_exit_codes_and_messages(
    here: Path, capsys: pytest.CaptureFixture[str], text: str, arguments: list[str], code: int, said: str
) -> None:
    write(here, text, name="c.yaml")
    before = sorted(path.name for path in here.rglob("*"))
    found, out, err = call(capsys, *arguments)
    assert found == code
    assert said in err
    if code:
        assert err.startswith("fermigrid: ")
        assert out == ""
        assert "Traceback" not in err
        assert sorted(path.name for path in here.rglob("*")) == before, "something was left behind"


def test_all_problems_are_listed_one_a_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here, "campaign: a b\nimage: light\nruns: {}\nsteps: {}\n", name="c.yaml")
    _, _, err = call(capsys, "check", "c.yaml")
    lines = err.splitlines()
    assert [re.search(r"c\.yaml:(\d+): (\w+)", line)[0] for line in lines] == [
        "c.yaml:1: campaign",
        "c.yaml:3: runs",
        "c.yaml:4: steps",
    ]  # type: ignore[index]


def test_a_fault_of_our_own_is_70_and_names_its_file(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(here))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setitem(cli.VERBS, "broken", "no such module")
    code, _, err = call(capsys, "broken")
    assert code == 70
    assert "fault in fermigrid itself: ModuleNotFoundError" in err
    (file,) = here.glob("fermigrid-fault-*.txt")
    assert str(file) in err
    assert "Traceback" in file.read_text()


# --- check, render, site


def test_check_says_what_would_be_done(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here, TWO_STEPS, "run,events\nr1,25\nr2,5\nr3,0\n", "c.yaml")
    code, out, err = call(capsys, "check", "c.yaml")
    assert (code, err) == (0, "")
    assert "c.yaml: good. Campaign two, 3 runs in 2 blocks" in out
    assert "clump: 4 jobs" in out
    assert "merge: 3 jobs" in out
    assert "not checked against a site" in out


def test_render_writes_every_plan_and_sends_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], system: Memory
) -> None:
    write(here, TWO_STEPS, "run,events\nr1,25\nr2,5\nr3,1\n", "c.yaml")
    code, out, _ = call(capsys, "render", "c.yaml", "--site", "local", "-o", "plans")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == [
        f"plans/{b}/{s}.g0" for b in ("b0000", "b0001") for s in ("clump", "merge")
    ]
    assert (here / "plans/b0001/merge.g0/plan.json").is_file()
    assert system.landed == []


def test_sites(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "site", "list", "--json")
    sites = json.loads(out)
    assert code == 0
    assert [site["site"] for site in sites] == SHIPPED
    assert all(site["contact"] and site["manual"] for site in sites)
    assert json.loads(call(capsys, "site", "show", "slac")[1])["container"]["launch"] == "worker"
    assert call(capsys, "site", "check")[1].count(": good") == len(SHIPPED)
    (here / "own").mkdir()
    (here / "own" / "local.yaml").write_text("site: local\n")
    code, _, err = call(capsys, "site", "check", "--sites", "own")
    assert code == 11
    assert "own/local.yaml:1: title: is required" in err


def test_an_own_folder_of_sites_from_the_environment(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "own").mkdir()
    (here / "own" / "mine.yaml").write_text(
        (ROOT / "sites/local.yaml").read_text().replace("site: local", "site: mine")
    )
    monkeypatch.setenv("FERMIGRID_SITES", str(here / "own"))
    assert "mine" in call(capsys, "site", "list")[1]


# --- a campaign's life


def submitted(here: Path, capsys: pytest.CaptureFixture[str], text: str = SMALL, *more: object) -> Result:
    write(here, text, name="c.yaml")
    return call(capsys, "submit", "c.yaml", "--site", "local", *more)


def test_a_campaign_from_submission_to_its_end(here: Path, capsys: pytest.CaptureFixture[str], system: Memory) -> None:
    code, out, err = submitted(here, capsys)
    assert (code, out) == (0, "small: 2 jobs, 2 waiting\n")
    assert f"run folder: {here}/fermigrid-runs/small" in err
    assert "nothing new to send" in submitted(here, capsys)[2]
    stand_in.end_job(system.landed[0], 0)
    stand_in.end_job(system.landed[0], 1, 3)
    code, out, _ = call(capsys, "watch", "small", "--once")
    assert (code, out) == (1, "small: 2 jobs, 1 done, 1 failed\n")
    assert call(capsys, "status", "small")[0] == 0
    code, out, _ = call(capsys, "status", "small", "--check", "--failed")
    assert code == 1
    assert "the payload ended with exit code 3" in out
    code, out, _ = call(capsys, "why", "small", "go.0001")
    assert code == 0
    assert "the payload ended with exit code 3" in out
    assert "| hello" in out
    assert call(capsys, "logs", "small", "go.0000")[1] == "hello\n"
    assert json.loads(call(capsys, "logs", "small", "go.0000", "--report")[1])["job"] == "go.0000"


def test_why_says_where_core_files_are(here: Path, capsys: pytest.CaptureFixture[str], system: Memory) -> None:
    submitted(here, capsys)
    stand_in.end_job(system.landed[0], 1, 139, cores=[{"file": "go.0001.core.0.x", "bytes": 7}])
    call(capsys, "watch", "small", "--once")
    out = call(capsys, "why", "small", "go.0001")[1]
    (folder,) = (here / "fermigrid-runs/small").rglob("work/s0000-*")
    assert f"core files kept: {folder}/out: go.0001.core.0.x" in out


def test_json_wherever_a_table_is_printed(here: Path, capsys: pytest.CaptureFixture[str], system: Memory) -> None:
    submitted(here, capsys)
    stand_in.end_job(system.landed[0], 0, 7)
    status = json.loads(call(capsys, "status", "small", "--failed", "--json")[1])
    assert (status["jobs"], status["states"]["failed"], status["failed"][0]["job"]) == (2, 1, "go.0000")
    (mine,) = json.loads(call(capsys, "status", "--json")[1])
    assert (mine["campaign"], mine["jobs"], mine["folder"]) == ("small", 2, f"{here}/fermigrid-runs/small")
    why = json.loads(call(capsys, "why", "small", "go.0001", "--json")[1])
    assert why["why"] == ["job 1 of cluster 1 waits for a machine"]


def test_a_job_that_a_rule_begins_again_waits_and_the_list_of_campaigns_says_what_is_stopped(
    here: Path, capsys: pytest.CaptureFixture[str], system: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_in, "TIME", datetime.now(UTC))
    more = "retries: {rules: [{when: {exit: 7}, do: wait, after: 10 min}]}\nstop_if: {failed: 100 % of the last 2}\n"
    submitted(here, capsys, SMALL + "  then: {after: [go], command: [/bin/true]}\n" + more)
    stand_in.end_job(system.landed[0], 1, 7)
    call(capsys, "watch", "small", "--once")
    out = call(capsys, "status", "small", "--failed")[1]
    assert "small: 4 jobs, 2 waiting, 2 not sent yet\nagain by a rule, from " in out and "failed" not in out
    status = json.loads(call(capsys, "status", "small", "--json")[1])
    assert status["states"]["failed"] == 0 and status["failed"] == []
    assert [(one["job"], one["why"]) for one in status["returning"]] == [
        ("go.0001", "the payload ended with exit code 7")]  # fmt: skip
    assert call(capsys, "why", "small", "go.0001")[1].startswith("go.0001: waiting (small.b0000.go.g0 at local)\n")
    assert json.loads(call(capsys, "why", "small", "go.0001", "--json")[1])["state"] == "waiting"
    stand_in.end_job(system.landed[0], 0, 3)
    call(capsys, "watch", "small", "--once")
    (mine,) = json.loads(call(capsys, "status", "--json")[1])
    assert mine["jobs"] == 4 and mine["state"].startswith("1 waiting, 1 failed, 1 not sent yet, 1 never sent; 1 again ")
    assert mine["state"].endswith("; stopped by the circuit breaker")


def test_why_and_status_tell_of_jobs_that_are_not_sent(
    here: Path, capsys: pytest.CaptureFixture[str], system: Memory
) -> None:
    submitted(here, capsys, SMALL + "  then: {after: [go], command: [/bin/true]}\n")
    stand_in.end_job(system.landed[0], 1, 3)
    call(capsys, "watch", "small", "--once")
    assert call(capsys, "why", "small", "then.0001")[1] == (
        "then.0001: not sent\n  not sent, because go.0001 failed (the payload ended with exit code 3)\n"
    )
    why = json.loads(call(capsys, "why", "small", "then.0001", "--json")[1])
    assert (why["state"], why["batch"], len(why["why"]), why["log"]) == ("not sent", None, 1, [])
    code, _, err = call(capsys, "why", "small", "then.0002")
    assert code != 0 and "no job 'then.0002'" in err
    stand_in.end_job(system.landed[0], 0)
    assert "never sent, because what comes before failed or was removed: 1 job\n" in call(capsys, "status", "small")[1]
    status = json.loads(call(capsys, "status", "small", "--json")[1])
    assert (status["jobs"], status["unsent"], status["blocked"]) == (4, 2, 1)


def test_watch_tells_why_jobs_are_held(here: Path, capsys: pytest.CaptureFixture[str], system: Memory) -> None:
    submitted(here, capsys)
    call(capsys, "hold", "small", "--job", "go.0001")
    assert "1 job held: no reason given (fermigrid why small go.0001)" in call(capsys, "watch", "small", "--once")[2]


def test_nothing_of_mine(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(call(capsys, "status", "--json")[1]) == []
    assert call(capsys, "status")[0] == 0


def test_wait_ends_with_1_when_a_job_failed(
    here: Path, capsys: pytest.CaptureFixture[str], system: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = stand_in.submit

    def submit_and_end(batch: backends.RenderedBatch) -> backends.Handle:
        handle = submit(batch)
        for index in range(batch.jobs):
            stand_in.end_job(batch, index, index)
        return handle

    monkeypatch.setattr(stand_in, "submit", submit_and_end)
    code, out, _ = submitted(here, capsys, SMALL, "--wait")
    assert (code, out) == (1, "small: 2 jobs, 1 done, 1 failed\n")
    one = SMALL.replace("count: 2", "count: 1").replace("small", "other")
    assert submitted(here, capsys, one, "--wait")[:2] == (0, "other: 1 job, 1 done\n")


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [("no", 17, "no permission"), ("silent", 16, "no answer"), ("lost", 18, "sent, no answer")],
)
def test_what_the_batch_system_says(
    here: Path, capsys: pytest.CaptureFixture[str], system: Memory, answer: str, code: int, said: str
) -> None:
    system.answer = answer
    found, _, err = submitted(here, capsys)
    assert found == code
    assert said in err
    system.answer = "yes"
    assert submitted(here, capsys)[:2] == (0, "small: 2 jobs, 2 waiting\n")
    assert len(system.landed) == 1


def test_an_uncommon_run_folder(here: Path, capsys: pytest.CaptureFixture[str], system: Memory) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").write_text("x")
    code, _, err = submitted(here, capsys, SMALL, "--run-dir", "mine")
    assert code == 14
    assert "it holds thesis.tex" in err
    assert [path.name for path in (here / "mine").iterdir()] == ["thesis.tex"]
    assert system.landed == []


def test_another_fermigrid_at_work_is_15_with_its_pid(
    here: Path, capsys: pytest.CaptureFixture[str], system: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(here, capsys)
    monkeypatch.setattr("fermigrid.commands.following.BUSY_S", 0.1)
    with writing(here / "fermigrid-runs/small/ledger.sqlite"):
        code, _, err = call(capsys, "remove", "small")
        assert call(capsys, "status", "small")[0] == 0, "readers need no lock"
        assert call(capsys, "watch", "small", "--once") == (0, "", ""), "the other one looks for us"
    assert code == 15
    assert f"process {os.getpid()}" in err


@pytest.mark.parametrize(("verb", "state"), [("remove", State.REMOVED), ("hold", State.HELD)])
def test_remove_and_hold(
    here: Path, capsys: pytest.CaptureFixture[str], system: Memory, verb: str, state: State
) -> None:
    submitted(here, capsys)
    assert call(capsys, verb, "small", "--job", "go.0001")[0] == 0
    assert system.said == [(verb, "small.b0000.go.g0", [1])]
    with closing(open_ledger(RunFolder(here / "fermigrid-runs/small").ledger)) as ledger:
        assert [job.name for job in ledger.jobs_in(state)] == ["go.0001"]
        assert verb in ledger.journal()[-1][2]
    assert call(capsys, verb, "small", "--step", "gone")[0] == 2
    assert call(capsys, verb, "small", "--job", "go.9999")[0] == 19


def test_release_follows_hold(here: Path, capsys: pytest.CaptureFixture[str], system: Memory) -> None:
    submitted(here, capsys)
    call(capsys, "hold", "small")
    assert "2 held" in call(capsys, "watch", "small", "--once")[1]
    assert call(capsys, "release", "small")[1] == "released: 2 jobs\n"
    assert "2 waiting" in call(capsys, "watch", "small", "--once")[1]


def test_a_command_is_a_campaign_of_its_own(here: Path, capsys: pytest.CaptureFixture[str], system: Memory) -> None:
    arguments = ["--site", "local", "--image", "light", "--name", "mine", "--jobs", "3", "--", "echo", "--help", "{x}"]
    code, out, _ = call(capsys, "submit", *arguments)
    assert (code, out) == (0, "mine: 3 jobs, 3 waiting\n")
    assert "nothing new to send" in call(capsys, "submit", *arguments)[2]


# --- processes


def test_a_reader_that_goes_away_is_no_fault(here: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; sys.stdin.readline(); from fermigrid.cli import main; main(['site', 'list'])",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0
    process.stderr.close()


WAITS = """
import sys
from fermigrid import backends, cli
backends.BACKENDS["local"] = "tests.stand_in"
from tests import stand_in
observe = stand_in.observe
def observe_and_tell(handles, cursor):
    print("watching", flush=True)
    return observe(handles, cursor)
stand_in.observe = observe_and_tell
cli.main(["submit", "c.yaml", "--site", "local", "--wait"])
"""


def test_ctrl_c_is_130_and_the_same_command_goes_on(here: Path) -> None:
    write(here, name="c.yaml")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FERMIGRID_POLL_S": "60"}
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout
    assert process.stdout.readline() == "watching\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("its jobs go on, and `fermigrid watch small` looks again\n"), "and nothing else"
    with closing(open_ledger(here / "fermigrid-runs/small/ledger.sqlite")) as ledger, writing(ledger.path):
        assert ledger.batches()[0].submitted


def test_the_module_is_the_command(here: Path) -> None:
    write(here, SMALL.replace("image", "imgae"), name="c.yaml")
    code, out, err = fermigrid("check", "c.yaml", cwd=here)
    assert (code, out) == (11, "")
    assert "did you mean 'image'?" in err


def test_what_is_typed_in_any_script_is_said_again_whatever_the_locale(here: Path) -> None:
    write(here, SMALL.replace("light", "été\u4f60"), name="c.yaml")
    for locale in ("C", "C.UTF-8", "POSIX"):
        environment: dict[str, Any] = {"LC_ALL": locale, "LANG": locale, "PYTHONIOENCODING": ""}
        code, _, err = fermigrid("check", "c.yaml", cwd=here, env=environment)
        assert code == 11
        assert "no image" in err
