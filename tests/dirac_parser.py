"""DIRAC's own reading of a JDL (DIRACCommon), in a process of its own with a time limit: its parser can hang for ever.

What happens to a JDL on a server, in this order: ClassAdLight, the expansion of parametric jobs, the job manifest (loadJDLAsCFG, and
written anew), ClassAdLight again; then the values of its columns and attributes are taken, and the job model looks at them.
As a program it answers one JSON line for each that it is given.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any

LIMIT_S = 10.0
SITES = ("LCG.IN2P3-CC.fr", "LCG.CNAF.it", "LCG.PISA.it")
OWNER, GROUP, VO = "fermiuser", "glast_user", "glast.org"
BOUNDS = {"minForGroup": {"CPUTime": 100, "Priority": 0}, "maxForGroup": {"CPUTime": 500_000, "Priority": 10}}


class Hung(Exception):
    """DIRAC's parser did not come to an end."""


@dataclass(frozen=True)
class Read:
    """What DIRAC makes of a JDL: for each job its attributes (strings, lists of strings), and what it says against it."""

    jobs: list[dict[str, Any]]
    errors: list[str]


class DiracParser:
    """DIRAC's parser, running; begun anew when it hangs."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> DiracParser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def read(self, jdl: str, limit_s: float = LIMIT_S) -> Read:
        """What DIRAC makes of it. Raises Hung."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(jdl) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        if not ready:
            self._end()
            raise Hung(jdl)
        return Read(**json.loads(self._process.stdout.readline()))


LISTS = ("Site", "BannedSites", "Tags", "InputData", "InputSandbox", "OutputSandbox", "OutputData", "OutputSE")
MODEL = {"Arguments": "arguments", "Executable": "executable", "JobGroup": "jobGroup", "JobName": "jobName", "JobType": "jobType",
         "StdOutput": "stdout", "StdError": "stderr", "Platform": "platform", "OutputPath": "outputPath", "InputDataPolicy": "inputDataPolicy",
         "CPUTime": "cpuTime", "Priority": "priority", "Site": "sites", "BannedSites": "bannedSites", "Tags": "tags", "InputData": "inputData",
         "InputSandbox": "inputSandbox", "OutputSandbox": "outputSandbox", "OutputData": "outputData"}  # fmt: skip


def _answer(jdl: str) -> dict[str, Any]:
    from DIRACCommon.Core.Utilities.ClassAd.ClassAdLight import ClassAd
    from DIRACCommon.WorkloadManagementSystem.Utilities.ParametricJob import (
        generateParametricJobs,
        getParameterVectorLength,
    )

    ad = ClassAd(jdl)
    if not ad.isOK():
        return {"jobs": [], "errors": ["no JDL"]}
    length = getParameterVectorLength(ad)
    if not length["OK"]:
        return {"jobs": [], "errors": [length["Message"]]}
    made = generateParametricJobs(ad) if length["Value"] else {"OK": True, "Value": [jdl]}
    if not made["OK"]:
        return {"jobs": [], "errors": [made["Message"]]}
    jobs, errors = [], []
    for number, text in enumerate(made["Value"]):
        job, wrong = _job(text)
        jobs.append(job)
        errors += [f"job {number}: {each}" for each in wrong]
    return {"jobs": jobs, "errors": errors}


def _job(jdl: str) -> tuple[dict[str, Any], list[str]]:
    from DIRACCommon.Core.Utilities.ClassAd.ClassAdLight import ClassAd
    from DIRACCommon.WorkloadManagementSystem.DB.JobDBUtils import checkAndAddOwner
    from pydantic import ValidationError

    more = {
        "defaultForGroup": {"CPUTime": 86400, "Priority": 1},
        "allowedJobTypesForGroup": ["User", "Test"],
        "maxInputData": 500,
    }
    added = checkAndAddOwner(jdl, OWNER, GROUP, job_manifest_config={**more, **BOUNDS})
    if not added["OK"]:
        return {}, [added["Message"]]
    ad = ClassAd(added["Value"].dumpAsJDL().replace("%j", "4711"))  # the job's number, as a server puts it in
    found = {
        name: ad.getListFromExpression(name) if name in LISTS else ad.getAttributeString(name)
        for name in ad.getAttributes()
    }
    wanted = {field: found[name] for name, field in MODEL.items() if name in found}
    if processors := found.get("NumberOfProcessors"):
        wanted |= {"minNumberOfProcessors": processors, "maxNumberOfProcessors": processors}
    try:
        _model()(**wanted, owner=OWNER, ownerGroup=GROUP, vo=VO)
    except ValidationError as error:
        return found, [f"{'.'.join(map(str, each['loc'])) or 'job'}: {each['msg']}" for each in error.errors()]
    return found, []


def _model() -> Any:
    from DIRACCommon.Core.Utilities.ReturnValues import S_OK
    from DIRACCommon.WorkloadManagementSystem.Utilities.JobModel import JobDescriptionModel

    settings = {
        "cpuTime": 86400, "priority": 1, "minCPUTime": 100, "maxCPUTime": 500_000, "allowedJobTypes": ["User", "Test"],
        "maxInputDataFiles": 500, "minNumberOfProcessors": 1, "maxNumberOfProcessors": 1024, "minPriority": 0, "maxPriority": 10,
        "possibleLogLevels": ["INFO"], "sites": S_OK(list(SITES)),
    }  # fmt: skip

    class Model(JobDescriptionModel):  # type: ignore[misc]
        _config_builder = staticmethod(lambda: settings)

    return Model


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)
