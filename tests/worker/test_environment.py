"""What of the node reaches the payload (nothing that was not meant to), and the site's preamble."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pool.conftest import job_folder, pool, running_pool
from tests.worker.test_container import INSIDE, OUTSIDE, Node, node, sh, site_container
from tests.worker.test_payload import DUMP, seen
from tests.worker.test_podman import CGROUPS, PODMAN
from tests.worker.worker_job import Done, Job, Pairs

__all__ = ["job_folder", "node", "pool", "running_pool"]
MakeJob = Callable[..., Job]

NAMES = [
    "LD_LIBRARY_PATH",
    "LD_AUDIT",
    "LD_DEBUG_OUTPUT",
    "LD_BIND_NOW",
    "LIBPATH",
    "DYLD_LIBRARY_PATH",
    "GLIBC_TUNABLES",
    "MALLOC_CHECK_",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONSTARTUP",
    "PYTHONUSERBASE",
    "PYTHONWARNINGS",
    "PERL5LIB",
    "PERL5OPT",
    "PERLLIB",
    "RUBYLIB",
    "RUBYOPT",
    "JAVA_HOME",
    "CLASSPATH",
    "JAVA_TOOL_OPTIONS",
    "R_HOME",
    "R_LIBS",
    "ROOTSYS",
    "CMTPATH",
    "MANPATH",
    "NODE_PATH",
    "TCLLIBPATH",
    "HOME",
    "TMPDIR",
    "TMP",
    "TEMP",
    "PWD",
    "OLDPWD",
    "LOGNAME",
    "MAIL",
    "SHELL",
    "TERM",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "CDPATH",
    "ENV",
    "BASH_ENV",
    "GLOBIGNORE",
    "IFS",
    "PS4",
    "PROMPT_COMMAND",
    "POSIXLY_CORRECT",
    "BASHOPTS_LIKE",
    "MODULEPATH",
    "http_proxy",
    "X509_USER_PROXY",
    "APPTAINERENV_LEAK",
    "SINGULARITYENV_LEAK",
    "APPTAINERENV_LD_LIBRARY_PATH",
    "SINGULARITYENV_PYTHONPATH",
    "APPTAINER_ENV_FILE",
]
HOST = dict.fromkeys(NAMES, "/leak") | {
    "PATH": os.environ["PATH"],
    "HOME": "/home/fermi",
    "IFS": "/leak\n",
    "SHELLOPTS": "allexport:braceexpand:hashall:interactive-comments:nounset:posix:xtrace",
    "BASHOPTS": "nocasematch:nullglob:failglob:xpg_echo:cmdhist",
    "BASH_FUNC_stat%%": "() { echo leak; }",
    "BASH_FUNC_printf%%": "() { echo leak; exit 77; }",
    "BASH_FUNC_module%%": "() {  eval leak\n}",
    "BASH_FUNC_cat()": "() { echo leak; }",
}
OURS = {"HOME", "TMPDIR", "USER", "LOGNAME", "LANG", "PATH"}
OF_THE_SHELL = {"PWD", "SHLVL", "_", "LC_CTYPE"}


def of_the_payload(done: Done, job: Job) -> dict[str, str]:
    """Its environment, without what its own interpreters set."""
    assert done.code == 0, done.err
    got = seen(job.scratch / "out" / done.report.outputs[0].file)["env"]
    assert "leak" not in "".join(f"{name}={value}" for name, value in got.items() if name not in OF_THE_SHELL), got
    return {
        name: value for name, value in got.items() if name not in OF_THE_SHELL and not name.startswith("FERMIGRID_")
    }


ROW: Pairs = [("out", "seen.json"), ("out.to", "seen.json")]


def test_nothing_of_the_host_in_a_rehearsal(make_job: MakeJob) -> None:
    job = make_job(args=["./dump"], code={"dump": DUMP.format(python=sys.executable)}, row=ROW)
    got = of_the_payload(job.run(env=HOST), job)
    assert set(got) == OURS and got["USER"] == "fermi"
    assert got["HOME"] == f"{job.scratch}/work/.fermigrid/home" and got["PATH"] == HOST["PATH"]


@pytest.mark.pool
@pytest.mark.parametrize("way", ["outside", "inside", "site", "podman", "podman inside"])
def test_nothing_of_the_host_in_a_container(node: Node, way: str) -> None:
    head = {"outside": OUTSIDE, "inside": INSIDE, "site": {"launch": "site"}, "podman": PODMAN}.get(way)
    head = head or PODMAN | {"order": "wrapper-inside"}
    job = node.job(head=head, args=["./dump"], code={"dump": DUMP.format(python="/usr/bin/python3")}, row=ROW)
    host = {name: value for name, value in HOST.items() if name != "PATH" and "(" not in name}
    if (
        way == "site"
    ):  # the site's Apptainer passes the job's environment on, but for what would change its own container
        host = {name: value for name, value in host.items() if not name.startswith(("LD_", "GLIBC", "APPTAINER_"))}
    around = site_container(node, job) if way == "site" else []
    got = of_the_payload(node.run(job, env=host, around=around, root=CGROUPS if "podman" in way else ()), job)
    assert set(got) == OURS | {"LD_LIBRARY_PATH"} and got["LD_LIBRARY_PATH"] == "/.singularity.d/libs"
    assert got["USER"] == got["LOGNAME"] == "fermi" and got["LANG"] == "C.UTF-8"
    assert got["HOME"].endswith("/.fermigrid/home") and got["TMPDIR"].endswith("/.fermigrid/tmp")


@pytest.mark.pool
@pytest.mark.parametrize("head", [OUTSIDE, INSIDE, PODMAN], ids=["outside", "inside", "podman"])
def test_the_user_is_the_same_inside(node: Node, head: dict[str, str]) -> None:
    """By name and by number: services such as XRootD decide by it."""
    script = 'id -un; id -u; echo "$USER"; : > o; stat -c %U o; python3 -c "import getpass, os, pwd; print(pwd.getpwuid(os.geteuid()).pw_name)"'
    done = node.run(node.job(head=head, **sh(script)), root=CGROUPS, env={"LOGNAME": "someone"})
    assert done.out.split()[:5] == [b"fermi", b"20001", b"fermi", b"fermi", b"fermi"], done.err


# --- the preamble


def preamble(*lines: str) -> Pairs:
    return [("preamble", line) for line in lines]


def test_its_path_finds_the_runtime(make_job: MakeJob, tmp_path: Path) -> None:
    """What it exports is the worker's: here a runtime that says what it was called with."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin/apptainer"
    fake.write_text(f"#!/bin/sh\nenv > {tmp_path}/env\necho no namespace >&2\nexit 255\n")
    fake.chmod(0o755)
    lines = preamble(
        "if true; then", f'  export PATH="{tmp_path}/bin:$PATH"', "fi", "export MODULE_LOADED=/leak  PYTHONPATH=/leak"
    )
    job = make_job(settings=[*lines, ("image.path", "/"), ("runtime", "apptainer")], args=["/bin/sh", "-c", "env"])
    done = job.run()
    assert (tmp_path / "env").exists() and done.code == 0 and done.report.rehearsal, done.err
    assert b"leak" not in done.out and str(tmp_path / "bin").encode() not in done.out.split(b"@@FERMIGRID")[0]
    assert "leak" not in (tmp_path / "env").read_text()


def test_it_cannot_break_the_worker(make_job: MakeJob) -> None:
    lines = preamble(
        "set -eu; set -o noclobber; shopt -s nullglob failglob extdebug; IFS=x; umask 777",
        "trap 'echo leak' EXIT ERR DEBUG RETURN; readonly IFS; exec 3>&- 4>&-",
        "_finish() { echo leak; }; _log() { echo leak; }; printf() { echo leak; }; export -f _log printf",
        "export job=leak work=/leak start=leak view=leak KEY=leak NUMBER=leak image=leak out_name=leak signals=leak LC_ALL=leak",
        "export USER=leak LOGNAME=leak HOME=/leak TMPDIR=/leak FERMIGRID_KEEP=leak LD_PRELOAD=/leak.so LD_LIBRARY_PATH=/leak BASH_ENV=/leak",
        "export 'ODD=a\nb=c' EMPTY= ; alias ls=leak; cd /; echo noise; echo words >&2; ulimit -c 0; unset -f _finish; trap - DEBUG ERR RETURN",
    )
    job = make_job(settings=lines, args=["/bin/sh", "-c", "env; umask; pwd"], row=[])
    done = job.run()
    assert done.code == 0, done.err
    payload = done.out.split(b"\n@@FERMIGRID")[0]
    assert (
        b"leak" not in payload
        and b"ODD" not in payload
        and b"noise" not in done.out
        and payload.endswith(f"{job.scratch}/work\n".encode())
    )
    assert not (job.scratch / "work").exists()


FAILURES = [
    pytest.param(["echo first; module load apptainer"], "module: command not found", marks=pytest.mark.fault(
        fault="the site's preamble fails", mode="host", does="says what it said", code=81)),
    pytest.param(["echo bye >&2; exit 0"], "bye", marks=pytest.mark.fault(
        fault="the site's preamble leaves early", mode="host", does="says what it said", code=81)),
    pytest.param(["set -e; false; echo late"], "status 1", marks=()),
    pytest.param(["set -u; echo $UNSET_VARIABLE"], "UNSET_VARIABLE", marks=()),
    pytest.param(["if true; then"], "syntax error", marks=()),
    pytest.param(["kill -9 $$"], "status 137", marks=()),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "words"), FAILURES)
def test_it_fails(make_job: MakeJob, lines: list[str], words: str) -> None:
    done = make_job(settings=preamble(*lines), args=["/bin/echo", "ran"]).run()
    assert done.code == 81 and "preamble" in done.message and words in done.message, done.message
    assert b"ran" not in done.out


@pytest.mark.fault(fault="the site's preamble never ends", mode="host", does="kills it after its time limit", code=81)
def test_it_hangs(make_job: MakeJob, tmp_path: Path) -> None:
    lines = preamble(f"echo waiting for the module server; sleep 600.75 & echo $! > {tmp_path}/pid; wait")
    began = time.monotonic()
    done = make_job(settings=[*lines, ("limit.path", "2")], args=["/bin/echo", "ran"]).run()
    assert (
        done.code == 81 and "module server" in done.message and b"ran" not in done.out and time.monotonic() - began < 20
    )
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"


def test_what_it_leaves_running_does_not_hold_the_job(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("x")
    secret = [("secret", "s"), ("secret.from", str(tmp_path / "key"))]
    job = make_job(settings=[*preamble(f"sleep 20.5 > /dev/null 2>&1 & echo $! > {tmp_path}/pid"), *secret])
    began = time.monotonic()
    done = job.run()
    assert done.code == 0 and time.monotonic() - began < 10
    subprocess.run(["kill", (tmp_path / "pid").read_text().strip()], check=False)


@pytest.mark.pool
@pytest.mark.parametrize("head", [OUTSIDE, INSIDE], ids=["outside", "inside"])
def test_it_brings_the_runtime_of_a_site(node: Node, head: dict[str, str]) -> None:
    """The runtime is where only the preamble's PATH leads."""
    (node.folder / "modules").mkdir()
    (node.folder / "modules/apptainer-of-the-site").symlink_to("/usr/bin/apptainer")
    (node.folder / "profile.sh").write_text(f"module() {{ export PATH={node.folder}/modules:$PATH LEAK=leak; }}\n")
    lines = preamble(f"source {node.folder}/profile.sh", "module load apptainer")
    job = node.job(
        head=head | {"runtime": "apptainer-of-the-site"},
        settings=lines + node.path,
        **sh("env; cat /etc/fermigrid-image; exit 3"),
    )
    done = node.run(job)
    assert done.code == 3 and b"light-1\n" in done.out and b"leak" not in done.out, done.err
    assert done.data["runtime"]["name"] == "apptainer-of-the-site"


def test_the_working_folder_is_where_it_was_when_a_site_started_the_container(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(settings=[*preamble("exit 9"), ("image.path", str(tmp_path))], args=["/bin/pwd"])
    job.head = {"launch": "site"}
    done = job.run(env={"APPTAINER_CONTAINER": str(tmp_path)})
    assert done.code == 0 and done.out.startswith(f"{job.scratch}/work\n".encode()), "a preamble is for the host"
