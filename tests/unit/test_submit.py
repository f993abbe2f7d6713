"""The way out and back with a batch system that misbehaves: submitted once, accepted once, resumed, never doubled."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fermigrid import backends
from fermigrid.control import control
from fermigrid.errors import (
    BackendUnavailable,
    LedgerError,
    RunFolderError,
    SecretRefused,
    SubmissionDoubt,
    SubmissionRefused,
)
from fermigrid.ledger import open_ledger
from fermigrid.plan import Assembled
from fermigrid.planfolder import plan_faults
from fermigrid.progress import has_ended
from fermigrid.runfolder import RunFolder
from fermigrid.seal import make_key, read_certificate, read_signer, seal
from fermigrid.sealed import write_text
from fermigrid.standing import standing_of
from fermigrid.states import Seen, State
from fermigrid.submit import as_submitted, batch_id, begin, campaign_digest, prepare, rendered, settle
from fermigrid.watch import Following, Turn, advance, look, watch_once
from tests import stand_in
from tests.campaigns import SITES, SMALL, TWO_STEPS, assemble, make_hand
from tests.stand_in import Killed, Memory, end_job

CHAIN = TWO_STEPS.replace("block: 2", "block: 10")
TABLE = "run,events\nr1,15\nr2,5\n"


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """A batch system in the place of this machine's."""
    monkeypatch.setitem(backends.BACKENDS, "local", "tests.stand_in")
    yield stand_in.forget()
    stand_in.forget()


@contextmanager
def campaign(
    folder: Path, text: str = SMALL, table: str | None = None, said: list[str] | None = None
) -> Iterator[Following]:
    """A campaign that is begun, or gone on with, in `folder`/run."""
    assembled = assemble(folder, text, table)
    run = RunFolder(folder / "run")
    prepare(run)
    hand = make_hand(said)
    with closing(begin(assembled, run, "local", [str(SITES)], hand)) as ledger:
        yield Following(ledger, run, assembled, "local", hand)


def states(f: Following) -> dict[str, State]:
    return {job.name: job.state for state in State for job in f.ledger.jobs_in(state)}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- the run folder


def test_a_new_run_folder_is_private_and_has_copies_of_all_that_was_asked(tmp_path: Path, system: Memory) -> None:
    (tmp_path / "go.py").write_text("x")
    text = SMALL.replace("{count: 2}", "{table: runs.csv}") + "code: [go.py]\n"
    with campaign(tmp_path, text, "run,season\nr1,winter\n") as f:
        run = f.folder
        assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
        assert run.campaign.read_text() == text
        assert run.runs.read_text() == "run,season\nr1,winter\n"
        assert f.assembled.bundle is not None
        assert run.bundle.read_bytes() == f.assembled.bundle.data


def test_the_same_campaign_goes_on_and_another_is_refused(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path) as first:
        made = first.ledger.campaign()
    with campaign(tmp_path) as again:
        assert again.ledger.campaign() == made
    before = {name: (tmp_path / "run" / name).read_bytes() for name in names(tmp_path / "run")}
    with pytest.raises(RunFolderError, match="what differs now: the campaign file and the runs") as refused:
        campaign(tmp_path, SMALL.replace("count: 2", "count: 3")).__enter__()
    assert "--run-dir" in refused.value.hint
    assert {name: (tmp_path / "run" / name).read_bytes() for name in names(tmp_path / "run")} == before


@pytest.mark.parametrize("change", ["site", "parameter", "code", "table"])
def test_whatever_differs_is_another_campaign(tmp_path: Path, change: str) -> None:
    (tmp_path / "go.py").write_text("x")
    text = SMALL.replace("{count: 2}", "{table: runs.csv}") + "code: [go.py]\nparameters: {p: a}\n"

    def digest(site: str | None = "local", p: str = "a", table: str = "run,x\nr1,1\n") -> str:
        return campaign_digest(assemble(tmp_path, text, table, parameters={"p": p}), site)

    before = digest()
    assert before == digest()
    if change == "code":
        (tmp_path / "go.py").write_text("y")
    after = {
        "site": lambda: digest(site=None),
        "parameter": lambda: digest(p="b"),
        "table": lambda: digest(table="run,x\nr1,2\n"),
    }
    assert after.get(change, digest)() != before


@pytest.mark.parametrize("foreign", ["thesis.tex", ".hidden", "blocks", "outputs"])
def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path, foreign: str) -> None:
    (tmp_path / "run" / foreign).mkdir(parents=True)
    with pytest.raises(RunFolderError, match=f"exists and is no run folder of fermigrid: it holds {foreign}"):
        prepare(RunFolder(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [foreign]


def test_a_folder_of_a_persons_own_files_is_left_alone(tmp_path: Path) -> None:
    """--run-dir that names the folder where a campaign is written: its files have the names of our copies."""
    for name in ("campaign.yaml", "runs.csv"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(RunFolderError, match=r"it holds campaign\.yaml"):
        prepare(RunFolder(tmp_path))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"campaign.yaml": "mine", "runs.csv": "mine"}


def test_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunFolderError, match="cannot make the run folder"):
        prepare(RunFolder(tmp_path / "run"))
    with pytest.raises(RunFolderError, match="cannot make the run folder"):
        prepare(RunFolder(tmp_path / "run" / "deeper"))


@pytest.mark.parametrize("left", ["", "campaign.yaml", "campaign.yaml runs.csv ledger.draft"])
def test_what_a_killed_beginning_left_is_begun_anew(tmp_path: Path, system: Memory, left: str) -> None:
    (tmp_path / "run").mkdir()
    for name in ["ledger.lock", *left.split()]:
        (tmp_path / "run" / name).write_text("rubbish")
    with campaign(tmp_path) as f:
        assert f.ledger.campaign().name == "small"
        assert f.folder.campaign.read_text() == SMALL


# --- submitted once


def test_a_campaign_is_submitted_once(tmp_path: Path, system: Memory) -> None:
    for sent in (1, 0):
        with campaign(tmp_path) as f:
            assert settle(f.ledger, f.folder, f.assembled, f.hand) == 0
            assert advance(f) == sent
    assert [batch.name for batch in system.landed] == ["small.b0000.go.g0"]


def test_the_id_of_a_batch_is_32_digits_and_its_own(tmp_path: Path) -> None:
    ids = {batch_id(i, d, s, w, g) for i in "ab" for d in "ab" for s in "ab" for w in "ab" for g in (0, 1)}
    assert len(ids) == 32
    assert all(len(one) == 32 and int(one, 16) for one in ids)


def test_two_run_folders_of_one_campaign_do_not_take_each_others_batches(tmp_path: Path, system: Memory) -> None:
    for place in ("one", "two"):
        with campaign(tmp_path / place) as f:
            advance(f)
    assert len({batch.batch_id for batch in system.landed}) == 2


@pytest.mark.parametrize(("answer", "error"), [("lost", SubmissionDoubt), ("killed", Killed)])
def test_what_landed_unheard_is_adopted(
    tmp_path: Path, system: Memory, answer: str, error: type[BaseException]
) -> None:
    system.answer = answer
    with campaign(tmp_path) as f, pytest.raises(error):
        advance(f)
    system.answer = "yes"
    said: list[str] = []
    with campaign(tmp_path, said=said) as f:
        assert settle(f.ledger, f.folder, f.assembled, f.hand) == 1
        assert advance(f) == 0
        assert f.ledger.batches()[0].cluster == 1
    assert len(system.landed) == 1
    assert said == ["adopted small.b0000.go.g0: it had landed, cluster 1 at here"]


SEALED_SITE = """\
site: own
title: t
contact: c
manual: https://example.org/
backend: local
container: {launch: worker, rehearsal: true, runtimes: [none]}
secrets:
  oracle:
    kind: sealed
    from: FOLDER/oracle.sealed
    signer: FOLDER/me/certificate.pem
    key: FOLDER/site/key.pem
    certificate: FOLDER/site/certificate.pem
    point: {ORA: .}
output: {kind: transfer}
"""


def put_seal(folder: Path, days: float) -> None:
    """Seal a file anew."""
    (folder / "wallet").write_text("x")
    to = [(folder, read_certificate(folder / "site/certificate.pem"))]
    me = read_signer(folder / "me/key.pem", folder / "me/certificate.pem", None)
    until = datetime.now(UTC) + timedelta(days=days)
    sealed = seal("oracle", folder / "wallet", to, me, since=until - timedelta(days=30), until=until)
    (folder / "oracle.sealed").write_text(write_text(sealed))


def test_what_did_not_land_is_not_sent_with_a_secret_that_has_ended(tmp_path: Path, system: Memory) -> None:
    """It stays in doubt, so that it is still found; sealed anew, it is planned anew and sent once."""
    for name in ("me", "site"):
        make_key(tmp_path / name, name, 365, None, datetime.now(UTC) - timedelta(days=60))
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites/own.yaml").write_text(SEALED_SITE.replace("FOLDER", str(tmp_path)))
    put_seal(tmp_path, 9)
    own, run, hand = [tmp_path / "sites"], RunFolder(tmp_path / "run"), make_hand()
    text = SMALL + "    secrets: [oracle]\n"
    assembled = assemble(tmp_path, text, site="own", own=own)
    prepare(run)
    with closing(begin(assembled, run, "own", list(map(str, own)), hand)) as ledger:
        f = Following(ledger, run, assembled, "own", replace(hand, now=lambda: datetime.now(UTC)))
        system.answer = "silent"
        with pytest.raises(BackendUnavailable):
            advance(f)
        (first,) = ledger.batches()
        system.answer = "yes"
        put_seal(tmp_path, 0.001)
        with pytest.raises(SecretRefused, match=r"own\.yaml:8: secrets\.oracle: the seal of secret oracle") as error:
            settle(ledger, run, assembled, f.hand)
        assert f"fermigrid watch {run.path}" in error.value.hint
        assert ledger.batches() == [first] and system.landed == []
        put_seal(tmp_path, 8)
        assert settle(ledger, run, assembled, f.hand) + advance(f) == 2
        (second,) = ledger.batches()
        assert second.submitted and second.digest != first.digest and len(system.landed) == 1
        assert not plan_faults(rendered(run, second).plan_dir, second.digest)


@pytest.mark.parametrize(("answer", "error"), [("silent", BackendUnavailable), ("dead", Killed)])
def test_what_did_not_land_is_sent_after_two_denials(
    tmp_path: Path, system: Memory, answer: str, error: type[BaseException]
) -> None:
    system.answer = answer
    with campaign(tmp_path) as f, pytest.raises(error):
        advance(f)
    system.answer = "yes"
    with campaign(tmp_path) as f:
        assert settle(f.ledger, f.folder, f.assembled, f.hand) == 1
        assert f.ledger.batches()[0].submitted
    assert (len(system.landed), system.asked) == (1, 2)


def test_a_commit_that_comes_after_the_first_denial_is_adopted(tmp_path: Path, system: Memory) -> None:
    system.answer = "late"
    with campaign(tmp_path) as f, pytest.raises(SubmissionDoubt):
        advance(f)
    system.answer = "yes"
    waited: list[float] = []
    with campaign(tmp_path) as f:
        settle(f.ledger, f.folder, f.assembled, f.hand, waited.append)
    assert (len(system.landed), len(waited)) == (1, 1)


def test_a_doubt_stays_while_the_system_is_silent(tmp_path: Path, system: Memory) -> None:
    system.answer = "lost"
    with campaign(tmp_path) as f, pytest.raises(SubmissionDoubt):
        advance(f)
    system.answer = "silent"
    with campaign(tmp_path) as f:
        with pytest.raises(BackendUnavailable):
            settle(f.ledger, f.folder, f.assembled, f.hand)
        assert [batch.submitted for batch in f.ledger.batches()] == [None]
        assert "no answer" in watch_once(f).problems
    assert len(system.landed) == 1


def test_a_refusal_withdraws_the_intent_and_the_next_try_starts_afresh(tmp_path: Path, system: Memory) -> None:
    system.answer = "no"
    with campaign(tmp_path) as f:
        with pytest.raises(SubmissionRefused, match="no permission"):
            advance(f)
        assert f.ledger.batches() == []
        assert "withdrew" in f.ledger.journal()[-1][2]
    system.answer = "yes"
    with campaign(tmp_path) as f:
        assert advance(f) == 1
    assert len(system.landed) == 1


def test_a_plan_that_was_changed_after_it_was_intended_is_not_sent(tmp_path: Path, system: Memory) -> None:
    system.answer = "silent"
    with campaign(tmp_path) as f:
        with pytest.raises(BackendUnavailable):
            advance(f)
        system.answer = "yes"
        (rendered(f.folder, f.ledger.batches()[0]).plan_dir / "job.env").write_text("other")
        with pytest.raises(RunFolderError, match="was changed or damaged after it was intended"):
            settle(f.ledger, f.folder, f.assembled, f.hand)
    assert system.landed == []


def test_a_plan_that_was_written_and_never_intended_is_written_again(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path) as f:
        left = f.folder.batch("b0000", "go", 0) / "plan"
        left.mkdir(parents=True)
        (left / "rubbish").write_text("x")
        assert advance(f) == 1
        assert not (left / "rubbish").exists()


def test_later_changes_of_its_files_do_not_reach_a_campaign(tmp_path: Path, system: Memory) -> None:
    from fermigrid.assemble import assemble_kept

    (tmp_path / "go.py").write_text("x")
    text = TWO_STEPS + "code: [go.py]\nparameters: {p: a}\n"
    with campaign(tmp_path, text, TABLE) as f:
        before, record = f.assembled, f.ledger.campaign()
    shutil.rmtree(tmp_path / "other", ignore_errors=True)
    for name in ("campaign.yaml", "runs.csv", "go.py"):
        (tmp_path / name).write_text("changed")
    kept: Assembled = assemble_kept(RunFolder(tmp_path / "run"), record)
    assert (kept.campaign, kept.runs, kept.bundle, kept.folder) == (
        before.campaign,
        before.runs,
        before.bundle,
        before.folder,
    )


# --- and back


def test_jobs_end_results_are_accepted_and_the_next_step_goes(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        assert watch_once(f).submitted == 1
        clump = system.landed[0]
        for index in range(clump.jobs):
            stand_in.end_job(clump, index)
        turn = watch_once(f)
        assert (turn.judged, turn.submitted, turn.finished) == (3, 1, False)
        for index in range(2):
            stand_in.end_job(system.landed[1], index)
        assert watch_once(f).finished
        assert set(states(f).values()) == {State.DONE}
        assert names(f.folder.outputs) == ["r1.fit", "r1_c000.fit", "r1_c001.fit", "r2.fit", "r2_c000.fit"]
        assert watch_once(f) == Turn(0, 0, 0, True, ())


def test_a_failed_piece_keeps_its_run_back_and_the_campaign_ends(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        watch_once(f)
        stand_in.end_job(system.landed[0], 0, 3)
        for index in (1, 2):
            stand_in.end_job(system.landed[0], index)
        watch_once(f)
        assert [batch.jobs for batch in system.landed] == [3, 1]
        stand_in.end_job(system.landed[1], 0)
        assert watch_once(f).finished
        assert states(f)["clump.r1.c000"] is State.FAILED
        assert states(f)["merge.r2"] is State.DONE
        assert "merge.r1" not in states(f)


def test_a_job_without_a_report_failed_and_says_why(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path) as f:
        watch_once(f)
        stand_in.tell(system.landed[0], 0, Seen.ENDED, 1)
        watch_once(f)
        (job,) = f.ledger.jobs_in(State.FAILED)
        assert job.reason == "its log did not come back (exit code 1)"


def test_lost_is_not_failed_and_comes_back(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path) as f:
        watch_once(f)
        stand_in.tell(system.landed[0], 0, Seen.LOST)
        assert not watch_once(f).finished
        assert states(f)["go.0000"] is State.UNKNOWN
        for index in (0, 1):
            stand_in.end_job(system.landed[0], index)
        assert watch_once(f).finished


def test_news_of_jobs_that_are_not_ours_and_news_that_come_late_are_harmless(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path) as f:
        watch_once(f)
        batch = system.landed[0]
        stand_in.tell(batch, 99, Seen.STARTED)
        stand_in.tell(batch, -1, Seen.STARTED)
        stand_in.end_job(batch, 0, 5)
        watch_once(f)
        before = f.ledger.jobs_in(State.FAILED)
        for seen in Seen:
            stand_in.tell(batch, 0, seen)
        watch_once(f)
        assert f.ledger.jobs_in(State.FAILED) == before
        assert before[0].reason == "the payload ended with exit code 5"


def test_starts_are_counted(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path) as f:
        watch_once(f)
        for seen in (Seen.STARTED, Seen.EVICTED, Seen.STARTED):
            stand_in.tell(system.landed[0], 0, seen)
        watch_once(f)
        assert f.ledger.jobs_in(State.RUNNING)[0].starts == 2


def test_a_silent_system_is_said_and_nothing_is_lost(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path) as f:
        watch_once(f)
        system.answer = "silent"
        turn = watch_once(f)
        assert (turn.problems, turn.finished) == (("no answer",), False)
        system.answer = "yes"
        for index in (0, 1):
            stand_in.end_job(system.landed[0], index)
        assert watch_once(f).finished


def test_a_removed_batch_has_ended_when_its_known_jobs_have(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path) as f:
        watch_once(f)
        (record,) = f.ledger.batches()
        assert not has_ended(record, {State.DONE: 1})
        f.ledger.remove(record.id, f.hand.now(), "me")
        (record,) = f.ledger.batches()
        assert has_ended(record, {State.DONE: 1})
        assert not has_ended(record, {State.DONE: 1, State.RUNNING: 1})


def test_a_ledger_of_no_campaign_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.sqlite").touch()
    with (
        closing(open_ledger(tmp_path / "run" / "ledger.sqlite")) as empty,
        pytest.raises(LedgerError, match="never begun"),
    ):
        empty.campaign()


def test_a_removed_campaign_sends_nothing_more(tmp_path: Path, system: Memory) -> None:
    """Removed after the first step: no look at it, and no new submission, brings the second."""
    with campaign(tmp_path, CHAIN, TABLE) as f:
        watch_once(f)
        control(f, "remove", [], [])
        assert (watch_once(f).submitted, watch_once(f).finished) == (0, True)
        assert len(f.ledger.batches()) == 1
    with pytest.raises(RunFolderError, match="was removed on"):
        campaign(tmp_path, CHAIN, TABLE).__enter__()


def test_a_campaign_goes_on_when_its_removal_is_refused(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        watch_once(f)
        system.answer = "no"
        with pytest.raises(SubmissionRefused):
            control(f, "remove", [], [])
        assert f.ledger.campaign().stopped is None
        assert "goes on: its removal was refused: no permission" in f.ledger.journal()[-1][2]


def test_a_removal_without_an_answer_is_not_called_good(tmp_path: Path, system: Memory) -> None:
    """The jobs run on; no later step is sent; and everybody who looks is told."""
    with campaign(tmp_path, CHAIN, TABLE) as f:
        watch_once(f)
        system.answer = "silent"
        with pytest.raises(BackendUnavailable):
            control(f, "remove", [], [])
        assert "`fermigrid remove` again" in standing_of(f).headline
        for batch in system.landed:
            for index in range(batch.jobs):
                end_job(batch, index)
        system.answer = "yes"
        watch_once(f)
        standing = standing_of(f)
        assert (len(standing.batches), standing.good) == (1, False)
        assert "nothing more of it is sent" in standing.headline
        control(f, "remove", [], [])
        assert not standing_of(f).good


def test_looking_sends_nothing(tmp_path: Path, system: Memory) -> None:
    """status, why, logs: a submission that was cut short stays so until somebody submits or watches."""
    with campaign(tmp_path) as f:
        assert look(f).submitted == 0
        assert f.ledger.batches() == []
        assert watch_once(f).submitted == 1


def test_a_doubt_that_only_a_person_can_end_is_said_and_stops_no_verb(
    tmp_path: Path, system: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that is in the queue twice: `find` says what to remove, and the campaign can still be looked at."""
    system.answer = "silent"
    with campaign(tmp_path) as f:
        with pytest.raises(BackendUnavailable):
            advance(f)
        said = SubmissionDoubt("it is there twice", "Remove one: condor_rm 7.")
        monkeypatch.setattr(stand_in, "find", raising(said))
        assert look(f).problems == ("it is there twice Remove one: condor_rm 7.",)
        assert watch_once(f).problems[-1] == "it is there twice Remove one: condor_rm 7."


def raising(error: Exception) -> Callable[[object], None]:
    def find(batch: object) -> None:
        raise error

    return find


def test_the_order_of_a_tables_columns_makes_no_other_campaign(tmp_path: Path, system: Memory) -> None:
    text = SMALL.replace("{count: 2}", "{table: runs.csv}")
    with campaign(tmp_path, text, "run,season,sky\nr1,winter,north\n") as first:
        made = first.ledger.campaign()
    with campaign(tmp_path, text, "sky,run,season\nnorth,r1,winter\n") as again:
        assert again.ledger.campaign() == made


def test_a_changed_site_file_does_not_reach_what_is_submitted_and_that_is_told(tmp_path: Path) -> None:
    assembled, said = assemble(tmp_path), list[str]()
    folder = RunFolder(tmp_path / "run")
    prepare(folder)
    with closing(begin(assembled, folder, "local", [str(SITES)], make_hand())) as ledger:
        record = ledger.campaign()
    assert as_submitted(assembled, folder, record, said.append).sites == assembled.sites
    assert said == []
    site = assembled.sites["local"]
    other = replace(assembled, sites={"local": site.model_copy(update={"environment": {"NEW": "value"}})})
    assert as_submitted(other, folder, record, said.append).sites["local"] == site
    assert len(said) == 1 and said[0].startswith("site local changed since ") and "--run-dir" in said[0]
