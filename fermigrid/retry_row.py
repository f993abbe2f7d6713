"""The table of retries as ClassAd expressions: what a submit template is given of it. Pure.

HTCondor carries out by itself what needs nobody to watch: another start after an exit code, a release after a hold,
more memory after a hold for want of it. It counts for itself, in the job's ad: nothing is lost when it restarts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fermigrid.backends.htcondor_words import HOLDS
from fermigrid.retry_rule import MOST_TIMES, WAIT_S, InQueue

_CODE, _PAIR = "$(fg_hold_code)", "$(fg_hold_pair)"


def retry_row(table: InQueue, retries: int, memory_mb: int) -> dict[str, Any]:
    """The variables of job.sub.j2 that are about retries; `memory_mb`: what a job asks for at first."""
    left = dict.fromkeys(table.leaves, 0)
    return {
        "retries": retries,
        "again": ", ".join(map(str, table.again)),
        "again_worker": ", ".join(str(code) for code in table.again if 80 <= code <= 99),
        "cured": _either(table.cures, left),
        "given_up": _either(left, table.cures),
        "release_after": _after(table.cures),
        "wants": _wants(table.grows),
        "grown": _grown(table, memory_mb) if table.grows and table.most // 2**20 > memory_mb else None,
    }


def _either(these: Mapping[str, int], others: Mapping[str, int]) -> str:
    """Is the hold one of these? A code with a subcode says more than the code alone."""
    pairs, codes = _split(these)
    exceptions, _ = _split(others)
    but = f" && !member({_PAIR}, {{{', '.join(exceptions)}}})" if exceptions and codes else ""
    parts = [f"member({_PAIR}, {{{', '.join(pairs)}}})"] if pairs else []
    parts += [f"(member({_CODE}, {{{', '.join(codes)}}}){but})"] if codes else []
    return " || ".join(parts) or "false"


def _split(holds: Iterable[str]) -> tuple[list[str], list[str]]:
    """Codes with their subcodes, as ClassAd strings, and codes alone."""
    return [f'"{key}"' for key in holds if "/" in key], sorted((key for key in holds if "/" not in key), key=int)


def _after(cures: Mapping[str, int]) -> str:
    """How long a job is held before it is released, s."""
    text = str(WAIT_S)
    for seconds in sorted(set(cures.values()) - {WAIT_S}):
        ours = {key: after for key, after in cures.items() if after == seconds}
        others = {key: after for key, after in cures.items() if after != seconds}
        text = f"ifThenElse({_either(ours, others)}, {seconds}, {text})"
    return text


def _wants(codes: Iterable[int]) -> str:
    """How often the job was held for want of memory."""
    labels = [HOLDS[code].label for code in codes if code in HOLDS]
    return " + ".join(f"(NumHoldsByReason.{label} ?: 0)" for label in labels) or "0"


def _grown(table: InQueue, memory_mb: int) -> str:
    """The memory to ask for after such holds, MiB: from what was asked for and from what was measured."""
    most = table.most // 2**20
    limit = f"{MOST_TIMES} * $(fg_memory)" if most == MOST_TIMES * memory_mb else str(most)
    by_count = f"$(fg_memory) * pow({table.factor:g}, $(fg_wants))"
    return f"int(min({{{limit}, max({{{by_count}, (MemoryUsage ?: 0) * {table.factor:g}}})}}))"
