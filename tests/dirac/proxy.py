"""A proxy between fermigrid and a server, which loses requests and answers as a bad network does.

It passes bytes on and understands of HTTP only where a request begins, and of an answer where it ends.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

PASS = "pass"  # nothing happens
LOSE_REQUEST = "lose the request"  # the connection ends before the server has heard of it
LOSE_ANSWER = "lose the answer"  # the server did it, and the connection ends before it says so
HANG = "hang"  # the server hears of it; nobody hears of the server
DRIP = "drip"  # the answer comes byte by byte, for ever
LATE = "late"  # the request reaches the server only after its client has given up
ERROR = "HTTP/1.1 500 Internal Server Error"
BUSY = "HTTP/1.1 429 Too Many Requests"
# What fermigrid asks of a DiracX server.
SUBMIT, SEARCH, CONFIRM = "POST /api/jobs/jdl", "POST /api/jobs/search", "PATCH /api/jobs/status"
SANDBOX, METADATA = "POST /api/jobs/sandbox", "GET /.well-known/openid-configuration"


@dataclass(frozen=True)
class Request:
    """A request as it came: `line` such as `POST /api/jobs/jdl`."""

    line: str
    number: int  # from 1, among those with the same line


Fault = Callable[[Request], str]


@dataclass
class Proxy:
    """Listens at `port`; `fault` says what becomes of a request. `seen` are those that came."""

    target: int
    fault: Fault = field(default=lambda _: PASS)
    late_s: float = 3.0
    retry_after: str = "1"
    seen: list[Request] = field(default_factory=list)
    port: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, line: str) -> int:
        return sum(request.line == line for request in self.seen)

    def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self.port = self._listener.getsockname()[1]
        self._run(self._accept)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                self._run(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        """The requests of one connection, one after the other."""
        with contextlib.suppress(OSError), client:
            client.settimeout(0.1)
            while request := self._read(client):
                if not self._answer(client, request):
                    return

    def _read(self, source: socket.socket, limit: float = 60) -> bytes:
        """One message, whole: its head and as much as its length says; nothing where the other end is gone."""
        data, end = b"", time.monotonic() + limit
        while not self._over.is_set() and time.monotonic() < end:
            if b"\r\n\r\n" in data and len(data) >= _length(data):
                return data
            try:
                part = source.recv(1 << 16)
            except TimeoutError:
                continue
            if not part:
                return b""
            data += part
        return b""

    def _answer(self, client: socket.socket, request: bytes) -> bool:
        """Do with a request what is wanted -> does the connection go on?"""
        line = b" ".join(request.split(b" ", 2)[:2]).decode().partition("?")[0]
        with self._lock:
            known = Request(line, self.count(line) + 1)
            self.seen.append(known)
        what = self.fault(known)
        if what == LOSE_REQUEST:
            return _reset(client)
        if what.startswith("HTTP/1.1"):
            extra = f"Retry-After: {self.retry_after}\r\n" if what == BUSY else ""
            body = '{"detail": "a fault of the test"}'
            client.sendall(
                f"{what}\r\n{extra}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            return True
        if what == LATE:
            self._over.wait(self.late_s)
        answer = self._ask(request)
        if what == LOSE_ANSWER:
            return _reset(client)
        if what in (HANG, LATE):
            self._over.wait(120)
            return False
        if what == DRIP:
            for byte in answer[:200]:
                client.sendall(bytes([byte]))
                if self._over.wait(0.3):
                    break
            return False
        client.sendall(answer)
        return bool(answer)

    def _ask(self, request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.target), timeout=10) as server:
            server.settimeout(0.1)
            server.sendall(request)
            return self._read(server)


def _length(data: bytes) -> int:
    """How long a message is, head and body."""
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if fields.get(b"transfer-encoding") == b"chunked":
        end = body.find(b"0\r\n\r\n")
        return len(data) if end >= 0 and body.endswith(b"0\r\n\r\n") else len(data) + 1
    return len(head) + 4 + int(fields.get(b"content-length", b"0"))


def _reset(client: socket.socket) -> bool:
    """End a connection so that the other end hears of a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    client.close()
    return False


@contextlib.contextmanager
def between(target: int, fault: Fault | None = None, **settings: object) -> Iterator[Proxy]:
    """A proxy in front of the server at a port of this machine."""
    proxy = Proxy(target, **({"fault": fault} if fault else {}), **settings)  # type: ignore[arg-type]
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


def on(line: str, *numbers: int, what: str) -> Fault:
    """A fault of these requests, by line and number (from 1; none: of all)."""
    return lambda request: what if request.line == line and (not numbers or request.number in numbers) else PASS
