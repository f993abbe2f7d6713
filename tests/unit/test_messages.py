"""The messages that a node could not send: once from the submit side, with the same id, and again where that is in doubt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from fermigrid import backends
from fermigrid.messages import send_missing
from fermigrid.watch import Following, advance, look, watch_once
from tests import stand_in
from tests.campaigns import NOW, SITES, SMALL, complaints, finish, python
from tests.stand_in import Memory
from tests.unit.test_submit import campaign

WHO = "messages: {instance: '42', from: l1@example.org, to: pipeline@example.org, log: /logs/42.txt}\n"
ONE = SMALL.replace("count: 2", "count: 1") + WHO
ID = "42.g0.s1.aaaaaaaa.{}@fermigrid"
TEXT = "Subject: 42\nMessage-ID: <{}>\n\nProcessInstance: 42\nStatus: {} é\n"


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """A batch system in the place of this machine's."""
    monkeypatch.setitem(backends.BACKENDS, "local", "tests.stand_in")
    yield stand_in.forget()
    stand_in.forget()


@pytest.fixture
def f(tmp_path: Path, system: Memory) -> Iterator[Following]:
    """A job of the pipeline that was submitted; the site's one route is the folder `spool`, which is not there yet."""
    with campaign(tmp_path, ONE) as following:
        advance(following)
        yield with_routes(following, f"spool:{tmp_path}/spool")


def with_routes(f: Following, *routes: str, timeout: int = 5) -> Following:
    site = f.assembled.sites["local"]
    site = site.model_copy(update={"messages": site.messages.model_copy(update={"via": routes, "timeout": timeout})})
    return replace(f, assembled=replace(f.assembled, sites={"local": site}))


def later(f: Following, seconds: int) -> Following:
    return replace(f, hand=replace(f.hand, now=lambda: NOW + timedelta(seconds=seconds)))


def text(kind: str) -> str:
    return TEXT.format(ID.format(kind), kind)


def end_with(kind: str = "end", result: str = "unsent", **changes: Any) -> None:
    """The job ends; its node says what became of one message."""
    message = {"kind": kind, "id": ID.format(kind), "route": "", "result": result, "text": text(kind), **changes}
    stand_in.end_job(stand_in.memory.landed[0], 0, messages=[message])


def send(f: Following) -> tuple[str, ...]:
    return send_missing(f.ledger, f.assembled, f.hand)


def spooled(f: Following) -> dict[str, str]:
    folder = f.folder.path.parent / "spool"
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


def test_what_the_node_could_not_send_is_sent_once(f: Following, spool: Path) -> None:
    end_with()
    assert watch_once(f).problems == ()
    assert spooled(f) == {"42.g0.s1.aaaaaaaa.end": text("end")}
    (spool / "42.g0.s1.aaaaaaaa.end").unlink()
    assert watch_once(later(f, 10_000)).problems == ()
    assert spooled(f) == {}
    assert f.ledger.journal()[-1][2] == f"sent the end message of go.0000 by spool:{spool}"


def test_what_the_node_has_sent_is_not_sent_again(f: Following, spool: Path) -> None:
    end_with(result="sent")
    watch_once(f)
    assert spooled(f) == {}


def test_start_comes_before_end(f: Following, spool: Path) -> None:
    both = [{"kind": k, "id": ID.format(k), "route": "", "result": "unsent", "text": text(k)} for k in ("start", "end")]
    stand_in.end_job(stand_in.memory.landed[0], 0, messages=both)
    look(f)
    assert [message.kind for message in f.ledger.unsent_messages()] == ["start", "end"]
    assert send(f) == ()
    assert set(spooled(f)) == {"42.g0.s1.aaaaaaaa.start", "42.g0.s1.aaaaaaaa.end"}


def test_looking_sends_nothing(f: Following, spool: Path) -> None:
    end_with()
    look(f)
    assert spooled(f) == {}
    assert len(f.ledger.unsent_messages()) == 1


def test_what_may_have_arrived_is_sent_again_after_a_while_and_says_so(f: Following, spool: Path) -> None:
    end_with(result="doubt")
    (said,) = watch_once(f).problems
    assert "the end message of go.0000 may not have arrived" in said
    assert "2027-03-04T05:16:07+00:00" in said
    watch_once(later(f, 599))
    assert spooled(f) == {}
    assert watch_once(later(f, 600)).problems == ()
    sent = spooled(f)["42.g0.s1.aaaaaaaa.end"]
    assert sent == text("end") + "# Sent again: whether it arrived the first time is not known\n"
    assert f.ledger.unsent_messages() == []


def test_a_failure_is_shown_and_tried_again_later(f: Following, tmp_path: Path) -> None:
    end_with()
    (said,) = watch_once(f).problems
    assert said == (
        f"the end message of go.0000 is not sent: spool:{tmp_path}/spool: No such file or directory; "
        "it is tried again after 2027-03-04T05:11:07+00:00"
    )
    (tmp_path / "spool").mkdir()
    assert send(later(f, 299)) == (said,)
    assert send(later(f, 300)) == ()
    assert spooled(f) == {"42.g0.s1.aaaaaaaa.end": text("end")}


def test_without_a_route(f: Following) -> None:
    end_with()
    (said,) = watch_once(with_routes(f)).problems
    assert "there is no route: the site names none, and P2_SENDMAIL is not set" in said


def program(folder: Path, script: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_p2_sendmail_comes_first(f: Following, tmp_path: Path, spool: Path) -> None:
    end_with()
    path = program(tmp_path, f"cat > {tmp_path}/got")
    assert watch_once(replace(f, hand=replace(f.hand, sendmail=str(path)))).problems == ()
    assert (tmp_path / "got").read_text() == text("end")
    assert spooled(f) == {}


def test_the_envelope_is_the_campaigns_whatever_the_log_says(f: Following, tmp_path: Path) -> None:
    end_with(text="To: somebody@else.example\n\nx\n")
    path = program(tmp_path, f'printf "%s\\n" "$*" > {tmp_path}/args; cat > /dev/null')
    assert watch_once(with_routes(f, f"sendmail:{path}")).problems == ()
    assert (tmp_path / "args").read_text() == "-i -f l1@example.org pipeline@example.org\n"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("cat > /dev/null; echo first >&2; echo no thanks >&2; exit 75", "is not sent: {}: exit code 75: no thanks"),
        ("kill -9 $$", "may not have arrived: {}: exit code -9"),
        ("exec sleep 30", "may not have arrived: {}: no end within 1 s"),
    ],
)
def test_a_program_that_fails(f: Following, tmp_path: Path, script: str, said: str) -> None:
    end_with()
    route = f"program:{program(tmp_path, script)}"
    (problem,) = watch_once(with_routes(f, route, timeout=1)).problems
    assert said.format(route) in problem


KILLED = """
import sys
from contextlib import closing
from datetime import datetime, UTC
from pathlib import Path
from fermigrid.assemble import assemble_file
from fermigrid.ledger import open_ledger
from fermigrid.messages import send_missing
from fermigrid.submit import Hand
folder, sites = Path(sys.argv[1]), Path(sys.argv[2])
with closing(open_ledger(folder / "run/ledger.sqlite")) as ledger:
    assembled = assemble_file(folder / "campaign.yaml", "local", {}, [sites])
    send_missing(ledger, assembled, Hand("me", lambda: datetime.now(UTC), print, sys.argv[3]))
"""


def test_killed_between_sending_and_writing_it_down(f: Following, tmp_path: Path, spool: Path) -> None:
    end_with()
    look(f)
    path = program(tmp_path, f"cat >> {tmp_path}/got; kill -9 $PPID")
    assert finish(python(KILLED, tmp_path, SITES, path))[0] == -9
    assert send(f) == ()
    assert [
        re.findall("Message-ID: <(.*)>", got) for got in ((tmp_path / "got").read_text(), *spooled(f).values())
    ] == [[ID.format("end")]] * 2


@pytest.mark.parametrize("name", ["../../x@fermigrid", "42.x/y@fermigrid", "42.x", "", "42.x@fermigrid\n"])
def test_a_log_with_a_forged_id_is_no_report(f: Following, spool: Path, name: str) -> None:
    end_with(id=name)
    watch_once(f)
    assert spooled(f) == {}
    assert "is no Message-ID" in f.ledger.jobs_not_done(f.ledger.batches()[0].id)[0].reason


def test_messages_are_of_one_job(tmp_path: Path) -> None:
    assert complaints(tmp_path, ONE) == []
    (said,) = complaints(tmp_path, SMALL + WHO)
    assert said == (
        "campaign.yaml:8: messages: messages are of one process instance of the pipeline, so of one job; "
        "this campaign has 2"
    )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("instance", "12x", "is no process instance"),
        ("instance", "1" * 19, "is no process instance"),
        ("to", "-oQ/tmp@x", "is no mail address"),
        ("to", "a b@x.org", "is no mail address"),
        ("from", "a@x.org\nBcc: x", "is no mail address"),
    ],
)
def test_who_is_wrong(tmp_path: Path, key: str, value: str, said: str) -> None:
    who = yaml.safe_load(WHO)
    who["messages"][key] = value
    found = complaints(tmp_path, SMALL.replace("count: 2", "count: 1") + yaml.safe_dump(who))
    assert any(said in line or "control character" in line or "line break" in line for line in found), found
