"""What the ledger keeps of settings: what a person set, what batch systems were told, how far batches have grown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from fermigrid.backends import Allowed
from fermigrid.rates import Growth
from fermigrid.setting import Change, Setting

if TYPE_CHECKING:
    from fermigrid.ledger import Ledger


@dataclass(frozen=True)
class ToldOf:
    """What the batch system was last told of a batch; `bound`: so many of its jobs were in the queue at most when
    `left` of them had not ended."""

    allowed: Allowed
    bound: int
    left: int

    def bound_now(self, left: int) -> int:
        """The same, when no more than `left` have not ended."""
        return max(0, self.bound - max(0, self.left - left))


class SettingsBook:
    """The tables of settings of an open ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def settings(self) -> dict[str, Setting]:
        """What was set, by key."""
        rows = self._ledger.select("SELECT key, value, since, who FROM setting ORDER BY key")
        return {row[0]: Setting(*row) for row in rows}

    def values(self) -> dict[str, str]:
        """The same, without by whom."""
        return {setting.key: setting.value for setting in self.settings().values()}

    def change(self, changes: Iterable[Change], time: datetime, who: str, what: str) -> None:
        """Set them, or set them back, in one transaction; `what`: for the campaign's history."""
        stamp = time.isoformat(timespec="seconds")
        with self._ledger.changing() as db:
            weighed = False
            for change in changes:
                if change.value is None:
                    found = db.execute("DELETE FROM setting WHERE key = ?", (change.key,)).rowcount
                else:
                    row = (change.key, change.value, stamp, who)
                    found = db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?, ?, ?)", row).rowcount
                weighed = weighed or (bool(found) and change.key.startswith(("sites.", "drain.")))
            if weighed:
                db.execute("INSERT OR IGNORE INTO reweighed SELECT DISTINCT block FROM batch")
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (stamp, who, what))

    def reweighed(self) -> frozenset[str]:
        """The blocks that had begun when the weights were last changed."""
        return frozenset(block for (block,) in self._ledger.select("SELECT block FROM reweighed"))

    def recent(self, since: datetime) -> dict[str, int]:
        """Batch -> how many starts it had since then, at most ten minutes ago."""
        query = "SELECT batch, sum(times) FROM begun WHERE time >= ? GROUP BY batch"
        return dict(self._ledger.select(query, (int(since.timestamp()),)))

    def nodes(self, site: str) -> set[str]:
        """The nodes of a site on which jobs ended within a day."""
        query = "SELECT node FROM node_good WHERE site = ? UNION SELECT node FROM node_bad WHERE site = ?"
        return {node for (node,) in self._ledger.select(query, (site, site))}

    def told(self) -> dict[str, ToldOf]:
        """Batch -> what its batch system was last told."""
        rows = self._ledger.select("SELECT batch, told, bound, left FROM allowed")
        return {batch: ToldOf(_allowed(text), bound, left) for batch, text, bound, left in rows}

    def tell(self, told: Mapping[str, ToldOf]) -> None:
        """The batch systems were told."""
        rows = [(batch, json.dumps(asdict(t.allowed)), t.bound, t.left) for batch, t in told.items()]
        with self._ledger.changing() as db:
            db.executemany("INSERT OR REPLACE INTO allowed VALUES (?, ?, ?, ?)", rows)

    def growth(self) -> dict[str, Growth]:
        """Scope -> how far it has grown."""
        rows = self._ledger.select("SELECT scope, high, more, time FROM growth")
        return {scope: Growth(high, more, time) for scope, high, more, time in rows}

    def grow(self, growth: Mapping[str, Growth]) -> None:
        """Keep these, and no others."""
        with self._ledger.changing() as db:
            db.execute("DELETE FROM growth")
            rows = [(scope, each.high, each.more, each.time) for scope, each in growth.items()]
            db.executemany("INSERT INTO growth VALUES (?, ?, ?, ?)", rows)


def _allowed(text: str) -> Allowed:
    data = json.loads(text)
    return Allowed(**{**data, "banned": tuple(data["banned"])})
