"""fermigrid at a Slurm farm: the same campaigns, sent by HTCondor's grid universe to a real Slurm.

The engine is `ci/pool start grid`, the site `pool-slurm`, which that writes. What HTCondor and blahp do by themselves is
shown by test_grid_engines.py.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.message_servers import smtp
from tests.pool.conftest import START_LIMIT_S, Pool, call_pool, describe, product_in
from tests.pool.l1 import audit, copy_example, submit_example
from tests.pool.product import UID, Product

pytestmark = [pytest.mark.pool, pytest.mark.usefixtures("slurm")]
SITE = "pool-slurm"
LIMIT_S = 300  # Slurm and the gridmanager are shared with other tests

CAMPAIGN = """\
campaign: full
image: light
code: [payload]
runs: {count: 1}
steps:
  go:
    command: [./payload, "a b", "$HOME", "&(x)"]
    outputs: {out.txt: "deep/out.txt"}
    secrets: [catalogue]
    environment: {ODD: "`id` \\\\"}
    resources: {cpus: 2, memory: 1500 MiB, disk: 256 MiB, walltime: 90 min}
messages: {instance: "42", from: l1@example.org, to: pipeline@example.org, log: /logs/42.txt}
"""
PAYLOAD = """\
#!/bin/bash
echo to-stdout; echo to-stderr >&2
printf '%s|' "$@" "$ODD" "$(< /etc/fermigrid-image)" "$(< "$CATALOGUE")" > out.txt
touch here
while [ ! -e /sps/@GO@ ]; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def slurm(running_pool: Pool) -> Pool:
    """The pool of this test run, with a Slurm."""
    done = call_pool(running_pool.directory, "start", "grid", timeout=START_LIMIT_S)
    assert done.returncode == 0, done.stderr
    return describe(running_pool.directory)


@pytest.fixture
def breakable(watched_private_pool: Pool) -> Product:
    """fermigrid at a pool of the test's own with a Slurm, to break."""
    directory = watched_private_pool.directory
    done = call_pool(directory, "start", "grid", timeout=START_LIMIT_S)
    assert done.returncode == 0, done.stderr
    folder = watched_private_pool.work / "mine"
    folder.mkdir()
    return product_in(describe(directory), folder)


def wait_until(what: str, holds: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Waits, within the limit, until it holds."""
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, f"not in {limit_s} s: {what}"
        threading.Event().wait(0.3)


def site_like(product: Product, name: str, *changes: tuple[str, str]) -> str:
    """A site of the person's own: the pool's Slurm with some of its text replaced. Returns its name."""
    text = (product.pool.directory / f"sites/{SITE}.yaml").read_text()
    for old, new in ((f"site: {SITE}", f"site: {name}"), *changes):
        assert old in text, old
        text = text.replace(old, new)
    product.write(f"sites/{name}.yaml", text)
    return name


def send(product: Product, name: str, site: str, *words: str, options: tuple[str, ...] = ()) -> None:
    """One command as a campaign of that name, not waited for."""
    (product.folder / "sites").mkdir(exist_ok=True)
    product.run(
        "submit", "--site", site, "--sites", "sites", "--image", "light", "--name", name, "--run-dir", name, *options,
        "--", *words,
    )  # fmt: skip


def in_slurm(product: Product, name: str) -> dict[str, str]:
    """What Slurm says of the newest job of a campaign; nothing before it is there."""
    events = product.folder / name / "blocks/b0000/events.log"
    numbers = re.findall(r"slurm/\d+/(\d+)", events.read_text()) if events.exists() else []
    if not numbers:
        return {}
    told = product.pool.run("fermi", "scontrol", "-o", "show", "job", numbers[-1]).stdout
    return dict(re.findall(r"(\S+?)=(\S*)", told))


def number_of(product: Product, name: str, before: str = "") -> str:
    """Slurm's number of the newest job of a campaign, another than `before`: a job may run before its log tells."""
    wait_until("its log has a number", lambda: in_slurm(product, name).get("JobId", before) != before)
    return in_slurm(product, name)["JobId"]


def state(product: Product, name: str) -> str:
    """The state of the campaign's one job, as status has it."""
    states = json.loads(product.run("status", name, "--json").stdout)["states"]
    (one,) = (state for state, jobs in states.items() if jobs)
    return str(one)


def wait_for(product: Product, name: str, wanted: str, limit_s: float = LIMIT_S) -> None:
    """Waits until the campaign's one job is in this state."""
    wait_until(f"{name} is {wanted}", lambda: state(product, name) == wanted, limit_s)


def stay(product: Product, name: str, site: str = SITE, *options: str, before: str = "") -> None:
    """A campaign of one job that runs until it is told to end, and tells by a file when it begins."""
    text = f"{before}touch /sps/{product.folder.name}.{name}; sleep 300"
    send(product, name, site, "sh", "-c", text, options=options)


def runs(product: Product, name: str) -> bool:
    """Whether the payload of `stay` has begun; true once for each beginning."""
    file = product.pool.directory / "sps" / f"{product.folder.name}.{name}"
    there = file.exists()
    file.unlink(missing_ok=True)
    return there


def signal_worker(product: Product, name: str, signal: str) -> None:
    """A signal for the worker of a campaign's one job, on the node."""
    worker = f"{product.folder.name}/{name}/.*worker[.]sh run"
    done = call_pool(
        product.pool.directory, "exec", "sh", "-c", f"kill -{signal} $(pgrep -f '^/bin/bash -p .*{worker}')"
    )
    assert done.returncode == 0, done.stderr


def until_why_says(product: Product, name: str, *words: str) -> str:
    """What `why` says, once some of these words are in it: the queue knows things some seconds later than the log."""
    said = [""]

    def told() -> bool:
        said[0] = product.run("why", name, "command.0000").stdout
        return any(one in said[0] for one in words)

    wait_until(f"why of {name} says {words!r}", told)
    return said[0]


def test_a_job_gets_all_that_it_asks_for_and_gives_all_back(product: Product) -> None:
    lscratch = product.pool.directory / "nodes/milan01/lscratch"
    secret = product.pool.directory / f"sps/{product.folder.name}.catalogue"
    secret.write_text("marked-value")
    secret.chmod(0o400)
    os.chown(secret, UID, UID)
    go = f"{product.folder.name}.go"
    product.write("payload", PAYLOAD.replace("@GO@", go)).chmod(0o755)
    product.write("c.yaml", CAMPAIGN)
    with smtp() as box:
        site_like(
            product,
            "farm",
            ("output: {kind: transfer}", "output: {kind: transfer}\n"
             f"secrets: {{catalogue: {{kind: path, from: /sps/{secret.name}, point: {{CATALOGUE: {secret.name}}}}}}}\n"
             f'messages: {{via: ["{box.address}"], timeout: 5 s}}'),
        )  # fmt: skip
        product.run("submit", "c.yaml", "--site", "farm", "--sites", "sites", "--run-dir", "full")
        wait_until("the payload runs", lambda: any(path.name == "here" for path in lscratch.glob("*/work/*")))
        number_of(product, "full")
        told = in_slurm(product, "full")
        (folder,) = (path for path in lscratch.iterdir() if (path / "work/here").exists())
        there = folder.stat()
        (product.pool.directory / "sps" / go).touch()
        wait_for(product, "full", "done")
    assert (told["Partition"], told["Account"], told["Licenses"]) == ("milano", "fermi:l1", "sps:1")
    assert (told["TimeLimit"], told["MinMemoryNode"]) == ("01:35:00", "1500M")
    assert (told["NumCPUs"], told["CPUs/Task"]) == ("2", "2")
    assert (there.st_mode & 0o777, there.st_uid) == (0o700, UID)
    assert not folder.exists()
    out = product.folder / "full/outputs/deep/out.txt"
    assert out.read_text() == "a b|$HOME|&(x)|`id` \\|light-1|marked-value|"
    log = product.log("full", "go.0000")
    assert sorted(log) == ["to-stderr", "to-stdout"]
    (report,) = product.reports("full", "go.0000")
    assert (report["container"], report["host"]) == ("worker", "milan01")
    assert [message["result"] for message in report["messages"]] == ["sent", "sent"]
    assert len(box.got) == 2
    assert not list((product.folder / "full").rglob("home_*"))  # what blahp made for it
    assert "marked-value" not in "".join(path.read_text(errors="replace") for path in files_of(product, "full"))


def files_of(product: Product, name: str) -> list[Path]:
    """All files of a run folder but the accepted outputs."""
    folder = product.folder / name
    return [path for path in folder.rglob("*") if path.is_file() and "outputs" not in path.parts]


@pytest.mark.parametrize("runs", [24, pytest.param(200, marks=pytest.mark.drill)])
def test_the_example_campaign_through_slurm_audits_clean(product: Product, runs: int) -> None:
    copy_example(product, runs)
    assert f"{runs} jobs, {runs} done" in submit_example(product, SITE)
    result = audit(product)
    assert result.returncode == 0, result.stdout + result.stderr


def test_people_hold_release_and_remove_jobs(product: Product) -> None:
    stay(product, "stay")
    wait_until("it runs", lambda: runs(product, "stay"))
    first = number_of(product, "stay")
    until_why_says(product, "stay", f"it runs in Slurm, as its job {first}")
    product.run("hold", "stay")
    wait_for(product, "stay", "held")
    wait_until("Slurm's job ends", lambda: in_slurm(product, "stay")["JobState"] == "CANCELLED")
    product.run("release", "stay")
    wait_until("another runs", lambda: runs(product, "stay"))
    assert number_of(product, "stay", before=first) != first
    product.run("remove", "stay")
    wait_for(product, "stay", "removed")
    wait_until("Slurm's job ends", lambda: in_slurm(product, "stay")["JobState"] == "CANCELLED")


def test_a_failure_of_the_node_is_tried_again(product: Product) -> None:
    """A required bind is missing at the first start, and there at the second, which HTCondor makes a minute later."""
    late = product.pool.directory / "sps" / f"{product.folder.name}.late"
    site = site_like(product, "late", ("binds:", f"binds:\n  - {{from: /sps/{late.name}, to: /data}}"))
    send(product, "again", site, "true")
    log = product.folder / "again/blocks/b0000/events.log"
    wait_until("the first start fails", lambda: "exit code 84" in log.read_text())
    assert state(product, "again") == "waiting"
    until_why_says(product, "again", "the worker ended with exit code 84, which charges the machine: the job starts")
    late.mkdir()
    wait_for(product, "again", "done")


REFUSED = {
    "partition": (("milano", "nonesuch"), "there is no such queue"),
    "account": (('"fermi:L1"', '"other"'), "the account is not yours there"),
    "licence": (("sps:1", "nonesuch:1"), "there is no such licence"),
    "time": (("milano", "roma"), "it asks for more time than the queue gives"),
}


def test_what_slurm_refuses_is_held_and_why_says_it_in_words(product: Product) -> None:
    for name, (change, _) in REFUSED.items():
        send(product, name, site_like(product, f"bad-{name}", change), "true", options=("--walltime", "1 h"))
    for name, (_, words) in REFUSED.items():
        wait_for(product, name, "held")
        assert words in until_why_says(product, name, "held: Slurm refused it: sbatch: error: ")
        product.run("remove", name)
        wait_for(product, name, "removed")


def test_jobs_that_end_behind_htcondor_are_failed_and_never_done(product: Product) -> None:
    """Cancelled while it runs; its worker killed; cancelled before it began: HTCondor shows 255, 0 and 0."""
    stay(product, "told")
    stay(product, "killed")
    held = site_like(product, "held-there", ("-L sps:1", "--hold"))
    send(product, "never", held, "true")
    for name in ("told", "killed"):
        wait_until(f"{name} runs", lambda name=name: runs(product, name))
    wait_until("it waits in Slurm", lambda: in_slurm(product, "never").get("JobState") == "PENDING")
    numbers = {name: number_of(product, name) for name in ("told", "killed", "never")}
    until_why_says(product, "never", f"Slurm has it as its job {numbers['never']}")
    product.pool.run("fermi", "scancel", numbers["told"], numbers["never"])
    signal_worker(product, "killed", "KILL")
    for name in ("told", "never"):
        wait_for(product, name, "failed")
    until_why_says(product, "told", "told to end by signal TERM")
    # that which was killed may have wanted memory: a rule begins it again, when somebody watches
    for name in ("killed", "never"):
        said = until_why_says(product, name, f"it ended in Slurm, as its job {numbers[name]}, and left no report")
        assert f"`sacct -j {numbers[name]} " in said
        assert "its log did not come back" in said or name == "killed"
    lscratch = product.pool.directory / "nodes/milan01/lscratch"
    left = [path for path in lscratch.iterdir() if path.stat().st_uid == UID]
    assert left  # of the killed one; the next job on the node sweeps what is older than a minute


@pytest.mark.drill
def test_the_gridmanager_and_the_schedd_are_killed_and_nothing_is_lost_or_doubled(breakable: Product) -> None:
    """Both die while jobs, which the schedd makes late, are on their way to Slurm. What was handed on and not written
    down is handed on again: its second start waits for the end of the first, and of the two one result is taken."""
    product = breakable
    site = site_like(product, "late-made", ("htcondor:", "htcondor:\n  late_above: 3\n  max_materialize: 4"))
    say = f">> /sps/{product.folder.name}.ran"
    run = f"echo + $FERMIGRID_RUN {say}; sleep 1; echo $FERMIGRID_RUN > x.txt; echo - $FERMIGRID_RUN {say}"
    send(product, "many", site, "sh", "-c", run, options=("--jobs", "12", "--output", "x.txt"))
    ran = product.pool.directory / "sps" / f"{product.folder.name}.ran"

    def lines() -> list[str]:
        return ran.read_text().splitlines() if ran.exists() else []

    for daemon in ("condor_gridmanager", "condor_schedd"):
        before = len(lines())
        wait_until("another job ran", lambda before=before: len(lines()) > before)
        kill(product, daemon)
    product.run("watch", "many", timeout=300)
    assert "12 jobs, 12 done" in product.run("status", "many").stdout
    jobs = [f"{number:04d}" for number in range(12)]
    for job in jobs:
        beginnings_and_ends = [line[0] for line in lines() if line.endswith(job)]
        assert beginnings_and_ends in (["+", "-"], ["+", "-", "+", "-"], ["+", "-"] * 3), lines()
    outputs = sorted(path.read_text().strip() for path in (product.folder / "many/outputs").rglob("*.txt"))
    assert outputs == jobs


def kill(product: Product, daemon: str) -> None:
    """SIGKILL for a daemon of this pool."""
    inside = f"for p in $(pgrep -x {daemon[:15]}); do kill -9 $p; done"
    assert call_pool(product.pool.directory, "exec", "sh", "-c", inside).returncode == 0


@pytest.mark.drill
@pytest.mark.parametrize("known", [False, True], ids=["from the start", "suddenly"])
def test_slurm_is_down_while_jobs_are_sent(breakable: Product, known: bool) -> None:
    """HTCondor sees that Slurm does not answer, and waits; or sbatch gets no answer, and the job is held with its words
    and tried again. Slurm may have taken that job: then it runs twice, one after the other, and one result is taken."""
    if known:
        stay(breakable, "other")
        wait_until("it runs", lambda: runs(breakable, "other"))
    stop_slurm(breakable, "STOP")
    send(breakable, "down", SITE, "true")
    words = ("Slurm has not answered for ", *(["held: Slurm does not take it now: sbatch: error: "] if known else []))
    until_why_says(breakable, "down", *words)
    stop_slurm(breakable, "CONT")
    wait_for(breakable, "down", "done", 300)


def stop_slurm(product: Product, signal: str) -> None:
    """Stops Slurm's controller or lets it go on."""
    inside = f"kill -{signal} $(pgrep -x slurmctld)"
    assert call_pool(product.pool.directory, "exec", "sh", "-c", inside).returncode == 0


@pytest.mark.drill
@pytest.mark.parametrize("deaf", [False, True], ids=["told", "deaf"])
def test_a_worker_that_does_not_end_at_its_walltime_is_ended_by_slurm(product: Product, deaf: bool) -> None:
    """The worker is stopped, and sees no walltime. Slurm wakes it with TERM at its limit; where the payload does not end in
    Slurm's grace (5 s here), both are killed, and there is no report."""
    site = site_like(product, "short", ("walltime: 7 d", "walltime: 1 min"))
    stay(product, "long", site, "--walltime", "1 min", before="trap '' TERM; " if deaf else "")
    wait_until("it runs", lambda: runs(product, "long"))
    number = number_of(product, "long")
    signal_worker(product, "long", "STOP")
    wait_for(product, "long", "failed", 300)
    assert in_slurm(product, "long")["JobState"] == "TIMEOUT"
    words = f"it ended in Slurm, as its job {number}, and left no report" if deaf else "over its walltime of 60 s"
    until_why_says(product, "long", words)


@pytest.mark.drill
def test_a_refused_job_leaves_the_queue_with_slurms_words(product: Product) -> None:
    send(product, "bad", site_like(product, "bad-site", ("milano", "nonesuch")), "true")
    wait_for(product, "bad", "removed", 900)
    told = product.run("why", "bad", "command.0000").stdout
    assert "Slurm refused it: sbatch: error: invalid partition specified: nonesuch; " in told
    assert "there is no such queue" in told and "(htcondor.grid.queue, " in told


# In the place of other batch systems' commands: keep the job's script, take the job, and know it as running
OTHERS = {
    "qsub": '#!/bin/sh\nfor last; do :; done\ncp "$last" @HERE@/qsub.$$\necho "Your job 4711 (x) has been submitted"\n',
    "bsub": '#!/bin/sh\ncat > @HERE@/bsub.$$\necho "Job <4711> is submitted to queue <x>."\n',
    "lsid": '#!/bin/sh\necho "My cluster name is x"\n',
    "bhist": "#!/bin/sh\n",
    "qstat": "#!/bin/sh\n",
}
ASKED = {
    "lsf": {"-q milano", "-P fermi:L1", "-W 15", "-n 4", '-R "span[ptile=4]"', "-R select[type==any]"},
    "pbs": {"-q milano", "-A fermi:L1", "-l walltime=900", "-l nodes=1:ppn=4", "-l mem=1500mb", "-l pmem=2gb"},
    "sge": {"-q milano", "-A fermi:L1", "-l h_rt=900", "-pe * 4", "-l h_vmem=2G"},
}
OPTIONS = {"lsf": "-R select[type==any]", "pbs": "-l pmem=2gb", "sge": "-l h_vmem=2G"}
MARKS = {"lsf": "#BSUB ", "pbs": "#PBS ", "sge": "#$ "}


@pytest.mark.drill
def test_what_blahp_writes_for_other_batch_systems(breakable: Product) -> None:
    """Not their engines: HTCondor's own blahp, with stand-ins for the commands that it calls."""
    commands = breakable.pool.directory / "work/commands"
    commands.mkdir(mode=0o777)
    commands.chmod(0o777)
    for name, text in OTHERS.items():
        (commands / name).write_text(text.replace("@HERE@", str(commands)))
        (commands / name).chmod(0o755)
    over = f"mount -t overlay overlay -o lowerdir={commands}:/usr/sbin /usr/sbin"
    assert call_pool(breakable.pool.directory, "exec", "sh", "-c", over).returncode == 0
    asked = ("--cpus", "4", "--memory", "1500 MiB", "--walltime", "10 min")
    for kind, option in OPTIONS.items():
        site = site_like(breakable, f"farm-{kind}", ("kind: slurm", f"kind: {kind}"), ("-L sps:1", option))
        send(breakable, kind, site, "true", options=asked)
        wait_until(f"{kind} has it", lambda kind=kind: script_of(commands, MARKS[kind]))
        script = script_of(commands, MARKS[kind])
        written = {line.removeprefix(MARKS[kind]) for line in script.splitlines() if line.startswith(MARKS[kind])}
        assert written >= ASKED[kind]
        assert f'export "FERMIGRID_PLAN={breakable.folder}/{kind}/' in script


def script_of(commands: Path, mark: str) -> str:
    """The job's script with these marks that a stand-in was given; empty before it was."""
    scripts = (path.read_text() for path in commands.glob("?sub.*"))
    return next((script for script in scripts if f"\n{mark}" in script and "exit $user_retcode" in script), "")
