"""The process that asks HTCondor: how it is started, heard and ended. Both of its ends are here.

htcondor2 waits inside C code, where neither a signal nor a thread ends it (a hung schedd: 20 s for a query, minutes for
a submission), and it reads its configuration once, when it is imported. A process can be ended: when its time is up,
and with whoever started it. A submission must not go on after fermigrid was killed: the next fermigrid looks for the
batch, does not see it yet, and sends it anew.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TIMEOUT = 60.0  # s, where the site does not say
_GRACE = 5  # s after the time limit, when the kernel ends the process if nobody has
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


# --- the end that asks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """How a call ended: `kind` is answer (see `content`), refused, unavailable, doubt or silent (see `words`)."""

    kind: str
    content: Mapping[str, Any]
    words: str
    sending: bool


def call(options: Mapping[str, object], where: str = "", **request: object) -> Reply:
    """Ask one thing, for the site's `timeout_s` at the most."""
    limit = float(str(options.get("timeout_s", _TIMEOUT)))
    place = {"schedd": options.get("schedd") or where or None, "pool": options.get("pool")}
    output, errors, late = _run(json.dumps(place | request | {"parent": os.getpid(), "limit": limit}), limit)
    lines = [json.loads(line) for line in output.splitlines() if line.endswith("}")]
    sending = {"sending": True} in lines
    last = lines[-1] if lines else {}
    for kind in ("answer", "refused", "unavailable", "doubt"):
        if kind in last:
            told = last[kind]
            return Reply(kind, told if kind == "answer" else {}, "" if kind == "answer" else str(told), sending)
    silent = f"no answer within {limit:g} s" if late else f"the call ended without an answer: {errors.strip()[-500:]}"
    return Reply("silent", {}, silent, sending)


def _run(request: str, limit: float) -> tuple[str, str, bool]:
    """Output and errors of the process, and whether it had to be ended.

    The process is bound to the thread that starts it, which waits here for as long as it lives.
    """
    path = os.pathsep.join(filter(None, (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
    )
    with process:
        try:
            return *process.communicate(request, limit), False
        except subprocess.TimeoutExpired:
            process.kill()
            return *process.communicate(), True
        except BaseException:
            process.kill()
            raise


# --- the end that answers ----------------------------------------------------------------------------------


def main() -> None:
    """One request from stdin, its answer to stdout; by then it is certain that the process ends, and when."""
    text = sys.stdin.read()
    if not text:  # whoever started it was killed before it asked
        sys.exit("no request came")
    request = json.loads(text)
    _die_with(int(request["parent"]))
    _die_after(float(request["limit"]) + _GRACE)

    from fermigrid.backends.htcondor_calls import answer

    answer(request)


def _die_with(parent: int) -> None:
    """Have the kernel end this process at once when the thread that started it is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it was gone already
        sys.exit(f"process {parent}, which asked, is gone")


def _die_after(seconds: float) -> None:
    """Have the kernel end this process then, wherever it is: a signal's default action needs no Python."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.alarm(math.ceil(seconds))


if __name__ == "__main__":
    main()
