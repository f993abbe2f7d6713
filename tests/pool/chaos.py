"""Whoever kills: `kill -9` of fermigrid and of a pool's daemons at random moments, and what keeps fermigrid going."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.pool.conftest import Pool
from tests.pool.product import Product

SCHEDD, STARTER, SHADOW, WATCH = "condor_schedd", "condor_starter", "condor_shadow", "fermigrid watch"


def daemons(pool: Pool) -> dict[str, list[int]]:
    """Name -> process ids of all that runs below the pool's master."""
    children: dict[int, list[tuple[int, str]]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(") ")
        except OSError:
            continue  # it has just ended
        children.setdefault(int(rest.split()[1]), []).append((int(stat.parent.name), name))
    found: dict[str, list[int]] = {}
    left = [int((pool.directory / "pid").read_text().split()[0])]
    while left:
        for pid, name in children.get(left.pop(), ()):
            found.setdefault(name, []).append(pid)
            left.append(pid)
    return found


class Watcher:
    """`fermigrid watch` as a process, started again whenever it was killed; it ends when there is nothing to wait for."""

    def __init__(self, product: Product, campaign: str) -> None:
        self._product, self._command = product, ("watch", campaign)
        self.code: int | None = None
        self.said: list[str] = []
        self.starts = 0
        self._over = False
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._keep, name="watcher", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._over:
            self.starts += 1
            self._process = self._product.start(*self._command)
            out, err = self._process.communicate()
            self.said += [*err.splitlines(), *out.splitlines()]
            if self._process.returncode != -signal.SIGKILL:
                self.code = self._process.returncode
                return

    def kill(self) -> bool:
        """SIGKILL, if it runs."""
        process = self._process
        if process is None or process.poll() is not None:
            return False
        process.kill()
        return True

    @property
    def alive(self) -> bool:
        """Is there still something to wait for?"""
        return self._thread.is_alive()

    def end(self) -> None:
        """Kill it for good."""
        self._over = True
        self.kill()
        self._thread.join(30)


class Chaos:
    """A thread that kills: `pace` names whom, and how many seconds lie between two of its deaths on average."""

    def __init__(self, pool: Pool, seed: int, pace: Mapping[str, float]) -> None:
        self._pool, self._chance, self._pace = pool, random.Random(seed), pace
        self._over = threading.Event()
        self.watcher: Watcher | None = None
        self.kills: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._work, name="chaos", daemon=True)

    def _work(self) -> None:
        due = {whom: time.monotonic() + self._wait(whom) for whom in self._pace}
        while not self._over.wait(0.05):
            for whom in [whom for whom, when in due.items() if when <= time.monotonic()]:
                self.kills[whom] += self._kill(whom)
                due[whom] = time.monotonic() + self._wait(whom)

    def _wait(self, whom: str) -> float:
        return self._pace[whom] * self._chance.uniform(0.1, 1.9)

    def _kill(self, whom: str) -> bool:
        if whom == WATCH:
            return self.watcher is not None and self.watcher.kill()
        there = daemons(self._pool).get(whom)
        if not there:
            return False
        try:
            os.kill(self._chance.choice(sorted(there)), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """It kills meanwhile."""
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join(10)
