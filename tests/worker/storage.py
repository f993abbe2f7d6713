"""Storage servers in a node of the tests: xrootd as it is installed at sites, and nginx with its WebDAV module."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.worker.node import UID, Node, wait_for


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True)
class Storage:
    """A server of files: `url` is that of the folder `data`, `kind` the site's output kind for it."""

    kind: str
    url: str
    data: Path
    port: int

    @property
    def settings(self) -> list[tuple[str, str]]:
        return [("output.root", self.url)]

    def files(self) -> dict[str, str]:
        """What is in it, hidden files as well."""
        return {str(path.relative_to(self.data)): path.read_text() for path in self.data.rglob("*") if path.is_file()}

    def left(self) -> list[str]:
        """Names with which an attempt works and which none should leave."""
        return [path.name for path in self.data.rglob(".*")]


def own_folder(path: Path) -> Path:
    """A new folder of fermi."""
    path.mkdir()
    os.chown(path, UID, UID)
    return path


def start_xrootd(
    node: Node, *lines: str, name: str = "xrootd", data: Path | None = None, user: str = "fermi"
) -> Storage:
    """An xrootd with these further lines in its configuration."""
    folder, port = own_folder(node.folder / name), free_port()
    where = data or own_folder(folder / "data")
    text = [f"all.export /{where.name}", f"oss.localroot {where.parent}", f"all.adminpath {folder}/admin"]
    text += [f"all.pidpath {folder}/run", f"xrd.port {port}", "xrd.network nodnr", *lines]
    for each in ("admin", "run"):
        own_folder(folder / each)
    (folder / "cfg").write_text("\n".join([*text, ""]))
    log = folder / "log"
    log.touch()
    os.chown(log, UID, UID)
    node.serve("xrootd", "-c", folder / "cfg", "-l", log, "-n", name, user=user)
    wait_for(lambda: is_listening(port), f"xrootd does not listen: {node.folder}/xrootd.log")
    return Storage("xrootd", f"root://127.0.0.1:{port}//{where.name}", where, port)


def start_nginx(
    node: Node, methods: Sequence[str] = ("PUT", "DELETE", "MKCOL", "MOVE"), full_path: bool = False
) -> Storage:
    """An nginx that takes files by WebDAV; with `full_path` it makes missing folders itself."""
    folder, port = own_folder(node.folder / "nginx"), free_port()
    data = own_folder(folder / "data")
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/errors; worker_processes 2; events {{}}\n"
        f"http {{ access_log {folder}/access; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port}; root {data.parent}; client_max_body_size 0;\n"
        f"location / {{ dav_methods {' '.join(methods)}; create_full_put_path {'on' if full_path else 'off'}; }} }} }}\n"
    )
    node.serve("nginx", "-c", folder / "conf", "-e", folder / "errors", user="fermi")
    wait_for(lambda: is_listening(port), f"nginx does not listen: {node.folder}/nginx.log")
    return Storage("http", f"http://127.0.0.1:{port}/data", data, port)
