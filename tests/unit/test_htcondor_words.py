"""HTCondor's codes, errors and job ads in words; and that words, template and documentation say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermigrid.backends import htcondor_words as words
from fermigrid.backends.htcondor_words import HOLDS
from fermigrid.retry_rule import BUILT_IN, Kind, fate_of_hold

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "submit_templates/htcondor/job.sub.j2"
PAGE = ROOT / "docs/reference/hold-reasons.md"


# --- errors of a submission, as HTCondor 25.14 words them --------------------------------------------------


CONNECT = "Failed to connect to schedd, errmsg="


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (CONNECT + "AUTHENTICATE:1003:Failed to authenticate with any method", "refused"),
        (CONNECT + "SECMAN:2005:Protocol Error: No auth methods.", "refused"),
        (CONNECT + 'SECMAN:2010:Received "DENIED" from server for user x@y', "refused"),
        (CONNECT + "SECMAN:2007:This service is running, but did not respond in a reasonable time.", "unavailable"),
        (CONNECT + "SECMAN:2011:Connection closed during command authorization.", "unavailable"),
        ("Failed to connect to schedd.", "unavailable"),
        ("Failed to create new cluster.SCHEDD:28:Cannot allocate a cluster id", "refused"),
        ("Failed to create new cluster.SCHEDD:22:MAX_JOBS_SUBMITTED exceeded. Current=0, Limit=0", "refused"),
        ("Failed to create new cluster.", "unavailable"),
        ("expected next ProcId to be 1, but Schedd says -3", "refused"),
        ("expected next ProcId to be 20000, but Schedd says -4", "refused"),
        ("expected next ProcId to be 383, but Schedd says -1", "unavailable"),
        ("Failed to send item data (late materialization), ", "unavailable"),
        ("Failed to create job ad, errmsg=Submit:-1:Parse error in expression: \n\tX = ((\n\t", "refused"),
        ("Unable to commit transaction, SCHEDD:2:ask for an accounting group first", "refused"),
        ("Unable to commit transaction, ", "doubt"),
        ("Unable to commit transaction, QMGMT:1:connection lost", "doubt"),
        ("something that nobody has seen yet", "doubt"),
    ],
)
def test_an_error_is_a_refusal_only_where_the_schedd_said_no(told: str, kind: str) -> None:
    assert words.read_submit_error(told).kind == kind


def test_what_htcondor_cannot_read_is_told_on_one_line() -> None:
    told = (
        "Failed to create job ad (late materialization), errmsg=Submit:-1:Parse error in expression: \n\tX = ((\n\t\n"
    )
    assert str(words.read_submit_error(told)) == "it cannot read the submit file: Parse error in expression: X = (("


def test_limits_are_named() -> None:
    assert "MAX_JOBS_PER_OWNER" in str(words.read_submit_error("expected next ProcId to be 1, but Schedd says -3"))
    told = str(words.read_submit_error("expected next ProcId to be 20000, but Schedd says -4"))
    assert "MAX_JOBS_PER_SUBMISSION" in told
    assert "late materialization" in told


def test_a_schedd_that_dies_while_it_takes_jobs_is_told_as_that() -> None:
    told = str(words.read_submit_error("expected next ProcId to be 210, but Schedd says -1"))
    assert told == "the schedd broke off at job 210, without a word: it ended, or is busy"


# --- holds -------------------------------------------------------------------------------------------------


def test_a_hold_is_explained_with_its_reason_meaning_advice_and_end() -> None:
    told = words.explain_hold(13, 2, "Transfer input files failure: x y.rows: No such file or directory ")
    assert told == (
        "held: Transfer input files failure: x y.rows: No such file or directory (code 13/2, TransferInputError)",
        "that means: inputs could not be sent to the machine",
        "what to do: see that the file that the reason names is there and can be read; then `fermigrid release`",
    )


def test_an_unknown_code_is_no_failure() -> None:
    assert words.explain_hold(4711, None, "")[0] == "held: no reason given (code 4711/0)"
    assert words.explain_hold(None, None, "why not")[0] == "held: why not (code None/0)"


def test_the_page_of_hold_reasons_is_the_table() -> None:
    rows = re.findall(r"(?m)^\| (\d+(?:/\d+)?) \| (\S+) \| (.+?) \| (.+?) \| (.+?) \|$", PAGE.read_text())
    named = [end for rule in BUILT_IN for end in rule.when.ends if end.kind is Kind.HOLD and end.sub is not None]
    ends = sorted([(code, -1) for code in HOLDS] + [(end.value, end.sub or 0) for end in named])
    table = []
    for code, sub in ends:
        one, fate = HOLDS[code], fate_of_hold(code, sub if sub >= 0 else None, BUILT_IN)
        table.append((f"{code}/{sub}" if sub >= 0 else str(code), one.label, one.meaning, one.advice, fate))
    assert rows == table


def test_the_template_asks_for_what_it_says_it_is_given() -> None:
    source = TEMPLATE.read_text()
    head = source.split("#}")[0]
    used = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(source))
    assert used
    assert {name for name in used if not re.search(rf"\b{name}\b", head)} == set()


# --- reasons in the event log ------------------------------------------------------------------------------


def test_reasons_of_evictions_removals_and_releases() -> None:
    lines = ("\t(0) Job terminated and was requeued", "\t(1) Normal termination (return value 82)")
    assert "ended with exit code 82" in words.eviction(None, lines) and words.code_returned(lines) == 82
    assert (
        words.eviction("Error from slot1@x: Singularity test failed", lines)
        == "Error from slot1@x: Singularity test failed"
    )
    assert words.eviction(None, ("\t(0) CPU times", "\tlease expired")) == "lease expired"
    assert words.eviction(None, ()) == ""
    assert words.removal("The job attribute PeriodicRemove expression 'JobStatus == 5' evaluated to TRUE").startswith(
        "it was"
    )
    assert words.removal("via condor_rm (by user fermi)") == "via condor_rm (by user fermi)"
    assert words.removal(None) == ""
    assert words.liberation("The job attribute PeriodicRelease expression 'x' evaluated to TRUE").startswith(
        "fermigrid's"
    )
    assert words.liberation("via condor_release (by user fermi)") == "via condor_release (by user fermi)"


def test_how_many_jobs_a_removed_factory_had_made() -> None:
    assert words.jobs_made(("Cluster removed", "\tMaterialized 10 jobs from 10 items.\tIncomplete"), 30) == 10
    assert words.jobs_made(("Cluster removed",), 30) == 30


# --- requirements ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "clauses"),
    [
        ("a", ["a"]),
        ("((a) && (b && c)) && d", ["a", "b", "c", "d"]),
        ("(a || b) && c", ["a || b", "c"]),
        ("a && b || c", ["a && b || c"]),
        ("(a) && (b)", ["a", "b"]),
        ('x == "a && \\" b" && y', ['x == "a && \\" b"', "y"]),
        ("x == 'a && b' && y", ["x == 'a && b'", "y"]),
        ("member(a, {b && c}) && d", ["member(a, {b && c})", "d"]),
        ("(a ?: 0) >= 1 && b =?= c && d =!= e", ["(a ?: 0) >= 1", "b =?= c", "d =!= e"]),
        ("a ? b && c : d", ["a ? b && c : d"]),
    ],
)
def test_requirements_fall_apart_into_clauses(expression: str, clauses: list[str]) -> None:
    assert words.split_clauses(expression) == clauses


NAMES = st.sampled_from(["a", 'x == "&& ("', "f(a && b)", "(a || b)"])
TREES = st.recursive(
    NAMES, lambda some: st.tuples(some, some).map(lambda two: f"({two[0]}) && ({two[1]})"), max_leaves=8
)


@given(TREES)
def test_no_clause_is_lost_and_none_can_be_split_again(expression: str) -> None:
    clauses = words.split_clauses(expression)
    assert [words.split_clauses(clause) for clause in clauses] == [[clause] for clause in clauses]
    assert len(clauses) == expression.count(") && (") + 1


# --- why a job waits ---------------------------------------------------------------------------------------

IDLE = {
    "JobStatus": 1,
    "EnteredCurrentStatus": 1000,
    "ServerTime": 1000 + 7500,
    "RequestCpus": 2,
    "RequestMemory": 65536,
    "RequestDisk": 2048,
}
ROOM: dict[str, Any] = {
    "slots": 8,
    "clauses": [],
    "cpus": 8,
    "memory": 8,
    "disk": 8,
    "possible": 8,
    "willing": 8,
    "free": 3,
}


def explain(
    job: dict[str, Any] | None = None, index: int = 0, factory: dict[str, Any] | None = None, **facts: Any
) -> tuple[str, ...]:
    """`words.explain` of facts that are mostly not there."""
    nothing = dict.fromkeys(("left", "match", "ahead", "user"))
    return words.explain(nothing | {"job": job, "factory": factory} | facts, index)


def test_a_waiting_job_behind_others() -> None:
    (_, told) = explain(IDLE, match=ROOM, ahead={"jobs": 60, "cluster": 31})
    assert told == (
        "8 of 8 slots could run it, and 3 have room now: before it: 60 waiting jobs of yours, those of cluster 31 "
        "first; if nothing can run those, HTCondor may not look at this one until they are held or removed"
    )
    (_, told) = explain(IDLE, match=ROOM, ahead={"jobs": 0, "cluster": None})
    assert told.endswith("its turn comes with the next matchmaking")


def test_a_waiting_job_whose_turn_comes() -> None:
    user = {"Priority": 512.25, "WeightedResourcesUsed": 17.0}
    assert explain(IDLE | {"LastRejMatchReason": "no match found "}, match=ROOM, user=user) == (
        "it waits, for 2 h 5 min",
        "8 of 8 slots could run it, and 3 have room now: its turn comes with the next matchmaking",
        "the matchmaker's last word: no match found",
        "your priority there is 512.2 (large is bad), you use 17 cores",
    )


def test_a_waiting_job_at_the_limits_of_its_account() -> None:
    """The ceiling of the user, the quotas of the groups; none of them where there is still room below it."""
    group = {"Name": "group_fermi.prod", "WeightedResourcesUsed": 98.0, "EffectiveQuota": 98.5, "SurplusPolicy": "no"}
    above = group | {"Name": "group_fermi", "EffectiveQuota": 98.0, "SurplusPolicy": "byquota"}
    user = {"Priority": 500.0, "WeightedResourcesUsed": 17.0, "Ceiling": 17, "groups": [group, above]}
    assert explain(IDLE, match=ROOM, user=user)[-5:] == (
        "8 of 8 slots could run it, and 3 have room now: a limit keeps it from them",
        "your priority there is 500.0 (large is bad), you use 17 cores",
        "the pool lets you use 17 cores at once (your ceiling), no more",
        "the quota of its accounting group group_fermi.prod is 98 cores, 98 are in use, and it gets no more",
        "the quota of its accounting group group_fermi is 98 cores, 98 are in use: more only where others leave room",
    )
    free = user | {"Ceiling": -1, "groups": [group | {"EffectiveQuota": 200.0}]}
    assert explain(IDLE, match=ROOM, user=free)[-1].startswith("your priority there is 500.0")
    assert explain(IDLE, match=ROOM, user=user | {"Ceiling": 100, "groups": []})[-1].startswith("your priority")


def test_a_job_that_the_circuit_breaker_holds_waits_for_resume() -> None:
    (told,) = explain({"JobStatus": 5, "HoldReason": "paused by fermigrid (by user fermi)", "HoldReasonCode": 1})
    assert told == "paused by fermigrid: it is kept from starting; `fermigrid status` says why, and how it goes on"


def test_a_waiting_job_that_no_slot_fits() -> None:
    clauses = [{"text": "TARGET.Memory >= RequestMemory", "slots": 0}, {"text": "HasSingularity", "slots": 3}]
    nothing = {"clauses": clauses, "memory": 0, "possible": 0, "willing": 0, "free": 0}
    assert explain(IDLE, match=ROOM | nothing)[1:] == (
        "none of the pool's slots (8) can ever run it:",
        "- memory: 64 GiB or more: 0 of 8 slots",
    )


def test_a_waiting_job_that_slots_fit_but_do_not_take() -> None:
    told = explain(IDLE, match=ROOM | {"willing": 0, "free": 0})
    assert told[-1] == "- 8 slots would suit it, but for their own policy"


def test_a_waiting_job_with_a_past() -> None:
    past = {
        "NumVacatesByReason": {"SingularityTestFailed": 2, "StartdDraining": 1},
        "NumJobCompletions": 1,
        "LastRemoteHost": "slot1@node7",
    }
    told = explain(IDLE | past, match=ROOM | {"free": 0})
    assert told[1:] == (
        "its container could not start on 2 machines, last slot1@node7",
        "it was sent back to the queue: StartdDraining 1 time; last from slot1@node7",
        "its worker ended 1 time with a failure of the machine; it waits for another machine first",
        "8 of 8 slots could run it, none has room now: they are busy or, for some minutes, where it failed before",
    )


def test_a_pool_without_machines() -> None:
    assert explain(IDLE, match=ROOM | {"slots": 0})[1] == "the pool shows no machines at all"


def test_a_job_that_is_not_made_yet() -> None:
    factory = {
        "JobMaterializeNextProcId": 10,
        "TotalSubmitProcs": 500,
        "JobMaterializeLimit": 20,
        "JobsIdle": 3,
        "JobsRunning": 5,
        "JobsHeld": 2,
    }
    assert explain(factory=factory, index=10) == (
        "the schedd has made 10 of the batch's 500 jobs so far (late materialization), and this is number 11",
        "in the queue now: 3 idle, 5 running, 2 held; at most 20 at once in the queue",
    )
    assert "neither the queue nor the history" in explain(factory=factory, index=9)[0]


def test_a_held_job_of_a_limited_batch_tells_what_it_blocks() -> None:
    factory = {"JobMaterializeLimit": 20, "JobsHeld": 7}
    told = explain({"JobStatus": 5, "HoldReason": "x", "HoldReasonCode": 1}, factory=factory)
    assert told[-1] == "held jobs of the batch take 7 of the 20 places that it may have in the queue"


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ({"JobStatus": 2, "RemoteHost": "slot1@n"}, "it runs on slot1@n, for an unknown time"),
        (
            {"JobStatus": 2, "TransferringInput": True, "RemoteHost": "s"},
            "it brings its inputs on s, for an unknown time",
        ),
        ({"JobStatus": 6, "RemoteHost": "s"}, "it brings its outputs back on s, for an unknown time"),
        ({"JobStatus": 3}, "it is leaving the queue (removed)"),
        ({"JobStatus": 4}, "it is leaving the queue (ended)"),
        ({"JobStatus": 99}, "it is leaving the queue (ended)"),
    ],
)
def test_other_states(job: dict[str, Any], told: str) -> None:
    assert explain(job) == (told,)


def test_jobs_that_left() -> None:
    assert explain(left={"JobStatus": 4, "ExitCode": 7}) == ("it ended with exit code 7; its log tells more",)
    assert explain(left={"JobStatus": 4, "ExitBySignal": True, "ExitSignal": 9})[0].startswith("it ended by signal 9")
    assert explain(left={"JobStatus": 3}) == ("it was removed: no reason given",)
