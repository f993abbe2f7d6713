"""A registry with one image in it, by the OCI distribution specification (pull only), which can lie."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import ssl
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass
class Registry:
    """A running registry: `reference` names its image by digest; `requests` are the paths that were asked for. `lie` makes
    it answer with another image's manifest."""

    blobs: dict[str, bytes]
    digest: str
    address: str = ""
    lie: bool = False
    requests: list[str] = field(default_factory=list)

    @property
    def reference(self) -> str:
        return f"docker://{self.address}/fermi/tiny@{self.digest}"

    def pulls(self) -> int:
        return sum("/manifests/" in path for path in self.requests)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _layer(folder: Path) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.add(folder, arcname=".")
    return data.getvalue()


def _image(tar: bytes, env: str) -> tuple[dict[str, bytes], str]:
    packed = gzip.compress(tar, 1, mtime=0)
    rootfs = {"type": "layers", "diff_ids": [_digest(tar)]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Env": [env]}, "rootfs": rootfs}).encode()
    parts = [
        {"mediaType": kind, "size": len(data), "digest": _digest(data)}
        for kind, data in ((CONFIG, config), (LAYER, packed))
    ]
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": parts[0], "layers": parts[1:]}).encode()
    return {_digest(data): data for data in (packed, config, manifest)}, _digest(manifest)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry
    other: str

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        registry, name = self.registry, self.path.rpartition("/")[2]
        registry.requests.append(self.path)
        if "/manifests/" in self.path and registry.lie:
            name = self.other
        body = b"{}" if self.path == "/v2/" else registry.blobs.get(name)
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Type", MANIFEST if "/manifests/" in self.path else "application/octet-stream")
        self.send_header("Docker-Content-Digest", name)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")


@contextmanager
def registry_of(folder: Path, tls: ssl.SSLContext) -> Iterator[Registry]:
    """A registry on the loopback interface with the image that `folder` holds, and with another one."""
    tar = _layer(folder)
    blobs, digest = _image(tar, "WHICH=this")
    others, other = _image(tar, "WHICH=other")
    registry = Registry(blobs | others, digest)
    handler = type("Bound", (Handler,), {"registry": registry, "other": other})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        registry.address = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join(5)
