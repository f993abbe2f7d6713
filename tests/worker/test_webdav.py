"""WebDAV, nginx and servers that are worse: outputs are read back, whatever the server said."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from tests.worker.node import Node
from tests.worker.storage import start_nginx
from tests.worker.worker_job import Job

pytestmark = pytest.mark.pool


class Forgetful(http.server.BaseHTTPRequestHandler):
    """Takes a file, loses its last byte, and says that all is well."""

    kept: dict[str, bytes]

    def log_message(self, *_: object) -> None: ...

    def do_PUT(self) -> None:
        self.kept[self.path] = self.rfile.read(int(self.headers["Content-Length"]))[:-1]
        self.answer(201)

    def do_GET(self) -> None:
        self.answer(200 if self.path in self.kept else 404, self.kept.get(self.path, b""))

    def do_DELETE(self) -> None:
        self.answer(204 if self.kept.pop(self.path, None) is not None else 404)

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def forgetful() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of such a server, and what it holds."""
    kept: dict[str, bytes] = {}
    handler = type("Handler", (Forgetful,), {"kept": kept})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/data", kept
        server.shutdown()
        thread.join()


def publishes(node: Node, url: str, to: str = "a.fit") -> Job:
    args = ["/bin/sh", "-c", "echo events > a"]
    return node.job(args=args, row=[("out", "a"), ("out.to", to)], kind="http", settings=[("output.root", url)])


@pytest.mark.fault(
    fault="a WebDAV server damages an output",
    mode="any",
    does="reads it back, tries again, leaves nothing there",
    code=88,
)
def test_a_server_that_damages(node: Node, forgetful: tuple[str, dict[str, bytes]]) -> None:
    url, kept = forgetful
    done = node.run_job(publishes(node, url))
    assert done.code == 88 and "arrived damaged" in done.message and kept == {}
    assert done.err.count("again in") == 2


@pytest.mark.parametrize("full_path", [False, True])
def test_folders_are_made_where_the_server_does_not(node: Node, full_path: bool) -> None:
    server = start_nginx(node, full_path=full_path)
    done = node.run_job(publishes(node, f"{server.url}/P400", "a/b/c/a.fit"))
    assert done.code == 0, done.err
    assert server.files() == {"P400/a/b/c/a.fit": "events\n"} and server.left() == []


@pytest.mark.fault(
    fault="the WebDAV server does not let files be renamed", mode="any", does="says so, leaves nothing there", code=88
)
def test_a_server_without_move(node: Node) -> None:
    server = start_nginx(node, methods=("PUT", "DELETE", "MKCOL"))
    done = node.run_job(publishes(node, server.url))
    assert done.code == 88 and "cannot be renamed" in done.message
    assert server.files() == {} and server.left() == []
