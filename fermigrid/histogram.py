"""How values are spread, in as little memory for a million as for ten: counted in bins that grow by 4 %. Pure."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_STEP = math.log(1.04)  # a quantile is off by 2 % at most
_LEAST, _MOST = 1e-3, 1e18  # what lies outside is counted at the edge: 1,235 bins at most


@dataclass
class Histogram:
    """Values of one kind, none below 0. Count, sum, least and most are exact, quantiles within 2 %."""

    count: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = 0.0
    _bins: Counter[int] = field(default_factory=Counter)  # by the logarithm

    def add(self, value: float) -> None:
        """One more value."""
        self.count += 1
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)
        self._bins[math.floor(math.log(min(max(value, _LEAST), _MOST)) / _STEP)] += 1

    def merge(self, other: Histogram) -> None:
        """Take in all values of another."""
        self.count += other.count
        self.total += other.total
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        self._bins.update(other._bins)

    def dump(self) -> list[object]:
        """All of it, for JSON."""
        least = None if self.count == 0 else self.least
        return [self.count, self.total, least, self.most, sorted(self._bins.items())]

    @classmethod
    def load(cls, dumped: list[Any]) -> Histogram:
        """The same again."""
        count, total, least, most, bins = dumped
        return cls(count, total, math.inf if least is None else least, most, Counter(dict(bins)))

    @property
    def mean(self) -> float:
        """0 without values."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """The value that this share of all values does not exceed; 0 without values."""
        wanted, seen = share * self.count, 0
        for bin_ in sorted(self._bins):
            seen += self._bins[bin_]
            if seen >= wanted:
                middle = math.exp((bin_ + 0.5) * _STEP)
                return min(max(middle, self.least), self.most)
        return self.most
