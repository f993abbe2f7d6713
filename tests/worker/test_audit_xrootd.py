"""The audit of outputs on an XRootD server, with the real server and clients."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from fermigrid.remote_files import Absent, Unreachable, digest_of, fetch, size_of
from tests.audited import ONE, ran, sha256
from tests.contract.test_audit_remote import FIRST, OUTPUT, audit
from tests.worker.node import PATH, Node
from tests.worker.storage import Storage, free_port, own_folder, start_xrootd

pytestmark = pytest.mark.pool


@pytest.fixture
def xrootd(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A server; its clients are those of the node, as if they were installed here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("xrdfs", "xrdcp"):
        path = folder / program
        path.write_text(f'#!/bin/sh\nPATH={PATH}\nexec {shlex.join(map(str, node.prefix()))} {program} "$@"\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{PATH}")
    own_folder(node.folder / "files")
    return start_xrootd(node, data=own_folder(node.folder / "files/data"))


def test_a_file_on_the_server(xrootd: Storage, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    (xrootd.data / "x").write_bytes(content)
    assert size_of(f"{xrootd.url}/x") == len(content)
    assert digest_of(f"{xrootd.url}/x") == (len(content), sha256(content))
    fetch(f"{xrootd.url}/x", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    for ask in (size_of, digest_of):
        with pytest.raises(Absent):
            ask(f"{xrootd.url}/y")
        with pytest.raises(Unreachable):
            ask(f"root://127.0.0.1:{free_port()}//data/x")


def test_outputs_on_the_server(xrootd: Storage, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "sites/local.yaml").read_text()
    site = text.replace("output: {kind: transfer}", f"output: {{kind: xrootd, root: '{xrootd.url}'}}")
    with ran(tmp_path, site=site, served=xrootd.data) as campaign:
        assert campaign.assembled.sites["local"].output.kind == "xrootd"
        for path in [xrootd.data, *xrootd.data.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        assert audit(campaign) == audit(campaign, True) == ([], {})
        path = xrootd.data / OUTPUT
        before = path.read_bytes()
        path.write_bytes(b"?" + before[1:])
        (found,) = audit(campaign)[0]
        assert found.startswith(f"altered {FIRST}: {OUTPUT} was changed") and ONE in OUTPUT
        path.write_bytes(before[:-1])
        assert audit(campaign, True)[0] == [f"altered {FIRST}: {OUTPUT} is cut short: 38 bytes, the job wrote 39"]
        path.unlink()
        assert audit(campaign) == audit(campaign, True) == ([f"missing {FIRST}: {OUTPUT} is not there"], {})
