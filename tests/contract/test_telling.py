"""Alerts by mail, webhook and metrics file, against real servers; none of them fails a watch, and no secret leaks."""

from __future__ import annotations

import email
import http.server
import json
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from email.policy import default
from pathlib import Path

import pytest

from fermigrid.alerts import Concern
from fermigrid.campaign import Alerts, Campaign
from fermigrid.errors import ConfigError
from fermigrid.ledger import Ledger, create_ledger
from fermigrid.telling import alerts_of, metrics_file, read_url, tell, write_metrics_file
from tests.campaigns import NOW, SMALL, assemble
from tests.message_servers import https, smtp
from tests.unit.test_ledger import CAMPAIGN

HELD, TRIP = Concern("held", "", "3 jobs held: no space on Größenwahn"), Concern("breaker", "then", "40 failed")
TOKEN = "s3cr3t-t0ken"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(create_ledger(tmp_path / "ledger.sqlite", CAMPAIGN, NOW, "me@here")) as made:
        yield made


def say(
    ledger: Ledger, alerts: Alerts, *concerns: Concern, hours: float = 0, environment: dict[str, str] | None = None
) -> list[str]:
    now = NOW + timedelta(hours=hours)
    return tell(ledger, "P400", Path("/runs/P400"), "9 jobs, 3 held", concerns, alerts, now, environment or {})


def mail_to(*ways: str, to: tuple[str, ...] = ("ops@example.org",)) -> Alerts:
    return Alerts.model_validate({"mail": {"to": to, "from": "fermi@example.org", "via": ways}})


def test_a_mail_that_people_can_read(ledger: Ledger) -> None:
    with smtp() as box:
        assert say(ledger, mail_to(box.address, to=("ops@example.org", "l1@example.org")), HELD, TRIP) == []
    assert [post.to for post in box.got] == [("ops@example.org",), ("l1@example.org",)]
    message = email.message_from_bytes(box.got[0].text, policy=default)
    assert message["Subject"] == "fermigrid P400: 3 jobs held: no space on Gr??enwahn (and 1 more)"
    assert (message["From"], message["To"]) == ("fermi@example.org", "ops@example.org")
    assert message["Auto-Submitted"] == "auto-generated", "no holiday message answers it"
    body = message.get_body()
    assert body is not None
    text = body.get_content()
    assert "no space on Größenwahn" in text
    assert "40 failed\n    fermigrid status P400 --failed" in text.replace("\r\n", "\n")


def test_sendmail_is_a_way_too(ledger: Ledger, tmp_path: Path) -> None:
    program, out = tmp_path / "sendmail", tmp_path / "out"
    program.write_text(f'#!/bin/sh\nprintf "%s " "$@" > {out}\ncat >> {out}\n')
    program.chmod(0o755)
    assert say(ledger, mail_to("smtp://127.0.0.1:1", f"sendmail:{program}"), HELD) == []
    assert out.read_text().startswith("-i -f fermi@example.org ops@example.org From: fermi@example.org\n")


def test_each_is_told_once_by_each_way_and_again_after_a_day(ledger: Ledger) -> None:
    with smtp() as box:
        alerts = mail_to(box.address)
        for hours in (0, 1, 23):
            say(ledger, alerts, HELD, hours=hours)
        assert len(box.got) == 1
        say(ledger, alerts, HELD, TRIP, hours=23.5)
        assert b"40 failed" in box.got[1].text
        assert b"3 jobs held" not in box.got[1].text.partition(b"9 jobs")[0]
        say(ledger, alerts, HELD, TRIP, hours=24.1)
        assert len(box.got) == 3
        say(ledger, alerts, hours=80)  # over, and forgotten
        say(ledger, alerts, HELD, hours=81)
        assert len(box.got) == 4


def test_a_way_that_fails_is_told_and_tried_again(ledger: Ledger) -> None:
    with smtp("closed") as box:
        (problem,) = say(ledger, mail_to(box.address), HELD)
    assert "nobody was told by mail ops@example.org" in problem
    assert say(ledger, mail_to(box.address), HELD, hours=0.01) == [], "not at every look"
    with smtp() as box:
        assert say(ledger, mail_to(box.address), HELD, hours=0.2) == []
    assert len(box.got) == 1


def test_a_mail_that_may_have_arrived_is_not_sent_again(ledger: Ledger) -> None:
    with smtp("hangup") as box:
        assert say(ledger, mail_to(box.address), HELD) == []
        assert say(ledger, mail_to(box.address), HELD, hours=0.5) == []
    assert len(box.got) == 1


# --- webhook


@contextmanager
def plain_http() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    got: list[tuple[str, bytes]] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/hook/{TOKEN}", got
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_a_webhook_gets_json(ledger: Ledger) -> None:
    hook = Alerts.model_validate({"webhook": {"variable": "HOOK"}})
    with plain_http() as (url, got):
        assert say(ledger, hook, HELD, TRIP, environment={"HOOK": url}) == []
    ((path, body),) = got
    said = json.loads(body)
    assert path == f"/hook/{TOKEN}"
    assert said["text"].startswith("3 jobs held: no space on Größenwahn\n")
    assert (said["campaign"], said["folder"], said["time"]) == ("P400", "/runs/P400", NOW.isoformat())
    assert said["alerts"][1] == {"kind": "breaker", "about": "then", "text": "40 failed"}


def test_a_webhook_over_https_with_its_own_authority(ledger: Ledger, tmp_path: Path) -> None:
    with https("good", tmp_path) as (box, ca, wrong):
        secret = private(tmp_path / "hook", box.address)
        assert say(ledger, hook_in(secret, ca), HELD) == []
        (problem,) = say(ledger, hook_in(secret, wrong), TRIP)
    assert len(box.got) == 1
    assert "webhook" in problem


def private(path: Path, text: str) -> Path:
    path.write_text(text + "\n")
    path.chmod(0o600)
    return path


def hook_in(file: Path, ca: Path | None = None) -> Alerts:
    return Alerts.model_validate({"webhook": {"file": str(file), **({"ca": str(ca)} if ca else {})}})


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (f"http://example.org/{TOKEN}", "is no https URL"),
        (f"ftp://127.0.0.1/{TOKEN}", "is no https URL"),
        (f"https://127.0.0.1:1/{TOKEN}", "refused"),
        (f"https://[::1/{TOKEN}", ""),
        (f"https://127.0.0.1:port/{TOKEN}", ""),
        (f"https://exa mple.org/{TOKEN}", ""),
        (f"{TOKEN}", "is no https URL"),
        ("", "is no https URL"),
    ],
)
def test_no_message_has_the_url(ledger: Ledger, tmp_path: Path, url: str, why: str) -> None:
    (problem,) = say(ledger, hook_in(private(tmp_path / "hook", url)), HELD)
    assert TOKEN not in problem
    assert why in problem
    assert TOKEN.encode() not in (tmp_path / "ledger.sqlite").read_bytes()


def test_a_url_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    secret = private(tmp_path / "hook", f"https://example.org/{TOKEN}")
    webhook = hook_in(secret).webhook
    assert webhook
    assert read_url(webhook, {}) == f"https://example.org/{TOKEN}"
    secret.chmod(0o640)
    with pytest.raises(ValueError, match="can be read by others: chmod 600"):
        read_url(webhook, {})


def test_a_variable_that_is_not_set(ledger: Ledger) -> None:
    (problem,) = say(ledger, Alerts.model_validate({"webhook": {"variable": "HOOK"}}), HELD)
    assert "the variable HOOK is not set" in problem


# --- metrics, and the person's own file


def test_the_metrics_file_is_whole_and_for_all_to_read(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        path = metrics_file(str(tmp_path), "P400", Path("/runs/P400"))
        for text in ("a 1\n", "b 2\n"):
            assert write_metrics_file(path, text) == ""
    finally:
        os.umask(old)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("b 2\n", 0o644)
    assert list(tmp_path.iterdir()) == [path], "the collector would read what is left behind"
    assert path != metrics_file(str(tmp_path), "P400", Path("/runs/again"))
    assert "cannot be written" in write_metrics_file(tmp_path / "none" / "x.prom", "a 1\n")


def test_the_campaign_comes_before_the_persons_own_file(tmp_path: Path) -> None:
    own = tmp_path / "alerts.yaml"
    own.write_text("stall: 2 h\nrepeat: 1 h\nmetrics: /own\n")
    environment = {"FERMIGRID_ALERTS": str(own)}
    campaign = campaign_with(tmp_path, "alerts: {metrics: /theirs, stall: 12 h}\n")
    found = alerts_of(campaign, environment)
    assert (found.metrics, found.stall, found.repeat, found.silence) == ("/theirs", 43200, 3600, 3600)
    assert alerts_of(campaign, {"FERMIGRID_ALERTS": ""}) == campaign.alerts
    home = tmp_path / "home/.config/fermigrid"
    home.mkdir(parents=True)
    own.rename(home / "alerts.yaml")
    assert alerts_of(campaign, {"HOME": str(tmp_path / "home")}).repeat == 3600
    assert alerts_of(campaign, {"HOME": str(tmp_path)}) == campaign.alerts
    with pytest.raises(ConfigError):
        alerts_of(campaign, environment)


def campaign_with(folder: Path, text: str) -> Campaign:
    return assemble(folder / "campaign", SMALL + text).campaign
