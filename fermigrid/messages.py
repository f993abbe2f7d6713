"""The pipeline's start and end messages that a node could not send: the submit side does, from the job's report.

Delivery is at least once. A message keeps its Message-ID whoever sends it, so that a receiver can drop doubles.
One that may have arrived is sent again after a while only, and says so.
"""

from __future__ import annotations

from datetime import datetime

from fermigrid.ledger import Ledger
from fermigrid.plan import Assembled
from fermigrid.records import MessageRecord
from fermigrid.routes import Answer, Fate, Mail, deliver
from fermigrid.site import Messages
from fermigrid.submit import Hand

RETRY_S = 300  # from a failed try to the next: `watch` looks every 2 s
DOUBT_S = 600  # what may have arrived is not sent again before
AGAIN = "# Sent again: whether it arrived the first time is not known\n"


def send_missing(ledger: Ledger, assembled: Assembled, hand: Hand) -> tuple[str, ...]:
    """Send what is due; returns what could not be sent, in words.

    The caller holds the writer's lock. Cut short between sending and writing it down, it sends the same message again.
    """
    who = assembled.campaign.messages
    waiting = ledger.unsent_messages() if who else ()
    if not who or not waiting:
        return ()
    sites = {batch.id: batch.site for batch in ledger.batches()}
    problems = []
    for message in waiting:
        text = message.text + (AGAIN if message.doubt else "")
        mail = Mail(who.source, who.to, message.id, text.encode())
        problems += _send(ledger, message, mail, assembled.sites[sites[message.batch]].messages, hand)
    return tuple(problems)


def _send(ledger: Ledger, message: MessageRecord, mail: Mail, how: Messages, hand: Hand) -> list[str]:
    """One message, if it is due -> what is to be said about it."""
    now = int(hand.now().timestamp())
    due, doubt, reason = message.due, message.doubt, message.reason
    if due is None and doubt:
        due, reason = now + DOUBT_S, "the node got no answer when it had sent it"
        ledger.put_off(message.id, due, doubt, reason)
    elif due is None or due <= now:
        routes = ([f"program:{hand.sendmail}"] if hand.sendmail else []) + list(how.via)
        answer = deliver(routes, mail, how.timeout, how.ca)
        if answer.fate is Fate.SENT:
            ledger.message_sent(message, answer.route, hand.now(), hand.who)
            return []
        due, doubt, reason = _next_try(answer, message, int(hand.now().timestamp()))
        ledger.put_off(message.id, due, doubt, reason)
    when = datetime.fromtimestamp(due, hand.now().tzinfo).isoformat(timespec="seconds")
    state = "may not have arrived" if doubt else "is not sent"
    return [f"the {message.kind} message of {message.job} {state}: {reason}; it is tried again after {when}"]


def _next_try(answer: Answer, message: MessageRecord, now: int) -> tuple[int, bool, str]:
    """(when, whether it may have arrived, why)"""
    if answer.fate is Fate.DOUBT:
        return now + DOUBT_S, True, f"{answer.route}: {answer.reason}"
    return now + RETRY_S, message.doubt, answer.reason
