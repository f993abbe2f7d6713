"""How DIRAC's commands are run: bounded in time, and ended with whoever called them. Both ends are here.

A command that hands jobs in must not go on after fermigrid was killed: the next fermigrid looks for its jobs, does not
see them yet, and sends them anew. The kernel ends it with the thread that started it, which waits for it.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fermigrid.backends.dirac_transport import Unreachable

_GRACE_S = 5  # after the time limit, when the kernel ends the command if nobody has
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ran:
    """How a command ended: `late`: it had to be ended; `output`: both of its streams."""

    code: int
    output: str
    late: bool


def run(command: Sequence[str], limit: float, folder: Path | None = None) -> Ran:
    """Run one of DIRAC's commands for `limit` s at the most. Raises Unreachable: it is not here."""
    if shutil.which(command[0]) is None:
        raise Unreachable(f"{command[0]} is not on the PATH: set up DIRAC's commands first (source its bashrc)")
    process = subprocess.Popen(
        [sys.executable, "-I", __file__, str(os.getpid()), f"{limit:g}", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=folder,
        start_new_session=True,
    )
    with process:
        try:
            output, _ = process.communicate(timeout=limit)
            return Ran(process.returncode, output, False)
        except subprocess.TimeoutExpired:
            _end(process)
            return Ran(-signal.SIGKILL, _rest(process), True)
        except BaseException:
            _end(process)
            raise


def _rest(process: subprocess.Popen[str]) -> str:
    """What it had said when it was ended: of a stream that something else keeps open, nothing."""
    try:
        return process.communicate(timeout=_GRACE_S)[0]
    except subprocess.TimeoutExpired:
        return ""


def _end(process: subprocess.Popen[str]) -> None:
    """The command and what it started: they are a session of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()


def main() -> None:
    """The end that becomes the command: by then it is certain that it ends, and when."""
    parent, limit, *command = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit(f"process {parent}, which asked, is gone")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(float(limit)) + _GRACE_S)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
