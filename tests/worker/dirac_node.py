"""What DIRAC does on a worker node around a job: its SingularityComputingElement, which is DIRAC's own code (`dirac_ce.py`), and
a stand-in for its JobWrapper (WorkloadManagementSystem/JobWrapper/JobWrapper.py, `execute`), which needs DIRAC's servers."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.worker.dirac_ce import JOB_ID
from tests.worker.node import ROOT, UID, Node
from tests.worker.worker_job import Done, Job, read_log

INSTALL = "/cvmfs/dirac.example.org/diracos"
# what DIRAC has there: its settings for a shell, which must not reach a payload, and a runtime
PREPARE = f"""
mkdir -p {INSTALL}/bin
echo 'export DIRACOS={INSTALL} PATH={INSTALL}/bin:$PATH PYTHONPATH={INSTALL}/lib LD_LIBRARY_PATH={INSTALL}/lib' > {INSTALL}/diracosrc
ln -sf "$(command -v apptainer)" {INSTALL}/bin/apptainer
"""


@cache
def computing_element() -> Path:
    """DIRAC's own code of it."""
    made = subprocess.run([ROOT / "ci/diracx", "source"], capture_output=True, text=True, timeout=600, check=False)
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.strip()) / "DIRAC/Resources/Computing/SingularityComputingElement.py"


@dataclass
class Pilot:
    """A pilot in a folder of the node, with DIRAC from CVMFS."""

    node: Node
    folder: Path
    root: str = ""  # ContainerRoot of the computing element; empty: jobs are started as they are (InProcess)
    binds: Sequence[str] = ()  # its ContainerBind
    proxy: str = "a proxy"
    before: str = ""  # lines of shell before the JobWrapper's own

    def run(self, job: Job, env: Mapping[str, str] | None = None, timeout: float = 60) -> Done:
        """A job to its end: what came back is in the folder `back`, its std.out is the log."""
        self.node.sh(PREPARE)
        (self.folder / "pilot.cfg").write_text("LocalSite { Site = LCG.Example.org }\n")
        job.scratch = self.folder / "sandbox"
        argv = job.write()
        command = self._in_container(argv) if self.root else self._plain(argv)
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, UID, UID, follow_symlinks=False)
        own = {} if self.root else {"X509_USER_PROXY": str(self.folder / "proxy")}
        process = self.node.start(*command, env={**own, **(env or {})}, folder=self.folder)
        out, err = self.node.ended(process, timeout)
        (back,) = self.folder.glob(f"DIRAC_containers/*/tmp/{JOB_ID}") if self.root else [self.folder / str(JOB_ID)]
        assert (back.parent / "retcode").exists(), (out, err)
        code = int((back.parent / "retcode").read_text())
        if self.root:
            assert json.loads(out.splitlines()[-1]) == {"OK": True, "Value": code}, (out, err)
        shutil.copytree(back, self.folder / "back", symlinks=True)
        return read_log(code, (back / "std.out").read_bytes(), (back / "std.err").read_text())

    def command(self) -> list[str]:
        """The command line that the computing element has run."""
        return list(json.loads((self.folder / "command.json").read_text())["command"])

    def _wrapper(self, home: str, argv: Sequence[str]) -> str:
        return (
            f"cd {home} || exit\n{self.before}\nmkdir {JOB_ID} && cd {JOB_ID} && cp -r ../sandbox/. . && echo > job.info\n"
            f"export JOBID={JOB_ID} DIRACSITE=LCG.Example.org DIRAC_PROCESSORS=1 DIRAC_WHOLENODE=False\n"
            f"sh -c {shlex.quote(shlex.join(argv))} > std.out 2> std.err\n"
        )

    def _in_container(self, argv: Sequence[str]) -> list[str]:
        settings = {
            "install": INSTALL,
            "parameters": {"ContainerRoot": self.root, "ContainerBind": ",".join(self.binds)},
            "wrapper": self._wrapper("/tmp", argv),
            "sandbox": str(self.folder / "sandbox"),
            "proxy": self.proxy,
        }
        (self.folder / "settings.json").write_text(json.dumps(settings))
        source, program = computing_element(), Path(__file__).with_name("dirac_ce.py")
        names = [shutil.copy(path, self.folder) for path in (program, source)]
        return ["python3", "-I", *map(str, names), str(self.folder / "settings.json")]

    def _plain(self, argv: Sequence[str]) -> list[str]:
        (self.folder / "proxy").write_text(self.proxy)
        (self.folder / "proxy").chmod(0o600)
        script = self.folder / "plain.sh"
        script.write_text(
            f"source {INSTALL}/diracosrc\n({self._wrapper(str(self.folder), argv)})\necho $? > {self.folder}/retcode\n"
        )
        return ["bash", str(script)]
