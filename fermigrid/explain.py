"""Why a job is where it is, in words: from the ledger, its report, and the batch system."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fermigrid import backends
from fermigrid.errors import BackendUnavailable
from fermigrid.find_job import Found
from fermigrid.ledger import Ledger
from fermigrid.runfolder import RunFolder
from fermigrid.states import State
from fermigrid.submit import handle_of


def explain_job(ledger: Ledger, folder: RunFolder, found: Found) -> Iterator[str]:
    """Sentences, the most telling first."""
    record, batch = found.record, found.batch
    attempts = ledger.attempts(record.name)
    if batch.submitted is None:
        yield "nobody knows yet whether its batch landed: fermigrid watch settles it"
        return
    if batch.removed and not record.state.final:
        yield f"its batch was removed on {batch.removed}"
        return
    if record.state in (State.FAILED, State.REMOVED) and record.reason:
        yield record.reason
    if record.state is State.UNKNOWN:
        yield f"the batch system does not know it any more: {record.reason or 'no reason given'}"
    if not record.state.final or (record.state is State.FAILED and not attempts):
        try:
            yield from backends.load(batch.backend).explain(handle_of(folder, batch), found.index)
        except BackendUnavailable as error:
            yield f"the batch system cannot be asked: {error}"
    if record.starts > 1:
        yield f"it was started {record.starts} times, the last time on {record.host or 'an unknown host'}"
    for attempt in attempts:
        report = json.loads(attempt.report)
        words = describe_attempt(report)
        if report["message"] and report["message"] not in record.reason:
            words += f"; {report['message']}"
        yield f"attempt {attempt.attempt}: {words}" + (", accepted" if attempt.accepted else "")
        if cores := [core["file"] for core in report.get("cores", ())]:
            where = f"{found.log.parent / 'out'}: " if attempt.batch == found.batch.id else ""
            yield f"attempt {attempt.attempt}: core files kept: {where}{', '.join(cores)}"


def describe_attempt(report: dict[str, Any]) -> str:
    """One line on what a report says: where it ran, in what, how long, how it ended."""
    image = report["image"]
    if report["rehearsal"]:
        where = "on the host (rehearsal)"
    elif report.get("container") == "none":
        where = "in no container"
    else:
        where = f"in {image['name']} (from {image['rung']})"
    tried = [f"{step['rung']}: {step['result']}" for step in image.get("tried", []) if step["result"] != "ok"]
    text = f"{report['host']}, {where}, {report['end'] - report['begin']} s, exit {report['exit']}"
    if report["payload_exit"] not in (None, report["exit"]):
        text += f" (the payload's own: {report['payload_exit']})"
    if tried:
        text += f"; tried {', '.join(tried)}"
    return text
