"""Another user of the same schedd and the same node: he reads no secret, no plan, no log, and alters nothing."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pool.conftest import Pool
from tests.pool.product import UID, Product

pytestmark = pytest.mark.pool

PROD = 20002
MARK = "canary-5f1c9e7ab24d"  # the value of the secret
TEAM = 20777
ANYWHERE = 'GLIDEIN_Site == "SITEF"'

CAMPAIGN = """\
campaign: quiet
image: light
runs: {count: 1}
steps:
  go:
    command: [sh, -c, "cat $WALLET/ewallet > /dev/null; echo started; while [ ! -e %s ]; do sleep 0.2; done; echo {run} > out.txt"]
    secrets: [wallet]
    outputs: {out.txt: "{run}.txt"}
"""
# What a curious job looks for: files and folders of others, their environment, their command lines.
SEARCH = f"""#!/bin/sh
mark={MARK[:6]}; mark=$mark{MARK[6:]}
grep -rl "$mark" /dev/shm /var/lib/condor/execute /tmp/fermigrid* "$@" 2> /dev/null | sed 's/^/found /'
for pid in /proc/[0-9]*; do
    grep -l "$mark" $pid/environ $pid/cmdline 2> /dev/null | sed 's/^/found /'
    grep -rl "$mark" $pid/root/dev/shm 2> /dev/null | sed 's/^/found /'  # HTCondor gives each job a /dev/shm of its own
done
ls -d /dev/shm/fermigrid.* 2> /dev/null | sed 's/^/seen /'
echo searched as $(id -u) on $_CONDOR_SLOT
"""


@pytest.fixture(autouse=True)
def cleaned(pool: Pool) -> Iterator[None]:
    """No secret stays where all nodes see it."""
    yield
    for folder in (pool.directory / "sps").glob("quiet-*"):
        shutil.rmtree(folder)


def node_folder(product: Product) -> str:
    """The name below /sps, which all nodes have, of the folder of this test's secret."""
    return f"quiet-{product.folder.name}"


def write_site(product: Product, requirements: str) -> Path:
    """The pool's site F, where the worker starts the container, with a secret; the secret's folder.

    `requirements` let the person keep a job from starting.
    """
    text = (product.pool.directory / "sites/pool-f.yaml").read_text().replace("site: pool-f", "site: quiet", 1)
    assert ANYWHERE in text
    if requirements:
        text = text.replace(ANYWHERE, f"'{ANYWHERE} && {requirements}'")
    name = node_folder(product)
    secrets = f"secrets:\n  wallet: {{kind: path, from: /sps/{name}/wallet, point: {{WALLET: .}}}}\n"
    product.write("sites/quiet.yaml", f"{text}{secrets}binds:\n  - {{from: /sps, to: /sps}}\n")
    (product.folder / "sites").chmod(0o755)
    wallet = product.pool.directory / "sps" / name / "wallet"
    wallet.mkdir(parents=True)
    (wallet / "ewallet").write_text(f"{MARK}\n")
    for path in (wallet / "ewallet", wallet, wallet.parent):
        os.chown(path, UID, UID)
        path.chmod(0o700)
    return wallet.parent


def cluster_of(said: str) -> str:
    found = re.search(r"cluster (\d+)", said)
    assert found, said
    return found[1]


def wait_for(what: Callable[[], object], limit_s: float = 90) -> object:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := what():
            return value
        time.sleep(0.3)
    raise AssertionError(f"not within {limit_s} s")


def status_of(pool: Pool, cluster: str) -> str:
    return pool.run("fermi", "condor_q", "-allusers", cluster, "-af", "JobStatus").stdout.strip()


def submit(product: Product, requirements: str = "", *options: str) -> tuple[str, Path]:
    """The campaign, sent; its cluster, and the file whose making ends it."""
    folder = write_site(product, requirements)
    product.write("quiet.yaml", CAMPAIGN % f"/sps/{folder.name}/go")
    done = product.run("submit", "quiet.yaml", "--site", "quiet", "--sites", "sites", *options)
    return cluster_of(done.stderr), folder / "go"


def search(product: Product, user: str, name: str) -> str:
    """What a job of `user` finds on the node where the secret is in use."""
    folder = product.pool.work / f"search-{name}-{product.folder.name}"
    folder.mkdir()
    os.chown(folder, UID if user == "fermi" else PROD, UID if user == "fermi" else PROD)
    (folder / "search.sh").write_text(SEARCH)
    (folder / "search.sh").chmod(0o755)
    (folder / "job.sub").write_text(
        "executable = search.sh\noutput = out\nerror = err\nlog = log\nrequest_memory = 20M\nrequest_disk = 1M\n"
        f'requirements = GLIDEIN_Site == "SITEF"\narguments = /sps {product.folder}\ninitialdir = {folder}\n'
        "should_transfer_files = YES\nqueue\n"
    )
    sent = product.pool.run(user, "sh", "-c", f"cd {folder} && condor_submit job.sub")
    assert sent.returncode == 0, sent.stderr
    out = folder / "out"
    wait_for(lambda: out.is_file() and "searched as" in out.read_text())
    return out.read_text()


def test_another_user_finds_and_changes_nothing(product: Product) -> None:
    pool = product.pool
    cluster, go = submit(product)
    wait_for(lambda: status_of(pool, cluster) == "2")
    run = product.folder / "fermigrid-runs/quiet"
    mine = ""

    def in_use() -> bool:
        nonlocal mine
        mine = search(product, "fermi", f"fermi-{time.monotonic_ns()}")
        return "/root/dev/shm/fermigrid." in mine

    wait_for(in_use)  # else the search below could not fail
    found = search(product, "prod", "prod")
    assert f"searched as {PROD}" in found
    assert "found" not in found, found

    plain = ["setpriv", f"--reuid={PROD}", f"--regid={PROD}", "--clear-groups"]
    for command in (["ls", str(run)], ["cat", str(run / "ledger.sqlite")], ["ls", str(go.parent)], ["cat", str(go.parent / "wallet/ewallet")],
                    ["sh", "-c", f"echo x >> {run}/blocks/b0000/go.g0/plan/job.env"], ["mv", str(run), f"{run}2"],
                    ["ls", str(product.folder / "state")]):  # fmt: skip
        done = subprocess.run([*plain, *command], capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode != 0 and "ermission denied" in done.stderr, (command, done.stdout)

    for program in ("condor_rm", "condor_hold", "condor_vacate_job"):
        tried = pool.run("prod", program, cluster)
        assert tried.returncode != 0, (program, tried.stdout, tried.stderr)
    for command in (["condor_qedit", cluster, "Arguments", '"x"'], ["condor_ssh_to_job", f"{cluster}.0", "true"],
                    ["condor_tail", f"{cluster}.0"]):  # fmt: skip
        tried = pool.run("prod", *command)
        assert tried.returncode != 0, (command, tried.stdout, tried.stderr)
    before = sorted(str(path) for path in run.rglob("*"))
    fetched = pool.run("prod", "condor_transfer_data", cluster)  # says 0 when it was given nothing
    assert MARK not in fetched.stdout + fetched.stderr
    assert sorted(str(path) for path in run.rglob("*")) == before
    assert status_of(pool, cluster) == "2"
    shown = pool.run("prod", "condor_q", "-allusers", "-l", cluster).stdout
    assert f"ClusterId = {cluster}" in shown
    assert MARK not in shown

    go.touch()
    product.run("watch", "quiet")
    assert (run / "outputs/0000.txt").read_text() == "0000\n"
    assert status_of(pool, cluster) == ""


def test_every_file_is_private_also_what_htcondor_writes(product: Product) -> None:
    before = os.umask(0)
    try:
        _, go = submit(product)
        go.touch()
        product.run("watch", "quiet")
    finally:
        os.umask(before)
    run = product.folder / "fermigrid-runs"
    found = {path: stat.S_IMODE(path.lstat().st_mode) for path in (run, *run.rglob("*"))}
    assert {oct(mode) for path, mode in found.items() if path.is_dir()} == {"0o700"}
    assert [str(path) for path, mode in found.items() if path.is_file() and mode & 0o077] == []
    done = subprocess.run(
        ["setpriv", f"--reuid={PROD}", f"--regid={PROD}", "--clear-groups", "find", str(product.folder), "-readable"],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert not any("fermigrid-runs/" in line or "state/" in line for line in done.stdout.splitlines())


def test_a_failed_jobs_log_is_in_a_private_folder(product: Product) -> None:
    """HTCondor makes the log itself, with its own modes: what keeps others out is the folder."""
    product.run(
        "submit", "--site", "pool-a", "--image", "light", "--name", "one", "--wait", "--", "sh", "-c", "exit 3", code=1
    )
    (log,) = product.folder.glob("fermigrid-runs/one/blocks/*/*/work/*/*.log")
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in log.parents[:6]} == {0o700}


def test_a_plan_that_is_altered_between_the_submission_and_the_start(product: Product) -> None:
    """The digest of job.env is in the queue, where only the owner changes it."""
    cluster, go = submit(product, "(MY.FermiGo ?: false)")
    go.touch()
    run = product.folder / "fermigrid-runs/quiet"
    (job_env,) = run.glob("blocks/*/*/plan/job.env")
    as_sent = job_env.read_text()
    job_env.write_text(as_sent + "env=EVIL=1\n")
    shown = product.pool.run("fermi", "condor_q", cluster, "-af", "Arguments").stdout
    assert re.search(r" [0-9a-f]{64}$", shown.strip())
    assert product.pool.run("prod", "condor_qedit", cluster, "FermiGo", "true").returncode != 0
    assert product.pool.run("fermi", "condor_qedit", cluster, "FermiGo", "true").returncode == 0
    refused = product.run("watch", "quiet", code=14)
    assert "job.env was changed since its batch was sent: nothing is taken in" in refused.stderr
    job_env.write_text(as_sent)
    product.run("watch", "quiet", code=1)
    (report,) = product.reports("quiet", "go.0000")
    assert (report["exit"], report["started_payload"]) == (80, False)
    assert "job.env is damaged" in report["message"]


def test_a_plan_that_is_altered_before_it_is_sent(product: Product) -> None:
    """A submission that was cut short leaves an intent; its plan is looked at again before it goes."""
    write_site(product, "")
    product.write("quiet.yaml", CAMPAIGN % "/sps/go")
    broken = {"_CONDOR_SCHEDD_HOST": "nowhere@fermigrid.test", "_CONDOR_SCHEDD_ADDRESS_FILE": "/nonexistent"}
    process = product.start("submit", "quiet.yaml", "--site", "quiet", "--sites", "sites", extra=broken)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 16, said
    (worker,) = product.folder.glob("fermigrid-runs/quiet/blocks/*/*/plan/worker.sh")
    worker.write_text("#!/bin/sh\nexit 0\n")
    done = product.run("submit", "quiet.yaml", "--site", "quiet", "--sites", "sites", code=14)
    assert "was changed or damaged after it was intended: worker.sh" in done.stderr


def test_a_team_mate_takes_in_what_came_back(product: Product) -> None:
    """prod goes on with fermi's campaign where its group lets him; the queue is its owner's."""
    team = product.folder / "team"
    team.mkdir()
    os.chown(team, UID, TEAM)
    team.chmod(0o2770)
    fermi = Product(product.pool, product.folder, product.tokens, groups=(TEAM,), team=team)
    cluster, go = submit(fermi, "", "--group", str(TEAM))
    home = product.pool.work / f"prod-{product.folder.name}"
    (home / "tokens").mkdir(parents=True)
    for token in (product.pool.directory / "etc/usertokens/prod").iterdir():
        (home / "tokens" / token.name).write_bytes(token.read_bytes())
        (home / "tokens" / token.name).chmod(0o600)
    for path in (home, home / "tokens", *(home / "tokens").iterdir()):
        os.chown(path, PROD, PROD)
    prod = Product(product.pool, home, home / "tokens", uid=PROD, groups=(TEAM,), team=team)
    assert "quiet" in prod.run("status").stdout
    refused = prod.run("remove", "quiet", code=17)
    assert "somebody else" in refused.stderr
    go.touch()
    wait_for(lambda: status_of(product.pool, cluster) == "")
    prod.run("watch", "quiet")
    run = product.folder / "fermigrid-runs/quiet"
    assert (run / "outputs/0000.txt").read_text() == "0000\n"
    assert {path.stat().st_gid for path in run.rglob("*")} == {TEAM}
    assert {stat.S_IMODE(path.stat().st_mode) & 0o007 for path in run.rglob("*") if path.is_dir()} == {0}
    fermi.run("status", "quiet", "--check")
