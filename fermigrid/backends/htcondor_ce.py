"""What an HTCondor-CE, or any second schedd, has to say of a job that was handed to it, in words. Pure.

The schedd here holds such a job with code 0 when its gridmanager could not go on: the reason is the gridmanager's or
the CE's own. Other codes are those of the job's hold over there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Facts = Mapping[str, Any]

# Words of HTCondor's gridmanager -> what they mean, what to do, what happens by itself
_AGAIN = "it is tried again by itself, ever more rarely, for as long as it takes; nothing is lost"
_SOME = "it is tried some times more, then it leaves the queue with this reason"
_HOLDS = (
    (
        r"DENIED|AUTHENTICATE|No auth methods|SECMAN:20(?:03|10)|authoriz|permission",
        "the CE does not let you in: the token or proxy that your submissions have is missing, has ended, or is not "
        "known there",
        "renew it, or ask the site's contact whether you may submit there; `fermigrid release` tries at once",
        _AGAIN,
    ),
    (
        r"(?:Error|Failed to) connect|timed? ?out|communication|Connection (?:refused|closed|reset)",
        "the CE did not answer",
        "nothing; if it lasts, tell the site's contact",
        _AGAIN,
    ),
    (
        r"disappeared from remote schedd|not found",
        "the CE does not know the job any more: it was removed there, or the CE lost it. Whether it had begun is "
        "unknown; of several results one is accepted",
        "nothing: it is handed over anew; `fermigrid release` does it at once",
        _SOME,
    ),
    (
        r"Error (?:sending|receiving) files|Failed to stage|stage.?(?:in|out)",
        "files did not come to the CE, or back from it",
        "see that they are where the reason says, and that the run folder can be read and written",
        _SOME,
    ),
    (
        r"Failed to submit job",
        "the CE refused the job",
        "ask for what it gives (`resources` in the campaign, `attributes` of `grid` in the site file), submit the "
        "job's runs again in another run folder",
        _SOME,
    ),
)
SILENT = "|".join(pattern for pattern, _, _, itself in _HOLDS if itself is _AGAIN)
"""Reasons for which the submit template lets a job try for ever (without regard to case)."""


def ce_of(job: Facts) -> tuple[str, str]:
    """Name and collector of the CE that a job goes to; empty for other jobs."""
    words = str(job.get("GridResource") or "").split()
    return (words[1], words[2]) if words[:1] == ["condor"] and len(words) == 3 else ("", "")


def explain_hold(job: Facts) -> Iterator[str]:
    """A job that is held with code 0."""
    ce, _ = ce_of(job)
    reason = words_of(str(job.get("HoldReason") or ""))
    yield f"held: {reason or 'no reason given'} ({ce})"
    *advice, itself = _meaning_of(reason)
    yield from advice
    yield f"by itself: {itself}"


def words_of(reason: str) -> str:
    """What the gridmanager or the CE said, without HTCondor's numbers."""
    return re.sub(r"^ERROR: *|SCHEDD:\d+:", "", " ".join(reason.split()))


def explain_last(reason: str) -> tuple[str, ...]:
    """The same of a job that has left the queue with this reason."""
    return _meaning_of(reason)[:2]


def _meaning_of(reason: str) -> tuple[str, str, str]:
    """What a reason means, what to do, what happens by itself."""
    known = (row[1:] for row in _HOLDS if re.search(row[0], reason, re.IGNORECASE))
    meaning, advice, itself = next(known, ("the way to the CE failed", "look at the reason's words", _SOME))
    return f"that means: {meaning}", f"what to do: {advice}", itself


def explain_there(job: Facts, there: Facts, age: str) -> Iterator[str]:
    """What the CE's own schedd says of the job; `age`: for how long it has been in its state there."""
    ce, pool = ce_of(job)
    if deaf := there.get("deaf"):
        yield f"the collector {pool} does not answer (htcondor.grid.pool): {deaf}"
        return
    if there.get("absent"):
        yield f"the collector {pool} knows no schedd {ce} (htcondor.grid.ce): the CE is down, or its name is another"
        yield (
            "if the name is wrong: `fermigrid remove`, mend the site file, submit the job's runs again in another run "
            "folder"
        )
        return
    if there.get("silent"):
        yield f"{ce} does not tell this shell more: {there['silent']}"
        return
    ad = there["job"]
    if ad is None:
        yield f"{ce} does not know it: HTCondor notices that within some minutes, and tells"
        return
    status = ad.get("JobStatus")
    if status == 5:
        yield f"there it is held: {ad.get('HoldReason', 'no reason given')}"
    elif status in (2, 6):
        yield f"there it runs on {ad.get('RemoteHost') or 'a machine'}, for {age}"
    elif status == 4:
        yield "there it has ended: its files are on their way back"
