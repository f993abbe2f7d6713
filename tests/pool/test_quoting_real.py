"""The encoders against the real thing: condor_submit's ads, the schedd's queue, what jobs are given."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fermigrid.errors import Unrepresentable
from fermigrid.quoting import (
    encode_arguments,
    encode_classad_string,
    encode_environment,
    encode_path,
    encode_submit_string,
    encode_submit_value,
)

pytestmark = pytest.mark.pool

HOSTILE = (
    "",
    " ",
    "  leading and trailing  ",
    "two  blanks",
    "\t",
    "a\ttab",
    "it's",
    "'",
    "''",
    "'quoted'",
    '"',
    '""',
    '"quoted"',
    "\"'mixed'\"",
    "back\\slash",
    "\\",
    "\\\\",
    "ends with a backslash\\",
    'backslash and quote\\"',
    "\\n \\t \\0 \\x41 \\303\\251",
    "$",
    "$$",
    "$$$",
    "a$",
    "costs $5 or $$5",
    "$HOME ${HOME} $(HOME)",
    "$(HOME)",
    "$ENV(HOME)",
    "$ENV(HOME:none)",
    "$F(HOME) $Fqp(HOME) $BASENAME(HOME)",
    "$RANDOM_CHOICE(a,b)",
    "$RANDOM_INTEGER(1,9)",
    "$CHOICE(0,a,b) $INT(1) $EVAL(1+1) $STRING(x) $SUBSTR(x,1) $REAL(1)",
    "$(DOLLAR)",
    "$(dollar)",
    "$(DOLLAR)(HOME)",
    "$(DOLLAR)$(DOLLAR)(Cpus)",
    "$$(DOLLAR)",
    "$$$(DOLLAR)",
    "$(ClusterId).$(ProcId) $(Cluster) $(Process) $(Item)",
    "$(undefined:default)",
    "$$(Cpus)",
    "$$(Nonsense)",
    "$$(Nonsense:fallback)",
    "$$(a.b)",
    "$$([1+1])",
    "$$([undefined])",
    '$$([ "a" ])',
    "$$$(Cpus)",
    "$$$$(Cpus)",
    "$$$$$([1+1])",
    "$$(DOLLARDOLLAR)",
    "$$$(DOLLARDOLLAR)(Cpus)",
    "$$(Cpus)$$(Memory)",
    "$$OPSYS.$$ARCH",
    "$$(",
    "$(",
    "`id` $(id) ${x} && || ; & | < > ! * ? ~ [a] {b} (c) ^",
    "a,b;c=d:e",
    "# comment",
    "%d %s %(x)s %%",
    "{run} {{run}}",
    "@=end",
    "+Attr = 1",
    "queue 3",
    "[1] <x/>",
    "é ü ñ ß",
    "日本語 עברית العربية",
    "\u202eright to left",
    "e\u0301 combining",
    "👩\u200d🚀 😀",
    "\u00a0\u2003 \u2028 \u2029 \x85 \ufeff",
    "\x01\x02\x07\x08\x0b\x0c\x0e\x1b[31m\x1c\x1f\x7f",
    "\x0b",
    "\uffff \U0010ffff",
    "--option=value",
    "-",
    "x" * 5000,
)

text = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n")),
    st.text("$$$(()[]{}'\"\\ \t,;=#:.|DOLARdxn0_\v\x01\x7fé"),
    st.lists(st.sampled_from(HOSTILE), max_size=3).map("".join),
)
many = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


def submit_text(lines: Mapping[str, str]) -> str:
    job = {"executable": "/bin/true", "transfer_executable": "false", **lines}
    return "".join(f"{command} = {value}\n" for command, value in job.items()) + "queue\n"


def dry_run(pool: Any, lines: Mapping[str, str]) -> Any:
    """The ad that condor_submit would send, with no configuration and no schedd."""
    import classad2

    program = shutil.which("condor_submit", path=pool.env["PATH"])
    assert program, "the pool has no condor_submit"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "x.sub").write_text(submit_text(lines), encoding="utf-8")
        done = subprocess.run(
            [program, "-dry-run", "x.ads", "x.sub"],
            cwd=folder,
            env={**os.environ, **pool.env, "CONDOR_CONFIG": "/dev/null"},
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        return classad2.parseOne((folder / "x.ads").read_text(encoding="utf-8"))


def split_raw(raw: str) -> list[str]:
    """HTCondor's V2 syntax as its manual says, character by character; not the product's decoder."""
    words, word, quoted, at = [], None, False, 0
    while at < len(raw):
        char = raw[at]
        if quoted and raw[at : at + 2] == "''":
            word, at = f"{word}'", at + 1
        elif char == "'":
            word, quoted = word or "", not quoted
        elif char in " \t" and not quoted:
            words, word = [*words, *([] if word is None else [word])], None
        else:
            word = f"{word or ''}{char}"
        at += 1
    return [*words, *([] if word is None else [word])]


def after_match(value: str) -> str:
    """What the schedd makes of a value at a job's start, if the encoder left it nothing else to expand."""
    done = ""
    while macro := re.search(r"(?<!\$)((?:\$\$)*?)\$\$\((\[|[A-Za-z0-9_.]*)", value):
        assert macro[2] == "DOLLARDOLLAR", f"the schedd would expand {value[macro.start() :]!r}"
        done, value = f"{done}{value[: macro.start()]}{macro[1]}$$", value[macro.end() + 1 :]
    return done + value


@many
@given(args=st.lists(text, min_size=20, max_size=120))
def test_condor_submit_gives_back_arguments(pool: Any, args: list[str]) -> None:
    ad = dry_run(pool, {"arguments": encode_arguments(args)})
    assert [after_match(word) for word in split_raw(ad["Arguments"])] == args


@many
@given(values=st.lists(text, min_size=20, max_size=120))
def test_condor_submit_gives_back_the_environment(pool: Any, values: list[str]) -> None:
    variables = {f"V{number}": value for number, value in enumerate(values)}
    ad = dry_run(pool, {"environment": encode_environment(variables)})
    words = [after_match(word) for word in split_raw(ad["Environment"])]
    assert dict(word.split("=", 1) for word in words) == variables


def encodable(encode: Any, values: list[str]) -> list[str]:
    kept = []
    for value in values:
        try:
            encode(value)
        except Unrepresentable:
            continue
        kept.append(value)
    return kept


@many
@given(values=st.lists(text, min_size=20, max_size=120))
def test_condor_submit_gives_back_strings(pool: Any, values: list[str]) -> None:
    values = encodable(encode_submit_string, values)
    ad = dry_run(pool, {f"+Z{number}": encode_submit_string(value) for number, value in enumerate(values)})
    assert [ad[f"Z{number}"] for number in range(len(values))] == values


paths = st.lists(
    st.text("abzAZ09._+@=-", min_size=1, max_size=12).filter(lambda part: part not in (".", "..")), min_size=1
)


@many
@given(several=st.lists(paths.map(lambda parts: "/" + "/".join(parts)), min_size=5, max_size=40))
def test_condor_submit_gives_back_lists_of_paths(pool: Any, several: list[str]) -> None:
    written = [encode_path(path) for path in several]
    lines = {"should_transfer_files": "yes", "transfer_input_files": ", ".join(written), "encrypt_input_files": "*"}
    ad = dry_run(pool, lines)
    assert [path.strip() for path in ad["TransferInput"].split(",")] == several
    assert ad["EncryptInputFiles"] == "*"


PLAIN = {
    "batch_name": "JobBatchName",
    "description": "JobDescription",
    "submit_event_notes": "SubmitEventNotes",
}


@settings(many, max_examples=60)
@given(values=st.tuples(text, text, text))
def test_condor_submit_gives_back_plain_values(pool: Any, values: tuple[str, ...]) -> None:
    for value in encodable(encode_submit_value, list(values)):
        ad = dry_run(pool, dict.fromkeys(PLAIN, encode_submit_value(value)))
        assert [ad[attribute] for attribute in PLAIN.values()] == [value] * 3


def test_condor_submit_gives_back_the_hostile_list(pool: Any) -> None:
    ad = dry_run(pool, {"arguments": encode_arguments(HOSTILE)})
    assert [after_match(word) for word in split_raw(ad["Arguments"])] == list(HOSTILE)
    for value in encodable(encode_submit_value, list(HOSTILE)):
        assert dry_run(pool, {"batch_name": encode_submit_value(value)})["JobBatchName"] == value


def test_the_documented_dollar_alone_would_not_do(pool: Any) -> None:
    """Why the encoders differ from HTCondor's manual: two $(DOLLAR) side by side, and one before (DOLLAR)."""
    plain = dry_run(pool, {"arguments": '"$(DOLLAR)$(DOLLAR)(Cpus) $(DOLLAR)(DOLLAR)"'})
    assert plain["Arguments"] == "$$(DOLLAR)(Cpus) $"


@many
@given(values=st.lists(text, max_size=50))
def test_classad_strings_are_read_back_by_the_classad_library(values: list[str]) -> None:
    import classad2

    for value in values:
        assert classad2.ExprTree(encode_classad_string(value)).eval() == value


DUMP = """#!/bin/sh
base64 -w 0 "/proc/$$/cmdline"
echo
base64 -w 0 "/proc/$$/environ"
echo
"""
NAMED = {f"HOSTILE_{number}": value for number, value in enumerate(HOSTILE)}


def hostile_job(folder: Path) -> dict[str, str]:
    script = folder / "dump.sh"
    script.write_text(DUMP)
    script.chmod(0o755)
    return {
        "executable": str(script),
        "initialdir": str(folder),
        "requirements": 'TARGET.GLIDEIN_Site == "SITEA"',
        "transfer_executable": "true",
        "should_transfer_files": "YES",
        "output": f"{folder}/dump.$(ProcId)",
        "error": f"{folder}/error.$(ProcId)",
        "log": f"{folder}/events.log",
        "arguments": encode_arguments(HOSTILE),
        "environment": encode_environment(NAMED),
        "+Campaign": encode_submit_string("P400 'the \"best\" one', $(HOME) costs $5; back\\slash"),
        "batch_name": encode_submit_value('50 % of $HOME, $(HOME) "x" é'),
    }


def submit(text: str) -> int:
    import htcondor2

    return int(htcondor2.Schedd().submit(htcondor2.Submit(text)).cluster())


def wait_for_end(log: Path, jobs: int) -> None:
    """Until that many jobs ended well; held, aborted or two minutes without an event fail the test."""
    import htcondor2

    kinds = htcondor2.JobEventType
    with htcondor2.JobEventLog(str(log)) as events:
        for event in events.events(stop_after=120):
            assert event.type not in (kinds.JOB_HELD, kinds.JOB_ABORTED, kinds.SHADOW_EXCEPTION), str(event)
            jobs -= event.type == kinds.JOB_TERMINATED
            if not jobs:
                return
    pytest.fail(f"{jobs} jobs did not end: {log.read_text()}")


def check_dump(dump: Path) -> None:
    command, environment = (base64.b64decode(line).split(b"\0")[:-1] for line in dump.read_text().split())
    assert command[2:] == [value.encode() for value in HOSTILE]
    seen = dict(entry.split(b"=", 1) for entry in environment)
    assert {name: seen.get(name.encode()) for name in NAMED} == {k: v.encode() for k, v in NAMED.items()}


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late materialization"])
@pytest.mark.usefixtures("fermi")
def test_a_job_is_given_exactly_the_hostile_list(job_folder: Path, late: bool) -> None:
    lines = hostile_job(job_folder) | ({"max_materialize": "1"} if late else {})
    submit(submit_text(lines).replace("queue\n", "queue 2\n"))
    wait_for_end(job_folder / "events.log", 2)
    check_dump(job_folder / "dump.0")
    check_dump(job_folder / "dump.1")


@pytest.mark.usefixtures("fermi")
def test_condor_submit_gives_a_job_the_same(pool: Any, job_folder: Path) -> None:
    (job_folder / "x.sub").write_text(submit_text(hostile_job(job_folder)), encoding="utf-8")
    program = shutil.which("condor_submit", path=pool.env["PATH"])
    assert program
    environment = {**os.environ, **pool.env}
    subprocess.run([program, "x.sub"], cwd=job_folder, env=environment, check=True, capture_output=True, timeout=60)
    wait_for_end(job_folder / "events.log", 1)
    check_dump(job_folder / "dump.0")


@pytest.mark.usefixtures("fermi")
def test_the_queue_gives_back_strings_and_values() -> None:
    """Also after the schedd wrote them to its log: what a query answers is what was written."""
    import htcondor2

    strings = encodable(encode_submit_string, list(HOSTILE))
    values = encodable(encode_submit_value, list(HOSTILE))
    lines = {f"+S{number}": encode_submit_string(value) for number, value in enumerate(strings)}
    schedd = htcondor2.Schedd()
    for value in values:
        cluster = submit(submit_text({**lines, **dict.fromkeys(PLAIN, encode_submit_value(value)), "hold": "true"}))
        (ad,) = schedd.query(f"ClusterId == {cluster}")
        schedd.act(htcondor2.JobAction.Remove, f"ClusterId == {cluster}")
        assert [ad[f"S{number}"] for number in range(len(strings))] == strings
        assert [ad[attribute] for attribute in PLAIN.values()] == [value] * 3
