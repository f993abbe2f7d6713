"""`fermigrid resume`: a person has looked, and the campaign goes on: after the circuit breaker, after its trial."""

from __future__ import annotations

from collections.abc import Mapping

from fermigrid.errors import NotFound, SubmissionRefused
from fermigrid.gate import BREAKER, TRIAL, is_halted, resume_paused
from fermigrid.measure import has_trial_ended, measure_trial
from fermigrid.throttle import as_now
from fermigrid.trial import adjusted_by
from fermigrid.watch import Following


def resume(f: Following, reason: str, quotas: Mapping[str, int], *, suggested: bool, early: bool) -> list[str]:
    """Let the campaign go on; returns what was done, in words. Nothing is sent: that is the next look's affair.

    A breaker that tripped during a trial lets the trial go on first. The caller holds the writer's lock. `quotas`: what
    this campaign may publish at a site in all, bytes. `suggested`: the rest asks for what its trial suggests. Raises
    SubmissionRefused for a campaign that was removed, or whose trial goes on (unless `early`); NotFound for a site that
    is none of its; BackendUnavailable: then it is stopped as before.
    """
    if f.ledger.campaign().stopped:
        raise SubmissionRefused(
            "the campaign was removed: nothing more of it is sent", "Submit it with another --run-dir."
        )
    for site in sorted(set(quotas) - set(f.assembled.sites)):
        raise NotFound(f"the campaign has no site {site!r}", f"It has: {', '.join(sorted(f.assembled.sites))}")
    breaker, trial = is_halted(f.ledger, BREAKER), is_halted(f.ledger, TRIAL)
    over = early or has_trial_ended(f)
    if trial and not over and not breaker:
        text = "the trial has not ended: jobs of it are still on their way, or are sent by the next looks"
        raise SubmissionRefused(text, "`fermigrid watch` brings it to its end; or give --early.")
    if suggested and not f.assembled.trial:
        raise SubmissionRefused("there was no trial: nothing is suggested")
    done = []
    if suggested:
        values = adjusted_by(measure_trial(f))
        f.ledger.adjust(values, f.hand.now(), f.hand.who, "the rest asks for what the trial suggests")
        done.append("what is still to be sent asks for what the trial suggests")
    if quotas:
        values = {(site, "quota"): count for site, count in quotas.items()}
        f.ledger.adjust(values, f.hand.now(), f.hand.who, f"other quotas: {', '.join(sorted(quotas))}")
        done.append(f"another quota for {', '.join(sorted(quotas))}")
    if count := resume_paused(f.ledger, f.folder, as_now(f).assembled.drained):
        done.append(f"jobs of {count} batches may start again")
    why = reason or "no reason given"
    if breaker:
        f.ledger.lift(BREAKER, f.hand.now(), f.hand.who, why)
        done.append("the circuit breaker begins to count anew")
    if trial and over:
        f.ledger.lift(TRIAL, f.hand.now(), f.hand.who, why)
        done.append("the trial is over: the rest is sent")
    elif trial:
        done.append("the trial goes on")
    return done
