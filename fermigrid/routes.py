"""The ways for a message to leave the submit side: SMTP, a program, an HTTPS POST, a spool folder.

Each ends in one of three: sent; certainly not sent, so that the next way may be tried; or in doubt, when the whole
message went out and no answer came. The worker has its own (submit_templates/worker/messages.sh).
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError


class Fate(StrEnum):
    """What became of a message on a route."""

    SENT = "sent"
    UNSENT = "unsent"
    DOUBT = "doubt"


@dataclass(frozen=True)
class Mail:
    """A message with its envelope. `id`: its Message-ID without brackets; `text`: headers and body."""

    source: str
    to: str
    id: str
    text: bytes


@dataclass(frozen=True)
class Answer:
    """What became of a message, by which route, and why it was not sent."""

    fate: Fate
    route: str
    reason: str = ""


def deliver(routes: Sequence[str], mail: Mail, limit: float, ca: str | None) -> Answer:
    """By the first route that takes it; `limit` in seconds is for each. Where it may have arrived no other is tried."""
    reasons = []
    for route in routes:
        fate, reason = _send(route, mail, limit, ca)
        if fate is not Fate.UNSENT:
            return Answer(fate, route, reason)
        reasons.append(f"{route}: {reason}")
    none = "there is no route: the site names none, and P2_SENDMAIL is not set"
    return Answer(Fate.UNSENT, "", "; ".join(reasons) or none)


def _send(route: str, mail: Mail, limit: float, ca: str | None) -> tuple[Fate, str]:
    kind, _, way = route.partition(":")
    if kind == "smtp":
        return _smtp(way.removeprefix("//"), mail, limit)
    if kind == "sendmail":
        return _pipe([way, "-i", "-f", mail.source, mail.to], mail, limit)
    if kind == "program":
        return _pipe([way], mail, limit)
    if kind == "spool":
        return _spool(Path(way), mail)
    return _post(route, mail, limit, ca)


def _pipe(command: Sequence[str], mail: Mail, limit: float) -> tuple[Fate, str]:
    none, pipe = subprocess.DEVNULL, subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdin=pipe, stdout=none, stderr=pipe, start_new_session=True)
    except OSError as error:
        return Fate.UNSENT, str(error.strerror)
    try:
        _, said = process.communicate(mail.text, timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # on a dead mount even KILL is not answered
            process.communicate(timeout=5)
        return Fate.DOUBT, f"no end within {limit:g} s"
    if process.returncode == 0:
        return Fate.SENT, ""
    words = said.decode(errors="replace").strip().splitlines()
    reason = f"exit code {process.returncode}" + (f": {words[-1][:200]}" if words else "")
    return (Fate.UNSENT if process.returncode > 0 else Fate.DOUBT), reason


def _spool(folder: Path, mail: Mail) -> tuple[Fate, str]:
    name = mail.id.partition("@")[0]
    part = folder / f".{name}"
    try:
        part.unlink(missing_ok=True)
        part.touch(0o600)
        with part.open("wb") as file:
            file.write(mail.text)
            file.flush()
            os.fsync(file.fileno())
        part.rename(folder / name)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        return Fate.UNSENT, str(error.strerror)
    return Fate.SENT, ""


def _smtp(address: str, mail: Mail, limit: float) -> tuple[Fate, str]:
    match = re.fullmatch(r"\[?(.*?)\]?(?::([0-9]+))?", address)
    host, port = (match[1], int(match[2] or 25)) if match else (address, 25)
    try:
        with closing(smtplib.SMTP(host, port, socket.gethostname(), limit)) as server:
            if refusal := _envelope(server, mail):
                return Fate.UNSENT, refusal
            server.send(re.sub(rb"(?m)^\.", b"..", mail.text).replace(b"\n", b"\r\n") + b".\r\n")
            return _last_answer(server)
    except (OSError, smtplib.SMTPException) as error:
        return Fate.UNSENT, str(error)


def _envelope(server: smtplib.SMTP, mail: Mail) -> str:
    """Everything before the text -> the server's refusal, or ""."""
    server.ehlo_or_helo_if_needed()
    for line, good in ((f"MAIL FROM:<{mail.source}>", 250), (f"RCPT TO:<{mail.to}>", 250), ("DATA", 354)):
        code, words = server.docmd(line)
        if code != good:
            return f"{code} {words.decode(errors='replace')}"
    return ""


def _last_answer(server: smtplib.SMTP) -> tuple[Fate, str]:
    """The whole text is on its way: without an answer nobody knows."""
    try:
        code, words = server.getreply()
    except (OSError, smtplib.SMTPException) as error:
        return Fate.DOUBT, f"no answer after the text: {error}"
    with suppress(OSError, smtplib.SMTPException):
        server.putcmd("QUIT")
    if code == 250:
        return Fate.SENT, ""
    return (Fate.UNSENT if code >= 400 else Fate.DOUBT), f"{code} {words.decode(errors='replace')}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET, and the message would be lost."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(url: str, mail: Mail, limit: float, ca: str | None) -> tuple[Fate, str]:
    return post(url, mail.text, "message/rfc822", limit, ca)


def post(url: str, body: bytes, kind: str, limit: float, ca: str | None) -> tuple[Fate, str]:
    """POST a body of a content type; what became of it, and why in words. The words never have the URL in them."""
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        https = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca))
        with urllib.request.build_opener(https, _NoRedirect).open(request, timeout=limit):
            return Fate.SENT, ""
    except HTTPError as error:
        error.close()
        return Fate.UNSENT, f"{error.code} {error.reason}"
    except URLError as error:  # not connected, or the text did not get out whole
        return Fate.UNSENT, str(error.reason)
    except (ssl.SSLError, FileNotFoundError) as error:
        return Fate.UNSENT, f"{ca}: {error}"
    except http.client.InvalidURL:  # its words have the URL in them
        return Fate.UNSENT, "what is given is no URL that can be used"
    except (OSError, http.client.HTTPException) as error:
        return Fate.DOUBT, f"no answer after the text: {error}"
