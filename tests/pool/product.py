"""fermigrid as a person on the pool uses it: in a process of its own, as the pool's user fermi."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.pool.conftest import Pool

UID = 20001
CHECKOUT = Path(__file__).resolve().parents[2]
# The uid has no account on this machine, and Python may live in a folder that only root can enter.
RIGHTS = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
AS_FERMI = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *RIGHTS)


@dataclass(frozen=True)
class Product:
    """fermigrid in `folder`, with the pool's settings."""

    pool: Pool
    folder: Path
    tokens: Path
    uid: int = UID
    groups: tuple[int, ...] = ()
    team: Path | None = None

    @property
    def person(self) -> tuple[str, ...]:
        """What goes before a command so that the person runs it."""
        groups = f"--groups={','.join(map(str, self.groups))}" if self.groups else "--clear-groups"
        return "setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", groups, *RIGHTS

    @property
    def environment(self) -> dict[str, str]:
        """What the person's shell has."""
        own = {
            "FERMIGRID_STATE": str(self.folder / "state"),
            "FERMIGRID_POLL_S": "0.5",
            "_CONDOR_SEC_TOKEN_DIRECTORY": str(self.tokens),
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        own |= {"FERMIGRID_TEAM": str(self.team)} if self.team else {}
        return {**os.environ, **self.pool.env, **own}

    def start(self, *arguments: str, extra: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """`fermigrid ARGUMENTS`, running."""
        return subprocess.Popen(
            [*self.person, sys.executable, "-m", "fermigrid", *arguments],
            cwd=self.folder,
            env={**self.environment, **(extra or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, timeout: float = 240, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """`fermigrid ARGUMENTS`; asserts its exit code unless `code` is None."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"fermigrid {' '.join(arguments)} took more than {timeout} s\n{out}\n{err}") from None
        if code is not None:
            assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}\n{self.failures()}"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def failures(self) -> str:
        """The logs of the jobs that failed, for a test's message."""
        logs = sorted(self.folder.rglob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs[:4])

    def write(self, name: str, text: str) -> Path:
        """A file of the person's."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
        return path

    def reports(self, campaign: str, job: str) -> list[dict[str, Any]]:
        """The reports of a job's attempts."""
        return [json.loads(line) for line in self.run("logs", "--report", campaign, job).stdout.splitlines()]

    def log(self, campaign: str, job: str) -> list[str]:
        """What the payload of a job printed: its log without the worker's lines."""
        lines = self.run("logs", campaign, job).stdout.splitlines()
        return [line for line in lines if line and not line.startswith(("fermigrid| ", "@@FERMIGRID "))]

    def command(self, site: str, image: str, words: Sequence[str], *options: str, **how: Any) -> Any:
        """One command as a job, waited for; its name is `one`."""
        return self.run(
            "submit", "--site", site, "--image", image, "--wait", "--name", "one", *options, "--", *words, **how
        )
