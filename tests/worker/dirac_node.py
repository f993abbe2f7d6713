"""What DIRAC does on a worker node around a job: its SingularityComputingElement and its JobWrapper.

The options, their order, the environment and the folders are those of DIRAC 9 (Resources/Computing/SingularityComputingElement.py,
`submitJob`, `__getEnv`, `__createWorkArea`; WorkloadManagementSystem/JobWrapper/JobWrapper.py, `execute`), without DIRAC's servers:
the scripts here are the tests' own, and do to a job what those do.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.worker.node import UID, Node
from tests.worker.worker_job import Done, Job, read_log

JOB_ID = 123
INSTALL = "/cvmfs/dirac.example.org/diracos"
KEPT = re.compile("TERM|VOMS_.*|X509_.*|XRD_.*|Xrd.*|DIRAC_.*|BEARER_TOKEN.*")  # what the computing element lets in


@dataclass
class Pilot:
    """A pilot in a folder of the node, with DIRAC from CVMFS."""

    node: Node
    folder: Path
    root: str = ""  # ContainerRoot of the computing element; empty: jobs are started as they are (InProcess)
    binds: Sequence[str] = ()  # its ContainerBind
    proxy: str = "a proxy"
    before: str = ""  # lines of shell in the container, before DIRAC's own

    def run(self, job: Job, env: Mapping[str, str] | None = None, timeout: float = 60) -> Done:
        """A job to its end: what came back is in the folder `back`, its std.out is the log."""
        # a pilot's DIRAC has a PATH of its own, and what it sets must not reach a payload
        words = (
            f"export DIRACOS={INSTALL} PATH={INSTALL}/bin:$PATH PYTHONPATH={INSTALL}/lib LD_LIBRARY_PATH={INSTALL}/lib"
        )
        self.node.sh('mkdir -p "$1/bin" && echo "$2" > "$1/diracosrc"', INSTALL, words)
        (self.folder / "pilot.cfg").write_text("LocalSite { Site = LCG.Example.org }\n")
        base = self._work_area(job)
        command = self._command(base) if self.root else ["bash", str(base / "tmp/dirac_container.sh")]
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, UID, UID, follow_symlinks=False)
        process = self.node.start(*command, env=self._environment(base, env or {}), folder=self.folder)
        out, err = self.node.ended(process, timeout)
        back = base / "tmp" / str(JOB_ID)
        assert (base / "tmp/retcode").exists(), (out, err)
        shutil.copytree(back, self.folder / "back", symlinks=True)
        code = int((base / "tmp/retcode").read_text())
        return read_log(code, (back / "std.out").read_bytes(), (back / "std.err").read_text())

    def _work_area(self, job: Job) -> Path:
        base = self.folder / "DIRAC_containers" / f"job{JOB_ID}_x"
        for name in ("home", "tmp", "var_tmp"):
            (base / name).mkdir(parents=True)
        inside = Path("/tmp") if self.root else base / "tmp"
        job.scratch = base / "tmp/sandbox"
        argv = job.write()
        (base / "tmp/proxy").write_text(self.proxy)
        (base / "tmp/proxy").chmod(0o600)
        shutil.copy(self.folder / "pilot.cfg", base / "tmp/pilot.cfg")
        wrapper = base / "tmp/Wrapper_123"
        wrapper.write_text(
            f"cd {inside} && mkdir {JOB_ID} && cd {JOB_ID} && cp -r ../sandbox/. . && echo > job.info\n"
            f"export DIRACJOBID={JOB_ID} DIRACSITE=LCG.Example.org DIRAC_PROCESSORS=1 DIRAC_WHOLENODE=False\n"
            f"sh -c {shlex.quote(shlex.join(argv))} > std.out 2> std.err\n"
        )
        script = base / "tmp/dirac_container.sh"
        script.write_text(
            f"#!/bin/bash\nset -x\ncd {inside}\n{self.before}\nexport DIRAC= DIRACOS=\nsource {INSTALL}/diracosrc\n"
            f"bash {inside}/Wrapper_123\necho $? > retcode\nchmod 644 retcode\n"
        )
        script.chmod(0o700)
        return base

    def _command(self, base: Path) -> list[str]:
        """The command line of SingularityComputingElement, `InstallDIRACInContainer` off."""
        command = ["apptainer", "exec", "--contain", "--ipc", "--workdir", str(base), "--home", "/tmp", "--userns"]
        if self.node.run("test", "-d", "/cvmfs").returncode == 0:
            command += ["--bind", "/cvmfs"]
        if self.node.run("test", "-e", "/dev/fuse").returncode == 0:
            command += ["--bind", "/dev/fuse"]
        command += ["--bind", f"{INSTALL}:{INSTALL}:ro"]
        for bind in self.binds:
            command += ["--bind", bind]
        return [*command, self.root, "/tmp/dirac_container.sh"]

    def _environment(self, base: Path, given: Mapping[str, str]) -> dict[str, str]:
        if not self.root:
            return {"X509_USER_PROXY": str(base / "tmp/proxy"), **given}
        kept = {name: value for name, value in given.items() if KEPT.fullmatch(name)}
        own = {"PATH": "/usr/bin", "TMP": "/tmp", "TMPDIR": "/tmp", "X509_USER_PROXY": "/tmp/proxy"}
        return {**kept, **own, "DIRACSYSCONFIG": "/tmp/pilot.cfg"}
