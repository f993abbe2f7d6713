"""Secrets that a person wrote where many can read: told, with the way out, and never repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from fermigrid.credential import hidden, what_is_said, what_is_told, what_is_written
from tests.campaigns import SITES, SMALL, complaints

CANARY = "kanari8f14e45fceea"
KEY = f"-----BEGIN RSA PRIVATE KEY-----\\n{CANARY}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MY_PASSWORD", CANARY),
        ("PGPASSWORD", CANARY),
        ("dbPassword", CANARY),
        ("SSHPASS", CANARY),
        ("BEARER_TOKEN", CANARY),
        ("API_KEY", CANARY),
        ("X509_KEY_PASSPHRASE", CANARY),
        ("AWS_SECRET_ACCESS_KEY", CANARY),
        ("ANY", KEY),
        ("ANY", f"eyJhbGciOiJ.eyJzdWIiOiJ.{CANARY}"),
        ("DATABASE", f"scott/{CANARY}@orcl"),
        ("URL", f"https://me:{CANARY}@example.org/x"),
        ("URL", f"https://example.org/x?a=b&authz={CANARY}"),
        ("OPTIONS", f"host=a, password={CANARY}"),
    ],
)
def test_what_looks_like_a_secret(name: str, value: str) -> None:
    why = what_is_written(name, value)
    assert why is not None
    assert CANARY not in why


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_TOKENS", "4096"),
        ("TOKEN_TYPE", "bearer"),
        ("AWS_ACCESS_KEY_ID", "somebody"),
        ("MY_PASSWORD", ""),
        ("MY_PASSWORD", "/secrets/my.cnf"),
        ("BEARER_TOKEN", "{token_path}"),
        ("USE_TOKEN", "yes"),
        ("COMPASS", "north"),
        ("PASSES", "three"),
        ("TOKENIZER", "words"),
        ("KEYWORD", "x"),
        ("URL", "https://example.org:8443/a@b?run=5&key_length=7"),
        ("XROOTD", "root://user@host.example.org:1094//glast/Data/a:b@c"),
        ("IMAGE", f"library/light@sha256:{64 * 'a'}"),
        ("NOTE", "the token is in token=/run/token"),
        ("FILTER", "(DATA_QUAL>0)&&(LAT_CONFIG==1)"),
    ],
)
def test_what_does_not(name: str, value: str) -> None:
    assert what_is_written(name, value) is None


@pytest.mark.parametrize(
    "words",
    [
        ("x.py", f"--password={CANARY}"),
        ("x.py", "--password", CANARY),
        ("x.py", "-access-token", CANARY),
        ("curl", f"https://a:{CANARY}@example.org"),
    ],
)
def test_a_command_with_a_secret(words: tuple[str, ...]) -> None:
    ((index, why),) = what_is_said(words)
    assert index == len(words) - 1 and CANARY not in why


@pytest.mark.parametrize(
    "words",
    [
        ("x.py", "--password-file", "mine"),
        ("x.py", "--token", "/run/token"),
        ("x.py", "--token={token}"),
        ("x.py", "--use-token", "--run", "{run}"),
        ("x.py", "password"),
        ("x.py", "--tokens", "5"),
    ],
)
def test_a_command_without_one(words: tuple[str, ...]) -> None:
    assert list(what_is_said(words)) == []


def test_a_message_hides_what_is_told() -> None:
    assert hidden("plain") == "plain"
    assert CANARY not in hidden(f"x https://me:{CANARY}@host y")
    assert what_is_told("plain") is None


CAMPAIGN = f"""\
campaign: small
image: light
runs: {{table: runs.csv}}
parameters: {{password: {CANARY}1}}
environment: {{MY_PASSWORD: {CANARY}2}}
steps:
  go:
    command: [/bin/true, "{{run}}", --token, {CANARY}3]
    inputs: {{x: "https://me:{CANARY}4@example.org/x"}}
    outputs: {{out.fit: "{{run}}.fit"}}
    environment: {{BEARER_TOKEN: {CANARY}5}}
"""
TABLE = f"run,place\nr1,root://me:{CANARY}6@example.org//x\n"


def test_check_tells_each_with_its_line_and_the_way_out(tmp_path: Path) -> None:
    told = complaints(tmp_path, CAMPAIGN, TABLE)
    assert [line.split(": ")[:2] for line in told] == [
        ["campaign.yaml:3", "runs"],
        ["campaign.yaml:4", "parameters.password"],
        ["campaign.yaml:5", "environment.MY_PASSWORD"],
        ["campaign.yaml:8", "steps.go.command[3]"],
        ["campaign.yaml:9", "steps.go.inputs.x"],
        ["campaign.yaml:11", "steps.go.environment.BEARER_TOKEN"],
    ]
    assert all("secrets: [name]" in line and CANARY not in line for line in told)


def test_a_signed_url_of_an_input(tmp_path: Path) -> None:
    """Whoever reads it can fetch the file: it is refused, and the message has the way to use one."""
    text = (
        SMALL.replace("{count: 2}", "{table: runs.csv}")
        + f'    inputs: {{x: "https://example.org/x?X-Amz-Signature={CANARY}"}}\n'
    )
    told = complaints(tmp_path, text, f"run,place\nr1,https://example.org/x?sig={CANARY}\n")
    assert len(told) == 2 and CANARY not in "".join(told)
    assert all('curl -K "$CURL_URLS"' in line and "secrets: [name]" in line for line in told)


def test_code_with_a_wallet_in_it(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/cwallet.sso").write_text(CANARY)
    told = complaints(tmp_path, SMALL + "code: [lib/]\n")
    assert len(told) == 1 and "lib/cwallet.sso" in told[0]


SITE = f"""\
site: mine
title: x
contact: x
manual: x
backend: local
container: {{launch: worker}}
output: {{kind: transfer}}
environment: {{DB_PASSWORD: {CANARY}1}}
proxy: http://me:{CANARY}2@proxy.example.org:3128
messages: {{via: ["https://me:{CANARY}3@example.org/mail"]}}
"""


def test_a_site_with_secrets(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/mine.yaml").write_text(SITE)
    told = complaints(tmp_path, SMALL, site="mine", own=[tmp_path / "own"])
    assert [line.split(": ")[1] for line in told] == ["environment.DB_PASSWORD", "proxy", "messages.via[0]"]
    assert CANARY not in "".join(told)


def test_a_wrong_url_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    catalogue = f"images:\n  light: {{flavour: light, http: {{urls: ['https://me:{CANARY}@example.org/x'], size: 1, sha256: x}}}}\n"
    (tmp_path / "own/images.yaml").write_text(catalogue)
    told = complaints(tmp_path, SMALL, own=[tmp_path / "own", SITES])
    assert told and CANARY not in "".join(told)
