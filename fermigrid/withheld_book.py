"""What the ledger keeps of steps and runs that a person held or removed before they were sent."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from fermigrid.advance import Places, Withheld

if TYPE_CHECKING:
    from fermigrid.ledger import Ledger


class WithheldBook:
    """The table of what is withheld, of an open ledger. A place is a step of a run."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def places(self) -> Places:
        """(step, run) -> how it is withheld."""
        rows = self._ledger.select("SELECT step, run, kind FROM withheld")
        return {(step, run): Withheld(kind) for step, run, kind in rows}

    def since(self, step: str, run: str) -> str:
        """When it was withheld, and by whom, in words."""
        rows = self._ledger.select("SELECT since, who FROM withheld WHERE step = ? AND run = ?", (step, run))
        return "".join(f"on {since} by {who}" for since, who in rows)

    def withhold(self, kind: Withheld, places: Iterable[tuple[str, str]], time: datetime, who: str, what: str) -> None:
        """Send nothing of these; `what`: for the campaign's history."""
        stamp = time.isoformat(timespec="seconds")
        with self._ledger.changing() as db:
            rows = [(step, run, str(kind), stamp, who) for step, run in places]
            db.executemany("INSERT OR REPLACE INTO withheld VALUES (?, ?, ?, ?, ?)", rows)
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (stamp, who, what))

    def give_back(self, places: Iterable[tuple[str, str]], time: datetime, who: str, what: str) -> None:
        """These are sent when their time comes; `what`: for the campaign's history."""
        with self._ledger.changing() as db:
            db.executemany("DELETE FROM withheld WHERE step = ? AND run = ?", list(places))
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (time.isoformat(timespec="seconds"), who, what))
