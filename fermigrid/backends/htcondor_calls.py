"""The calls to HTCondor, in the process that `htcondor_process` starts for each. The only importer of htcondor2.

A request is a JSON object with `verb`, `schedd`, `pool` and what the verb needs; answers are JSON
objects to stdout, one a line: `{"sending": true}` before a submission leaves, then one answer: `{"answer": ...}`,
`{"refused": words}`, `{"unavailable": words}` or `{"doubt": words}`.
"""

from __future__ import annotations

import json
import socket
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import classad2
import htcondor2
from htcondor2.htcondor2_impl import _schedd_edit_job_ids

from fermigrid.backends import htcondor_grid
from fermigrid.backends.htcondor_ce import ce_of
from fermigrid.backends.htcondor_wire import SETTINGS, find_clear_wire
from fermigrid.backends.htcondor_words import (
    NOT_LATE,
    Fault,
    is_passing,
    is_permission,
    read_submit_error,
    remote_schedd,
    split_clauses,
    unreadable,
)

_CLOSED = "Connection closed during command authorization"
_CHUNK = 1000  # jobs named in one command
_CPU_KNOWN_S = 1800  # the starter tells every 5 minutes, the shadow every 15
_PART = 5000  # jobs of a whole cluster changed by one command, which takes the schedd a second or two
_PATIENCE = "10"  # s for a CE and its collector, tried twice: the whole call has the site's `timeout`
_AHEAD = 10_000  # jobs; more are not counted
_SLOTS_WHOLE = 1000  # above so many slots only the attributes that the job asks about are fetched
_STATE = ("ClusterId", "ProcId", "JobStatus", "EnteredCurrentStatus", "RemoteHost", "LastRemoteHost", "NumJobStarts")
_END = ("ExitCode", "ExitBySignal", "ExitSignal", "CompletionDate", "RemoveReason")
_HOLD = ("HoldReason", "HoldReasonCode", "HoldReasonSubCode")
_FACTORY = (
    "JobMaterializeNextProcId",
    "JobMaterializeLimit",
    "JobMaterializeMaxIdle",
    "JobMaterializePaused",
    "JobMaterializePauseReason",
    "FermigridStay",
    "TotalSubmitProcs",
    "JobsIdle",
    "JobsRunning",
    "JobsHeld",
)
_SET = ("JobMaterializeLimit", "JobMaterializeMaxIdle", "FermigridStay", "FermigridBanned", "JobPrio")
_ACCOUNT = ("Priority", "ResourcesUsed", "WeightedResourcesUsed", "Ceiling", "EffectiveQuota", "SurplusPolicy")
_WAITING = (
    "QDate",
    "User",
    "JobPrio",
    "NumShadowStarts",
    "NumJobMatches",
    "NumJobCompletions",
    "NumVacates",
    "NumVacatesByReason",
    "NumHolds",
    "VacateReason",
    "LastMatchTime",
    "LastRejMatchTime",
    "LastRejMatchReason",
    "RequestCpus",
    "RequestMemory",
    "RequestDisk",
    "TransferringInput",
    "TransferringOutput",
    "TransferQueued",
    "ServerTime",
    *htcondor_grid.ATTRIBUTES,
)
_TOTALS = {"Cpus": "TotalSlotCpus", "Memory": "TotalSlotMemory", "Disk": "TotalSlotDisk"}
_SLOT = ("Name", "SlotType", "State", *_TOTALS, *_TOTALS.values())

Request = Mapping[str, Any]


def answer(request: Request) -> None:
    """One request, one answer."""
    warnings.simplefilter("ignore")  # condor_submit's advice; the template is tested, and stdout is for answers
    try:
        _say(answer=_VERBS[request["verb"]](request))
    except Fault as fault:
        _say(**{fault.kind: str(fault)})
    except htcondor2.HTCondorException as error:
        _say(unavailable=str(error))


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


# --- where -------------------------------------------------------------------------------------------------


def _locate(request: Request) -> classad2.ClassAd:
    """The schedd's address: the collector knows it, for the local one a file does."""
    name = request["schedd"]
    try:
        place = None if request["pool"] else _locate_local()
        if place is None or name not in (None, place.get("Name")):
            place = htcondor2.Collector(request["pool"]).locate(htcondor2.DaemonType.Schedd, name)
    except (htcondor2.HTCondorException, TypeError, ValueError) as error:
        where = request["pool"] or htcondor2.param.get("COLLECTOR_HOST") or "none configured"
        raise Fault("unavailable", f"the collector ({where}) does not tell where the schedd is: {error}") from error
    if place is None or not place.get("MyAddress"):
        raise Fault("unavailable", f"the pool has no schedd {name or 'of this machine'}")
    return place


def _locate_local() -> classad2.ClassAd | None:
    """This machine's schedd, from its address file: that needs no collector."""
    try:
        return htcondor2.Collector().locate(htcondor2.DaemonType.Schedd)
    except htcondor2.HTCondorException:
        return None


def _where(request: Request) -> dict[str, str]:
    return {"where": _locate(request).get("Name") or ""}


def _schedd(request: Request) -> htcondor2.Schedd:
    return htcondor2.Schedd(_locate(request))


def _is_here(address: str) -> bool:
    """Whether the address `<host:port?...>` is one of this machine's own: only those can be bound."""
    host = address.removeprefix("<").partition("?")[0].rpartition(":")[0].strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


# --- submit and find ---------------------------------------------------------------------------------------


def _submit(request: Request) -> dict[str, Any]:
    """Read the submit file, see that the schedd answers, send."""
    place = _locate(request)
    name = place.get("Name") or ""
    if not request["shared_filesystem"] and not _is_here(place["MyAddress"]):
        raise Fault("refused", remote_schedd(name, place.get("Machine") or ""))
    try:
        description = htcondor2.Submit(request["text"])
        for macro, value in request["macros"].items():
            description[macro] = value
    except (htcondor2.HTCondorException, ValueError) as error:
        raise Fault("refused", unreadable(str(error))) from error
    schedd = htcondor2.Schedd(place)
    if not _answers(schedd):
        raise Fault("unavailable", f"the schedd {name} does not answer")
    if description.get("encrypt_input_files"):
        _refuse_clear_wire(place)
    if description.get("use_oauth_services"):
        _obtain_tokens(description)
    _say(sending=True)
    try:
        result = _send(schedd, description)
    except ValueError as error:  # item data: read before anything is sent
        raise Fault("refused", unreadable(str(error))) from error
    except htcondor2.HTCondorException as error:
        if _CLOSED in str(error) and _answers(schedd):
            raise Fault("refused", f"{error} May this user submit there?") from error
        if "(late materialization)" in str(error) and not _allows_late(place):
            raise Fault("refused", NOT_LATE) from error
        raise read_submit_error(str(error)) from error
    return {"where": name, "cluster": result.cluster(), "jobs": result.num_procs()}


def _refuse_clear_wire(place: classad2.ClassAd) -> None:
    """Secrets travel only where the schedd's own settings say that nobody can read them on the way."""
    try:
        found = htcondor2.RemoteParam(place)
        settings = {name: str(found[name]) for name in SETTINGS if name in found}
    except htcondor2.HTCondorException as error:
        text = "secrets of kind transfer are sent only where the schedd says that it encrypts them; it does not answer"
        raise Fault("refused", f"{text}: {error}. Use kind: sealed or path") from error
    if why := find_clear_wire(settings, str(place.get("CondorVersion") or "")):
        raise Fault("refused", why)


def _obtain_tokens(description: htcondor2.Submit) -> None:
    """See that the credential daemon has the user's tokens: a job without them would be held at once."""
    services = description.get("use_oauth_services")
    try:
        url = description.issue_credentials()
    except htcondor2.HTCondorException as error:
        text = f"the credential daemon (condor_credd) has no token of {services} for you: {error}"
        raise Fault("refused", text) from error
    if url:
        text = f"the credential daemon has no token of {services} for you yet"
        raise Fault("refused", f"{text}\nGet it, then repeat: {url}")


def _tokens(request: Request) -> dict[str, Any]:
    """The same without a submission; what is asked for is what a submit file says."""
    _obtain_tokens(htcondor2.Submit(request["text"]))
    return {}


def _send(schedd: htcondor2.Schedd, description: htcondor2.Submit) -> htcondor2.SubmitResult:
    """A connection that was closed before the user was known may have been a schedd that died: tried twice."""
    try:
        return schedd.submit(description)
    except htcondor2.HTCondorException as error:
        if _CLOSED not in str(error):
            raise
    return schedd.submit(description)


def _allows_late(place: classad2.ClassAd) -> bool:
    """Whether the schedd makes jobs late; yes where it does not tell."""
    try:
        return str(htcondor2.RemoteParam(place)["SCHEDD_ALLOW_LATE_MATERIALIZE"]).lower() != "false"
    except (htcondor2.HTCondorException, KeyError):
        return True


def _answers(schedd: htcondor2.Schedd) -> bool:
    """A refusal is an answer too."""
    try:
        schedd.query("false", ["ClusterId"], limit=1)
    except htcondor2.HTCondorException as error:
        return is_permission(str(error))
    return True


def _find(request: Request) -> dict[str, Any]:
    """The clusters of a batch in the queue, but for removed ones; without any, one of history, back to `since` only."""
    place = _locate(request)
    schedd = htcondor2.Schedd(place)
    ours = f"FermigridBatch =?= {classad2.quote(request['batch'])}"
    there = schedd.query(f"{ours} && JobStatus =!= 3", ["ClusterId"], opts=htcondor2.QueryOpt.IncludeClusterAd)
    queue = sorted({int(ad["ClusterId"]) for ad in there})
    left = [] if queue else schedd.history(ours, ["ClusterId"], 1, since=_before(request))
    return {"where": place.get("Name") or "", "queue": queue, "left": [int(ad["ClusterId"]) for ad in left]}


def _watches(request: Request) -> dict[str, Any]:
    """The jobs in the queue that run `fermigrid watch` of a campaign."""
    ours = f"FermigridWatch =?= {classad2.quote(request['instance'])} && JobStatus =!= 3 && JobStatus =!= 4"
    ads = _schedd(request).query(ours, ["ClusterId", "JobStatus", "HoldReason"])
    return {
        "jobs": [
            {"cluster": int(ad["ClusterId"]), "status": int(ad["JobStatus"]), "why": str(ad.get("HoldReason") or "")}
            for ad in ads
        ]
    }


def _before(request: Request) -> str:
    """Where to stop when history is read backwards."""
    return f"EnteredCurrentStatus < {int(request['since'])}"


# --- look and act ------------------------------------------------------------------------------------------


def _look(request: Request) -> dict[str, Any]:
    """All that the queue and then history know of a cluster: the factory, jobs in the queue, jobs that left it."""
    schedd, ours = _schedd(request), f"ClusterId == {int(request['cluster'])}"
    attributes = [*_STATE, *_HOLD, *_END, *_FACTORY]
    ads = schedd.query(ours, attributes, opts=htcondor2.QueryOpt.IncludeClusterAd)
    left = schedd.history(ours, attributes, int(request["jobs"]), since=_before(request))
    queue = [ad for ad in ads if "ProcId" in ad]
    factory = next((ad for ad in ads if "ProcId" not in ad), None)
    return {
        "factory": _plain(factory, _FACTORY) if factory else None,
        "queue": [_plain(ad, (*_STATE, *_HOLD)) for ad in queue],
        "left": [_plain(ad, (*_STATE, *_END)) for ad in left],
    }


def _act(request: Request) -> dict[str, Any]:
    """Remove, hold or release a cluster or some of its jobs; how many of the named jobs a factory has yet to make."""
    schedd, cluster, indices = _schedd(request), int(request["cluster"]), request["indices"]
    _change(schedd, request["action"], _job_specs(cluster, indices, int(request["jobs"])), request["reason"])
    return {"unmade": _count_unmade(schedd, cluster, indices) if indices else 0}


def _change(schedd: htcondor2.Schedd, action: str, job_specs: Iterable[str | list[str]], reason: str) -> None:
    denied = 0
    for job_spec in job_specs:
        try:
            result = schedd.act(htcondor2.JobAction[action], job_spec, (reason, 0))
        except htcondor2.HTCondorException as error:
            if _answers(schedd):
                raise Fault("refused", f"{error} May this user change jobs there?") from error
            raise
        denied += int(result["TotalPermissionDenied"])
    if denied:
        raise Fault("refused", f"{denied} of the jobs belong to somebody else")


def _pause(request: Request) -> dict[str, Any]:
    """Hold the jobs of a cluster that wait, and its factory; the schedd looks at each as it is then."""
    waiting = f"ClusterId == {int(request['cluster'])} && (JobStatus == 1 || ProcId =?= undefined)"
    _change(_schedd(request), "Hold", [waiting], request["reason"])
    return {}


def _resume(request: Request) -> dict[str, Any]:
    """Release what `_pause` held, and the factory."""
    reason = str(request["reason"])  # behind it the schedd says who held the job
    held = f'JobStatus == 5 && substr(HoldReason ?: "", 0, {len(reason)}) == {classad2.quote(reason)}'
    ours = f"ClusterId == {int(request['cluster'])} && (ProcId =?= undefined || ({held}))"
    _change(_schedd(request), "Release", [ours], "fermigrid resume")
    return {}


def _adjust(request: Request) -> dict[str, Any]:
    """Edit the ads of clusters, where they are not as they are to be; one that has left the queue needs it no more."""
    schedd = _schedd(request)
    wanted = {int(change["cluster"]): change["attributes"] for change in request["changes"]}
    ours = f"ProcId =?= undefined && member(ClusterId, {{{', '.join(map(str, wanted))}}})"
    there = schedd.query(ours, ["ClusterId", *_SET], opts=htcondor2.QueryOpt.IncludeClusterAd)
    for ad in there:
        for name, text in wanted[int(ad["ClusterId"])].items():
            late = name.startswith("JobMaterialize") or name == "FermigridStay"
            if late and "JobMaterializeLimit" not in ad:
                continue
            if name not in ad or str(ad.lookup(name)) != str(classad2.ExprTree(text)):
                _edit(schedd, int(ad["ClusterId"]), name, text)
    return {}


def _edit(schedd: htcondor2.Schedd, cluster: int, name: str, text: str) -> None:
    """Set an attribute of a cluster's ad. `Schedd.edit` sets it in the ads of the jobs that are made already, and in no
    other; what it calls sets it in the cluster's when it is given the cluster's number, as condor_qedit does."""
    try:
        _schedd_edit_job_ids(schedd._addr, str(cluster), name, text, htcondor2.TransactionFlag.Default)
    except htcondor2.HTCondorException as error:
        if "nonexistent job" in str(error):
            return
        if _answers(schedd):
            raise Fault("refused", f"{error} May this user change jobs there?") from error
        raise


def _answers_at_all(request: Request) -> dict[str, Any]:
    """Does the schedd answer? What it refuses is an answer, too."""
    if not _answers(_schedd(request)):
        raise Fault("unavailable", "the schedd does not answer")
    return {}


def _used(request: Request) -> dict[str, Any]:
    """The CPU seconds of running jobs, those of this machine's universes; what may be too young for it is left out."""
    schedd, cluster = _schedd(request), int(request["cluster"])
    attributes = ["ProcId", "RemoteUserCpu", "RemoteSysCpu", "JobCurrentStartDate", "ServerTime"]
    found: dict[int, float] = {}
    for start in range(0, len(request["indices"]), _CHUNK):
        procs = ", ".join(str(int(index)) for index in request["indices"][start : start + _CHUNK])
        running = f"ClusterId == {cluster} && JobStatus == 2 && JobUniverse =!= {htcondor_grid.GRID_UNIVERSE}"
        for ad in schedd.query(f"{running} && member(ProcId, {{{procs}}})", attributes):
            cpu = float(ad.get("RemoteUserCpu") or 0) + float(ad.get("RemoteSysCpu") or 0)
            age = int(ad.get("ServerTime") or 0) - int(ad.get("JobCurrentStartDate") or 0)
            if cpu or age > _CPU_KNOWN_S:
                found[int(ad["ProcId"])] = cpu
    return {"cpu": found}


def _count_unmade(schedd: htcondor2.Schedd, cluster: int, indices: Sequence[int]) -> int:
    """A late-materialized job that is not in the queue yet cannot be named to the schedd."""
    ours = f"ClusterId == {cluster} && ProcId =?= undefined"
    ads = schedd.query(ours, ["JobMaterializeNextProcId"], opts=htcondor2.QueryOpt.IncludeClusterAd)
    made = next((int(ad["JobMaterializeNextProcId"]) for ad in ads if "JobMaterializeNextProcId" in ad), None)
    return 0 if made is None else sum(index >= made for index in indices)


def _job_specs(cluster: int, indices: Sequence[int] | None, jobs: int) -> Iterable[str | list[str]]:
    """The whole cluster is named by a constraint: that reaches the factory of a late-materialized one too.

    A large one in parts first: the schedd undoes a command whose sender has gone before it was done, and so a command
    that takes longer than the time limit would never be done, however often it is given.
    """
    if indices is None:
        for start in range(0, jobs if jobs > _PART else 0, _PART):
            yield f"ClusterId == {cluster} && ProcId >= {start} && ProcId < {start + _PART}"
        yield f"ClusterId == {cluster}"
        return
    for start in range(0, len(indices), _CHUNK):
        yield [f"{cluster}.{int(index)}" for index in indices[start : start + _CHUNK]]


# --- explain -----------------------------------------------------------------------------------------------


def _explain(request: Request) -> dict[str, Any]:
    """What there is to know about a job that waits; htcondor_words.explain makes sentences of it."""
    schedd, cluster, index = _schedd(request), int(request["cluster"]), int(request["index"])
    ads = schedd.query(
        f"ClusterId == {cluster} && (ProcId =?= undefined || ProcId == {index})",
        opts=htcondor2.QueryOpt.IncludeClusterAd,
    )
    job = next((ad for ad in ads if ad.get("ProcId") == index), None)
    factory = next((ad for ad in ads if "ProcId" not in ad), None)
    answer: dict[str, Any] = {
        "job": _plain(job, (*_STATE, *_HOLD, *_WAITING)) if job else None,
        "factory": _plain(factory, _FACTORY) if factory else None,
        "left": None,
        "match": None,
        "ahead": None,
        "user": None,
        "there": None,
    }
    if job is None:
        wanted = [*_STATE, *_END, *_HOLD, *htcondor_grid.ATTRIBUTES]
        ended = schedd.history(f"ClusterId == {cluster} && ProcId == {index}", wanted, 1)
        answer["left"] = _plain(ended[0], (*_STATE, *_END, *htcondor_grid.ATTRIBUTES)) if ended else None
    elif job.get("JobStatus") == 1 and job.get("JobUniverse") != htcondor_grid.GRID_UNIVERSE:
        collector = htcondor2.Collector(request["pool"])
        answer |= _explain_idle(schedd, collector, job)
    elif any(ce_of(job)):
        answer["there"] = _there(job)
    return answer


def _explain_idle(schedd: htcondor2.Schedd, collector: htcondor2.Collector, job: classad2.ClassAd) -> dict[str, Any]:
    """Why a waiting job waits: the machines, the jobs before it, its user's priority and limits."""
    return {
        "match": _match(job, _slots(collector, job)),
        "ahead": _ahead(schedd, job),
        "user": _account(collector, job),
    }


def _there(job: classad2.ClassAd) -> dict[str, Any] | None:
    """What the CE that has the job says of it; None before that. Words, where it or its collector does not answer."""
    ce, pool = ce_of(job)
    htcondor2.param["QUERY_TIMEOUT"] = _PATIENCE
    collector = htcondor2.Collector(pool)
    try:
        place = collector.locate(htcondor2.DaemonType.Schedd, ce)
    except htcondor2.HTCondorException as error:
        return {"deaf": str(error)}
    if place is None:
        return {"absent": True}
    number = htcondor_grid.number_of(job)
    if not number or job.get("GridResourceUnavailableTime"):
        return None
    cluster, _, proc = number.partition(".")
    try:
        schedd = htcondor2.Schedd(place)
        ads = schedd.query(f"ClusterId == {int(cluster)} && ProcId == {int(proc)}")
        found: dict[str, Any] = {"job": _plain(ads[0], (*_STATE, *_HOLD, *_WAITING)) if ads else None}
        idle = bool(ads) and ads[0].get("JobStatus") == 1
        return found | (_explain_idle(schedd, collector, ads[0]) if idle else {})
    except (htcondor2.HTCondorException, TypeError, ValueError) as error:
        return {"silent": str(error)}


def _ahead(schedd: htcondor2.Schedd, job: classad2.ClassAd) -> dict[str, Any]:
    """The user's waiting jobs of other clusters that the schedd offers to the matchmaker before this one."""
    user, cluster, priority = classad2.quote(str(job.get("User") or "")), int(job["ClusterId"]), job.get("JobPrio") or 0
    # those of the grid universe are not matched at all
    before = (
        f"JobUniverse =!= 9 && (JobPrio > {int(priority)} || (JobPrio == {int(priority)} && ClusterId < {cluster}))"
    )
    ads = schedd.query(f"JobStatus == 1 && User == {user} && {before}", ["ClusterId"], limit=_AHEAD)
    return {"jobs": len(ads), "cluster": min((int(ad["ClusterId"]) for ad in ads), default=None)}


def _slots(collector: htcondor2.Collector, job: classad2.ClassAd) -> list[classad2.ClassAd]:
    """The slots that matches are made with; a partitionable slot stands for those cut from it."""
    whole = 'SlotType =!= "Dynamic"'
    names = collector.query(htcondor2.AdType.Startd, whole, ["Name"])
    if len(names) <= _SLOTS_WHOLE:
        return list(collector.query(htcondor2.AdType.Startd, whole))
    asked = job.externalRefs(job.lookup("Requirements"))
    wanted = {attribute.removeprefix("TARGET.").partition(".")[0] for attribute in asked}
    return list(collector.query(htcondor2.AdType.Startd, whole, sorted(wanted.union(_SLOT))))


def _match(job: classad2.ClassAd, slots: Sequence[classad2.ClassAd]) -> dict[str, Any]:
    """How many slots satisfy each clause of the job's requirements when empty, all of them, and how many now."""
    empty = [_open(_emptied(slot)) for slot in slots]
    clauses = [(text, classad2.ExprTree(text)) for text in split_clauses(str(job.lookup("Requirements")))]
    lasting = [(text, tree) for text, tree in clauses if not is_passing(text)]
    passing = [tree for text, tree in clauses if is_passing(text)]
    job = _open(job)
    possible = [_meets(job, slot, [tree for _, tree in lasting]) for slot in empty]
    willing = [ok and _takes(slot, job) for ok, slot in zip(possible, empty, strict=True)]
    now = [_fits(job, slot) and _idle(slot) and _meets(job, slot, passing) for slot in slots]
    return {
        "slots": len(slots),
        "clauses": [
            {"text": text, "slots": sum(tree.eval(job, slot) is True for slot in empty)} for text, tree in lasting
        ],
        **{name.lower(): sum(_has(job, slot, name) for slot in empty) for name in _TOTALS},
        "possible": sum(possible),
        "willing": sum(willing),
        "free": sum(ok and free for ok, free in zip(willing, now, strict=True)),
    }


def _meets(job: classad2.ClassAd, slot: classad2.ClassAd, clauses: Sequence[classad2.ExprTree]) -> bool:
    return _fits(job, slot) and all(tree.eval(job, slot) is True for tree in clauses)


def _emptied(slot: classad2.ClassAd) -> classad2.ClassAd:
    """A partitionable slot with nothing cut from it."""
    whole = classad2.ClassAd(str(slot))
    if slot.get("SlotType") == "Partitionable":
        for left, total in _TOTALS.items():
            if total in slot:
                whole[left] = slot[total]
    return whole


def _open(ad: classad2.ClassAd) -> classad2.ClassAd:
    """The ad for matching: an attribute named without MY or TARGET that it lacks is the other ad's.

    The matchmaker looks there by itself; `ExprTree.eval` does not.
    """
    if "Requirements" in ad:
        for name in ad.externalRefs(ad.lookup("Requirements")):
            if name and "." not in name:
                ad[name] = classad2.ExprTree(f"TARGET.{name}")
    return ad


def _takes(slot: classad2.ClassAd, job: classad2.ClassAd) -> bool:
    """Whether the slot's own word is not a clear no; with part of its attributes it may be undefined."""
    if "Requirements" not in slot:
        return True
    word: object = slot.lookup("Requirements").eval(slot, job)
    return word is not False


def _fits(job: classad2.ClassAd, slot: classad2.ClassAd) -> bool:
    return all(_has(job, slot, resource) for resource in _TOTALS)


def _has(job: classad2.ClassAd, slot: classad2.ClassAd, resource: str) -> bool:
    wanted, there = job.eval(f"Request{resource}"), slot.get(resource)
    if not isinstance(wanted, int | float) or not isinstance(there, int | float):
        return True
    return bool(there >= wanted)


def _idle(slot: classad2.ClassAd) -> bool:
    return bool(slot.get("SlotType") == "Partitionable" or slot.get("State") == "Unclaimed")


def _account(collector: htcondor2.Collector, job: classad2.ClassAd) -> dict[str, Any] | None:
    """The negotiator's account of those for whom a job runs: priority (large is bad), cores in use, and the quotas of
    its accounting groups, from the innermost on."""
    user, account = str(job.get("User") or ""), str(job.get("AccountingGroup") or "")
    name = f"{account}@{user.partition('@')[2]}" if account else user
    parts = account.split(".")[:-1]  # the last is the user in the group
    groups = [".".join(parts[:size]) for size in range(len(parts), 0, -1)]
    attributes = ("Name", *_ACCOUNT)
    wanted = " || ".join(f"Name == {classad2.quote(each)}" for each in (name, *groups))
    ads = {ad["Name"]: ad for ad in collector.query(htcondor2.AdType.Accounting, wanted, list(attributes))}
    if name not in ads:
        return None
    return _plain(ads[name], attributes) | {"groups": [_plain(ads[each], attributes) for each in groups if each in ads]}


# --- values ------------------------------------------------------------------------------------------------


def _plain(ad: classad2.ClassAd, attributes: Iterable[str]) -> dict[str, Any]:
    """The attributes that have a value, as JSON knows values."""
    found = ((name, _value(ad.eval(name))) for name in attributes if name in ad)
    return {name: value for name, value in found if value is not None}


def _value(value: Any) -> Any:
    if isinstance(value, classad2.ClassAd):
        return _plain(value, value.keys())
    if isinstance(value, classad2.Value):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)


_VERBS = {
    "where": _where,
    "submit": _submit,
    "find": _find,
    "watches": _watches,
    "look": _look,
    "act": _act,
    "used": _used,
    "pause": _pause,
    "resume": _resume,
    "adjust": _adjust,
    "answers": _answers_at_all,
    "explain": _explain,
    "tokens": _tokens,
}
