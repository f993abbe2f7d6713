"""The circuit breaker: the last results of a campaign -> must a person look before more of it starts? Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fermigrid.campaign import StopIf, parse_share
from fermigrid.units import show_bytes

OVER_NETWORK = frozenset({"http", "registry"})  # rungs of the image ladder that cost an origin a download


@dataclass(frozen=True)
class Result:
    """An attempt that ended, as the breaker sees it. `rung`: what served its image ("" when no report came back)."""

    failed: bool
    rung: str = ""


def window_of(stop_if: StopIf) -> int:
    """How many of the last results `find_reason` wants to see."""
    return max((parse_share(text)[1] for text in (stop_if.failed, stop_if.http) if text), default=0)


def find_reason(stop_if: StopIf, newest_first: Sequence[Result], free: int | None) -> str:
    """Why nothing more may start, in words; "" when it may.

    `free`: bytes left on the run folder's file system, None when nobody could tell. A share is one of the whole window:
    40 failures trip 20 % of the last 200, whether 60 or 200 jobs have ended.
    """
    reasons = []
    if stop_if.failed:
        bad = [result.failed for result in newest_first]
        reasons.append(_share(stop_if.failed, bad, "failed"))
    if stop_if.http:
        bad = [result.rung in OVER_NETWORK for result in newest_first]
        reasons.append(_share(stop_if.http, bad, "fetched their image over the network"))
    if stop_if.disk is not None and free is not None and free < stop_if.disk:
        wanted = show_bytes(stop_if.disk)
        reasons.append(
            f"the run folder's file system has {show_bytes(free)} left, less than the {wanted} of stop_if.disk"
        )
    return "; ".join(filter(None, reasons))


def _share(written: str, bad: Sequence[bool], words: str) -> str:
    share, last = parse_share(written)
    window = bad[:last]
    # the least whole number of jobs that makes up the share; less a hair, as 0.07 * 100 is a little more than 7
    enough = max(1, math.ceil(share * last - 1e-9))
    found = sum(window)
    said = f"{found} of the last {len(window)} attempts {words}, {enough} are enough ({written})"
    return said if found >= enough else ""
