"""What is said of jobs that HTCondor hands on to a batch system, from their ads as HTCondor 25.14 has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fermigrid.backends import htcondor_grid as grid
from fermigrid.backends import htcondor_words as words
from fermigrid.campaign import Resources
from fermigrid.grid import Grid
from fermigrid.report import INFRASTRUCTURE
from fermigrid.resources import shipped
from fermigrid.retry_rule import BUILT_IN, in_queue

TEMPLATE = (shipped("submit_templates") / "htcondor/grid.sub.j2").read_text().replace("\\\n", " ")
SANDBOX = "127.0.0.1_30728_pool_fermigrid.test_3.0_1795378998"


def ad(**more: Any) -> dict[str, Any]:
    """The ad of a job for Slurm that is there as its job 5."""
    known = {
        "JobUniverse": 9,
        "JobStatus": 1,
        "GridResource": "batch slurm",
        "GridJobId": f"batch slurm {SANDBOX} slurm/20261122/5",
        "EnteredCurrentStatus": 1000,
        "ServerTime": 1120,
    }
    return {**known, **more}


def said(job: dict[str, Any]) -> list[str]:
    """What `why` says of it."""
    return list(
        words.explain({"job": job, "factory": None, "left": None, "match": None, "ahead": None, "user": None}, 0)
    )


def test_a_job_that_waits_in_slurm() -> None:
    assert said(ad(GridJobStatus="IDLE")) == [
        "it waits, for 2 min",
        "Slurm has it as its job 5, IDLE",
        "`scontrol show job 5` tells why it waits there",
    ]


def test_a_job_that_is_not_there_yet() -> None:
    told = said(ad(GridJobId=f"batch slurm {SANDBOX}", GridResourceUnavailableTime=1060))
    assert told[1] == "Slurm has not answered for 1 min; HTCondor asks again by itself, and nothing is lost"
    assert len(told) == 2
    told = said(ad(GridJobId=f"batch slurm {SANDBOX}"))
    assert told[1:] == ["HTCondor's gridmanager has not handed it to Slurm yet: it does so some at a time"]


def test_a_job_that_runs_there() -> None:
    assert said(ad(JobStatus=2))[0] == "it runs in Slurm, as its job 5, for 2 min"


# As they came from the real sbatch through blahp
REFUSED = (
    "submission command failed (exit code = 1) (stdout:) (stderr:sbatch: error: invalid partition specified: x-"
    "sbatch: error: Batch job submission failed: {}-Error from sbatch: )"
)


@pytest.mark.parametrize(
    ("sbatch", "meaning"),
    [
        ("Invalid partition name specified", "no such queue"),
        ("Invalid account or account/partition combination specified", "the account is not yours"),
        ("Invalid license specification", "no such licence"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "more time than the queue"),
        ("Memory specification can not be satisfied", "more memory than the nodes"),
        ("Requested node configuration is not available", "more than the nodes have"),
    ],
)
def test_what_slurm_refuses(sbatch: str, meaning: str) -> None:
    reason = f"Attempts to submit failed: {REFUSED.format(sbatch)}"
    first, second, third = said(
        ad(JobStatus=5, HoldReasonCode=0, HoldReason=reason.replace("partition specified: x", "x"))
    )
    assert (
        first
        == f"held: Slurm refused it: sbatch: error: invalid x; sbatch: error: Batch job submission failed: {sbatch}"
    )
    assert second.startswith("that means: ") and meaning in second
    assert "leaves the queue" in third


def test_the_last_refusal_has_slurms_words_and_the_key_to_look_at() -> None:
    """The reason of the event with which such a job leaves the queue; then HTCondor is not asked any more."""
    refused = REFUSED.format("Invalid partition name specified")
    reason = words.removal(f"the batch system refused it: {refused}")
    assert reason == (
        "Slurm refused it: sbatch: error: invalid partition specified: x; "
        "sbatch: error: Batch job submission failed: Invalid partition name specified"
    )
    assert words.explain_removal(reason, "0/0") == (
        "that means: there is no such queue, or it is not for you (htcondor.grid.queue)",
    )
    assert words.detention(refused) == reason.removeprefix("Slurm refused it: ")


def test_every_key_that_a_refusal_names_is_one_of_the_models() -> None:
    keys = re.findall(r"\((htcondor|resources)\.([a-z.]+)\)", "".join(meaning for _, meaning in grid._REFUSALS))
    models = {"htcondor": {f"grid.{name}" for name in Grid.model_fields}, "resources": set(Resources.model_fields)}
    assert len(keys) == 8
    assert all(name in models[part] for part, name in keys)


@pytest.mark.parametrize(
    "words_of_sbatch",
    [
        "Unable to contact slurm controller (connect failure)",
        "Socket timed out on send/recv operation",
        "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "Slurm temporarily unable to accept job, sleeping and retrying",
    ],
)
def test_a_slurm_that_does_not_answer_or_is_full_is_no_refusal(words_of_sbatch: str) -> None:
    told = said(ad(JobStatus=5, HoldReasonCode=0, HoldReason=REFUSED.format(words_of_sbatch)))
    assert told[0].startswith("held: Slurm does not take it now: ") and words_of_sbatch in told[0]
    assert "for as long as it takes" in told[1]


def test_a_pause_before_the_next_start_is_no_hold() -> None:
    reason = "the worker ended with exit code 82, which charges the machine: the job starts again"
    assert said(ad(JobStatus=5, HoldReasonCode=3, HoldReasonSubCode=82, HoldReason=reason)) == [
        f"{reason} after a pause"
    ]
    assert not words.is_restart(3, 45) and not words.is_restart(1, 82)


def test_an_end_without_a_report_names_what_may_tell() -> None:
    told = words.explain({"job": None, "factory": None, "left": ad(JobStatus=4, ExitCode=255)}, 0)
    assert "it ended in Slurm, as its job 5, and left no report" in told[0]
    assert "`sacct -j 5 --format=State,ExitCode,Elapsed,Timelimit` may tell" in told[0]


@pytest.mark.parametrize(
    ("resource", "identity", "name", "number"),
    [
        ("batch lsf", f"batch lsf {SANDBOX} lsf/20261122/77", "LSF", "77"),
        ("batch sge", f"batch sge {SANDBOX}", "Grid Engine", ""),
        ("condor ce@x 127.0.0.1:1", "condor ce@x 127.0.0.1:1 12.0", "ce@x", "12.0"),
        ("arc https://x/", "", "arc https://x/", ""),
    ],
)
def test_names_and_numbers(resource: str, identity: str, name: str, number: str) -> None:
    job = ad(GridResource=resource, GridJobId=identity)
    assert (grid.name_of(job), grid.number_of(job)) == (name, number)


def test_the_template_tries_again_what_the_words_call_silent_or_charged() -> None:
    assert f'regexp("(?i){grid.PASSING}", ' in TEMPLATE
    assert "member(ExitCode ?: 0, { {{ again_worker }} })" in TEMPLATE
    assert set(in_queue(BUILT_IN, 2**30, None).again) == set(INFRASTRUCTURE)


def test_the_page_of_hold_reasons_tells_of_batch_systems() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/hold-reasons.md").read_text()
    assert "Code 0" in page and "Code 3 with a subcode of 81" in page
