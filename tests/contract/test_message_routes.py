"""The submit side's routes over the network, against real servers that misbehave: sent, certainly not, or in doubt."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fermigrid.routes import Answer, Fate, Mail, deliver
from tests.campaigns import fermigrid
from tests.message_servers import https, smtp

TEXT = "Subject: 42\n\n. a dot\n..\n  blanks  \nPipeline.x: é\n".encode()
MAIL = Mail("l1@example.org", "pipeline@example.org", "42.g0.s1.aaaaaaaa.end@fermigrid", TEXT)
LIMIT_S = 2.0


def send(*routes: str, ca: Path | None = None) -> Answer:
    began = time.monotonic()
    answer = deliver(routes, MAIL, LIMIT_S, str(ca) if ca else None)
    assert time.monotonic() - began < (LIMIT_S + 2) * len(routes)
    return answer


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_smtp(host: str) -> None:
    with smtp("lines", host) as box:
        assert send(box.address) == Answer(Fate.SENT, box.address)
    (post,) = box.got
    assert (post.text, post.source, post.to) == (TEXT.replace(b"\n", b"\r\n"), MAIL.source, (MAIL.to,))


@pytest.mark.parametrize(
    ("way", "fate", "reason"),
    [
        ("closed", Fate.UNSENT, "refused"),
        ("mute", Fate.UNSENT, "timed out"),
        ("450", Fate.UNSENT, "450 later"),
        ("554", Fate.UNSENT, "554 no"),
        ("hangup-before", Fate.UNSENT, "closed"),
        ("hangup", Fate.DOUBT, "no answer after the text"),
        ("silent", Fate.DOUBT, "no answer after the text"),
    ],
)
def test_smtp_servers_that_misbehave(tmp_path: Path, way: str, fate: Fate, reason: str) -> None:
    with smtp(way) as box:
        alone, then = send(box.address), send(box.address, f"spool:{tmp_path}")
    assert alone.fate is fate
    assert reason in alone.reason
    assert then.fate is (Fate.SENT if fate is Fate.UNSENT else Fate.DOUBT)
    assert len(list(tmp_path.iterdir())) == (fate is Fate.UNSENT)  # in doubt never by another route


@pytest.mark.parametrize("address", ["smtp://[::1", "smtp://:", "smtp://127.0.0.1:99999"])
def test_addresses_that_are_none(address: str) -> None:
    assert send(address).fate is Fate.UNSENT


def test_https_to_the_byte(tmp_path: Path) -> None:
    with https("good", tmp_path) as (box, ca, _):
        assert send(box.address, ca=ca) == Answer(Fate.SENT, box.address)
    (post,) = box.got
    assert (post.text, post.headers["Content-Type"]) == (TEXT, "message/rfc822")


@pytest.mark.parametrize(
    ("way", "fate", "reason"),
    [
        ("500", Fate.UNSENT, "500"),
        ("redirect", Fate.UNSENT, "302"),
        ("hangup", Fate.DOUBT, "no answer after the text"),
        ("silent", Fate.DOUBT, "no answer after the text"),
    ],
)
def test_https_servers_that_misbehave(tmp_path: Path, way: str, fate: Fate, reason: str) -> None:
    with https(way, tmp_path) as (box, ca, _):
        answer = send(box.address, ca=ca)
    assert answer.fate is fate
    assert reason in answer.reason
    assert len(box.got) == 1


def test_a_wrong_certificate_gets_nothing(tmp_path: Path) -> None:
    with https("good", tmp_path) as (box, _, wrong):
        answer = send(box.address, ca=wrong)
        missing = send(box.address, ca=tmp_path / "nowhere.pem")
    assert (answer.fate, missing.fate, box.got) == (Fate.UNSENT, Fate.UNSENT, [])
    assert "certificate" in answer.reason.lower()


def test_nobody_at_the_https_address() -> None:
    with smtp("closed") as box:
        assert send(box.address.replace("smtp", "https")).fate is Fate.UNSENT


CAMPAIGN = """\
campaign: piped
image: light
code: [payload]
runs: {count: 1}
steps:
  go:
    command: [./payload]
messages: {instance: "42", from: l1@example.org, to: pipeline@example.org, log: /logs/42.txt}
"""
HERE = """\
site: here
title: T
contact: c
manual: m
backend: local
container: {launch: worker, rehearsal: true, runtimes: [/nonexistent/apptainer]}
output: {kind: transfer}
messages: {via: ["spool:SPOOL"], timeout: 5 s}
"""


def test_from_the_campaign_file_to_the_spool(tmp_path: Path) -> None:
    """The start message finds no folder; the payload makes it; the node sends the end, and who watches sends the start."""
    spool = tmp_path / "spool"
    (tmp_path / "here.yaml").write_text(HERE.replace("SPOOL", str(spool)))
    (tmp_path / "c.yaml").write_text(CAMPAIGN)
    # the start message has had its chance when the payload's parent has no child but the payload
    script = f"#!/bin/sh\nwhile [ $(pgrep -cP $PPID) != 1 ]; do sleep 0.1; done\nmkdir {spool}\npipelineSet events 12\n"
    (tmp_path / "payload").write_text(script)
    (tmp_path / "payload").chmod(0o755)
    code, out, err = fermigrid("submit", "c.yaml", "--site", "here", "--sites", tmp_path, "--wait", cwd=tmp_path)
    assert code == 0, out + err
    kinds = {path.name.rpartition(".")[2]: path.read_text() for path in spool.iterdir()}
    assert set(kinds) == {"start", "end"}
    assert kinds["start"].endswith("\nLogFile: /logs/42.txt\nStatus: Started\n")
    assert "\nPipeline.events: 12\n" in kinds["end"] and kinds["end"].endswith("\nSignals: \nStatus: Ended\n")
    history = fermigrid("status", "fermigrid-runs/piped", "--history", cwd=tmp_path)[1]
    assert "sent the start message of go.0000" in history and "end message" not in history
