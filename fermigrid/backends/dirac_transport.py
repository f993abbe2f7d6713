"""What the two ways to DIRAC have in common: what `dirac.py` asks of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from fermigrid.backends.dirac_states import ServerJob
from fermigrid.jdl import JdlDocument


@dataclass(frozen=True)
class Sent:
    """What became of a document: the ids of its jobs in their order, or why there is no answer (`doubt`).

    `made`: when, by the server's clock, where it tells. `refused`: the server said no, and has nothing of it. `login`:
    there is no answer for want of a login.
    """

    document: JdlDocument
    ids: tuple[int, ...] = ()
    made: datetime | None = None
    doubt: str = ""
    refused: str = ""
    login: bool = False


class Unreachable(Exception):
    """DIRAC did not answer, or not in time; in words. Nothing is known of what was asked."""


class Missing(Unreachable):
    """DIRAC answered that there is no such thing, or no more; in words."""


class Denied(Exception):
    """DIRAC answered and said no; in words. `credentials`: because of who asks."""

    def __init__(self, words: str, *, credentials: bool = False) -> None:
        super().__init__(words)
        self.credentials = credentials


@dataclass(frozen=True)
class Fetched:
    """What came back of the output sandboxes: the ids whose files are in their folders, those that have none, those of
    which nothing can ever be had (damaged, too large, deleted), and why others could not be had. Of the rest nothing is
    known."""

    there: frozenset[int] = frozenset()
    empty: frozenset[int] = frozenset()
    lost: frozenset[int] = frozenset()
    failed: tuple[str, ...] = ()


class Transport(Protocol):
    """A way to DIRAC. Every method may raise Unreachable and Denied; every wait is bounded."""

    @property
    def where(self) -> str:
        """Whom it asks: tame text."""
        ...

    @property
    def confirms(self) -> bool:
        """Are jobs confirmed here (`confirm`), or by what hands them in?"""
        ...

    @property
    def groups_at_once(self) -> int:
        """How many groups one question may be about; 1: `select` is the question."""
        ...

    def check(self, jobs: int) -> None:
        """That somebody is logged in, in the right group, for long enough to hand in so many jobs."""
        ...

    def select(self, group: str, names: Mapping[int, str]) -> list[ServerJob]:
        """All jobs of a group, by id; `names`: of those that are known, where it takes long to ask for them."""
        ...

    def select_all(self, groups: Sequence[str]) -> Mapping[str, list[ServerJob]]:
        """All jobs of these groups, each by id; no more groups than `groups_at_once`."""
        ...

    def look(self, job: int) -> list[ServerJob]:
        """One job, by its id; none where DIRAC does not know it."""
        ...

    def send(self, documents: Iterable[JdlDocument]) -> Iterator[Sent]:
        """Hand documents in, several at once where it helps; ends after the first that is in doubt or refused, once
        those that were under way have their word, too."""
        ...

    def confirm(self, ids: Sequence[int], made: Mapping[int, datetime]) -> None:
        """Let DIRAC start these jobs; when it returns, it will. Again is harmless. `made`: when the server made them,
        of those of which that is known."""
        ...

    def kill(self, ids: Sequence[int]) -> None:
        """End these jobs, whatever they do. Again is harmless."""
        ...

    def fetch(self, ids: Sequence[int], folder: Callable[[int], Path]) -> Fetched:
        """Bring the output sandboxes of these jobs, each into its folder, which is made and is empty."""
        ...
