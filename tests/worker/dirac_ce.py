"""DIRAC's SingularityComputingElement, the code itself, with a job: work area, script, command line and environment are its own.

Only what it imports from the rest of DIRAC is a stand-in here: no configuration service, no logs, no cgroups, and as the
job's wrapper the text that it is given. Runs on the node, as the pilot, in the pilot's folder:

    python3 -I dirac_ce.py SOURCE SETTINGS

SOURCE: SingularityComputingElement.py. SETTINGS, a JSON file: `install` (where the pilot's DIRAC is), `parameters` (of the computing
element), `wrapper`, `sandbox` (a folder for the job), `proxy`. Prints, as JSON, what the computing element says of the job.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

JOB_ID = 123


class Silent:
    """A log, a configuration: whatever is asked has no answer."""

    def __getattr__(self, name: str) -> Any:
        return lambda *words, **_: words[1] if name == "getValue" else None


class ComputingElement:  # its names are DIRAC's
    """What the class that is tested inherits."""

    proxyCheckPeriod = 3600
    sendOutput = _monitorProxy = None

    def __init__(self, name: str) -> None:
        del name
        self.ceParameters, self.log = dict(settings["parameters"], KeepWorkArea=True), Silent()


def ok(value: Any = None) -> dict[str, Any]:
    return {"OK": True, "Value": value}


def error(*words: Any) -> dict[str, Any]:
    return {"OK": False, "Message": " ".join(map(str, words))}


def create_wrapper(wrapperPath: str, rootLocation: str, jobID: int, **_: Any) -> dict[str, Any]:
    """The job's files, and a wrapper, where the computing element wants them."""
    shutil.copytree(settings["sandbox"], Path(wrapperPath) / "sandbox")
    (Path(wrapperPath) / f"Job{jobID}").write_text(settings["wrapper"])
    return ok({"JobExecutableRelocatedPath": f"{rootLocation}/Job{jobID}"})


class CG2Manager:
    def systemCall(self, timeout: int, command: list[str], env: dict[str, str], **_: Any) -> dict[str, Any]:
        del timeout
        (Path.cwd() / "command.json").write_text(json.dumps({"command": command, "environment": env}))
        return ok((subprocess.run(command, env=env, stdin=subprocess.DEVNULL, check=False).returncode, "", ""))


class gThreadScheduler:
    addPeriodicTask = staticmethod(lambda *_, **__: ok())
    removeTask = staticmethod(lambda *_: ok())


PARTS: dict[str, dict[str, Any]] = {
    "DIRAC": {"S_OK": ok, "S_ERROR": error, "gConfig": Silent(), "gLogger": Silent(), "siteName": lambda: ""},
    "DIRAC.ConfigurationSystem.Client.Helpers": {"Operations": None},
    "DIRAC.Core.Utilities.CGroups2": {"CG2Manager": CG2Manager},
    "DIRAC.Core.Utilities.ThreadScheduler": {"gThreadScheduler": gThreadScheduler},
    "DIRAC.Resources.Computing.ComputingElement": {"ComputingElement": ComputingElement},
    "DIRAC.Resources.Storage.StorageElement": {"StorageElement": None},
    "DIRAC.WorkloadManagementSystem.Utilities.Utils": {"createJobWrapper": create_wrapper},
}


def main(source: str) -> None:
    # a pilot's Python is in its own DIRAC
    sys.base_prefix, sys.executable = settings["install"], f"{settings['install']}/bin/python"
    for name, has in PARTS.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(has)
    place: dict[str, Any] = {"__name__": "SingularityComputingElement"}
    exec(compile(Path(source).read_text(), source, "exec"), place)
    element = place["SingularityComputingElement"]("test")
    result = element.submitJob("", settings["proxy"], jobDesc={"jobID": JOB_ID}, log=Silent())
    print(json.dumps(result))


if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[2]).read_text())
    main(sys.argv[1])
