"""Amounts over time in a bounded number of bins, however long the time is: bins are joined as it grows. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

BINS = 320  # at most, and half as many at least once there are so many seconds

Kind = tuple[str, ...]


class Timeline:
    """Amounts of several kinds, each at a time in whole seconds since 1970. `width`: of a bin, in s."""

    def __init__(self) -> None:
        self.width = 1
        self._least: int | None = None  # the first and the last time
        self._most = 0
        self._bins: dict[Kind, dict[int, float]] = {}  # by time // width

    def add(self, kind: Kind, time: int, amount: float = 1) -> None:
        """Something happened."""
        self._least = time if self._least is None else min(self._least, time)
        self._most = max(self._most, time)
        while self._most // self.width - self._least // self.width >= BINS:
            self._join()
        bins = self._bins.setdefault(kind, {})
        bins[time // self.width] = bins.get(time // self.width, 0) + amount

    def _join(self) -> None:
        self.width *= 2
        for kind, bins in self._bins.items():
            joined = defaultdict[int, float](int)
            for bin_, amount in bins.items():
                joined[bin_ // 2] += amount
            self._bins[kind] = joined

    @property
    def begin(self) -> int:
        """Where the first bin begins, seconds since 1970; 0 when nothing happened."""
        return 0 if self._least is None else self._least // self.width * self.width

    @property
    def bins(self) -> int:
        """How many there are from the first to the last."""
        return 0 if self._least is None else self._most // self.width - self._least // self.width + 1

    def kinds(self, first: str) -> Iterator[Kind]:
        """The kinds whose name begins so, in their order."""
        return (kind for kind in sorted(self._bins) if kind[0] == first)

    def amounts(self, kind: Kind) -> list[float]:
        """The amount in each bin."""
        found, first = self._bins.get(kind, {}), self.begin // self.width
        return [found.get(first + number, 0) for number in range(self.bins)]


def running(timeline: Timeline, name: str) -> list[float]:
    """How many ran at the same time, on the average of each bin.

    By the kinds (`began`, name), (`ended`, name), of which each amount is one; and (`began at`, name), (`ended at`,
    name), of which each is the time itself.
    """
    began, ended = (_before_the_end(timeline, kind, name) for kind in ("began", "ended"))
    return [max(0.0, start - end) for start, end in zip(began, ended, strict=True)]


def _before_the_end(timeline: Timeline, kind: str, name: str) -> Iterator[float]:
    """Of each bin: how many had begun (or ended), on the average of its seconds."""
    counts, times = timeline.amounts((kind, name)), timeline.amounts((f"{kind} at", name))
    before = 0.0
    for number, (count, sum_) in enumerate(zip(counts, times, strict=True)):
        end = timeline.begin + (number + 1) * timeline.width
        yield before + (count * end - sum_) / timeline.width
        before += count
