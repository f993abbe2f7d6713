"""Why a job of HTCondor's grid universe waits, is held or ended, in words. Pure: facts come in, sentences go out.

Such a job is in no slot of the pool: the schedd's gridmanager hands it on. `GridJobId` has the other side's number once
it is there: `batch slurm SANDBOX slurm/20261122/5`, `condor CE POOL 12.0`, `arc URL NUMBER`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fermigrid.units import show_seconds

Facts = Mapping[str, Any]

GRID_UNIVERSE = 9
ATTRIBUTES = ("JobUniverse", "GridResource", "GridJobId", "GridJobStatus", "GridResourceUnavailableTime")
_NAMES = {"slurm": "Slurm", "lsf": "LSF", "pbs": "PBS", "sge": "Grid Engine"}
_ASK = {
    "slurm": ("scontrol show job {id}", "sacct -j {id} --format=State,ExitCode,Elapsed,Timelimit"),
    "lsf": ("bjobs -l {id}", "bhist -l {id}"),
    "pbs": ("qstat -f {id}", "tracejob {id}"),
    "sge": ("qstat -j {id}", "qacct -j {id}"),
}
# What batch systems say when they refuse a job -> what it means, and the key to look at
_REFUSALS = (
    ("licen[sc]e", "there is no such licence (htcondor.grid.options)"),
    (
        "time limit",
        "it asks for more time than the queue gives (resources.walltime); `limits` of the site can say so before",
    ),
    (
        "account|project",
        "the account is not yours there, or has used up what it may have (htcondor.grid.project)",
    ),
    ("partition|queue", "there is no such queue, or it is not for you (htcondor.grid.queue)"),
    ("memory|mem-per", "it asks for more memory than the nodes have (resources.memory)"),
    ("node configuration|CPU", "it asks for more than the nodes have (resources.cpus), (resources.memory)"),
    ("option|unrecognized", "it does not know an option (htcondor.grid.options)"),
)
PASSING = (
    r"unable to contact|connect|timed?[ -]?out|temporar|try again|retry|not responding|communication"
    r"|QOS policy|submit limit|pending job|would exceed|too many"
)
"""Words of a batch system that does not answer or takes no more jobs now: tried again for as long as it takes."""


def is_grid(job: Facts) -> bool:
    """Whether the job is one that the schedd hands on to another system."""
    return job.get("JobUniverse") == GRID_UNIVERSE


def kind_of(job: Facts) -> str:
    """`slurm`, `lsf`, `pbs`, `sge`, `condor`, `arc`; empty where it is not known."""
    kind, _, rest = str(job.get("GridResource") or "").partition(" ")
    return rest.partition(" ")[0] if kind == "batch" else kind


def name_of(job: Facts) -> str:
    """What people call the other side."""
    if kind_of(job) == "condor":
        return str(job["GridResource"]).split()[1]
    return _NAMES.get(kind_of(job), str(job.get("GridResource") or "the other side"))


def number_of(job: Facts) -> str:
    """The other side's number of the job: `5` in Slurm; empty before it is there."""
    words = str(job.get("GridJobId") or "").split()
    if words[:1] == ["batch"]:
        return words[3].rpartition("/")[2] if len(words) > 3 else ""
    return words[-1] if len(words) > 2 and re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", words[-1]) else ""


def explain_waiting(job: Facts, age: str) -> Iterator[str]:
    """A job that does not run yet."""
    name, number = name_of(job), number_of(job)
    yield f"it waits, for {age}"
    if since := job.get("GridResourceUnavailableTime"):
        yield f"{name} has not answered for {_since(job, since)}; HTCondor asks again by itself, and nothing is lost"
    if number:
        state = job.get("GridJobStatus")
        yield f"{name} has it as its job {number}" + (f", {state}" if state else "")
        yield from _ask(job, number, 0, "tells why it waits there")
    elif not since:
        yield f"HTCondor's gridmanager has not handed it to {name} yet: it does so some at a time"


def explain_running(job: Facts, age: str) -> Iterator[str]:
    """A job that runs on the other side."""
    name, number = name_of(job), number_of(job)
    yield f"it runs in {name}" + (f", as its job {number}" if number else "") + f", for {age}"
    yield from _ask(job, number, 0, "tells where")


_GAVE_UP = "the batch system refused it: "
_COMMANDS = {"sbatch": "Slurm", "bsub": "LSF"}


def last_refusal(reason: str) -> str:
    """The reason of a job that left the queue after its last try, in the batch system's own words."""
    if not reason.startswith(_GAVE_UP):
        return reason
    said = words_of(reason.removeprefix(_GAVE_UP))
    return f"{_COMMANDS.get(said.partition(':')[0], 'the batch system')} refused it: {said}"


def meaning_of(said: str) -> tuple[str, ...]:
    """What a refusal means, and which key to look at; empty where its words are not known."""
    known = (words for pattern, words in _REFUSALS if re.search(pattern, said, re.IGNORECASE))
    return tuple(f"that means: {words}" for words in known)[:1]


def words_of(reason: str) -> str:
    """What the batch system's own command said: blahp gives it in parentheses, with `-` for line breaks."""
    reason = re.sub(r"^Attempts to submit failed:\s*", "", reason).strip()
    if found := re.search(r"\(stderr:(.*)\)$", reason):
        reason = re.sub(r"-?Error from \w+:\s*$", "", found[1]).strip()
        reason = re.sub(r"-(?=(?:sbatch|bsub|qsub): )", "; ", reason)
    return reason


def explain_refusal(job: Facts) -> Iterator[str]:
    """A job that is held with code 0: in the gridmanager's own words, or those of the batch system's command."""
    reason = words_of(str(job.get("HoldReason") or ""))
    name = name_of(job)
    if not reason:
        yield f"held: {name} did not take it, and gave no reason; it is tried again"
    elif re.search(PASSING, reason, re.IGNORECASE):
        yield f"held: {name} does not take it now: {reason}"
        yield "it is tried again by itself, for as long as it takes; nothing is lost"
    else:
        yield f"held: {name} refused it: {reason}"
        yield from meaning_of(reason)
        yield "by itself: it is tried some times more, then it leaves the queue as refused"


def explain_end(left: Facts) -> str:
    """A job that has left the queue: the exit code that HTCondor was told is not to be trusted."""
    name, number = name_of(left), number_of(left)
    where = f"{name}, as its job {number}," if number else name
    code = "" if left.get("ExitCode") is None else f" HTCondor was told exit code {left['ExitCode']}."
    asked = "".join(f" {line}" for line in _ask(left, number, 1, "may tell"))
    return (
        f"it ended in {where} and left no report: it was cancelled there, stopped at its time limit or for its memory, "
        f"or its node failed.{code}{asked}"
    )


def _ask(job: Facts, number: str, which: int, what: str) -> Iterator[str]:
    if number and (commands := _ASK.get(kind_of(job))):
        yield f"`{commands[which].format(id=number)}` {what}"


def _since(job: Facts, since: Any) -> str:
    return show_seconds(max(0, int(job.get("ServerTime") or since) - int(since)))
