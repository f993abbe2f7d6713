"""Who asks DIRAC: the tokens or the proxy that are here, whose they are, and whether they last. Nothing is ever written
into them, and no message has anything of their content but names and times."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fermigrid.access import Trust
from fermigrid.errors import SecretRefused
from fermigrid.lifetime import show_time
from fermigrid.secret_files import find_openings, read_proxy
from fermigrid.units import show_count, show_seconds

_BLOCK = re.compile(r"-----BEGIN DIRACX-----\s*(.*?)\s*-----END DIRACX-----", re.DOTALL)
_MOST = 1 << 20
SPARE_S = 300  # what the first and the last request may take, and clocks that differ
DOCUMENT_S = 1.0  # what handing one document in may take
PROXY = "x509up_u"


@dataclass(frozen=True)
class Login:
    """Credentials: the file they are in, whose they are, and until when they are good by themselves (`ends`) and when
    they can no longer be renewed (`renewable`; None: they cannot). `tokens`: what a client of DiracX reads; it is in
    the file itself, or a part of it."""

    path: Path
    kind: str  # "token" or "proxy"
    ends: datetime
    renewable: datetime | None
    group: str
    vo: str
    tokens: str | None = None

    def __repr__(self) -> str:
        return f"Login({self.kind} in {self.path})"

    @property
    def last(self) -> datetime:
        """When it is over, renewed as often as can be."""
        return max(self.ends, self.renewable or self.ends)


# --- where they are ----------------------------------------------------------------------------------------


def proxy_path(environment: Mapping[str, str]) -> Path:
    """Where a proxy is, if there is one: as every program of the grid finds it."""
    return Path(environment.get("X509_USER_PROXY") or Path("/tmp") / f"{PROXY}{os.geteuid()}")


def find_login(named: str | None, environment: Mapping[str, str]) -> Login:
    """The tokens that the site names, those of `dirac login`, or those in a proxy. Raises SecretRefused."""
    usual = environment.get("DIRACX_CREDENTIALS_PATH") or Path.home() / ".cache/diracx/credentials.json"
    places = [Path(named)] if named else [Path(usual), proxy_path(environment)]
    for place in places:
        try:
            there = place.is_file()
        except OSError as error:
            raise SecretRefused(f"{place} cannot be looked for: {error.strerror}") from error
        if there and (login := read_login(place)) is not None:
            return login
    looked = " and ".join(str(place) for place in places)
    text = f"nobody is logged in at DIRAC: there are no tokens in {looked}"
    raise SecretRefused(text, "Log in first: dirac login VO --group GROUP (docs/how-to/dirac.md)")


def read_login(path: Path) -> Login | None:
    """The tokens in a file, or in a proxy's block of them; None for a proxy without. Raises SecretRefused."""
    if faults := list(find_openings(path, Trust(os.geteuid()))):
        raise SecretRefused("; ".join(faults))
    try:
        with path.open("rb") as file:
            text = file.read(_MOST).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise SecretRefused(f"{path}: it cannot be read as tokens or a proxy: {type(error).__name__}") from error
    if "-----BEGIN " not in text:
        return _from_tokens(path, "token", text, None)
    block = _BLOCK.search(text)
    if block is None:
        return None
    read_proxy(path)  # refuses one that is limited or broken
    try:
        inner = base64.b64decode("".join(block[1].split()), validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        raise SecretRefused(f"{path}: its block of DiracX tokens is damaged: make the proxy anew") from None
    return _from_tokens(path, "proxy", inner, inner)


def _from_tokens(path: Path, kind: str, text: str, tokens: str | None) -> Login:
    try:
        content = json.loads(text)
        access, renewal = content["access_token"], content.get("refresh_token")
        claims = _claims(access)
        ends = min(_time(claims["exp"]), _time(content.get("expires_on", claims["exp"])))
        renewable = _time(_claims(renewal)["exp"]) if renewal else None
        group, vo = str(claims.get("dirac_group", "")), str(claims.get("vo", ""))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError):
        raise SecretRefused(f"{path} holds no tokens of DiracX, or damaged ones: log in anew (dirac login)") from None
    return Login(path, kind, ends, renewable, group, vo, tokens)


def _claims(token: str) -> dict[str, Any]:
    """What a token says of itself; whether it is true only the server can tell."""
    middle = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
    if not isinstance(claims, dict):
        raise ValueError("no claims")
    return claims


def _time(seconds: object) -> datetime:
    return datetime.fromtimestamp(float(str(seconds)), UTC)


# --- whether they will do ----------------------------------------------------------------------------------


def check_login(login: Login, vo: str, group: str, documents: int, now: datetime) -> None:
    """That they are of this group, and last until so many documents are handed in. Raises SecretRefused."""
    for what, wanted, found in (("group", group, login.group), ("VO", vo, login.vo)):
        if wanted and found != wanted:
            text = f"the {login.kind} in {login.path} is of {what} {found or '(none)'}; the site says {wanted}"
            raise SecretRefused(text, f"Log in for it: dirac login {vo} --group {group}")
    check_span(f"the {login.kind} in {login.path}", login.last, documents, now, login.renewable is not None)


def check_span(what: str, ends: datetime, documents: int, now: datetime, renewed: bool = False) -> None:
    """That credentials last until so many documents are handed in. Raises SecretRefused, with the arithmetic."""
    left, need = (ends - now).total_seconds(), SPARE_S + DOCUMENT_S * documents
    if left <= 0:
        raise SecretRefused(f"{what} ended at {show_time(ends)}", "Log in anew.")
    if left < need:
        count = show_count(documents, "document")
        terms = f"{count} at {show_seconds(DOCUMENT_S)} each + {show_seconds(SPARE_S)} to spare = {show_seconds(need)}"
        how = ", renewed as often as it can be" if renewed else ""
        text = f"{what} ends at {show_time(ends)}{how}, in {show_seconds(left)}; handing in may take {terms}"
        raise SecretRefused(text, "Log in anew.")


@contextmanager
def as_file(login: Login) -> Iterator[Path]:
    """A file that a client of DiracX reads: the file itself; for a proxy a private copy of its block, as long as it is
    needed. The client renews what is in it; the proxy stays as it is, whole."""
    if login.tokens is None:
        yield login.path
        return
    with tempfile.TemporaryDirectory(prefix="fermigrid-dirac-") as folder:
        path = Path(folder) / "credentials.json"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(login.tokens)
        yield path


def from_proxy_info(fields: Mapping[str, str], now: datetime) -> Login:
    """What `dirac-proxy-info` prints, as credentials. Raises SecretRefused: there is no proxy, or not for long."""
    try:
        hours, minutes, seconds = map(int, fields["timeleft"].split(":"))
    except (KeyError, ValueError):
        raise SecretRefused("dirac-proxy-info tells of no proxy", "Make one: dirac-proxy-init -g GROUP") from None
    path = Path(fields.get("path", "") or ".")
    if "limited" in fields.get("subject", "").rpartition("/CN=")[2]:
        raise SecretRefused(
            f"{path} is a limited proxy, which DIRAC refuses", "Make another: dirac-proxy-init -g GROUP"
        )
    ends = now + timedelta(hours=hours, minutes=minutes, seconds=seconds)
    return Login(path, "proxy", ends, None, fields.get("DIRAC group", ""), "")
