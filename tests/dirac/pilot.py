"""Pilots: they take jobs from the DiracX server, unpack their sandboxes, run them as DIRAC's JobWrapper does, and hand back
what they leave."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shlex
import subprocess
import tarfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx2
import zstandard

from tests.dirac.server import Server

SITE = "LCG.Example.org"
Run = Callable[[Path, Sequence[str], dict[str, str]], subprocess.CompletedProcess[str]]


class Pilot:
    """Runs jobs, `at_once` of them, each in a folder below `folder`, by `run` (folder, command, environment).

    `lost`: names of jobs whose node dies at their first start. `codes`: how jobs ended, by their names.
    """

    def __init__(self, server: Server, folder: Path, uid: int, run: Run, at_once: int = 2) -> None:
        self.server, self.folder, self.uid, self.run, self.at_once = server, folder, uid, run, at_once
        self.lost: set[str] = set()
        self.codes: dict[str, list[int]] = {}
        self.over = threading.Event()
        self.failed: list[BaseException] = []
        self.thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Pilot:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(120)
        if self.failed:
            raise self.failed[0]

    def _work(self) -> None:
        running: dict[int, Future[None]] = {}
        try:
            with ThreadPoolExecutor(self.at_once) as slots:
                while not self.over.wait(0.2):
                    running = {job: future for job, future in running.items() if not self._ended(future)}
                    free = self.at_once - len(running)
                    for job in [job for job in self._waiting() if job not in running][:free]:
                        running[job] = slots.submit(self._job, job)
            for future in running.values():
                future.result()
        except BaseException as error:  # noqa: BLE001  # told by the test's own thread
            self.failed.append(error)

    @staticmethod
    def _ended(future: Future[None]) -> bool:
        """Raises what the job's slot raised."""
        return future.done() and future.result() is None

    def _waiting(self) -> list[int]:
        wanted = [{"parameter": "Status", "operator": "eq", "value": "Received"}]
        rows = self.server.request("POST", "/api/jobs/search?per_page=100", {"parameters": ["JobID"], "search": wanted})
        return [row["JobID"] for row in rows]

    def _job(self, job: int) -> None:
        self.server.set([job], "Checking", "Waiting", "Matched")
        self.server.request("PATCH", "/api/jobs/metadata", {str(job): {"Site": SITE}})
        jdl = self.server.jdl(job)
        place = self.folder / str(job)
        place.mkdir(mode=0o755)
        for entry in entries(jdl, "InputSandbox"):
            self._unpack(entry, place)
        self.server.set([job], "Running", minor="Application")
        if (name := value(jdl, "JobName")) in self.lost:
            self.lost.remove(name)
            self.server.set([job], "Failed", minor="Job stalled: pilot not running")
            return
        code = self._execute(job, place, jdl)
        self.codes.setdefault(name, []).append(code)
        self._hand_back(job, place, entries(jdl, "OutputSandbox"))
        self.server.set(
            [job], "Completing", minor="Application Finished" + (" With Errors" if code else " Successfully")
        )
        self.server.set([job], "Failed" if code else "Done", application=f"Exited With Status {code}" if code else "")

    def _unpack(self, entry: str, place: Path) -> None:
        answer = self.server.request("GET", f"/api/jobs/sandbox?pfn={entry.replace('|', '%7C')}")
        data = httpx2.get(answer["url"], timeout=60).content
        plain = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
        with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
            tar.extractall(place, filter="data")

    def _execute(self, job: int, place: Path, jdl: str) -> int:
        program, arguments = place / value(jdl, "Executable"), shlex.split(value(jdl, "Arguments"))
        program.chmod(0o755)
        (place / "job.info").touch()
        for path in (place, *place.rglob("*")):
            os.chown(path, self.uid, self.uid)
        environment = {"JOBID": str(job), "DIRACSITE": SITE}
        done = self.run(place, [f"./{program.name}", *arguments], environment)
        (place / value(jdl, "StdOutput")).write_text(done.stdout)
        (place / value(jdl, "StdError")).write_text(done.stderr)
        return done.returncode

    def _hand_back(self, job: int, place: Path, wanted: Sequence[str]) -> None:
        found = sorted({path for pattern in wanted for path in place.glob(pattern)})
        with io.BytesIO() as out:
            with tarfile.open(fileobj=out, mode="w:bz2") as tar:
                for path in found:
                    tar.add(path, path.name)
            data = out.getvalue()
        hand_back(self.server, job, data)


def hand_back(server: Server, job: int, data: bytes) -> None:
    """Give a job this output sandbox."""
    digest = hashlib.sha256(data).hexdigest()
    info = {"checksum_algorithm": "sha256", "checksum": digest, "size": len(data), "format": "tar.bz2"}
    begun = server.request("POST", "/api/jobs/sandbox", info)
    if begun.get("url"):
        answer = httpx2.post(begun["url"], data=begun["fields"], files={"file": ("file", data)}, timeout=60)
        assert answer.status_code < 300, answer.text
    server.request("PATCH", f"/api/jobs/{job}/sandbox/output", begun["pfn"])


def value(jdl: str, name: str) -> str:
    """A string of the JDL."""
    found = re.search(rf"(?m)^\s*{name} = \"?(.*?)\"?;$", jdl)
    assert found, f"{name} is not in\n{jdl}"
    return found[1]


def entries(jdl: str, name: str) -> list[str]:
    """A list of the JDL."""
    found = re.search(rf"(?ms)^\s*{name} =\s*(\{{.*?\}}|\"[^\"]*\");", jdl)
    assert found, f"{name} is not in\n{jdl}"
    return re.findall(r'"([^"]*)"', found[1])
