"""The process that asks HTCondor ends with whoever started it (on the pool: test_backend_htcondor_faults.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.campaigns import ROOT

COMMAND = (sys.executable, "-P", "-m", "fermigrid.backends.htcondor_process")


def ask(request: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        COMMAND,
        input=request,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "request_", ["", json.dumps({"verb": "submit", "parent": 1, "limit": 1})], ids=["none", "late"]
)
def test_a_request_whose_asker_is_gone_is_not_looked_at(request_: str) -> None:
    done = ask(request_)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip() in ("no request came", "process 1, which asked, is gone")
