"""The schedd's own jobs that run `fermigrid watch`: sent, found by the campaign that they watch, taken out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fermigrid.backends.htcondor_process import Reply, call
from fermigrid.errors import BackendUnavailable, SubmissionDoubt, SubmissionRefused

_LATER = "The schedd may be busy or down: try again later."
_AGAIN = "The same command again looks for it before it sends another."
_STATES = {1: "it waits for the schedd to start it", 2: "running", 5: "held"}


@dataclass(frozen=True)
class Found:
    """A job of the schedd's queue: its number and its state in words."""

    cluster: int
    words: str


def schedd_name(options: Mapping[str, object]) -> str:
    """The name of the schedd that a site's settings lead to. Raises BackendUnavailable."""
    return str(_content(call(options, verb="where"))["where"])


def find_watches(options: Mapping[str, object], where: str, instance: str) -> list[Found]:
    """The jobs in the queue that watch this campaign, whoever sent them. Raises BackendUnavailable."""
    told = _content(call(options, where, verb="watches", instance=instance))["jobs"]
    return [Found(int(job["cluster"]), _in_words(job)) for job in told]


def _in_words(job: Mapping[str, object]) -> str:
    state = _STATES.get(int(str(job["status"])), "in the queue")
    return f"{state}: {job['why']}" if job["why"] else state


def send_watch(options: Mapping[str, object], where: str, text: str) -> int:
    """Send the job; returns its number. Only to a schedd of this machine: it looks at files that are here.

    Raises SubmissionRefused and BackendUnavailable when it did not land, SubmissionDoubt when nobody knows.
    """
    reply = call(options, where, verb="submit", text=text, macros={}, shared_filesystem=False)
    if reply.kind in ("doubt", "silent") and reply.sending:
        raise SubmissionDoubt(f"the watch job was sent and no answer came: {reply.words}", _AGAIN)
    return int(_content(reply)["cluster"])


def remove_watch(options: Mapping[str, object], where: str, cluster: int) -> None:
    """Take the job out of the queue; again is harmless. Raises BackendUnavailable, SubmissionRefused."""
    request = {"action": "Remove", "cluster": cluster, "indices": None, "jobs": 1, "reason": "fermigrid remove"}
    _content(call(options, where, verb="act", **request))


def _content(reply: Reply) -> Mapping[str, Any]:
    """The answer, or the error for having none."""
    if reply.kind == "answer":
        return reply.content
    if reply.kind == "refused":
        raise SubmissionRefused(f"HTCondor refused: {reply.words}")
    raise BackendUnavailable(f"HTCondor: {reply.words}", _LATER)
