"""HTCondor as a batch system.

What is asked of HTCondor is asked by a process of its own (`htcondor_process`), which is ended when its time is up: no
call to a hung schedd outlasts the site's `timeout`. What happened to jobs is read from the block's event log; queue
and history are asked only where the log is damaged or lost. See docs/explanation/exactly-once.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from fermigrid.backends import PAUSED, Allowed, Cursor, Handle, Indices, JobSeen, Observation, RenderedBatch
from fermigrid.backends import htcondor_words as words
from fermigrid.backends.htcondor_process import Reply, call
from fermigrid.errors import BackendUnavailable, RunFolderError, SubmissionDoubt, SubmissionRefused
from fermigrid.eventlog import EventCode, LogEvent, LogProblem, find_clusters, mark_of, read_events
from fermigrid.plainfile import read_plain
from fermigrid.quoting import encode_classad_string, encode_submit_string
from fermigrid.states import Seen

_EVENTS = 20_000  # events in one call of `observe`, however many logs there are: some 10 MB
_HISTORY_SLACK = 3600  # s by which clocks may differ when history is searched back to the making of the plan

_OTHER_MACHINE = (
    "Run fermigrid on the schedd's machine. If both machines see the run folder under the same path, say "
    "`shared_filesystem: true` in the site file. (Spooling does not work with late materialization: it is not used.)"
)
_LATER = "The schedd may be busy or down: try again later. Nothing was changed."
_REPEAT = "It may still be at work there (100,000 jobs take a minute). The command may be repeated without harm."
_AT_FIRST = {"places": "max_materialize", "idle": "max_idle", "stay": "fg_stay"}  # option of a batch -> submit command
_SETTLE = "Run the same `fermigrid submit` again, or `fermigrid watch`: they look for the batch before they send it."


# --- out ---------------------------------------------------------------------------------------------------


def submit(batch: RenderedBatch) -> Handle:
    """Send the batch as one cluster.

    Raises SubmissionRefused and BackendUnavailable when nothing landed, SubmissionDoubt when nobody knows.
    """
    text = _read(batch.plan_dir / "job.sub").decode()
    shared = bool(batch.options.get("shared_filesystem", False))
    reply = call(batch.options, verb="submit", text=text, macros=_macros(batch), shared_filesystem=shared)
    match reply:
        case Reply(kind="answer"):
            return Handle(batch, str(reply.content["where"]), int(reply.content["cluster"]))
        case Reply(kind="refused"):
            said, _, todo = reply.words.partition("\n")
            hint = _OTHER_MACHINE if "on another machine" in said else todo
            raise SubmissionRefused(f"{batch.name}: HTCondor refused the batch: {said}", hint)
        case Reply(sending=False) | Reply(kind="unavailable"):
            raise BackendUnavailable(f"{batch.name}: not sent: {reply.words}", _LATER)
    raise SubmissionDoubt(f"{batch.name}: it was sent and no answer came: {reply.words}", _SETTLE)


def _macros(batch: RenderedBatch) -> dict[str, str]:
    """What the submit file is told at submission. The plan digest is the sha256 of plan.json.

    The worker checks job.env by its digest, which is in the queue, out of reach of whoever can change the file.
    """
    return {
        "fg_plan": str(batch.plan_dir.absolute()),
        "fg_work": str(batch.work_dir.absolute()),
        "fg_log": str(batch.event_log.absolute()),
        "fg_batch": batch.batch_id,
        "fg_digest": sha256(_read(batch.plan_dir / "plan.json")).hexdigest(),
        "fg_env": sha256(_read(batch.plan_dir / "job.env")).hexdigest(),
        **_limits(batch.options),
    }


def _limits(options: Mapping[str, object]) -> dict[str, str]:
    """What a batch may do at first; `adjust` changes it."""
    found = {macro: str(options[name]) for name, macro in _AT_FIRST.items() if name in options}
    banned = options.get("banned")
    if isinstance(banned, list) and banned:
        found["fg_banned"] = ", ".join(encode_submit_string(node, "node") for node in banned)
        found["fg_exclude"] = f"--exclude={','.join(banned)}"
    return found


def _read(file: Path) -> bytes:
    try:
        return read_plain(file)
    except OSError as error:
        raise RunFolderError(f"{file}: the plan cannot be read: {error.strerror}") from error


def find(batch: RenderedBatch) -> Handle | None:
    """Look for the batch in its event log, then the queue with its factories, then history back to the plan's making.

    A commit may land after a negative answer: the caller waits the settle time and asks again before it submits anew.
    Raises SubmissionDoubt when the batch is in the queue more than once: a person removes all but one.
    """
    logged = list(find_clusters(batch.event_log, batch.batch_id))
    if len(logged) == 1:
        place = call(batch.options, verb="where")
        return Handle(batch, str(place.content.get("where") or batch.options.get("schedd") or ""), logged[0])
    reply = _ask(batch.options, verb="find", batch=batch.batch_id, since=_made(batch))
    where, queued = str(reply["where"]), [int(cluster) for cluster in reply["queue"]]
    if len(queued) > 1:
        raise SubmissionDoubt(words.twice(batch.name, queued, where), words.keep_one(queued))
    found = [*queued, *logged, *reply["left"]]  # of several, those that left the queue run no more
    return Handle(batch, where, int(found[0])) if found else None


def take_back(batch: RenderedBatch) -> None:
    """HTCondor takes a batch whole or not at all: of one that did not land nothing is there."""
    del batch


def _made(batch: RenderedBatch) -> int:
    """No job of the batch left the queue before this time (s since 1970)."""
    try:
        return int((batch.plan_dir / "plan.json").stat().st_mtime) - _HISTORY_SLACK
    except FileNotFoundError:
        return 0


# --- back --------------------------------------------------------------------------------------------------


def observe(handles: Sequence[Handle], cursor: Cursor) -> Observation:
    """Read the event logs of these batches on from the cursor, at most some MB: what is left is for the next call.

    Where a log is damaged or not there, queue and history tell the state of its jobs. A schedd that does not answer is
    a problem to report, no error: what the log says still counts.
    """
    now = datetime.now(UTC)
    offsets, seen, problems = dict(cursor.offsets), list[JobSeen](), list[str]()
    left, missing = _EVENTS, list[tuple[Path, list[Handle]]]()
    for log, group in _by_log(handles).items():
        if left <= 0:
            break
        if not log.exists():
            missing.append((log, group))
        another = _is_another(log, offsets)
        begin = 0 if another else offsets.get(str(log), 0)
        items, offsets[str(log)] = read_events(log, begin, now, left, _LOOKED_AT)
        left -= len(items)
        clusters = {handle.cluster: handle.batch for handle in group}
        happened = [item for item in items if isinstance(item, LogEvent)]
        for event in happened:
            if event.cluster in clusters:
                seen += _from_event(event, clusters[event.cluster])
        problems += _doubled(group, happened)
        faults = [f"{log}, byte {item.start}: {item.what}" for item in items if isinstance(item, LogProblem)]
        faults += [f"{log}: another log is in its place; read from its beginning"] if another else []
        if faults:
            resolved = resolve(group)
            seen += resolved.seen
            problems += [*faults, *resolved.problems]
    for log, group in missing if left > 0 else ():  # once all that there is was read
        resolved = resolve(group)
        seen += resolved.seen
        problems += [f"{log}: the event log is not there", *resolved.problems]
    return Observation(tuple(seen), Cursor(offsets), tuple(problems))


def _is_another(log: Path, offsets: dict[str, int]) -> bool:
    """Is it not the log that was read before? Its mark is kept among the offsets."""
    mark, name = mark_of(log), f"{log}#mark"
    known = offsets.get(name, mark)
    if mark:
        offsets[name] = mark
    return bool(mark) and mark != known


def _doubled(group: Sequence[Handle], happened: Sequence[LogEvent]) -> list[str]:
    """A sentence for each other cluster that carries one of these batches. Nothing of fermigrid's makes such a one."""
    notes = {f"batch={handle.batch.batch_id}": handle for handle in group}
    known = {handle.cluster for handle in group}
    strangers = ((event.cluster, event.notes) for event in happened if event.cluster not in known)
    twins = {(cluster, word) for cluster, text in strangers for word in (text or "").split() if word in notes}
    return [words.twin(notes[word].batch.name, notes[word].cluster, cluster) for cluster, word in sorted(twins)]


def _by_log(handles: Sequence[Handle]) -> dict[Path, list[Handle]]:
    logs: dict[Path, list[Handle]] = {}
    for handle in handles:
        logs.setdefault(handle.batch.event_log, []).append(handle)
    return logs


_SEEN: Mapping[int, Seen] = {
    EventCode.SUBMIT: Seen.SUBMITTED,
    EventCode.EXECUTE: Seen.STARTED,
    EventCode.RECONNECTED: Seen.STARTED,
    EventCode.EVICTED: Seen.EVICTED,
    EventCode.SHADOW_EXCEPTION: Seen.EVICTED,
    EventCode.REMOTE_ERROR: Seen.EVICTED,
    EventCode.DISCONNECTED: Seen.EVICTED,
    EventCode.RECONNECT_FAILED: Seen.EVICTED,
    EventCode.HELD: Seen.HELD,
    EventCode.RELEASED: Seen.RELEASED,
    EventCode.TERMINATED: Seen.ENDED,
    EventCode.ABORTED: Seen.REMOVED,
}


_LOOKED_AT = {*_SEEN, EventCode.CLUSTER_SUBMIT, EventCode.CLUSTER_REMOVE}


def _from_event(event: LogEvent, batch: RenderedBatch) -> Iterator[JobSeen]:
    """What an event says of the batch's jobs: of one, of all that a removed factory had not made, or nothing."""
    if event.code == EventCode.CLUSTER_REMOVE:
        made = words.jobs_made((event.text, *event.lines), batch.jobs)
        for index in range(made, batch.jobs):
            yield JobSeen(batch.batch_id, index, Seen.REMOVED, event.time, reason="removed before HTCondor made it")
        return
    state = _SEEN.get(event.code)
    if state is None or not 0 <= event.proc < batch.jobs or words.is_warning(event.text):
        return
    if state in _PLAIN:
        yield _plain(event, state, batch)
        return
    if state is Seen.HELD and words.is_restart(event.hold_code, event.hold_subcode):
        code, why = event.hold_subcode, event.reason or ""
        yield JobSeen(batch.batch_id, event.proc, Seen.EVICTED, event.time, exit_code=code, reason=why)
        return
    yield JobSeen(
        batch.batch_id,
        event.proc,
        state,
        event.time,
        exit_code=words.code_returned(event.lines) if state is Seen.EVICTED else None,
        reason=_reason(state, event),
        code="" if event.hold_code is None else f"{event.hold_code}/{event.hold_subcode}",
    )


_PLAIN = frozenset({Seen.SUBMITTED, Seen.STARTED, Seen.ENDED})  # what happens to every job


def _plain(event: LogEvent, state: Seen, batch: RenderedBatch) -> JobSeen:
    if state is Seen.SUBMITTED:
        return JobSeen(batch.batch_id, event.proc, state, event.time)
    if state is Seen.STARTED:
        return JobSeen(batch.batch_id, event.proc, state, event.time, host=_machine(event.host))
    code = event.return_value
    signal = event.signal if code is None else None
    return JobSeen(batch.batch_id, event.proc, state, event.time, exit_code=code, signal=signal)


def _machine(host: str | None) -> str:
    """The machine that runs the job; of the grid universe the event has only the `grid_resource`."""
    return host if host and " " not in host else ""


def _reason(state: Seen, event: LogEvent) -> str:
    if state is Seen.EVICTED:
        return words.eviction(event.reason, event.lines)
    if state is Seen.REMOVED:
        return words.removal(event.reason)
    if state is Seen.RELEASED:
        return words.liberation(event.reason)
    return words.detention(event.reason) if state is Seen.HELD else ""


def resolve(handles: Sequence[Handle]) -> Observation:
    """The state of every job of these batches from queue and history, for when their event log does not tell.

    A job that neither knows is LOST: unknown, never failed. It costs a query of all jobs: not for every round.
    """
    seen, problems = list[JobSeen](), list[str]()
    for handle in handles:
        batch = handle.batch
        try:
            told = _ask(
                batch.options, handle.where, verb="look", cluster=handle.cluster, jobs=batch.jobs, since=_made(batch)
            )
        except (BackendUnavailable, SubmissionRefused) as error:
            problems.append(f"{batch.name}: its event log does not tell all, and: {error}")
            continue
        seen += _from_ads(batch, told)
    return Observation(tuple(seen), Cursor(), tuple(problems))


def _from_ads(batch: RenderedBatch, told: Mapping[str, Any]) -> Iterator[JobSeen]:
    ads = {int(ad["ProcId"]): ad for ad in (*told["left"], *told["queue"])}
    made = int((told["factory"] or {}).get("JobMaterializeNextProcId", batch.jobs))
    for index in range(batch.jobs):
        if index in ads:
            yield _from_ad(batch, index, ads[index])
        else:
            state = Seen.SUBMITTED if index >= made else Seen.LOST
            yield JobSeen(batch.batch_id, index, state, datetime.now(UTC))


def _from_ad(batch: RenderedBatch, index: int, ad: Mapping[str, Any]) -> JobSeen:
    time = datetime.fromtimestamp(int(ad.get("EnteredCurrentStatus", 0)), UTC)
    match ad.get("JobStatus"):
        case 5 if words.is_restart(ad.get("HoldReasonCode"), ad.get("HoldReasonSubCode")):
            return JobSeen(batch.batch_id, index, Seen.EVICTED, time, reason=str(ad.get("HoldReason", "")))
        case 5:
            code = f"{ad.get('HoldReasonCode', 0)}/{ad.get('HoldReasonSubCode', 0)}"
            return JobSeen(batch.batch_id, index, Seen.HELD, time, reason=str(ad.get("HoldReason", "")), code=code)
        case 2 | 6 | 7:
            return JobSeen(batch.batch_id, index, Seen.STARTED, time, host=str(ad.get("RemoteHost", "")))
        case 3:
            return JobSeen(batch.batch_id, index, Seen.REMOVED, time, reason=words.removal(ad.get("RemoveReason")))
        case 4:
            return JobSeen(
                batch.batch_id, index, Seen.ENDED, time, exit_code=ad.get("ExitCode"), signal=ad.get("ExitSignal")
            )
    return JobSeen(batch.batch_id, index, Seen.EVICTED if ad.get("NumJobStarts") else Seen.SUBMITTED, time)


def check_tokens(options: Mapping[str, object], text: str) -> None:
    """See that the credential daemon has the tokens that a submit file asks for. Raises SubmissionRefused, with the
    address where they are to be had as its hint, and BackendUnavailable."""
    reply = call(options, verb="tokens", text=text)
    if reply.kind == "refused":
        said, _, todo = reply.words.partition("\n")
        raise SubmissionRefused(said, todo)
    if reply.kind != "answer":
        raise BackendUnavailable(f"HTCondor: {reply.words}", _LATER)


def explain(handle: Handle, index: int) -> tuple[str, ...]:
    """Why the job waits or is held, from its ad in the live queue and the pool's machines."""
    facts = _ask(handle.batch.options, handle.where, verb="explain", cluster=handle.cluster, index=index)
    return words.explain(facts, index)


def explain_removal(reason: str, code: str) -> tuple[str, ...]:
    """What a batch system's last refusal or a job's last hold means, and what to do."""
    return words.explain_removal(reason, code)


# --- commands ----------------------------------------------------------------------------------------------


def remove(handles: Sequence[Handle], indices: Indices = None) -> None:
    """Take jobs out of the queue, running ones too. A whole batch goes with its factory; again is harmless."""
    _act(handles, indices, "Remove")


def hold(handles: Sequence[Handle], indices: Indices = None) -> None:
    """Keep jobs from starting (running ones are stopped); of a whole batch no more are made."""
    _act(handles, indices, "Hold")


def release(handles: Sequence[Handle], indices: Indices = None) -> None:
    """Let held jobs go on."""
    _act(handles, indices, "Release")


def pause(handles: Sequence[Handle]) -> None:
    """Hold what waits, and the factories, which then make no more; what runs is not touched."""
    for handle in handles:
        _ask(handle.batch.options, handle.where, _REPEAT, verb="pause", cluster=handle.cluster, reason=PAUSED)


def resume(handles: Sequence[Handle]) -> None:
    """Release what `pause` held, and the factories."""
    for handle in handles:
        _ask(handle.batch.options, handle.where, _REPEAT, verb="resume", cluster=handle.cluster, reason=PAUSED)


def adjust(wanted: Sequence[tuple[Handle, Allowed]], /) -> None:
    """Edit the clusters' ads: all their jobs have them, also those that are made later."""
    by_schedd: dict[str, list[tuple[Handle, Allowed]]] = {}
    for handle, allowed in wanted:
        by_schedd.setdefault(handle.where, []).append((handle, allowed))
    for where, group in by_schedd.items():
        changes = [{"cluster": handle.cluster, "attributes": _attributes(allowed)} for handle, allowed in group]
        _ask(group[0][0].batch.options, where, _REPEAT, verb="adjust", changes=changes)


def _attributes(allowed: Allowed) -> dict[str, str]:
    """ClassAd expressions. A limit of 0 would be none for HTCondor: `pause` is there for that."""
    nodes = ", ".join(encode_classad_string(node, "node") for node in allowed.banned)
    found = {"JobPrio": str(allowed.priority), "FermigridBanned": f"{{ {nodes} }}"}
    if allowed.places is not None:
        found |= {"JobMaterializeLimit": str(max(1, allowed.places)), "FermigridStay": str(allowed.stay)}
    if allowed.idle is not None:
        found["JobMaterializeMaxIdle"] = str(max(1, allowed.idle))
    return found


def used(handle: Handle, indices: Sequence[int], /) -> Mapping[int, float]:
    """CPU seconds as the queue has them. They come there some minutes late: of a job that runs for less than half an
    hour a zero says nothing, and it is left out."""
    batch = handle.batch
    told = _ask(batch.options, handle.where, verb="used", cluster=handle.cluster, indices=list(indices))
    return {int(index): float(seconds) for index, seconds in told["cpu"].items()}


def silence(handle: Handle, /) -> str:
    """Whether the schedd answers."""
    try:
        _ask(handle.batch.options, handle.where, verb="answers")
    except (BackendUnavailable, SubmissionRefused) as error:
        return str(error)
    return ""


def _act(handles: Sequence[Handle], indices: Indices, action: str) -> None:
    reason = f"fermigrid {action.lower()}"
    chosen = None if indices is None else sorted(set(indices))
    for handle in handles:
        batch = handle.batch
        request = {"action": action, "cluster": handle.cluster, "indices": chosen, "reason": reason, "jobs": batch.jobs}
        unmade = _ask(batch.options, handle.where, verb="act", hint=_REPEAT, **request)["unmade"]
        if unmade:
            raise SubmissionRefused(
                f"{batch.name}: {unmade} of these jobs are not in the queue yet: HTCondor makes them later, and can "
                f"{action.lower()} them only then",
                f"{action} the whole batch, or repeat the command later.",
            )


def _ask(options: Mapping[str, object], where: str = "", hint: str = _LATER, **request: object) -> Mapping[str, Any]:
    """The answer to a question, or the error for having none."""
    reply = call(options, where, **request)
    if reply.kind == "answer":
        return reply.content
    if reply.kind == "refused":
        raise SubmissionRefused(f"HTCondor refused: {reply.words}")
    raise BackendUnavailable(f"HTCondor: {reply.words}", hint)
