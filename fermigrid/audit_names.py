"""The names that outputs of a campaign could have, whatever the generation: whose a stray file is. Pure."""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterable

_RUN = "%RUN%"


class Names:
    """The final names that outputs of some runs could have, in any generation: by the campaign's own texts."""

    def __init__(self, forms: Iterable[tuple[str, str]], runs: Collection[str]) -> None:
        """`forms`: (step, compiled text of an output's name); those that name no run are left out."""
        lengths = sorted({len(run) for run in runs}, reverse=True)
        texts = sorted({text for step, form in forms if (text := _pattern(step, form))})
        self._patterns = [re.compile(text.replace(_RUN, f".{{{n}}}", 1)) for text in texts for n in lengths]
        self._runs = frozenset(runs)

    def run_of(self, name: str) -> str | None:
        """The run of which an output could have this name."""
        found = (pattern.fullmatch(name) for pattern in self._patterns)
        return next((match["run"] for match in found if match and match["run"] in self._runs), None)


def _pattern(step: str, form: str) -> str:
    """A compiled text as a regular expression with the group `run`; "" without the run in it."""
    text, known = "", False
    for literal, name, _, _ in string.Formatter().parse(form):
        text += re.escape(literal)
        if name in ("run", "job"):
            text += re.escape(f"{step}.") if name == "job" else ""
            text += "(?P=run)" if known else f"(?P<run>{_RUN})"
            text += r"(?:\.[^./]+)?" if name == "job" else ""
            known = True
        elif name:
            text += "[^/]+"
    return text if known else ""
