"""The HTCondor backend and its submit template on a real pool: out, back, commands, policies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fermigrid.backends import Cursor, Handle
from fermigrid.backends import htcondor as backend
from fermigrid.errors import BackendUnavailable, RunFolderError, SubmissionDoubt, SubmissionRefused
from fermigrid.states import Seen
from tests.pool.batches import (
    GOOD,
    STARTS,
    events,
    last,
    log_of,
    render,
    states,
    submitted,
    wait_for,
    wait_until_seen,
    write_batch,
)

if TYPE_CHECKING:
    from tests.pool.conftest import Pool

pytestmark = pytest.mark.pool
BOTH = 'GLIDEIN_Site == "SITEA" || GLIDEIN_Site == "SITEB"'


@pytest.fixture(autouse=True)
def _as_fermi(fermi: Pool) -> None:
    """Every test here is the pool's user fermi."""


def heal(image: str) -> str:
    """The self-healing request, as render.py writes it."""
    return f'ifThenElse((NumVacatesByReason.SingularityTestFailed ?: 0) >= 1, undefined, "{image}")'


# --- out and back ------------------------------------------------------------------------------------------


def test_a_batch_goes_out_and_comes_back(job_folder: Path) -> None:
    worker = (
        f'[ $2 = job.000002 ] && {{ mkdir out; exit 0; }}\n{GOOD}; cat job.env "$3"; [ $2 != job.000003 ] || exit 7'
    )
    batch = write_batch(job_folder, worker, jobs=5)
    with submitted(batch) as handle:
        seen = wait_until_seen(handle, Seen.ENDED, times=5)
        assert backend.find(batch) == handle
    assert {one.batch_id for one in seen} == {batch.batch_id}
    assert states(handle, 1) == [Seen.SUBMITTED, Seen.STARTED, Seen.ENDED]
    assert all(one.time.utcoffset() is not None and abs(one.time.timestamp() - time.time()) < 300 for one in seen)
    assert last(seen, Seen.STARTED).host.endswith("@sitea@127-0-0-1.fermigrid.test")
    assert {one.index: one.exit_code for one in seen if one.seen is Seen.ENDED} == {0: 0, 1: 0, 2: 0, 3: 7, 4: 0}
    assert log_of(batch, 1) == "hello from job.000001\nformat=1\nx\n"
    shards = sorted(batch.work_dir.iterdir())
    came = [sorted(path.name for path in (shard / "out").iterdir()) for shard in shards]
    assert came == [["job.000000.0.g0", "job.000001.0.g0"], ["job.000003.0.g0"], ["job.000004.0.g0"]]
    told = (shards[1] / "out/job.000003.0.g0").read_text()
    digest = sha256((batch.plan_dir / "job.env").read_bytes()).hexdigest()
    assert told == f"run job.000003 {shards[1].name} 2 {batch.batch_id} {digest}\n"


def test_the_log_and_what_is_in_out_come_back_and_nothing_else(job_folder: Path) -> None:
    batch = write_batch(job_folder, f"{GOOD}; mkdir -p out; touch out/core left.behind")
    with submitted(batch) as handle:
        wait_until_seen(handle, Seen.ENDED)
    files = [path.relative_to(batch.work_dir) for path in batch.work_dir.glob("**/*") if path.is_file()]
    assert sorted(str(file.relative_to(file.parts[0])) for file in files) == [
        "job.000000.log",
        "out/core",
        "out/job.000000.0.g0",
    ]


def test_late_materialization_runs_every_job_once(job_folder: Path) -> None:
    batch = write_batch(job_folder, jobs=12, max_materialize=5, max_idle=4, has_bundle=True, requirements=BOTH)
    (batch.plan_dir / "bundle.tar.gz").write_bytes(b"")
    with submitted(batch) as handle:
        seen = wait_until_seen(handle, Seen.ENDED, times=12, limit=120)
    assert sorted(one.index for one in seen if one.seen is Seen.ENDED) == list(range(12))
    assert [log_of(batch, index) for index in range(12)] == [f"hello from job.{index:06d}\n" for index in range(12)]


def test_a_hundred_thousand_jobs_leave_in_a_second_and_are_gone_with_their_factory(job_folder: Path) -> None:
    batch = write_batch(job_folder, jobs=100_000, max_materialize=20, max_idle=10, requirements="false")
    began = time.monotonic()
    handle = backend.submit(batch)
    assert time.monotonic() - began < 1
    waiting = backend.explain(handle, 70_000)
    assert "of the batch's 100000 jobs so far (late materialization), and this is number 70001" in waiting[0]
    with pytest.raises(SubmissionRefused, match="1 of these jobs are not in the queue yet"):
        backend.remove([handle], [0, 70_000])
    backend.hold([handle])
    assert "makes no more of them now: fermigrid hold" in backend.explain(handle, 70_000)[1]
    backend.remove([handle])
    backend.remove([handle])  # again is harmless
    wait_until_seen(handle, Seen.REMOVED, times=100_000)
    assert {one.index for one in events(handle) if one.seen is Seen.REMOVED} == set(range(100_000))


def test_what_was_observed_is_observed_again_from_the_same_cursor(job_folder: Path) -> None:
    batch = write_batch(job_folder, jobs=2)
    with submitted(batch) as handle:
        wait_until_seen(handle, Seen.ENDED, times=2)
        first = backend.observe([handle], Cursor())
        assert backend.observe([handle], Cursor()) == first
        assert backend.observe([handle], first.cursor) == replace(first, seen=())
        stranger = replace(handle, cluster=handle.cluster + 1_000_000)
        assert backend.observe([stranger], Cursor()).seen == ()


def test_a_batch_is_found_in_queue_and_history_without_its_event_log(job_folder: Path) -> None:
    batch = write_batch(job_folder, jobs=3, requirements=f"{BOTH} || true")
    assert backend.find(batch) is None
    handle = backend.submit(batch)
    batch.event_log.rename(job_folder / "kept.log")
    assert backend.find(batch) == handle
    wait_for(lambda: all(one.seen is Seen.ENDED for one in backend.resolve([handle]).seen), "all ended")
    assert backend.find(batch) == handle


def test_a_factory_without_jobs_is_found_in_the_queue(job_folder: Path) -> None:
    batch = write_batch(job_folder, jobs=10, max_materialize=2, requirements="false")
    with submitted(batch) as handle:
        backend.hold([handle])  # the factory makes no more
        backend.remove([handle], [0, 1])
        wait_until_seen(handle, Seen.REMOVED, times=2)
        batch.event_log.unlink()
        assert backend.find(batch) == handle
        now = {one.index: one.seen for one in backend.resolve([handle]).seen}
        assert [now[index] for index in (0, 1, 2, 9)] == [Seen.REMOVED, Seen.REMOVED, Seen.SUBMITTED, Seen.SUBMITTED]


def test_a_damaged_or_lost_event_log_is_made_up_for(job_folder: Path) -> None:
    batch = write_batch(job_folder, f'{GOOD}; [ "$2" = job.000000 ] || sleep 600', jobs=3)
    with submitted(batch) as handle:
        wait_until_seen(handle, Seen.STARTED, times=3)
        wait_until_seen(handle, Seen.ENDED)
        backend.hold([handle], [1])
        wait_until_seen(handle, Seen.HELD)
        cursor = backend.observe([handle], Cursor()).cursor
        batch.event_log.write_bytes(b"")
        observation = backend.observe([handle], cursor)
        assert "it was replaced" in observation.problems[0]
        assert {one.index: one.seen for one in observation.seen} == {0: Seen.ENDED, 1: Seen.HELD, 2: Seen.STARTED}
        assert {one.index: one.exit_code for one in observation.seen}[0] == 0
        batch.event_log.unlink()
        observation = backend.observe([handle], Cursor())
        assert observation.problems[0].endswith("the event log is not there")
        assert len(observation.seen) == 3


def test_a_batch_that_is_there_twice_is_told_and_one_removal_ends_it(pool: Pool, job_folder: Path) -> None:
    """Nothing of fermigrid's submits twice: here a person does. `find` takes neither, and removes nothing."""
    batch = write_batch(job_folder, jobs=3, requirements="false")
    first, second = backend.submit(batch), backend.submit(batch)
    names = f"is in the queue of {first.where} 2 times, as clusters {first.cluster}, {second.cluster}"
    with pytest.raises(SubmissionDoubt, match=names) as doubt:
        backend.find(batch)
    assert f"condor_rm {second.cluster}." in doubt.value.hint
    (problem,) = backend.observe([first], Cursor()).problems
    assert f"is cluster {first.cluster}, and cluster {second.cluster} carries it too" in problem
    away = batch.event_log.rename(job_folder / "away")
    with pytest.raises(SubmissionDoubt, match=names):
        backend.find(batch)
    away.rename(batch.event_log)
    done = pool.run("fermi", "condor_rm", str(second.cluster))
    assert done.returncode == 0, done.stderr
    wait_until_seen(second, Seen.REMOVED, times=3)
    assert backend.find(batch) == first
    backend.remove([first])
    wait_until_seen(first, Seen.REMOVED, times=3)
    assert backend.find(batch) == first  # both have left: the first one's jobs are the batch's


def test_a_job_that_nobody_knows_is_lost_and_not_failed(job_folder: Path) -> None:
    batch = write_batch(job_folder, jobs=2)
    observation = backend.observe([Handle(batch, "", 999_999)], Cursor())
    assert [one.seen for one in observation.seen] == [Seen.LOST, Seen.LOST]


# --- commands ----------------------------------------------------------------------------------------------


def test_hold_release_and_remove_of_some_jobs(job_folder: Path) -> None:
    batch = write_batch(job_folder, "sleep 600", jobs=4, macros={"fg_remove_after": 1})
    with submitted(batch) as handle:
        wait_until_seen(handle, Seen.STARTED, times=4)
        backend.hold([handle], [1, 2])
        seen = wait_until_seen(handle, Seen.HELD, times=2)
        assert {(one.index, one.reason, one.code) for one in seen if one.seen is Seen.HELD} == {
            (1, "fermigrid hold (by user fermi)", "1/0"),
            (2, "fermigrid hold (by user fermi)", "1/0"),
        }
        assert backend.explain(handle, 1)[:2] == (
            "held: fermigrid hold (by user fermi) (code 1/0, UserRequest)",
            "that means: a person held it",
        )
        assert backend.explain(handle, 0)[0].startswith("it runs on slot1_")
        backend.remove([handle], [0])
        assert last(wait_until_seen(handle, Seen.REMOVED), Seen.REMOVED).reason == "fermigrid remove (by user fermi)"
        assert backend.explain(handle, 0) == ("it was removed: fermigrid remove (by user fermi)",)
        backend.release([handle], [2])
        wait_until_seen(handle, Seen.RELEASED)
        wait_until_seen(handle, Seen.STARTED, times=5)  # and a person's hold outlasts the policy that clears others
        assert states(handle, 2)[-3:] == [Seen.HELD, Seen.RELEASED, Seen.STARTED]
        assert states(handle, 1)[-1] is Seen.HELD


def test_somebody_elses_jobs_are_not_touched(pool: Pool, job_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = write_batch(job_folder, requirements="false")
    with submitted(batch) as handle, monkeypatch.context() as patch:
        patch.setenv("_CONDOR_SEC_TOKEN_DIRECTORY", str(pool.directory / "etc/usertokens/prod"))
        with pytest.raises(SubmissionRefused, match="belong to somebody else"):
            backend.remove([handle])


# --- policies ----------------------------------------------------------------------------------------------


def not_its_turn(failures: int) -> int:
    """A length of turns such that for two minutes no turn opens the machines where the job failed."""
    now = time.time()
    times = (now, now + 120)
    counts = range(1, failures + 1)
    return next(
        turn for turn in range(600, 900) if all((int(at / turn) + count) % 5 for at in times for count in counts)
    )


def sites(*letters: str) -> str:
    """Requirements: one of these sites of the pool."""
    return " || ".join(f'GLIDEIN_Site == "SITE{letter}"' for letter in letters)


def test_a_failure_of_the_machine_starts_again_on_another_each_time(job_folder: Path) -> None:
    """Each of the last three machines is closed to it, not only the last: four starts, four machines."""
    turn = not_its_turn(failures=3)
    where = sites("A", "B", "C", "F")
    batch = write_batch(job_folder, f"{GOOD}; exit 82", retries=3, requirements=where, macros={"fg_elsewhere": turn})
    with submitted(batch) as handle:
        seen = wait_until_seen(handle, Seen.ENDED, limit=90)
    assert states(handle) == [Seen.SUBMITTED, *[Seen.STARTED, Seen.EVICTED] * 3, Seen.STARTED, Seen.ENDED]
    assert last(seen, Seen.ENDED).exit_code == 82
    assert last(seen, Seen.EVICTED).reason == (
        "the worker ended with exit code 82, which charges the machine: the job starts again"
    )
    hosts = {one.host.partition("@")[2] for one in seen if one.seen is Seen.STARTED}
    assert len(hosts) == 4


def test_two_bad_machines_do_not_use_up_the_tries_of_a_job(job_folder: Path) -> None:
    """The shipped turns and number of tries: as long as a good machine is open, every job gets there."""
    worker = f"{GOOD}; grep -qE '^RemoteHost = .*@site[ce]@' .job.ad && exit 82; exit 0"
    batch = write_batch(
        job_folder, worker, jobs=5, retries=3, requirements=sites("C", "E", "F"), macros={"fg_elsewhere": 60}
    )
    with submitted(batch) as handle:
        seen = wait_until_seen(handle, Seen.ENDED, times=5, limit=120)
    assert {one.index: one.exit_code for one in seen if one.seen is Seen.ENDED} == dict.fromkeys(range(5), 0)
    bad = [one.host for one in seen if one.seen is Seen.STARTED and "@sitef@" not in one.host]
    assert bad, "no job began on a bad machine: nothing was tried"


def test_a_failure_of_the_only_machine_starts_again_there(job_folder: Path) -> None:
    batch = write_batch(job_folder, f"{STARTS}; {GOOD}; [ $starts -ge 3 ] || exit 91", retries=3)
    with submitted(batch) as handle:
        seen = wait_until_seen(handle, Seen.ENDED, limit=90)
    assert last(seen, Seen.ENDED).exit_code == 0
    assert states(handle).count(Seen.STARTED) == 3


def test_a_failure_of_the_payload_leaves_at_once(job_folder: Path) -> None:
    endings = ["exit 1", "exit 80", "exit 85", "exit 87", "kill -9 $$"]
    cases = "".join(f"*{index}) {ending};;" for index, ending in enumerate(endings))
    batch = write_batch(job_folder, f"{GOOD}; case $2 in {cases} esac", jobs=5, requirements=BOTH)
    with submitted(batch) as handle:
        seen = wait_until_seen(handle, Seen.ENDED, times=5)
    for index in range(5):
        assert states(handle, index) == [Seen.SUBMITTED, Seen.STARTED, Seen.ENDED]
    ended = {one.index: (one.exit_code, one.signal) for one in seen if one.seen is Seen.ENDED}
    assert ended == {0: (1, None), 1: (80, None), 2: (85, None), 3: (87, None), 4: (None, 9)}


def test_a_container_that_cannot_start_heals_itself(pool: Pool, job_folder: Path) -> None:
    batch = write_batch(
        job_folder,
        f'{GOOD}; echo "in: ${{APPTAINER_CONTAINER:-the host}}"',
        requirements=f"HasSingularity && ({BOTH})",
        singularity_image=heal(pool.facts["broken_image"]),
    )
    with submitted(batch) as handle:
        seen = wait_until_seen(handle, Seen.ENDED, limit=90)
    assert log_of(batch, 0).endswith("in: the host\n")
    assert last(seen, Seen.EVICTED).code.startswith("45/")
    assert states(handle).count(Seen.STARTED) == 2


def test_a_vacate_for_another_reason_keeps_the_container(pool: Pool, job_folder: Path) -> None:
    image = pool.facts["images"]["light-1"]["cvmfs"]
    worker = f'{STARTS}; {GOOD}; cat /etc/fermigrid-image; touch "in.$5"; [ "$starts" -ge 2 ] || sleep 600'
    batch = write_batch(job_folder, worker, singularity_image=heal(image))
    with submitted(batch) as handle:
        inside = f"nodes/*/execute/*/scratch/in.{batch.batch_id}"
        wait_for(lambda: list(pool.directory.glob(inside)), "the worker runs in the container")
        done = pool.run("fermi", "condor_vacate_job", "-fast", f"{handle.cluster}.0")
        assert done.returncode == 0, done.stderr
        wait_until_seen(handle, Seen.ENDED, limit=90)
    assert Seen.EVICTED in states(handle)
    assert "light-1" in log_of(batch, 0)


def test_a_container_that_starts_nowhere_is_given_up(pool: Pool, job_folder: Path) -> None:
    batch = write_batch(
        job_folder,
        requirements=f"HasSingularity && ({BOTH})",
        singularity_image=f'"{pool.facts["broken_image"]}"',
        macros={"fg_container_tries": 2},
    )
    with submitted(batch) as handle:
        wait_until_seen(handle, Seen.EVICTED)
        told = ("its container could not start on ", "no machine could start the container, 2 tried")
        wait_for(lambda: any(words in line for line in backend.explain(handle, 0) for words in told), told[0])
        seen = wait_until_seen(handle, Seen.REMOVED, limit=120)
    assert states(handle).count(Seen.STARTED) == 2
    assert last(seen, Seen.HELD).reason == "no machine could start the container, 2 tried"
    assert last(seen, Seen.HELD).code == "3/45"
    assert last(seen, Seen.REMOVED).reason.startswith("it was held, and no release cured it: ")


def test_a_job_whose_worker_does_not_end_it_at_its_walltime_leaves_the_queue(job_folder: Path) -> None:
    batch = write_batch(job_folder, f"{GOOD}; sleep 600", stop_after_s=2)
    with submitted(batch) as handle:
        seen = wait_until_seen(handle, Seen.REMOVED, limit=90)
    assert last(seen, Seen.HELD).code.startswith("47/")


def test_a_failed_transfer_is_released_and_goes_on(job_folder: Path) -> None:
    batch = write_batch(job_folder)
    row = next((batch.plan_dir / "shards").iterdir())
    away = row.rename(job_folder / "away")
    with submitted(batch) as handle:
        held = last(wait_until_seen(handle, Seen.HELD), Seen.HELD)
        assert held.code.startswith("13/")
        assert " " in held.reason
        assert row.name in held.reason
        away.rename(row)
        wait_until_seen(handle, Seen.ENDED, limit=90)
    assert [one.reason for one in events(handle) if one.seen is Seen.RELEASED] == ["fermigrid's policy tries it again"]


def test_a_transfer_that_always_fails_leaves_the_queue(job_folder: Path) -> None:
    batch = write_batch(job_folder, "echo no out", macros={"fg_retries": 1})
    with submitted(batch) as handle:
        seen = wait_until_seen(handle, Seen.REMOVED, limit=120)
    assert last(seen, Seen.HELD).code.startswith("12/")
    assert [one for one in states(handle) if one in (Seen.HELD, Seen.RELEASED, Seen.REMOVED)] == [
        Seen.HELD,
        Seen.RELEASED,
        Seen.HELD,
        Seen.REMOVED,
    ]


def test_no_policy_is_ever_undefined(fermi: Pool) -> None:
    """An undefined policy holds the job (code 5): each has a value for an ad that has nothing but its status yet."""
    import classad2
    import htcondor2

    description = htcondor2.Submit(render())
    for name in ("on_exit_remove", "periodic_hold", "periodic_release", "periodic_remove"):
        expression = classad2.ExprTree(description.expand(name))
        for status in range(1, 8):
            ad = classad2.ClassAd({"JobStatus": status, "EnteredCurrentStatus": 1})
            assert isinstance(expression.eval(ad), bool), (name, status)
            ad["HoldReasonCode"] = 13
            assert isinstance(expression.eval(ad), bool), (name, status)


# --- why a job waits ---------------------------------------------------------------------------------------


def slots() -> int:
    """The slots of the pool: six sites, and one more when the grid's engines run."""
    import htcondor2

    ads = htcondor2.Collector().query(htcondor2.AdType.Startd, 'SlotType =!= "Dynamic"', ["Name"])
    return len(ads)


def test_a_job_that_no_slot_can_run_says_what_is_missing(job_folder: Path) -> None:
    batch = write_batch(job_folder, memory_mb=65536, requirements="HasSingularity")
    with submitted(batch) as handle:
        told = backend.explain(handle, 0)
    assert f"none of the pool's slots ({slots()}) can ever run it:" in told
    assert f"- memory: 64 GiB or more: 0 of {slots()} slots" in told


def test_a_clause_that_no_slot_fulfils_is_named(job_folder: Path) -> None:
    batch = write_batch(job_folder, requirements='HasSingularity && GLIDEIN_Site == "SITEX"')
    with submitted(batch) as handle:
        told = backend.explain(handle, 0)
    assert f'- GLIDEIN_Site == "SITEX": 0 of {slots()} slots' in told
    assert not any("HasSingularity" in line for line in told)


def test_clauses_that_no_slot_fulfils_together_are_all_named(job_folder: Path) -> None:
    batch = write_batch(job_folder, requirements='HasSingularity && GLIDEIN_Site == "SITED"')
    with submitted(batch) as handle:
        told = backend.explain(handle, 0)
    assert f'- GLIDEIN_Site == "SITED": 1 of {slots()} slots' in told
    assert any(line.startswith("- HasSingularity: ") and line.endswith(f" of {slots()} slots") for line in told)


def test_a_job_that_waits_for_a_busy_slot_says_so(job_folder: Path) -> None:
    """And what the account of its group uses, which is not that of the user alone."""
    row = {"requirements": 'GLIDEIN_Site == "SITEF"', "accounting_group": "group_lat", "accounting_group_user": "prod"}
    with submitted(write_batch(job_folder, "sleep 600", cpus=4, **row)) as first:
        wait_until_seen(first, Seen.STARTED)
        with submitted(write_batch(job_folder, **row)) as second:

            def busy() -> bool:
                told, words = f"1 of {slots()} slots could run it, none has room now: they are busy", "you use 4 cores"
                lines = backend.explain(second, 0)
                return told in lines and any(line.endswith(words) for line in lines)

            wait_for(busy, "explained as waiting for a busy slot")


def test_jobs_that_nothing_can_run_are_named_to_the_one_that_waits_behind_them(job_folder: Path) -> None:
    """HTCondor does not offer it to the matchmaker: `explain` does not promise that its turn comes soon."""
    stuck = write_batch(job_folder, jobs=60, requirements='GLIDEIN_Site == "SITEX"')
    with submitted(stuck) as first, submitted(write_batch(job_folder, "sleep 600")) as second:
        words = re.compile(
            r"before it: (\d+) waiting jobs of yours, those of cluster (\d+) first; if nothing can run those,"
        )
        line = wait_for(lambda: next((line for line in backend.explain(second, 0) if words.search(line)), ""), "told")
    count, cluster = map(int, words.findall(line)[0])
    assert count >= 60 and cluster <= first.cluster  # other tests have jobs that wait, too
    assert f"1 of {slots()} slots could run it, and 1 have room now: before it: " in line
    assert "until they are held or removed" in line


# --- refusals and silence ----------------------------------------------------------------------------------


@pytest.fixture
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has nothing to show."""
    tmp_path.joinpath("tokens").mkdir()
    monkeypatch.setenv("_CONDOR_SEC_TOKEN_DIRECTORY", str(tmp_path / "tokens"))
    monkeypatch.setenv("_CONDOR_SEC_PASSWORD_DIRECTORY", str(tmp_path / "tokens"))
    monkeypatch.setenv("_CONDOR_SEC_TOKEN_POOL_SIGNING_KEY_FILE", str(tmp_path / "tokens/POOL"))
    monkeypatch.setenv("_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS", "IDTOKENS")


@pytest.mark.usefixtures("no_token")
def test_without_permission_nothing_is_submitted_or_removed(job_folder: Path) -> None:
    batch = write_batch(job_folder)
    with pytest.raises(SubmissionRefused, match="HTCondor refused the batch: Failed to connect to schedd"):
        backend.submit(batch)
    assert backend.find(batch) is None
    with pytest.raises(SubmissionRefused):
        backend.remove([Handle(batch, "", 1)])


def test_a_schedd_on_another_machine_is_refused_unless_the_file_system_is_shared(pool: Pool, job_folder: Path) -> None:
    ad = job_folder / "far.ad"
    ad.write_text(
        'MyType = "Scheduler"\nName = "far@elsewhere.test"\nMachine = "far.elsewhere.test"\n'
        'MyAddress = "<192.0.2.7:9618?alias=far>"\nScheddIpAddr = "<192.0.2.7:9618?alias=far>"\n'
        'CondorVersion = "$CondorVersion: 25.14.1 2026-10-16 $"\n'
    )
    done = subprocess.run(
        [str(Path(__file__).parents[2] / "ci/pool"), "exec", "condor_advertise", "UPDATE_SCHEDD_AD", str(ad)],
        env=os.environ | {"POOL_DIR": str(pool.directory)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(SubmissionRefused, match=r"on another machine \(far.elsewhere.test\)") as refused:
        backend.submit(write_batch(job_folder, options={"schedd": "far@elsewhere.test"}))
    assert "shared_filesystem: true" in refused.value.hint
    shared = write_batch(
        job_folder, options={"schedd": "far@elsewhere.test", "shared_filesystem": True, "timeout_s": 3}
    )
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="not sent"):
        backend.submit(shared)
    assert time.monotonic() - began < 6


def test_no_collector_and_no_such_schedd_are_told(job_folder: Path) -> None:
    with pytest.raises(BackendUnavailable, match="no schedd nobody@nowhere"):
        backend.submit(write_batch(job_folder, options={"schedd": "nobody@nowhere"}))
    with pytest.raises(BackendUnavailable, match=r"collector \(127.0.0.1:1\)"):
        backend.submit(write_batch(job_folder, options={"pool": "127.0.0.1:1"}))


def test_a_job_kept_from_the_machine_where_it_failed_says_so(job_folder: Path) -> None:
    batch = write_batch(job_folder, f"{GOOD}; exit 82", retries=9, macros={"fg_elsewhere": not_its_turn(failures=1)})
    with submitted(batch) as handle:
        wait_until_seen(handle, Seen.EVICTED)
        told = "they are busy or, for some minutes, where it failed before"
        wait_for(lambda: any(line.endswith(told) for line in backend.explain(handle, 0)), told)


def test_a_plan_that_is_not_there_is_told(job_folder: Path) -> None:
    batch = write_batch(job_folder)
    (batch.plan_dir / "plan.json").unlink()
    with pytest.raises(RunFolderError, match=r"plan\.json: the plan cannot be read: No such file"):
        backend.submit(batch)


def test_a_submit_file_that_htcondor_cannot_read_is_refused(job_folder: Path) -> None:
    batch = write_batch(job_folder)
    (batch.plan_dir / "items.txt").unlink()
    with pytest.raises(SubmissionRefused, match=r"cannot read the submit file: .*items\.txt"):
        backend.submit(batch)
    assert backend.find(batch) is None
    wrong = write_batch(job_folder, requirements="HasSingularity and true")
    with pytest.raises(SubmissionRefused, match=r"cannot read the submit file: .*HasSingularity and true"):
        backend.submit(wrong)


def test_the_bindings_stay_out_of_this_process() -> None:
    code = "import sys; import fermigrid.backends.htcondor; sys.exit('htcondor2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
