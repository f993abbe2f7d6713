"""The audit of outputs on servers: asked with the programs that are here, over HTTP and with a server that fails."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fermigrid.audit_campaign import CampaignAudit, Subject
from fermigrid.remote_files import Absent, Unreachable, digest_of, fetch, size_of
from tests.audited import ONE, Ran, ran, sha256

FIRST = f"clump.{ONE}.c000"
OUTPUT = f"clump/{ONE}_c000_v400.fit"


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves files; `broken` are paths for which it has a fault of its own, `moved` leads elsewhere."""

    broken: frozenset[str] = frozenset()

    def log_message(self, *_: object) -> None: ...

    def send_head(self):  # type: ignore[no-untyped-def]
        if self.path.lstrip("/") in self.broken:
            self.send_error(503)
            return None
        if self.path.startswith("/moved/"):
            self.send_response(307)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        return super().send_head()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, type[Server]]]:
    """(URL, folder, its handler)."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = type("Handler", (Server,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder)) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}", folder, handler
        found.shutdown()
        thread.join()


def site(url: str) -> str:
    text = (Path(__file__).parents[2] / "sites/local.yaml").read_text()
    return text.replace("output: {kind: transfer}", f"output: {{kind: http, root: {url}/data}}")


def audit(campaign: Ran, quick: bool = False) -> tuple[list[str], dict[str, int]]:
    work = CampaignAudit(Subject(campaign.ledger, campaign.assembled, campaign.folder.outputs), quick)
    found = [f"{f.kind} {f.subject}: {f.words}" for audited in work.runs() for f in audited.findings]
    return found, dict(work.totals.unlooked)


def test_outputs_on_an_http_server(tmp_path: Path, server: tuple[str, Path, type[Server]]) -> None:
    url, folder, handler = server
    with ran(tmp_path, site=site(url), served=folder / "data") as campaign:
        assert campaign.assembled.sites["local"].output.kind == "http"
        path = folder / "data" / OUTPUT
        assert audit(campaign) == audit(campaign, True) == ([], {})
        before = path.read_bytes()
        path.write_bytes(before[:-1] + b"?")
        assert audit(campaign, True) == ([], {})
        (found,) = audit(campaign)[0]
        assert found.startswith(f"altered {FIRST}: {OUTPUT} was changed")
        path.write_bytes(before[:-1])
        assert audit(campaign) == audit(campaign, True) == (
            [f"altered {FIRST}: {OUTPUT} is cut short: 38 bytes, the job wrote 39"], {}
        )  # fmt: skip
        path.unlink()
        assert audit(campaign) == audit(campaign, True) == ([f"missing {FIRST}: {OUTPUT} is not there"], {})
        path.write_bytes(before)
        handler.broken = frozenset({f"data/{OUTPUT}"})
        for quick in (False, True):
            assert audit(campaign, quick) == ([], {"curl: (22) The requested URL returned error: 503": 1})


def test_a_server_that_sends_elsewhere(server: tuple[str, Path, type[Server]], tmp_path: Path) -> None:
    url, folder, _ = server
    (folder / "x").write_bytes(b"content")
    assert size_of(f"{url}/moved/x") == 7
    assert digest_of(f"{url}/moved/x") == (7, sha256(b"content"))
    fetch(f"{url}/moved/x", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"
    with pytest.raises(Absent):
        size_of(f"{url}/moved/y")


def test_nobody_there(tmp_path: Path, server: tuple[str, Path, type[Server]]) -> None:
    url = "http://127.0.0.1:1"
    for ask in (size_of, digest_of):
        with pytest.raises(Unreachable, match=r"Failed to connect|refused|Could not connect"):
            ask(f"{url}/x")
    with pytest.raises(Unreachable):
        fetch(f"{url}/x", tmp_path / "copy")


@pytest.mark.parametrize("url", ["root://127.0.0.1:1//data/x", "http://127.0.0.1:1/x"])
def test_without_a_program_to_ask_with_it_is_said(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for ask, program in (
        (size_of, "curl" if url[0] == "h" else "xrdfs"),
        (digest_of, "curl" if url[0] == "h" else "xrdcp"),
    ):
        with pytest.raises(Unreachable, match=f"there is no {program} here"):
            ask(url)
