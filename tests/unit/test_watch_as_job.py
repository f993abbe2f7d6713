"""The schedd's job that watches a campaign: what it is given, when it starts again, how it is told of."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import classad2
import pytest

from fermigrid.errors import LedgerBusy, NotFound
from fermigrid.ledger import create_ledger
from fermigrid.ledger_file import writing
from fermigrid.quoting import decode_environment
from fermigrid.records import Watching, WatchJob
from fermigrid.runfolder import RunFolder
from fermigrid.watch import Following
from fermigrid.watch_job import begin, chosen, in_words, render_watch_job
from tests.campaigns import NOW, assemble, make_hand
from tests.unit.test_ledger import CAMPAIGN

JOB = WatchJob("schedd.example.org", 4711, NOW.isoformat())


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[Following]:
    assembled = assemble(tmp_path)
    with closing(create_ledger(tmp_path / "ledger.sqlite", CAMPAIGN, NOW, "me")) as ledger:
        yield Following(ledger, RunFolder(tmp_path), assembled, "local", make_hand())


def expression(text: str, name: str) -> classad2.ExprTree:
    """The right side of a command of the submit file."""
    found = re.search(rf"(?m)^{re.escape(name)}\s*= ((?:.*\\\n)*.*)$", text)
    assert found
    return classad2.ExprTree(found[1].replace("\\\n", " "))


def test_it_is_given_what_it_needs_and_no_secret(followed: Following) -> None:
    shell = {
        "HOME": "/home/fermi",
        "PATH": "/usr/bin",
        "CONDOR_CONFIG": "/etc/condor/condor_config",
        "_CONDOR_SEC_TOKEN_DIRECTORY": "/home/fermi/tokens",
        "_CONDOR_ANCESTOR_17": "17:1:2",
        "X509_USER_PROXY": "/tmp/x509up_u20001",
        "BEARER_TOKEN": "abc",
        "_CONDOR_SEC_PASSWORD": "abc",
        "FERMIGRID_ALERTS": "https://me:abc@example.org/",
        "MY_PASSWORD": "abc",
        "LS_COLORS": "di=1",
        "LC_ALL": "",
        "PYTHONPATH": "/opt/more",
    }
    kept, left_out = chosen(shell)
    assert left_out == ["BEARER_TOKEN", "FERMIGRID_ALERTS", "_CONDOR_SEC_PASSWORD"]
    package = kept.pop("PYTHONPATH").split(":")
    assert ((Path(package[0]) / "fermigrid").is_dir(), package[1]) == (True, "/opt/more")
    assert kept == {name: shell[name] for name in [*list(shell)[:4], "X509_USER_PROXY"]}
    text = render_watch_job(followed, "/usr/bin/python3", kept)
    assert "abc" not in text
    (line,) = re.findall(r"(?m)^environment\s*= (.*)$", text)
    assert decode_environment(line) == kept


def test_the_schedd_starts_it_again_unless_it_said_that_the_campaign_has_ended(followed: Following) -> None:
    leaves = expression(render_watch_job(followed, "/usr/bin/python3", {}), "on_exit_remove")
    ends = [{"ExitBySignal": False, "ExitCode": code} for code in (0, 1, 70, 75, 127)]
    words = [leaves.eval(classad2.ClassAd(end)) for end in [*ends, {"ExitBySignal": True, "ExitSignal": 9}, {}]]
    assert words == [True, *[False] * 6]


@pytest.mark.parametrize(
    ("starts", "lasted", "ago", "may"),
    [
        (None, None, 0, True),
        (1, 2, 0, True),
        (4, 2, 0, True),
        (5, 2, 0, False),
        (5, 2, 299, False),
        (5, 2, 301, True),
        (400, 7200, 0, True),
        (400, 2, 10, False),
    ],
)
def test_a_job_that_dies_at_once_again_and_again_waits(
    followed: Following, starts: int | None, lasted: int | None, ago: int, may: bool
) -> None:
    now = int(time.time())
    ad = classad2.ClassAd({"EnteredCurrentStatus": now - ago})
    if starts is not None and lasted is not None:
        ad["NumJobStarts"], ad["JobCurrentStartDate"] = starts, now - ago - lasted
    assert expression(render_watch_job(followed, "/usr/bin/python3", {}), "requirements").eval(ad) is may


def test_a_campaign_without_a_schedd_says_so(followed: Following) -> None:
    with pytest.raises(NotFound, match="no site with a schedd") as error:
        begin(followed, "/usr/bin/python3")
    assert "timer" in error.value.hint


def test_status_tells_who_watches_and_asks_nobody_while_it_looks(followed: Following) -> None:
    ledger = followed.ledger
    assert in_words(followed, NOW) == ""
    ledger.watch_begins(JOB, "me")
    ledger.watch_begins(replace(JOB, since=NOW.replace(year=2030).isoformat()), "me")
    assert ledger.watch_job() == JOB
    watched = "watched by job 4711 of schedd.example.org"
    assert in_words(followed, NOW + timedelta(minutes=9)) == watched
    late = NOW + timedelta(hours=5)
    told = in_words(followed, late)  # there is no schedd here
    assert told.startswith(f"{watched}, of which nobody knows")
    ledger.watched(Watching((late - timedelta(minutes=1)).isoformat(), NOW.isoformat()))
    assert in_words(followed, late) == watched
    ledger.watch_ends(NOW, "me")
    ledger.watch_ends(late, "me")
    assert in_words(followed, late) == f"watched by nobody: job 4711 of schedd.example.org ended on {NOW.isoformat()}"
    ledger.watch_begins(replace(JOB, cluster=4712), "me")
    assert ledger.watch_job() == replace(JOB, cluster=4712)
    assert [what for _, _, what in ledger.journal()][-3:] == [
        watched,
        "the job that watched has ended",
        watched.replace("4711", "4712"),
    ]


def test_a_person_waits_a_moment_for_a_look(tmp_path: Path) -> None:
    ledger, free = tmp_path / "ledger.sqlite", threading.Event()

    def look() -> None:
        with writing(ledger):
            free.set()
            time.sleep(0.3)

    looking = threading.Thread(target=look)
    looking.start()
    assert free.wait(10)
    with pytest.raises(LedgerBusy, match="another fermigrid"), writing(ledger):
        pass
    with writing(ledger, 10):
        looking.join(10)
