"""An HTTP server that serves one file badly, in the way that the first part of the path says."""

from __future__ import annotations

import http.server
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate


@dataclass
class Faulty:
    """A running server. `content` may be changed while it runs; `requests` are (path, Range, If-Range, status), `times` when
    they came. Of the way `busy` it serves `capacity` at once, for `hold_s` each, and refuses the others."""

    content: bytes
    capacity: int = 3
    hold_s: float = 0.3
    busy: int = 0
    busiest: int = 0
    times: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""
    etag: str = '"v1"'
    requests: list[tuple[str, str | None, str | None, int]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    requested: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def statuses(self) -> list[int]:
        return [status for *_, status in self.requests]


class Handler(http.server.BaseHTTPRequestHandler):
    """Ways: good 404 403 503 (twice, with Retry-After) later (once, Retry-After as a date, 4 s away by a clock that is a day
    behind) never (Retry-After in an hour) busy (see Faulty) html wrong drop (twice, halfway) norange (drop, and Range is ignored)
    change (drop, then other ETag) stall (halfway, for ever) stallonce shaky (drop, then 503, then good) slow (hold_s) redirect."""

    protocol_version = "HTTP/1.1"
    faulty: Faulty

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        faulty, way = self.faulty, self.path.split("/")[1]
        faulty.seen[self.path] += 1
        count = faulty.seen[self.path]
        with faulty.lock:
            taken = way == "busy" and faulty.busy < faulty.capacity
            if taken:
                faulty.busy += 1
                faulty.busiest = max(faulty.busiest, faulty.busy)
        if way in ("404", "403") or (way == "503" and count <= 2):
            self.answer(int(way), b"<html>no</html>", {"Retry-After": "1"} if way == "503" else {})
        elif way == "later" and count == 1:
            self.answer(429, b"later", {"Retry-After": formatdate(time.time() - 86400 + 4, usegmt=True)})
        elif way == "never" or (way == "busy" and not taken) or (way == "shaky" and count == 2):
            self.answer(503, b"busy", {"Retry-After": "3600" if way == "never" else "1"})
        elif way == "redirect":
            self.answer(302, b"", {"Location": "/good/x"})
        elif way == "html":
            self.answer(200, b"<!DOCTYPE html><title>Maintenance</title>", {"ETag": '"h"'})
        elif way == "wrong":
            self.answer(200, faulty.content[:-1] + bytes([faulty.content[-1] ^ 1]), {"ETag": '"w"'})
        else:
            if way in ("busy", "slow"):
                time.sleep(faulty.hold_s)
            self.serve(way, count)
        if taken:
            with faulty.lock:
                faulty.busy -= 1

    def date_time_string(self, timestamp: float | None = None) -> str:  # noqa: ARG002
        return formatdate(time.time() - (86400 if "/later/" in self.path else 0), usegmt=True)

    def serve(self, way: str, count: int) -> None:
        faulty = self.faulty
        etag = '"v2"' if way == "change" and count > 1 else faulty.etag
        start, body = 0, faulty.content
        found = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") if way != "norange" else None
        if found and self.headers.get("If-Range", etag) == etag:
            start = int(found[1])
            if start >= len(body):
                self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
                return
        headers = {"ETag": etag}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        limit = len(body)
        if way in ("drop", "norange", "change", "shaky") and count <= (1 if way in ("change", "shaky") else 2):
            limit = start + (len(body) - start) // 2
        stalls = way == "stall" or (way == "stallonce" and count == 1)
        if stalls:
            limit = len(body) // 2
        self.answer(206 if start else 200, body[start:limit], headers, length=len(body) - start)
        if stalls:
            faulty.over.wait(60)
        if limit < len(body):
            self.close_connection = True
            self.connection.shutdown(2)

    def answer(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        faulty = self.faulty
        faulty.requests.append((self.path, self.headers.get("Range"), self.headers.get("If-Range"), status))
        faulty.times.append(time.monotonic())
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        faulty.requested.set()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, *_: object) -> None: ...  # a client that goes away is what some tests do


class Server6(Server):
    address_family = socket.AF_INET6


@contextmanager
def serve(content: bytes, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[Faulty]:
    """The server on a free port of the loopback interface."""
    faulty = Faulty(content)
    handler = type("Bound", (Handler,), {"faulty": faulty})
    with (Server6 if ":" in host else Server)((host, 0), handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        name = f"[{host}]" if ":" in host else host
        faulty.url = f"http{'s' if tls else ''}://{name}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield faulty
        finally:
            faulty.over.set()
            server.shutdown()
            thread.join(5)
