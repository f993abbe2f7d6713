"""What HTCondor's codes, errors and job ads say, in words. Pure: facts come in, sentences go out.

Sources: HTCondor manual, "Hold reason codes", "Job ClassAd attributes", and what condor_schedd 25.14 answers to
submissions that it refuses. docs/reference/hold-reasons.md shows the table HOLDS; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fermigrid.backends import PAUSED, TRIED_AGAIN
from fermigrid.backends import htcondor_ce as ce
from fermigrid.backends import htcondor_grid as grid
from fermigrid.report import INFRASTRUCTURE
from fermigrid.units import show_bytes, show_count, show_seconds

Facts = Mapping[str, Any]
JOB_POLICY = 3  # the hold code of a job's own policies


# --- faults of a call --------------------------------------------------------------------------------------


class Fault(Exception):
    """A call that failed; `kind` is `refused` (answered: no), `unavailable` (nothing was changed) or `doubt`."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


_PERMISSION = re.compile(r"DENIED|AUTHENTICATE:|No auth methods|SECMAN:(?:2003|2010|2005)|permission", re.IGNORECASE)
_BEFORE_COMMIT = (
    "Failed to create new cluster",
    "expected next ProcId",
    "Failed to make submit digest",
    "Failed to send item data",
    "Failed to append queue statement",
    "Failed to send submit digest",
    "Failed to get parent ad",
    "Failed to send Cluster Ad",
    "Failed to send Jobset Ad",
)
_UNREADABLE = ("Failed to create job ad", "Failed to create a cluster ad")  # before anything is sent
_LIMITS = {
    "-3": "you have as many jobs in this schedd as one user may have (MAX_JOBS_PER_OWNER)",
    "-4": "the batch has more jobs than one submission may have (MAX_JOBS_PER_SUBMISSION); late materialization "
    "(`late_above` in the site file) is not bound by it",
}
NOT_LATE = (
    "this schedd does not allow late materialization (SCHEDD_ALLOW_LATE_MATERIALIZE); see `late_above` in the site file"
)


def is_permission(words: str) -> bool:
    """Whether an error says that the server answered and does not let this user in."""
    return bool(_PERMISSION.search(words))


def read_submit_error(words: str) -> Fault:
    """What an error of Schedd.submit means.

    A refusal is only what the schedd itself said: a limit, or words of its own (`SCHEDD:<number>:...`). Other errors
    before the commit may be a lost connection, but a transaction that was not committed leaves nothing. After that
    nobody knows.
    """
    if words.startswith("Failed to connect to schedd"):
        return Fault("refused" if is_permission(words) else "unavailable", words)
    if words.startswith(_UNREADABLE):
        return Fault("refused", unreadable(words.partition("errmsg=")[2] or words))
    if limit := re.search(r"Schedd says (-[34])\b", words):
        return Fault("refused", _LIMITS[limit[1]])
    if broken := re.search(r"expected next ProcId to be (\d+), but Schedd says -1\b", words):
        return Fault("unavailable", f"the schedd broke off at job {broken[1]}, without a word: it ended, or is busy")
    if re.search(r"SCHEDD:\d+:.*\S", words):
        return Fault("refused", words)
    return Fault("unavailable" if words.startswith(_BEFORE_COMMIT) else "doubt", words)


def unreadable(words: str) -> str:
    """Why HTCondor makes no jobs of a submit file; its message has several lines."""
    return f"it cannot read the submit file: {' '.join(re.sub('Submit:-?[0-9]+:', '', words).split())}"


def remote_schedd(name: str, machine: str) -> str:
    """Why a batch is not sent to a schedd that does not see the run folder."""
    return f"the schedd {name} is on another machine ({machine}), which does not see the run folder"


def twice(name: str, clusters: Sequence[int], where: str) -> str:
    """A batch that is in the queue more than once: its jobs run, and write their logs, more than once."""
    numbers = ", ".join(map(str, clusters))
    return f"{name} is in the queue of {where or 'the schedd'} {len(clusters)} times, as clusters {numbers}"


def keep_one(clusters: Sequence[int]) -> str:
    """What to do about it: any of them will do, the first has begun first."""
    rest = " ".join(map(str, clusters[1:]))
    return (
        f"Keep one, say the first: condor_rm {rest}. Then run the same `fermigrid submit` again: it adopts the other."
    )


def twin(name: str, ours: int, other: int) -> str:
    """A cluster in the event log that carries a batch which another cluster has."""
    return (
        f"{name} is cluster {ours}, and cluster {other} carries it too: its jobs run twice. "
        f"If it is in the queue, remove it: condor_rm {other}"
    )


# --- holds -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hold:
    """One of HTCondor's hold codes: its label there, what it means, what to do. What is done by itself the rules of
    retries say (`retry_rule.py`)."""

    label: str
    meaning: str
    advice: str


_LOOK = "look at the reason's words, mend the cause, `fermigrid retry`"
_SUBMIT_SIDE = "see that the submit machine can write the run folder (disk, quota, file system)"
_MISSING = "see that the file that the reason names is there and can be read; then `fermigrid release`"
_NODE = "nothing, if it happens on one machine only; on many, tell the site's contact"
_MORE = "ask for more in the campaign's resources, and submit its runs in another run folder"

HOLDS: Mapping[int, Hold] = {
    1: Hold("UserRequest", "a person held it", "`fermigrid release` or `fermigrid remove`"),
    3: Hold("JobPolicy", "fermigrid's own policy gave it up", _LOOK),
    4: Hold("CorruptedCredential", "its credential is damaged or expired", "renew the credential"),
    5: Hold("JobPolicyUndefined", "a policy expression has no value", "tell fermigrid's developers"),
    6: Hold("FailedToCreateProcess", "the machine could not start the worker", _NODE),
    7: Hold("UnableToOpenOutput", "the job's log could not be opened", _SUBMIT_SIDE),
    8: Hold("UnableToOpenInput", "the job's standard input could not be opened", _LOOK),
    9: Hold("UnableToOpenOutputStream", "the job's log could not be opened on the network", _SUBMIT_SIDE),
    10: Hold("UnableToOpenInputStream", "the job's standard input could not be opened on the network", _LOOK),
    11: Hold("InvalidTransferAck", "a file transfer broke off", _NODE),
    12: Hold("TransferOutputError", "outputs could not be brought back", _SUBMIT_SIDE),
    13: Hold("TransferInputError", "inputs could not be sent to the machine", _MISSING),
    14: Hold("IwdError", "its work folder is not there", _SUBMIT_SIDE),
    15: Hold("SubmittedOnHold", "it was submitted on hold", "`fermigrid release`"),
    16: Hold("SpoolingInput", "its inputs are on their way to the schedd", "wait"),
    17: Hold("JobShadowMismatch", "the schedd's software does not suit the job", "tell the schedd's administrator"),
    18: Hold("InvalidTransferGoAhead", "a file transfer broke off", _NODE),
    19: Hold("HookPrepareJobFailure", "the machine's own preparation of jobs failed", _NODE),
    20: Hold("MissedDeferredExecutionTime", "it missed the time at which it had to start", _LOOK),
    21: Hold("StartdHeldJob", "the machine's policy put it on hold", _LOOK),
    22: Hold("UnableToInitUserLog", "the block's event log could not be written", _SUBMIT_SIDE),
    23: Hold("FailedToAccessUserAccount", "your account could not be used there", "tell the schedd's administrator"),
    24: Hold("NoCompatibleShadow", "the schedd's software does not suit the job", "tell the schedd's administrator"),
    25: Hold("InvalidCronSettings", "its start times make no sense", "tell fermigrid's developers"),
    26: Hold("SystemPolicy", "the schedd's administrator does not let such jobs go on", _LOOK),
    27: Hold("SystemPolicyUndefined", "a policy of the schedd's administrator has no value", _LOOK),
    32: Hold("MaxTransferInputSizeExceeded", "its inputs are larger than allowed", _LOOK),
    33: Hold("MaxTransferOutputSizeExceeded", "its outputs are larger than allowed", _LOOK),
    34: Hold("JobOutOfResources", "it used more than it had asked for (102: memory, 104: disk)", _MORE),
    35: Hold("InvalidDockerImage", "its image is no Docker image", "check the image catalogue"),
    36: Hold("FailedToCheckpoint", "it failed when told to save its state", _LOOK),
    43: Hold("PreScriptFailed", "a script of the schedd before it failed", _LOOK),
    44: Hold("PostScriptFailed", "a script of the schedd after it failed", _LOOK),
    45: Hold("SingularityTestFailed", "the machine could not start its container", _NODE),
    46: Hold("JobDurationExceeded", "it took longer than allowed, transfers included", _MORE),
    47: Hold("JobExecuteExceeded", "it ran longer than the walltime that it had asked for", _MORE),
    48: Hold("HookShadowPrepareJobFailure", "the schedd's own preparation of jobs failed", _LOOK),
}  # fmt: skip
_NO_OUT = re.compile(r"/out: \(errno 2\)")
_NEVER_BEGAN = (
    "the worker never began (it makes `out` first of all): what should have started it, such as a pilot, failed"
)
_UNKNOWN_HOLD = Hold("", "HTCondor has a reason that is not known here", _LOOK)


def explain_hold(code: int | None, subcode: int | None, reason: str) -> tuple[str, ...]:
    """A hold in words: HTCondor's own, what the code means and what to do."""
    hold = HOLDS.get(code or 0, _UNKNOWN_HOLD)
    codes = f"code {code}/{subcode or 0}" + (f", {hold.label}" if hold.label else "")
    meaning = _NEVER_BEGAN if code == 12 and _NO_OUT.search(reason) else hold.meaning
    return (
        f"held: {reason.strip() or 'no reason given'} ({codes})",
        f"that means: {meaning}",
        f"what to do: {hold.advice}",
    )


def is_restart(code: int | None, subcode: int | None) -> bool:
    """Whether a hold is the pause before a job of a batch system starts again: its subcode is the exit code."""
    return code == JOB_POLICY and subcode in INFRASTRUCTURE


# --- reasons in the event log ------------------------------------------------------------------------------

_RETURNED = re.compile(r"\(1\) Normal termination \(return value (-?\d+)\)")
_KILLED = re.compile(r"\(0\) Abnormal termination \(signal (\d+)\)")


def eviction(reason: str | None, lines: Sequence[str]) -> str:
    """Why a job went back to the queue, from its event (004, 007, 021, 022, 024)."""
    if reason:
        return reason
    if (code := code_returned(lines)) is not None:
        why = ", which charges the machine" if code in INFRASTRUCTURE else ""
        return f"the worker ended with exit code {code}{why}: the job starts again"
    return next((line.strip() for line in lines if line.strip() and not line.lstrip().startswith("(")), "")


def code_returned(lines: Sequence[str]) -> int | None:
    """The exit code of a worker whose job went back to the queue when it ended (004), 128 + n: by signal n; or None."""
    for line in lines:
        if found := _RETURNED.search(line):
            return int(found[1])
        if found := _KILLED.search(line):
            return 128 + int(found[1])
    return None


def removal(reason: str | None) -> str:
    """Why a job was removed (009); the policy's own text is an expression and tells nobody anything."""
    if reason and "PeriodicRemove expression" in reason:
        return "it was held for a reason that a release does not cure"
    return grid.last_refusal(reason or "")


_NOT_CURED = "it was held, and no release cured it: "


def explain_removal(reason: str, code: str) -> tuple[str, ...]:
    """What the reason means for which the policy gave a job up, and what to do; `code`: that of its last hold."""
    if " refused it: " in reason:
        return grid.meaning_of(reason)
    if not reason.startswith(_NOT_CURED):
        return ()
    if code.startswith("0/"):
        return ce.explain_last(reason)
    number, _, subcode = code.partition("/")
    return explain_hold(int(number), int(subcode), reason)[1:3] if number.isdigit() else ()


def detention(reason: str | None) -> str:
    """Why a job was held (012); without what HTCondor's blahp puts around a batch system's words."""
    return grid.words_of(reason or "")


def liberation(reason: str | None) -> str:
    """Why a job was released (013)."""
    if reason and ("PeriodicRelease expression" in reason or reason.startswith(TRIED_AGAIN)):
        return TRIED_AGAIN
    return reason or ""


def is_warning(text: str) -> bool:
    """Whether an event (021) is only a warning: the job goes on."""
    return text.startswith("Warning from")


def jobs_made(lines: Sequence[str], jobs: int) -> int:
    """How many jobs of a batch a factory had made when it was removed (036); all, where it does not say."""
    found = next((found for line in lines if (found := re.search(r"Materialized (\d+) jobs", line))), None)
    return int(found[1]) if found else jobs


# --- requirements ------------------------------------------------------------------------------------------


def split_clauses(expression: str) -> list[str]:
    """The parts of a ClassAd expression that are joined by `&&` at the top, whatever the parentheses."""
    expression = expression.strip()
    while _is_wrapped(expression):
        expression = expression[1:-1].strip()
    parts, start = list[str](), 0
    alternatives = False
    for at, depth in _outside_strings(expression):
        if depth == 0 and expression.startswith(("||", "?"), at) and not expression.startswith("=?=", at - 1):
            alternatives = True
        if depth == 0 and expression.startswith("&&", at):
            parts.append(expression[start:at])
            start = at + 2
    if not parts or alternatives:  # `a && b || c` binds otherwise: it is one clause
        return [expression]
    return [clause for part in (*parts, expression[start:]) for clause in split_clauses(part)]


def is_passing(clause: str) -> bool:
    """Whether a clause keeps a job from a machine for some minutes only: one where it failed before."""
    return "MachineAttrName0" in clause


def _is_wrapped(expression: str) -> bool:
    """Whether the first parenthesis closes at the very end."""
    if not expression.startswith("("):
        return False
    return all(depth > 0 or at == len(expression) - 1 for at, depth in _outside_strings(expression))


def _outside_strings(expression: str) -> Iterator[tuple[int, int]]:
    """Every position that is not within a string, and how deep in parentheses, lists and records it is."""
    depth, quote, skip = 0, "", False
    for at, char in enumerate(expression):
        if skip:
            skip = False
        elif quote:
            skip, quote = char == "\\", "" if char == quote else quote
        elif char in "\"'":
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
            yield at, depth


# --- why a job waits ---------------------------------------------------------------------------------------


def explain(facts: Facts, index: int) -> tuple[str, ...]:
    """Sentences on one job from what `htcondor_calls` found in queue, history and pool."""
    job, factory = facts["job"], facts["factory"]
    if job is not None:
        return tuple(_explain_queued(job, factory, facts))
    if factory is not None and index >= int(factory.get("JobMaterializeNextProcId", index + 1)):
        return tuple(_explain_unmaterialized(factory, index))
    if facts["left"] is not None:
        return (_explain_left(facts["left"]),)
    return ("neither the queue nor the history of the schedd knows this job: its event log and its own log decide",)


def _explain_queued(job: Facts, factory: Facts | None, facts: Facts) -> Iterator[str]:
    status = job.get("JobStatus")
    if status == 5 and grid.is_grid(job) and not job.get("HoldReasonCode"):
        yield from (ce.explain_hold if any(ce.ce_of(job)) else grid.explain_refusal)(job)
    elif status == 5 and is_restart(job.get("HoldReasonCode"), job.get("HoldReasonSubCode")):
        yield f"{job.get('HoldReason')} after a pause"
    elif status == 5 and str(job.get("HoldReason", "")).startswith(PAUSED):
        yield f"{PAUSED}: it is kept from starting; `fermigrid status` says why, and how it goes on"
    elif status == 5:
        yield from explain_hold(job.get("HoldReasonCode"), job.get("HoldReasonSubCode"), str(job.get("HoldReason", "")))
        if factory and factory.get("JobMaterializeLimit") and factory.get("JobsHeld"):
            held, limit = factory["JobsHeld"], factory["JobMaterializeLimit"]
            yield f"held jobs of the batch take {held} of the {limit} places that it may have in the queue"
    elif grid.is_grid(job) and status in (1, 2):
        yield from (grid.explain_waiting if status == 1 else grid.explain_running)(job, _age(job))
        if there := facts.get("there"):
            yield from _explain_there(job, there)
    elif status in (2, 6):
        doing = "waits for file transfer" if job.get("TransferQueued") else "brings its inputs"
        what = doing if job.get("TransferringInput") else "brings its outputs back" if status == 6 else "runs"
        yield f"it {what} on {job.get('RemoteHost', 'a machine')}, for {_age(job)}"
    elif status == 1:
        yield from _explain_idle(job, facts["match"], facts["ahead"], facts["user"])
    else:
        yield f"it is leaving the queue ({'removed' if status == 3 else 'ended'})"


def _explain_there(job: Facts, there: Facts) -> Iterator[str]:
    """What the other schedd says of a job; where it waits, why."""
    ad = there.get("job")
    yield from ce.explain_there(job, there, _age(ad) if ad else "")
    if ad and ad.get("JobStatus") == 1:
        for words in _explain_idle(ad, there["match"], there["ahead"], there["user"]):
            yield words if words.startswith("- ") else f"there {words}"


def _explain_unmaterialized(factory: Facts, index: int) -> Iterator[str]:
    made, total = factory.get("JobMaterializeNextProcId", 0), factory.get("TotalSubmitProcs", "?")
    yield (
        f"the schedd has made {made} of the batch's {total} jobs so far (late materialization), "
        f"and this is number {index + 1}"
    )
    if factory.get("JobMaterializePaused"):
        reason = str(factory.get("JobMaterializePauseReason", "")) or "no reason given"
        yield f"the schedd makes no more of them now: {reason}; `fermigrid release` goes on"
        return
    idle, limit = factory.get("JobMaterializeMaxIdle"), factory.get("JobMaterializeLimit")
    there = ", ".join(f"{factory.get(f'Jobs{state.title()}', 0)} {state}" for state in ("idle", "running", "held"))
    limits = [f"{limit} at once in the queue"] if limit else []
    limits += [f"{idle} of them waiting"] if idle else []
    yield f"in the queue now: {there}; at most {' and '.join(limits) or 'what the schedd allows'}"
    if stay := factory.get("FermigridStay"):
        yield f"a job that has ended keeps its place until {show_seconds(stay)} after its start (`limits.starts`)"


def _explain_left(left: Facts) -> str:
    if left.get("JobStatus") == 3:
        return f"it was removed: {removal(left.get('RemoveReason')) or 'no reason given'}"
    if grid.is_grid(left) and not any(ce.ce_of(left)):
        return grid.explain_end(left)
    if left.get("ExitBySignal"):
        return f"it ended by signal {left.get('ExitSignal', '?')}; its log tells more"
    return f"it ended with exit code {left.get('ExitCode', '?')}; its log tells more"


def _explain_idle(job: Facts, match: Facts | None, ahead: Facts | None, user: Facts | None) -> Iterator[str]:
    yield f"it waits, for {_age(job)}"
    yield from _explain_past(job)
    limits = list(_limits_reached(user, float(job.get("RequestCpus") or 1))) if user else []
    if match is None or not match["slots"]:
        yield "the pool shows no machines at all" if match else "nothing is known of the pool's machines"
        return
    if match["willing"] == 0:
        yield from _explain_impossible(match, job)
    elif match["free"] == 0:
        busy = (
            "they are busy or, for some minutes, where it failed before"
            if job.get("NumJobCompletions")
            else "they are busy"
        )
        yield f"{match['willing']} of {show_count(match['slots'], 'slot')} could run it, none has room now: {busy}"
    else:
        slots = show_count(match["slots"], "slot")
        turn = "a limit keeps it from them" if limits else _turn(ahead)
        yield f"{match['willing']} of {slots} could run it, and {match['free']} have room now: {turn}"
    if rejected := job.get("LastRejMatchReason"):
        yield f"the matchmaker's last word: {str(rejected).strip()}"
    if user:
        priority, used = float(user.get("Priority", 0)), show_count(_cores(user), "core")
        yield f"your priority there is {priority:.1f} (large is bad), you use {used}"
    yield from limits


def _limits_reached(user: Facts, cpus: float) -> Iterator[str]:
    """Limits of cores that leave no room for so many more."""
    ceiling = float(user.get("Ceiling", -1))
    if 0 <= ceiling < _cores(user) + cpus:
        yield f"the pool lets you use {show_count(round(ceiling), 'core')} at once (your ceiling), no more"
    for group in user.get("groups", ()):
        quota, used = float(group.get("EffectiveQuota", -1)), _cores(group)
        if 0 <= quota < used + cpus:
            surplus = group.get("SurplusPolicy", "no") != "no"
            more = ": more only where others leave room" if surplus else ", and it gets no more"
            quota_words = show_count(round(quota), "core")
            yield f"the quota of its accounting group {group['Name']} is {quota_words}, {used} are in use{more}"


def _cores(account: Facts) -> int:
    return round(float(account.get("WeightedResourcesUsed") or account.get("ResourcesUsed") or 0))


def _turn(ahead: Facts | None) -> str:
    """When a job that could run at once is looked at.

    The schedd offers so many jobs in a round of matchmaking and counts those that nothing matches (HTCondor's ticket
    HTCONDOR-3855): a large group of such jobs keeps all behind it from being looked at, for as long as it waits.
    """
    if not ahead or not ahead["jobs"]:
        return "its turn comes with the next matchmaking"
    return (
        f"before it: {show_count(ahead['jobs'], 'waiting job')} of yours, those of cluster {ahead['cluster']} first; "
        "if nothing can run those, HTCondor may not look at this one until they are held or removed"
    )


def _explain_past(job: Facts) -> Iterator[str]:
    reasons = job.get("NumVacatesByReason") or {}
    containers = reasons.get("SingularityTestFailed", 0)
    if containers:
        machines = show_count(containers, "machine")
        yield f"its container could not start on {machines}, last {job.get('LastRemoteHost', 'unknown')}"
    others = {name: count for name, count in reasons.items() if name != "SingularityTestFailed"}
    if others:
        told = ", ".join(f"{name} {show_count(count, 'time')}" for name, count in sorted(others.items()))
        yield f"it was sent back to the queue: {told}; last from {job.get('LastRemoteHost', 'unknown')}"
    if failures := job.get("NumJobCompletions"):
        times = show_count(failures, "time")
        yield f"its worker ended {times} with a failure of the machine; it waits for another machine first"


def _explain_impossible(match: Facts, job: Facts) -> Iterator[str]:
    """Which wish no slot fulfils, resources first; where each is fulfilled somewhere, all are listed."""
    slots = match["slots"]
    yield f"none of the pool's slots ({slots}) can ever run it:"
    counts = [(_wish(resource, job), match[resource]) for resource in ("cpus", "memory", "disk")]
    counts += [(_clause(one["text"]), one["slots"]) for one in match["clauses"] if not _is_resource(one["text"])]
    none = [(wish, count) for wish, count in counts if count == 0]
    for wish, count in none or [(wish, count) for wish, count in counts if count < slots]:
        yield f"- {wish}: {count} of {show_count(slots, 'slot')}"
    if match["possible"]:
        yield f"- {show_count(match['possible'], 'slot')} would suit it, but for their own policy"


def _wish(resource: str, job: Facts) -> str:
    wanted = job.get(f"Request{resource.title()}")
    if not isinstance(wanted, int | float):
        return resource
    if resource == "cpus":
        return f"cpus: {wanted} or more"
    return f"{resource}: {show_bytes(int(wanted) * (2**20 if resource == 'memory' else 2**10))} or more"


def _is_resource(clause: str) -> bool:
    return bool(re.search(r"\bRequest(Cpus|Memory|Disk)\b", clause))


def _clause(text: str) -> str:
    if "FermigridBanned" in text:
        return "not banned (`fermigrid status` names the banned nodes)"
    return " ".join(text.split())


def _age(job: Facts) -> str:
    since = job.get("EnteredCurrentStatus")
    return show_seconds(max(0, int(job.get("ServerTime", since)) - int(since))) if since else "an unknown time"
