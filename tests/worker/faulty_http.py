"""An HTTP server that serves one file badly, in the way that the first part of the path says."""

from __future__ import annotations

import http.server
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Faulty:
    """A running server. `content` may be changed while it runs; `requests` are (path, Range, If-Range, status)."""

    content: bytes
    url: str = ""
    etag: str = '"v1"'
    requests: list[tuple[str, str | None, str | None, int]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    requested: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def statuses(self) -> list[int]:
        return [status for *_, status in self.requests]


class Handler(http.server.BaseHTTPRequestHandler):
    """Ways: good 404 403 503 (twice, with Retry-After) html wrong drop (twice, halfway) norange (drop, and Range is
    ignored) change (drop, then other ETag) stall (halfway, for ever) redirect."""

    protocol_version = "HTTP/1.1"
    faulty: Faulty

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        faulty, way = self.faulty, self.path.split("/")[1]
        faulty.seen[self.path] += 1
        count = faulty.seen[self.path]
        if way in ("404", "403") or (way == "503" and count <= 2):
            self.answer(int(way), b"<html>no</html>", {"Retry-After": "1"} if way == "503" else {})
        elif way == "redirect":
            self.answer(302, b"", {"Location": "/good/x"})
        elif way == "html":
            self.answer(200, b"<!DOCTYPE html><title>Maintenance</title>", {"ETag": '"h"'})
        elif way == "wrong":
            self.answer(200, faulty.content[:-1] + bytes([faulty.content[-1] ^ 1]), {"ETag": '"w"'})
        else:
            self.serve(way, count)

    def serve(self, way: str, count: int) -> None:
        faulty = self.faulty
        etag = '"v2"' if way == "change" and count > 1 else faulty.etag
        start, body = 0, faulty.content
        found = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") if way != "norange" else None
        if found and self.headers.get("If-Range", etag) == etag:
            start = int(found[1])
        headers = {"ETag": etag}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        limit = len(body)
        if way in ("drop", "norange", "change") and count <= (1 if way == "change" else 2):
            limit = start + (len(body) - start) // 2
        if way == "stall":
            limit = len(body) // 2
        self.answer(206 if start else 200, body[start:limit], headers, length=len(body) - start)
        if way == "stall":
            faulty.over.wait(60)
        if limit < len(body):
            self.close_connection = True
            self.connection.shutdown(2)

    def answer(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        faulty = self.faulty
        faulty.requests.append((self.path, self.headers.get("Range"), self.headers.get("If-Range"), status))
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

    def handle_error(self, *_: object) -> None: ...  # a client that goes away is what some tests do


@contextmanager
def serve(content: bytes) -> Iterator[Faulty]:
    """The server on a free port of the loopback interface."""
    faulty = Faulty(content)
    handler = type("Bound", (Handler,), {"faulty": faulty})
    with Server(("127.0.0.1", 0), handler) as server:
        faulty.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield faulty
        finally:
            faulty.over.set()
            server.shutdown()
            thread.join(5)
