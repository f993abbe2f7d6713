"""XRootD, the real server and clients: inputs from it, outputs to it, by an ordinary user of a node."""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Iterator

import pytest

from tests.worker.node import IMAGES, Node
from tests.worker.storage import Storage, free_port, own_folder, start_xrootd
from tests.worker.worker_job import Done, sha256

pytestmark = pytest.mark.pool
CONTENT = os.urandom(300_000)
SUMS = [("in.bytes", "300000"), ("in.adler32", f"{zlib.adler32(CONTENT):08x}"), ("in.sha256", sha256(CONTENT))]


@pytest.fixture
def xrootd(node: Node) -> Storage:
    """A server with one file, x.root."""
    server = start_xrootd(node, "xrootd.chksum adler32")
    (server.data / "x.root").write_bytes(CONTENT)
    return server


def fetch(node: Node, *sources: str, name: str = "job", settings: object = (), **what: object) -> Done:
    """A job with one input."""
    row = [("in", "x.root"), *(("in.from", source) for source in sources), *SUMS]
    return node.run_job(node.job(name, row=row, settings=list(settings), **what))  # type: ignore[call-overload]


def test_an_input(node: Node, xrootd: Storage) -> None:
    done = fetch(node, f"{xrootd.url}/x.root")
    assert done.code == 0, done.err
    staged = done.data["inputs"][0]
    assert (staged["bytes"], staged["sha256"], staged["tries"]) == (300_000, sha256(CONTENT), 1)
    assert staged["verified"] == ["bytes", "adler32", "sha256"]


@pytest.mark.fault(
    fault="an XRootD server refuses, or does not have the file", mode="worker", does="takes the next replica", code=0
)
def test_replicas_that_are_not_there(node: Node, xrootd: Storage) -> None:
    bad = [
        f"root://127.0.0.1:{free_port()}//data/x.root",
        f"{xrootd.url}/nope",
        xrootd.url,
        f"{xrootd.url[:-4]}other/x",
    ]
    done = fetch(node, *bad, f"{xrootd.url}/x.root")
    assert done.code == 0 and done.data["inputs"][0]["source"] == f"{xrootd.url}/x.root"
    assert done.data["phases"]["stage_in"] < 15
    done = fetch(node, *bad, name="none")
    assert done.code == 86 and all(source in done.message for source in bad)
    assert "no such file" in done.message and "is a directory" in done.message and "disallowed" in done.message
    assert "again" not in "".join(line for line in done.err.splitlines() if "no such file" in line)


@pytest.mark.fault(
    fault="an XRootD server serves other content",
    mode="any",
    does="compares the checksums, takes the next replica",
    code=0,
)
def test_a_damaged_replica(node: Node, xrootd: Storage) -> None:
    damaged = bytearray(CONTENT)
    damaged[100_000] ^= 1
    (xrootd.data / "bad.root").write_bytes(damaged)
    done = fetch(node, f"{xrootd.url}/bad.root", f"{xrootd.url}/x.root")
    assert done.code == 0 and done.data["inputs"][0]["source"].endswith("/x.root")
    done = fetch(node, f"{xrootd.url}/bad.root", name="only")
    assert done.code == 86 and f"adler32 {zlib.adler32(damaged):08x}, not {zlib.adler32(CONTENT):08x}" in done.message


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where connections are taken and nothing is ever said."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield server.getsockname()[1]


@pytest.mark.fault(
    fault="an XRootD server never answers",
    mode="any",
    does="gives it its share of the time, takes the next replica",
    code=0,
)
def test_a_silent_server(node: Node, xrootd: Storage, silent: int) -> None:
    sources = [f"root://127.0.0.1:{silent}//data/x.root", f"{xrootd.url}/x.root"]
    done = fetch(node, *sources, settings=[("limit.stage_in", "8")])
    assert done.code == 0 and done.data["inputs"][0]["source"] == sources[1], done.err
    assert 3 < done.data["phases"]["stage_in"] < 6.5
    done = fetch(node, sources[0], name="alone", settings=[("limit.stage_in", "3")])
    assert done.code == 86 and "no end within" in done.message and done.data["phases"]["stage_in"] < 5


@pytest.mark.drill
def test_a_silent_server_with_time(node: Node, silent: int) -> None:
    """The client's own limits end each try, long before the site's."""
    done = fetch(node, f"root://127.0.0.1:{silent}//data/x.root", settings=[("stage.tries", "2")])
    assert done.code == 86 and done.data["phases"]["stage_in"] < 60, done.err


KEYS = """
cd "$1"
xrdsssadmin -k fermi -u fermi -g fermi add keytab <<< y > /dev/null
xrdsssadmin -k fermi -u fermi -g fermi add other <<< y > /dev/null
chmod 600 keytab other
"""


@pytest.fixture
def guarded(node: Node) -> Storage:
    """A server that asks for a key, which is in <node's folder>/keys/keytab; keys/other is of nobody."""
    keys = own_folder(node.folder / "keys")
    node.sh(KEYS, keys, user="fermi")
    lines = ["xrootd.seclib libXrdSec.so", f"sec.protocol sss -s {keys}/keytab", "sec.protbind * only sss"]
    server = start_xrootd(node, "xrootd.chksum adler32", *lines)
    (server.data / "x.root").write_bytes(CONTENT)
    return server


def keytab(node: Node, name: str) -> list[tuple[str, str]]:
    return [("secret", "xrootd"), ("secret.from", f"{node.folder}/keys"), ("secret.point", f"XrdSecSSSKT={name}")]


def test_a_key_of_the_steps_secrets(node: Node, guarded: Storage) -> None:
    done = fetch(node, f"{guarded.url}/x.root", settings=keytab(node, "keytab"))
    assert done.code == 0, done.err
    row = [("out", "x.root"), ("out.to", "copy.root"), ("in", "x.root"), ("in.from", f"{guarded.url}/x.root")]
    job = node.job("out", row=row, kind="xrootd", settings=[*guarded.settings, *keytab(node, "keytab")])
    done = node.run_job(job)
    assert done.code == 0, done.err
    assert (guarded.data / "copy.root").read_bytes() == CONTENT and guarded.left() == []


@pytest.mark.fault(
    fault="an XRootD server does not accept the job's key", mode="any", does="does not try again, says why", code=86
)
@pytest.mark.parametrize("settings", [None, "other"])
def test_without_the_right_key(node: Node, guarded: Storage, settings: str | None) -> None:
    done = fetch(node, f"{guarded.url}/x.root", settings=keytab(node, settings) if settings else [])
    assert done.code == 86 and "Auth failed" in done.message, done.message
    assert "again in" not in done.err


CLIENT = """
export XRD_LOGLEVEL=Dump
xrdcp --nopbar "$1" copy 2> words || { tail -5 words >&2; exit 1; }
grep -o -E 'Effective config\\] .*|Trying to load a plug-in for .*' words
stat -c %a "$XrdSecSSSKT"; [ "$(stat -c %s copy)" = 300000 ]"""


@pytest.mark.parametrize("way", ["path", "transfer"])
def test_the_payloads_client_is_configured(node: Node, guarded: Storage, way: str) -> None:
    """The real client reads its configuration, its plug-in folder and its key where the variables point."""
    job = node.job("client", args=["/bin/bash", "-c", CLIENT, "client", f"{guarded.url}/x.root"])
    source = node.folder / "keys" if way == "path" else job.scratch / "keys"
    if way == "transfer":
        own_folder(job.scratch)
        node.sh('cp -r "$1" "$2"', node.folder / "keys", source)
    plugins = own_folder(source / "client.plugins.d")
    (source / "client.conf").write_text("RequestTimeout = 77\n")
    (plugins / "lat.conf").write_text("url = root://plug.test:1094\nlib = /nonexistent/libLat.so\nenable = true\n")
    points = {"XRD_CLCONFFILE": "client.conf", "XRD_PLUGINCONFDIR": "client.plugins.d", "XrdSecSSSKT": "keytab"}
    where = str(source) if way == "path" else "keys"
    job.settings = [("secret", "xrootd"), ("secret.kind", way), ("secret.from", where)]
    job.settings += [("secret.point", f"{name}={path}") for name, path in points.items()]
    node.sh('chown -R fermi "$1"; chmod -R go= "$1"', source)
    done = node.run_job(job)
    assert done.code == 0, done.err
    assert (
        b'"RequestTimeout" = "77"' in done.out and b"Trying to load a plug-in for 'root://plug.test:1094'" in done.out
    )
    assert b"\n600\n" in done.out and source.exists() == (way == "path")


@pytest.mark.parametrize(("user", "code"), [("fermi", 0), ("root", 86)])
def test_unix_authentication_goes_by_the_users_name(node: Node, user: str, code: int) -> None:
    """As SLAC's servers do; the name is that of the worker's user, in the container as well."""
    rules = node.folder / "rules"
    rules.write_text("u fermi /data a\n")
    lines = [
        "xrootd.seclib libXrdSec.so",
        "sec.protocol unix",
        "sec.protbind * only unix",
        f"acc.authdb {rules}",
        "ofs.authorize",
    ]
    server = start_xrootd(node, *lines)
    (server.data / "x.root").write_bytes(CONTENT)
    job = node.job(row=[("in", "x.root"), ("in.from", f"{server.url}/x.root")])
    done = node.run_job(job, user=user)
    assert done.code == code, done.err
    assert code == 0 or "disallowed" in done.message or "denied" in done.message


def image(order: str) -> dict[str, object]:
    """A job in the pool's light image, started by the worker."""
    head = {"launch": "worker", "order": order, "runtime": "apptainer"}
    return {
        "head": head,
        "settings": [("image.marker", "light-1"), ("image.path", f"{IMAGES}/cvmfs/fermi.test/images/light-1")],
    }


def test_from_server_to_server_through_a_container(node: Node, xrootd: Storage) -> None:
    """Input, payload in the image, output, as an ordinary user."""
    what = image("wrapper-outside")
    row = [("in", "x.root"), ("in.from", f"{xrootd.url}/x.root"), *SUMS, ("out", "y.root"), ("out.to", "v1/y.root")]
    settings = [*what["settings"], *xrootd.settings]  # type: ignore[misc]
    args = ["/bin/sh", "-c", "cat /etc/fermigrid-image; cp x.root y.root"]
    done = node.run_job(node.job(args=args, row=row, kind="xrootd", head=what["head"], settings=settings))
    assert done.code == 0 and done.data["container"] == "worker" and done.out.startswith(b"light-1\n"), done.err
    assert (xrootd.data / "v1/y.root").read_bytes() == CONTENT and xrootd.left() == []


@pytest.mark.fault(
    fault="no xrdcp in the image in which the worker stages",
    mode="inside",
    does="says so, takes the next replica",
    code=0,
)
def test_no_client_in_the_image(node: Node, xrootd: Storage) -> None:
    (node.folder / "x.root").write_bytes(CONTENT)
    what = image("wrapper-inside")
    row = [("in", "x.root"), ("in.from", f"{xrootd.url}/x.root"), ("in.from", f"{node.folder}/x.root"), *SUMS]
    bind = [("bind", str(node.folder)), ("bind.required", "yes")]
    done = node.run_job(node.job(row=row, head=what["head"], settings=[*what["settings"], *bind]))  # type: ignore[misc]
    assert done.code == 0 and "there is no xrdcp" in done.err, done.err
    job = node.job("out", args=["/bin/sh", "-c", "echo x > a"], row=[("out", "a"), ("out.to", "a")], kind="xrootd")
    job.head, job.settings = what["head"], [*what["settings"], *xrootd.settings]  # type: ignore[misc, assignment]
    done = node.run_job(job)
    assert done.code == 88 and "xrdcp: not found" in done.message and "again in" not in done.err, done.message
