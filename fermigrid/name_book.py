"""Whose a name is, for more names than memory has room for."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable


class NameBook:
    """Whose a name is, for more names than memory has room for: a temporary file, gone when it is closed."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("CREATE TABLE name (name TEXT PRIMARY KEY, owner TEXT) WITHOUT ROWID")

    def claim(self, names: Iterable[tuple[str, str]]) -> list[tuple[str, str, str]]:
        """Note (name, owner); returns (name, first owner, owner) for those that had another owner already."""
        taken = []
        self._db.execute("BEGIN")
        for name, owner in names:
            if self._db.execute("INSERT OR IGNORE INTO name VALUES (?, ?)", (name, owner)).rowcount == 0:
                first = self.owner(name)
                taken += [(name, first, owner)] if first != owner else []
        self._db.execute("COMMIT")
        return taken

    def owner(self, name: str) -> str:
        """Whose the name is; "" nobody's."""
        try:
            row = self._db.execute("SELECT owner FROM name WHERE name = ?", (name,)).fetchone()
        except UnicodeEncodeError:  # a file's name that is no text
            return ""
        return str(row[0]) if row else ""

    def close(self) -> None:
        """Forget them all."""
        self._db.close()
