"""Servers that take messages, and misbehave as a test says: SMTP (aiosmtpd) and HTTPS with a certificate of its own."""

from __future__ import annotations

import asyncio
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session


@dataclass
class Post:
    """A mail that arrived, or the body of a POST with its headers."""

    text: bytes
    source: str = ""
    to: tuple[str, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Box:
    """What a server does (`way`), where it is, and what arrived: all of it, also what was refused or got no answer."""

    way: str
    address: str = ""
    got: list[Post] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def take(self, post: Post) -> None:
        self.got.append(post)
        self.arrived.set()


class _Sink:
    """Ways: good 450 (RCPT) 554 (after the text) lines (many) hangup (after the final dot) silent (the same)."""

    def __init__(self, box: Box) -> None:
        self.box = box

    async def handle_RCPT(self, _: SMTP, __: Session, envelope: Envelope, to: str, ___: list[str]) -> str:
        if self.box.way == "450":
            return "450 later"
        envelope.rcpt_tos.append(to)
        return "250-one\r\n250-two\r\n250 three" if self.box.way == "lines" else "250 ok"

    async def handle_DATA(self, server: SMTP, _: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        self.box.take(Post(envelope.content, str(envelope.mail_from), tuple(envelope.rcpt_tos)))
        if self.box.way == "hangup":
            assert server.transport is not None
            server.transport.abort()
        if self.box.way == "silent":
            await asyncio.sleep(60)
        return "554 no" if self.box.way == "554" else "250 taken"


class _HangsUpBefore(SMTP):
    async def smtp_DATA(self, _: str) -> None:
        assert self.transport is not None
        self.transport.close()


class _Controller(Controller):
    def __init__(self, box: Box, host: str, port: int) -> None:
        self._class = _HangsUpBefore if box.way == "hangup-before" else SMTP
        super().__init__(_Sink(box), hostname=host, port=port)

    def factory(self) -> SMTP:
        return self._class(self.handler, ident="test", hostname="mail.test")


@contextmanager
def smtp(way: str = "good", host: str = "127.0.0.1") -> Iterator[Box]:
    """An SMTP server. `closed`: nobody listens; `mute`: somebody does, and says nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as taken:
        taken.bind((host, 0))
        port = int(taken.getsockname()[1])
        address = f"smtp://[{host}]:{port}" if ":" in host else f"smtp://{host}:{port}"
        if way == "mute":
            taken.listen()
        if way in ("mute", "closed"):
            yield Box(way, address)
            return
    box = Box(way, address)
    controller = _Controller(box, host, port)
    controller.start()
    try:
        yield box
    finally:
        controller.stop()


class _Bridge(http.server.BaseHTTPRequestHandler):
    """Ways: good 500 redirect hangup silent (both after the body)."""

    box: Box

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.box.take(Post(b"", headers={"method": "GET"}))
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        way = self.box.way
        self.box.take(Post(self.rfile.read(int(self.headers["Content-Length"])), headers=dict(self.headers)))
        if way == "silent":
            self.box.over.wait(60)
        if way in ("silent", "hangup"):
            self.close_connection = True
            return
        self.send_response({"500": 500, "redirect": 302}.get(way, 200))
        if way == "redirect":
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()


class _Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that does not trust the certificate ends the connection: that is what some tests are about."""


@contextmanager
def https(way: str, folder: Path) -> Iterator[tuple[Box, Path, Path]]:
    """An HTTPS server, the certificate of its authority, and that of another one."""
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    ca, wrong = folder / "ca.pem", folder / "wrong.pem"
    authority.cert_pem.write_to_path(str(ca))
    other.cert_pem.write_to_path(str(wrong))
    box = Box(way)
    server = _Quiet(("127.0.0.1", 0), type("Bridge", (_Bridge,), {"box": box}))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    box.address = f"https://127.0.0.1:{server.server_address[1]}/mail"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield box, ca, wrong
    finally:
        box.over.set()
        server.shutdown()
        thread.join(10)
        server.server_close()
