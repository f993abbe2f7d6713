"""A job for the worker: its scratch folder, written as a plan would, run as a batch system would."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fermigrid.quoting import encode_lines, encode_row
from fermigrid.report import Report, parse_report
from fermigrid.resources import shipped
from fermigrid.worker import assemble_worker

WORKER = shipped("submit_templates") / "worker/worker.sh"
NAME, BATCH = "clump.r0239557414.c003", "0123456789abcdef0123456789abcdef"
NO_RUNTIME = "/nonexistent/apptainer"

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Done:
    """How a job ended. `out` is its log's stdout, `data` the report as JSON, `report` as fermigrid reads it."""

    code: int
    out: bytes
    err: str
    report: Report
    data: dict[str, Any]

    @property
    def message(self) -> str:
        return self.report.message


@dataclass
class Job:
    """A job in the folder `scratch`. `settings` go into job.env after the common ones, `row` after job, run and piece;
    in the shard `lines` come after its row, `before` before it."""

    scratch: Path
    settings: Pairs = field(default_factory=list)
    row: Pairs = field(default_factory=list)
    lines: Sequence[Pairs] = ()
    before: Sequence[Pairs] = ()
    args: Sequence[str] = ("/bin/true",)
    head: Mapping[str, str] = field(
        default_factory=lambda: {
            "launch": "worker",
            "rehearsal": "yes",
            "order": "wrapper-outside",
            "runtime": NO_RUNTIME,
        }
    )
    kind: str = "transfer"
    code: Mapping[str, str] = field(default_factory=dict)

    def write(self) -> list[str]:
        """Writes the scratch folder; the worker's command line."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        settings = [*self._common(), *self.settings, *self._bundle()]
        (self.scratch / "worker.sh").write_text(assemble_worker(shipped("submit_templates"), settings))
        (self.scratch / "worker.sh").chmod(0o755)
        (self.scratch / "job.env").write_text(encode_lines(settings))
        identity = [("job", NAME), ("run", "r0239557414"), ("piece", "c003")]
        row = [*identity, *(("arg", arg) for arg in self.args), *self.row]
        shard = "".join(f"{encode_row(line)}\n" for line in (*self.before, row, *self.lines)).encode()
        name = f"s0000-{hashlib.sha256(shard).hexdigest()[:32]}.rows"
        (self.scratch / name).write_bytes(shard)
        return ["./worker.sh", "run", NAME, name, str(len(self.before) + 1), BATCH]

    def _common(self) -> Pairs:
        common = [("format", "1"), ("campaign", "P400"), ("step", "clump"), ("site", "test"), ("block", "b0000")]
        if any(key == "in.adler32" for key, _ in self.row):
            common += [("verify", "adler32")]
        if any(key == "in.from" and value.startswith("http") for key, value in self.row):
            common += [("stage.http", "yes")]
        return [*common, ("generation", "0"), *self.head.items(), ("image", "light"), ("output.kind", self.kind)]

    def _bundle(self) -> Pairs:
        if not self.code:
            return []
        folder = self.scratch / "code.src"
        folder.mkdir(exist_ok=True)
        for name, text in self.code.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        bundle = self.scratch / "bundle.tar.gz"
        subprocess.run(["tar", "--mtime=@0", "-czf", bundle, "-C", folder, *self.code], check=True)
        subprocess.run(["rm", "-r", folder], check=True)
        return [("code", "bundle.tar.gz"), ("code.sha256", hashlib.sha256(bundle.read_bytes()).hexdigest())]

    def start(self, *, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """The worker, running, with its stdout and stderr in pipes."""
        return subprocess.Popen(
            [*prefix, "/bin/bash", "-p", *self.write()],  # not by its name alone: "text file busy" beside other tests
            cwd=self.scratch,
            env={"PATH": os.environ["PATH"], "USER": "fermi", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *, env: Mapping[str, str] | None = None, prefix: Sequence[str] = (), timeout: float = 30) -> Done:
        """Runs it to its end; fails without exactly one good report as its last line."""
        return finish(self.start(env=env, prefix=prefix), timeout)


def finish(process: subprocess.Popen[bytes], timeout: float = 30) -> Done:
    """Waits for a worker and reads its report."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it has not ended within {timeout} s\nstdout: {out!r}\nstderr: {err.decode()}") from error
    return read_log(process.returncode, out, err.decode(errors="replace"))


def read_log(code: int, out: bytes, err: str, batch: str = BATCH) -> Done:
    """The end of a job from its log; checks what holds for every report."""
    try:
        report = parse_report(out, NAME, batch)
    except ValueError as error:
        raise AssertionError(f"{error}\nexit {code}\nstdout: {out[-2000:]!r}\nstderr: {err[-4000:]}") from error
    assert out.splitlines()[-1].startswith(b"@@FERMIGRID 1 ") and out.endswith(b"\n")
    data = json.loads(report.data)
    assert data["exit"] == code, err
    assert (code == 0) == (data["message"] == "")
    assert data["phases"]["total"] >= 0 and data["begin"] <= data["end"]
    return Done(code, out, err, report, data)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
