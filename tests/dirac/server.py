"""The real DiracX server of ci/diracx for tests, and what a person with a browser and an operator would do with it."""

from __future__ import annotations

import base64
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / "ci/diracx"
START_LIMIT_S = 600  # the first start on a machine fetches the server
STEPS = ("Checking", "Waiting", "Matched", "Running", "Completing", "Done")


@dataclass
class Server:
    """A DiracX server in a folder of its own. `port` is its own; tests may have a proxy in front of it."""

    folder: Path
    url: str
    port: int

    @property
    def credentials(self) -> Path:
        return self.folder / "credentials.json"

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return call(self.folder, *arguments)

    def kill(self) -> None:
        """kill -9; its databases stay."""
        pid = int((self.folder / "api.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
            time.sleep(0.02)

    def stop_answering(self) -> None:
        os.kill(int((self.folder / "api.pid").read_text().split()[0]), signal.SIGSTOP)

    def answer_again(self) -> None:
        os.kill(int((self.folder / "api.pid").read_text().split()[0]), signal.SIGCONT)

    def start(self) -> None:
        started = self.call("start")
        assert started.returncode == 0, started.stderr

    def log_in(self, file: Path, group: str = "") -> None:
        """Credentials as `dirac login` leaves them."""
        script = [sys.executable, "-I", str(ROOT / "ci/diracx.d/login.py"), str(self.folder), str(file)]
        subprocess.run([*script, *([group] if group else [])], check=True, timeout=60)

    # --- what the server has

    def request(self, method: str, path: str, content: Any = None) -> Any:
        """An answer of the API, as JSON."""
        token = json.loads(self.credentials.read_text())["access_token"]
        answer = httpx2.request(
            method, f"{self.url}{path}", json=content, headers={"Authorization": f"Bearer {token}"}, timeout=60
        )
        assert answer.status_code < 300, answer.text
        return answer.json() if answer.content else None

    def jobs(self, group: str) -> list[dict[str, Any]]:
        """The jobs of a group, by id."""
        order = [{"parameter": "JobID", "direction": "asc"}]
        found = list[dict[str, Any]]()
        while True:
            last = found[-1]["JobID"] if found else 0
            wanted = [
                {"parameter": "JobGroup", "operator": "eq", "value": group},
                {"parameter": "JobID", "operator": "gt", "value": last},
            ]
            rows = self.request("POST", "/api/jobs/search?per_page=10000", {"search": wanted, "sort": order})
            found += rows
            if len(rows) < 10_000:  # an answer has no more
                return found

    def confirmed(self, group: str) -> Counter[str]:
        """How often each job of a group may run, by name."""
        states = ("Submitting", "Killed", "Deleted")
        return Counter(job["JobName"] for job in self.jobs(group) if job["Status"] not in states)

    def may_run(self) -> int:
        """How many jobs of anybody's may run."""
        with sqlite3.connect(self.folder / "jobdb.sqlite", timeout=30) as table:
            states = "('Submitting', 'Done', 'Failed', 'Killed', 'Deleted')"
            (count,) = table.execute(f"SELECT COUNT(*) FROM Jobs WHERE Status NOT IN {states}").fetchone()
        table.close()
        return int(count)

    def set(self, jobs: Sequence[int], *states: str, minor: str = "", application: str = "") -> None:
        """Move jobs through these states, as optimizers, pilots and agents do."""
        for state in states:
            change = {"Status": state, "Source": "test"}
            change |= {"MinorStatus": minor} if minor else {}
            change |= {"ApplicationStatus": application} if application else {}
            for start in range(0, len(jobs), 200):
                now = datetime.now(UTC).isoformat()
                self.request(
                    "PATCH", "/api/jobs/status", {str(job): {now: change} for job in jobs[start : start + 200]}
                )

    def write(self, jobs: Sequence[int], **columns: object) -> None:
        """Change the server's table itself: states that no API sets."""
        with sqlite3.connect(self.folder / "jobdb.sqlite", timeout=30) as table:
            for name, value in columns.items():
                marks = ",".join("?" * len(jobs))
                table.execute(f"UPDATE Jobs SET {name} = ? WHERE JobID IN ({marks})", [value, *jobs])
        table.close()

    def clear(self) -> None:
        """No job is alive any more: a test has the server for itself."""
        with sqlite3.connect(self.folder / "jobdb.sqlite", timeout=30) as table:
            table.execute("UPDATE Jobs SET Status = 'Deleted' WHERE Status NOT IN ('Done', 'Failed', 'Killed')")
        table.close()

    def history(self, job: int) -> list[tuple[str, datetime]]:
        """The states of a job and when they were, as the server has them."""
        with sqlite3.connect(self.folder / "jobloggingdb.sqlite", timeout=30) as table:
            rows = table.execute("SELECT Status, StatusTime FROM LoggingInfo WHERE JobID = ? ORDER BY SeqNum", [job])
            found = [(status, datetime.fromisoformat(time).replace(tzinfo=UTC)) for status, time in rows]
        table.close()
        return found

    def shift(self, job: int, seconds: float) -> None:
        """Whoever set the job's states had a clock that was so much ahead."""
        with sqlite3.connect(self.folder / "jobloggingdb.sqlite", timeout=30) as table:
            ahead = "StatusTime = datetime(StatusTime, ?), StatusTimeOrder = StatusTimeOrder + ?"
            table.execute(f"UPDATE LoggingInfo SET {ahead} WHERE JobID = ?", [f"{seconds} seconds", seconds, job])
        table.close()

    def revoke(self) -> None:
        """Nobody is logged in any more: no token is renewed."""
        with sqlite3.connect(self.folder / "authdb.sqlite", timeout=30) as table:
            table.execute("UPDATE RefreshTokens SET Status = 'REVOKED'")
        table.close()

    def forget(self, jobs: Sequence[int]) -> None:
        """Delete jobs, as DIRAC's cleaning agent does after some days."""
        with sqlite3.connect(self.folder / "jobdb.sqlite", timeout=30) as table:
            table.execute(f"DELETE FROM Jobs WHERE JobID IN ({','.join('?' * len(jobs))})", list(jobs))
        table.close()

    def jdl(self, job: int) -> str:
        """A job's own JDL as it was handed in, parameters put in."""
        from DIRACCommon.WorkloadManagementSystem.DB.JobDBUtils import extractJDL

        with sqlite3.connect(self.folder / "jobdb.sqlite", timeout=30) as table:
            (text,) = table.execute("SELECT JDL FROM JobJDLs WHERE JobID = ?", [job]).fetchone()
        table.close()
        return str(extractJDL(text))


def call(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`ci/diracx ARGUMENTS` for the server in a folder."""
    return subprocess.run(
        [str(COMMAND), *arguments],
        env=os.environ | {"DIRACX_DIR": str(folder)} | dict(environment or {}),
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
    )


def start_server(folder: Path, *options: str) -> Server:
    """A server; one that does not start is an error with its reason."""
    started = call(folder, "start", *options)
    if started.returncode:
        raise RuntimeError(f"DiracX did not start:\n{started.stderr}")
    url = json.loads((folder / "api.ready").read_text())["url"]
    return Server(folder, url, int(url.rpartition(":")[2]))


def token_of(file: Path) -> dict[str, Any]:
    """What an access token says."""
    middle = json.loads(file.read_text())["access_token"].split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
    return claims
