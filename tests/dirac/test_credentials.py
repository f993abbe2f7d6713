"""Who asks DIRAC: tokens that end in the middle, are renewed, revoked or of another group; proxies; and that nothing of
them is told. Against the real server, with real tokens."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fermigrid.backends import dirac
from fermigrid.errors import BackendUnavailable, FermigridError, SecretRefused, SubmissionDoubt
from tests.certificates import make_person, make_proxy, write_proxy
from tests.dirac import proxy
from tests.dirac.batches import Watch, once, write_batch
from tests.dirac.conftest import own_servers
from tests.dirac.proxy import SUBMIT, Request, between, on
from tests.dirac.server import Server

pytestmark = pytest.mark.dirac


def change(file: Path, **fields: object) -> None:
    content = json.loads(file.read_text()) | fields
    file.write_text(json.dumps(content))


@pytest.fixture
def tokens(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Credentials of the test's own."""
    file = tmp_path / "credentials.json"
    server.log_in(file)
    monkeypatch.setenv("DIRACX_CREDENTIALS_PATH", str(file))
    return file


def test_tokens_are_renewed_in_the_middle(server: Server, tokens: Path, tmp_path: Path) -> None:
    """The access token ends while documents are handed in: the next request renews it by itself."""
    before = json.loads(tokens.read_text())

    def age(request: Request) -> str:
        if (request.line, request.number) == (SUBMIT, 2):
            change(tokens, expires_on=int(time.time()) + 200)  # the client renews what lasts less than 300 s
        return proxy.PASS

    with between(server.port, age) as network:
        change(tokens, expires_on=int(time.time()) + 301)
        batch = write_batch(tmp_path, network.url, jobs=100, flights=1)
        dirac.submit(batch)
        once(server, batch)
    after = json.loads(tokens.read_text())
    assert after["refresh_token"] != before["refresh_token"]
    assert after["expires_on"] > time.time() + 600


def test_tokens_end_in_the_middle(server: Server, tokens: Path, tmp_path: Path) -> None:
    """The server does not let us in any more: nothing is lost, and after another login the same command goes on."""
    with between(
        server.port, lambda r: "HTTP/1.1 401 Unauthorized" if r.line == SUBMIT and r.number >= 3 else proxy.PASS
    ) as network:
        batch = write_batch(tmp_path, network.url, jobs=100, flights=1)
        with pytest.raises(FermigridError) as caught:
            dirac.submit(batch)
        assert "Log in again" in caught.value.hint
        assert len(server.jobs(batch.batch_id)) == 40
        assert server.confirmed(batch.batch_id) == {}
        network.fault = lambda _: proxy.PASS
        server.log_in(tokens)
        dirac.submit(batch)
        once(server, batch)


def test_the_login_is_revoked_in_the_middle(server: Server, tokens: Path, tmp_path: Path) -> None:
    """The access token is to be renewed on the way, and the server renews it no more."""
    lasts = time.time() + 302  # the client renews what lasts less than 300 s

    def revoke(request: Request) -> str:
        if (request.line, request.number) == (SUBMIT, 3):
            server.revoke()
            time.sleep(max(0.0, lasts - 299 - time.time()))
        return proxy.PASS

    with between(server.port, revoke) as network:
        change(tokens, expires_on=int(lasts))
        batch = write_batch(tmp_path, network.url, jobs=100, flights=1)
        with pytest.raises(SubmissionDoubt, match="60 of its 100 jobs landed, 60 of them are not confirmed") as caught:
            dirac.submit(batch)
        assert "does not let us in any more" in str(caught.value)
        assert "Log in again" in caught.value.hint
        assert server.confirmed(batch.batch_id) == {}
        server.log_in(server.credentials)
        server.log_in(tokens)
        dirac.submit(batch)
        once(server, batch)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose tokens last a minute."""
    for server in own_servers("--token-minutes", "1"):
        monkeypatch.setenv("DIRACX_CREDENTIALS_PATH", str(server.credentials))
        monkeypatch.delenv("X509_USER_PROXY", raising=False)
        yield server


def test_tokens_that_are_renewed_with_every_request(hasty: Server, tmp_path: Path) -> None:
    """They never last as long as the client wants them to. A renewal token is good for once: two renewals at a time
    would end the login."""
    before = json.loads(hasty.credentials.read_text())["refresh_token"]
    batch = write_batch(tmp_path, hasty.url, jobs=200, timeout_s=30)
    dirac.submit(batch)
    once(hasty, batch)
    assert json.loads(hasty.credentials.read_text())["refresh_token"] != before
    assert Watch(dirac.Handle(batch, "", 1)).look() == []


def test_a_real_token_that_has_ended(server: Server, tokens: Path, tmp_path: Path) -> None:
    """Said before anything is sent, and with no request at all."""
    change(tokens, expires_on=int(time.time()) - 60, refresh_token=None)
    with between(server.port) as network:
        with pytest.raises(SecretRefused, match=r"token in .* ended at "):
            dirac.submit(write_batch(tmp_path, network.url, jobs=1))
        assert network.seen == []


def test_who_only_looks_hears_that_nobody_is_logged_in(server: Server, tokens: Path, tmp_path: Path) -> None:
    batch = write_batch(tmp_path, server.url, jobs=1)
    handle = dirac.submit(batch)
    tokens.unlink()
    with pytest.raises(BackendUnavailable, match="nobody is logged in at DIRAC") as caught:
        dirac.find(batch)
    assert "dirac login" in caught.value.hint
    watch = Watch(handle)
    assert watch.look() == []
    assert "dirac login" in "".join(watch.problems)
    assert "nobody is logged in" in dirac.silence(handle)


def test_a_token_for_another_group(server: Server, tokens: Path, tmp_path: Path) -> None:
    server.log_in(tokens, "glast_prod")
    with pytest.raises(SecretRefused, match="is of group glast_prod; the site says glast_user"):
        dirac.submit(write_batch(tmp_path, server.url, jobs=1))


def test_tokens_in_a_proxy(server: Server, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of DIRAC 9 has them in a block of their own; it is used, and the proxy stays as it is."""
    until = datetime.now(UTC) + timedelta(hours=5)
    proxy_file = write_proxy(tmp_path / "x509up", make_proxy(make_person(), until, limited=False))
    block = base64.encodebytes(tokens.read_bytes()).decode()
    with proxy_file.open("a") as file:
        file.write(f"-----BEGIN DIRACX-----\n{block}-----END DIRACX-----\n")
    before = proxy_file.read_bytes()
    monkeypatch.setenv("DIRACX_CREDENTIALS_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("X509_USER_PROXY", str(proxy_file))
    batch = write_batch(tmp_path, server.url, jobs=3)
    dirac.submit(batch)
    once(server, batch)
    assert proxy_file.read_bytes() == before


def test_no_token_is_told(
    server: Server, tokens: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither in a message nor in a file nor in a log, whatever happens."""
    secrets = [json.loads(tokens.read_text())[name] for name in ("access_token", "refresh_token")]
    caplog.set_level("DEBUG")
    said: list[str] = []
    for what in (proxy.ERROR, proxy.LOSE_ANSWER, "HTTP/1.1 401 Unauthorized", proxy.PASS):
        with between(server.port, on(SUBMIT, 1, 2, 3, 4, 5, 6, what=what)) as network:
            batch = write_batch(tmp_path / str(len(said)), network.url, jobs=3, timeout_s=3)
            try:
                said.append(str(dirac.submit(batch)))
            except FermigridError as error:
                said.append(f"{error} {error.hint} {error!r}")
    said += [str(vars(record)) for record in caplog.records if record.name.startswith("fermigrid")]
    said += list(capfd.readouterr())
    said += [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file() and path != tokens]
    assert not [secret for secret in secrets for text in said if secret in text]


def test_the_wrong_client_is_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    batch = write_batch(tmp_path, server.url, jobs=1)
    monkeypatch.setattr(metadata, "version", lambda _: "0.8.0")
    with pytest.raises(
        BackendUnavailable, match=r"speaks with DiracX 0\.7\.0; the client that is installed is of 0\.8\.0"
    ):
        dirac.submit(batch)


def test_without_the_client(server: Server, tmp_path: Path) -> None:
    """The extra is not installed: said in words, with what to do."""
    code = "import sys\nfrom importlib import metadata\n" + "\n".join(
        [
            "real = metadata.version",
            "def version(name):",
            "    if name == 'diracx-client': raise metadata.PackageNotFoundError(name)",
            "    return real(name)",
            "metadata.version = version",
            "from fermigrid.backends import dirac",
            "assert 'diracx.client' not in sys.modules",
            "from fermigrid.backends.dirac_client import check_client",
            "check_client()",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "needs DiracX's Python client, which is not installed" in done.stderr
