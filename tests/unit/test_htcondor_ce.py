"""What is said of jobs that a CE has, or does not take, from their ads as HTCondor 25.14 has them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fermigrid.backends import htcondor_words as words
from fermigrid.backends.htcondor_ce import SILENT, ce_of
from fermigrid.resources import shipped

TEMPLATE = (shipped("submit_templates") / "htcondor/condor.sub.j2").read_text()
DENIED = 'Error connecting to schedd ce@x: SECMAN:2010:Received "DENIED" from server for user fermi@x using method FS.'


def ad(**more: Any) -> dict[str, Any]:
    """The ad of a job that the CE has as its job 12.0."""
    known = {
        "JobUniverse": 9,
        "JobStatus": 1,
        "GridResource": "condor ce@x 127.0.0.1:1",
        "GridJobId": "condor ce@x 127.0.0.1:1 12.0",
        "EnteredCurrentStatus": 1000,
        "ServerTime": 1120,
    }
    return {**known, **more}


def said(
    job: dict[str, Any] | None, there: dict[str, Any] | None = None, left: dict[str, Any] | None = None
) -> list[str]:
    """What `why` says of it."""
    facts = {"job": job, "factory": None, "left": left, "match": None, "ahead": None, "user": None, "there": there}
    return list(words.explain(facts, 0))


@pytest.mark.parametrize(
    ("reason", "meaning", "itself"),
    [
        (DENIED, "does not let you in", "as long as it takes"),
        ("Failed to connect to schedd", "did not answer", "as long as it takes"),
        ("Job disappeared from remote schedd", "does not know the job any more", "some times more"),
        ("ERROR: Failed to submit job.  SCHEDD:2:no jobs above 5 GB", "refused the job", "some times more"),
        ("Error sending files to schedd ce@x: x: (errno 2)", "files did not come", "some times more"),
        ("Unspecified gridmanager error", "the way to the CE failed", "some times more"),
        ("", "the way to the CE failed", "some times more"),
    ],
)
def test_a_job_that_is_held_on_its_way(reason: str, meaning: str, itself: str) -> None:
    held, means, _, by_itself = said(ad(JobStatus=5, HoldReasonCode=0, HoldReason=reason))
    assert held.startswith("held: ") and held.endswith("(ce@x)")
    assert meaning in means
    assert itself in by_itself
    assert bool(re.search(SILENT, reason, re.IGNORECASE)) is (itself == "as long as it takes")


def test_the_ces_own_words_are_without_htcondors_numbers() -> None:
    reason = "ERROR: Failed to submit job.  SCHEDD:2:no jobs above 5 GB"
    assert said(ad(JobStatus=5, HoldReason=reason))[0] == "held: Failed to submit job. no jobs above 5 GB (ce@x)"


def test_the_reason_of_a_job_that_was_given_up_is_explained() -> None:
    reason = "it was held, and no release cured it: ERROR: Failed to submit job.  SCHEDD:2:no jobs above 5 GB"
    assert words.explain_removal(reason, "0/0")[0] == "that means: the CE refused the job"
    meaning, advice = words.explain_removal("it was held, and no release cured it: x", "34/102")
    assert meaning == "that means: it used more than it had asked for (102: memory, 104: disk)"
    assert advice.startswith("what to do: ask for more")
    assert words.explain_removal("fermigrid remove (by user fermi)", "12/2") == ()
    assert words.explain_removal("it was held, and no release cured it: x", "") == ()


def test_a_hold_there_with_a_code_is_explained_as_any_hold() -> None:
    told = said(ad(JobStatus=5, HoldReasonCode=1, HoldReason="via condor_hold (by user fermi)"))
    assert told[1] == "that means: a person held it"


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ({"deaf": "no way"}, "the collector 127.0.0.1:1 does not answer (htcondor.grid.pool): no way"),
        ({"absent": True}, "the collector 127.0.0.1:1 knows no schedd ce@x (htcondor.grid.ce)"),
        ({"silent": "no token"}, "ce@x does not tell this shell more: no token"),
        ({"job": None}, "ce@x does not know it"),
        ({"job": {"JobStatus": 5, "HoldReason": "because"}}, "there it is held: because"),
        (
            {"job": {"JobStatus": 2, "RemoteHost": "slot1@node", "EnteredCurrentStatus": 1, "ServerTime": 61}},
            "there it runs on slot1@node, for 1 min",
        ),
        ({"job": {"JobStatus": 4}}, "there it has ended"),
        (
            {"job": {"JobStatus": 1, "EnteredCurrentStatus": 1, "ServerTime": 61}, "match": None, "ahead": None, "user": None},
            "there it waits, for 1 min",
        ),
    ],
)  # fmt: skip
def test_what_the_ce_says_itself(there: dict[str, Any], told: str) -> None:
    assert any(line.startswith(told) for line in said(ad(), there))


def test_an_end_there_has_its_true_exit_code() -> None:
    assert said(None, left=ad(JobStatus=4, ExitCode=7)) == ["it ended with exit code 7; its log tells more"]


def test_only_jobs_for_a_schedd_have_a_ce() -> None:
    assert ce_of(ad()) == ("ce@x", "127.0.0.1:1")
    assert ce_of(ad(GridResource="batch slurm")) == ("", "")
    assert ce_of({}) == ("", "")


def test_the_template_lets_the_silent_reasons_try_for_ever() -> None:
    """They are put into the submit file as a ClassAd string: no quote and no backslash, which HTCondor reads its own way."""
    assert "{{ grid.silent }}" in TEMPLATE
    assert not set('"\\$') & set(SILENT)
