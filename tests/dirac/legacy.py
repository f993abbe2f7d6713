"""DIRAC's own commands, as a person on a submit machine has them, with the real DiracX server behind them.

DIRAC itself cannot be installed here; these do, and print, what its commands of the same names do and print (DIRAC 9.1.22;
what they printed is in tests/unit/test_dirac_words.py). `LEGACY_FAULT` (a file) breaks them: see `fault`.

    python legacy.py NAME ARGUMENT...
"""

from __future__ import annotations

import io
import json
import os
import pprint
import re
import shutil
import sys
import tarfile
import time
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2

NO_SANDBOX = (
    "No Output sandbox found for job {job}. Possible causes are: the job does not exist, no sandbox was registered or "
    "you do not have permission to access it."
)
URL = os.environ.get("LEGACY_URL", "")


def fault(where: str) -> bool:
    """Is this the place to break? The file has lines `<place> <times>`; each use takes one away."""
    file = Path(os.environ.get("LEGACY_FAULT", "/nonexistent"))
    if not file.exists():
        return False
    left = dict(line.split() for line in file.read_text().splitlines())
    if int(left.get(where, 0)) < 1:
        return False
    left[where] = str(int(left[where]) - 1)
    file.write_text("".join(f"{name} {times}\n" for name, times in left.items()))
    return True


def ask(method: str, path: str, content: Any = None) -> Any:
    token = json.loads(Path(os.environ["LEGACY_TOKENS"]).read_text())["access_token"]
    answer = httpx2.request(method, URL + path, json=content, headers={"Authorization": f"Bearer {token}"}, timeout=60)
    if answer.status_code >= 300:
        raise ValueError(answer.json().get("detail", answer.text))
    return answer.json() if answer.content else None


def search(**wanted: object) -> list[dict[str, Any]]:
    specs = [{"parameter": name, "operator": "in", "values": value} if isinstance(value, list) else
             {"parameter": name, "operator": "eq", "value": value} for name, value in wanted.items()]  # fmt: skip
    rows: list[dict[str, Any]] = ask("POST", "/api/jobs/search?per_page=10000", {"search": specs})
    return rows


def change(jobs: list[int], **state: str) -> None:
    now = datetime.now(UTC).isoformat()
    ask("PATCH", "/api/jobs/status", {str(job): {now: state} for job in jobs})


def upload(paths: list[str]) -> str:
    with io.BytesIO() as out:
        with tarfile.open(fileobj=out, mode="w:bz2") as tar:
            for path in paths:
                tar.add(path, Path(path).name)
        data = out.getvalue()
    info = {
        "checksum_algorithm": "sha256",
        "checksum": sha256(data).hexdigest(),
        "size": len(data),
        "format": "tar.bz2",
    }
    begun = ask("POST", "/api/jobs/sandbox", info)
    if begun.get("url"):
        httpx2.post(begun["url"], data=begun["fields"], files={"file": ("file", data)}, timeout=60)
    return str(begun["pfn"])


def submit(*files: str) -> int:
    failed = []
    for file in files:
        try:
            print(f"JobID = {hand_in(Path(file).read_text())}")
        except (ValueError, OSError) as error:
            print("Job submission failure", error)
            failed.append((file, error))
        sys.stdout.flush()
    for file, why in failed:
        print(f"ERROR {file}: {why}")
    return 2 if failed else 0


def hand_in(jdl: str) -> list[int]:
    sandbox = re.search(r"InputSandbox = (\{.*?\});", jdl)
    assert sandbox
    jdl = jdl.replace(sandbox[1], f'{{"{upload(re.findall(chr(34) + "(.*?)" + chr(34), sandbox[1]))}"}}')
    if fault("before"):
        time.sleep(120)
    try:
        ids = [job["JobID"] for job in ask("POST", "/api/jobs/jdl", [jdl])]
    except ValueError as error:
        raise ValueError(f"Invalid job description ( 1501 : {error})") from None
    if fault("unconfirmed"):
        time.sleep(120)
    change(ids, Status="Received", MinorStatus="Job accepted")
    if fault("confirmed"):
        time.sleep(120)
    return ids


def status(option: str, what: str) -> int:
    rows = search(JobGroup=what) if option == "-g" else search(JobID=list(map(int, Path(what).read_text().split())))
    if not rows and option == "-g":
        print(f"No jobs selected with date '2026-10-24' for conditions: {{'JobGroup': '{what}'}}")
        print("Error: No jobs selected")
        return 255
    for row in rows:
        told = {name: row[name] for name in ("Status", "MinorStatus", "ApplicationStatus", "Site")}
        print(f"JobID={row['JobID']}", *(f"{name}={text};" for name, text in told.items()))
    return 0


def attributes(*jobs: str) -> int:
    rows = {row["JobID"]: row for row in search(JobID=list(map(int, jobs)))}
    for job in map(int, jobs):
        print("=================\n", job)
        pprint.pprint({name: moment(name, value) for name, value in rows.get(job, {}).items()})
    return 0


def moment(name: str, value: Any) -> Any:
    """DIRAC's table has times, and its command prints them as Python does."""
    return datetime.fromisoformat(value).replace(tzinfo=None) if value and name.endswith("Time") else value


def kill(*jobs: str) -> int:
    change(list(map(int, jobs)), Status="Killed", MinorStatus="Marked for termination")
    print(f"Killed jobs {','.join(sorted(jobs, reverse=True))}")
    return 0


def output(_: str, folder: str, *jobs: str) -> int:
    failed = []
    for job in jobs:
        if fault(f"slow{job}"):
            time.sleep(60)
        names = ask("GET", f"/api/jobs/{job}/sandbox/output")
        if not names or not names[0]:
            failed.append((job, NO_SANDBOX.format(job=job)))
            print(failed[-1][1])
            continue
        place = ask("GET", f"/api/jobs/sandbox?pfn={names[0].replace('|', '%7C')}")
        with tarfile.open(fileobj=io.BytesIO(httpx2.get(place["url"], timeout=60).content)) as tar:
            tar.extractall(Path(folder) / job, filter="data")
        print(f"Job output sandbox retrieved in {folder}/{job}/", flush=True)
    for job, why in failed:
        print(f"ERROR {job}: {why}")
    return 2 if failed else 0


def data(_: str, folder: str, job: str) -> int:
    """What a job has put on storage elements is in a folder of the test."""
    there = Path(os.environ["LEGACY_DATA"]) / job
    if not there.is_dir():
        print(f"ERROR {job}: No output data found for job {job}")
        return 2
    for file in there.iterdir():
        if file.name == "broken":
            print(f"ERROR {job}: Failed to download file")
            return 2
        shutil.copy(file, folder)
    print(f"Job {job} output data retrieved")
    return 0


def proxy(*_: str) -> int:
    print(Path(os.environ["LEGACY_PROXY"]).read_text(), end="")
    return 0


COMMANDS = {
    "dirac-wms-job-submit": submit,
    "dirac-wms-job-status": status,
    "dirac-wms-job-attributes": attributes,
    "dirac-wms-job-kill": kill,
    "dirac-wms-job-get-output": output,
    "dirac-wms-job-get-output-data": data,
    "dirac-proxy-info": proxy,
}

if __name__ == "__main__":
    sys.exit(COMMANDS[sys.argv[1]](*sys.argv[2:]))
