"""The model of a secret in a site file: a name that campaigns ask for, and how it comes to the node. No values."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fermigrid.campaign import BindPath, Environment, Line, Variable
from fermigrid.config import Model


def _inside(text: str) -> str:
    parts = text.split("/")
    if text != "." and any(part in ("", ".", "..") for part in parts):
        raise ValueError("must be a path below the secret's folder, such as client.conf, or '.' for the folder itself")
    return text


def _home_file(text: str) -> str:
    parts = text.split("/")
    if any(part in ("", ".", "..") for part in parts) or parts[0].startswith(".fermigrid"):
        raise ValueError("must be a path below the home folder, such as .my.cnf")
    if "=" in text:
        raise ValueError("may not contain '='")
    return text


def _service(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]{0,59}", text):
        raise ValueError("is no name of a token service: letters and digits, beginning with a letter")
    return text


def _words(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9:/._,@+=~%-]+", text):
        raise ValueError("may hold only letters, digits and : / . _ , @ + = ~ % -, without blanks")
    return text


Inside = Annotated[Line, AfterValidator(_inside)]
HomeFile = Annotated[Line, AfterValidator(_home_file)]


class Secret(Model):
    """A secret or configuration set, staged privately for each job. `kind` says how it comes to the node:

    - `path`: a folder or file on the site's file systems.
    - `transfer`: one on the submit machine, sent by HTCondor's file transfer, encrypted.
    - `sealed`: a file of `fermigrid secret seal` on the submit machine, opened on the node with `key` and `certificate`
      there, and signed by `signer`, whose certificate is on the submit machine.
    - `token`: of HTCondor's credential daemon, by the name of its `service`.
    - `proxy`: an X.509 proxy on the submit machine (`from`), delegated and renewed by HTCondor; with DIRAC the one that
      it gives each job, and no `from`.

    `point`: variable -> path below the staged folder (`TNS_ADMIN: .`). `home`: name in the payload's home folder ->
    path below the staged folder (`.my.cnf: my.cnf`). `environment`: plain settings that go with it. `permissions` and
    `resource`: what the token is for. `renewed`: something on the submit machine renews the proxy in time.
    """

    kind: Literal["path", "transfer", "sealed", "token", "proxy"]
    source: BindPath | None = Field(default=None, alias="from")
    service: Annotated[str, AfterValidator(_service)] | None = None
    permissions: Annotated[str, AfterValidator(_words)] | None = None
    resource: Annotated[str, AfterValidator(_words)] | None = None
    renewed: bool = False
    key: BindPath | None = None
    certificate: BindPath | None = None
    signer: BindPath | None = None
    point: dict[Variable, Inside] = {}
    home: dict[HomeFile, Inside] = {}
    environment: Environment = {}

    @property
    def name_in_scratch(self) -> str:
        """What a sent folder or file is called where it arrives: the last part of its path; `proxy` for DIRAC's own."""
        return (self.source or "proxy").rstrip("/").rpartition("/")[2]

    @model_validator(mode="after")
    def _fits(self) -> Secret:
        sealed = ("from", "key", "certificate", "signer")
        needed = {"token": ("service",), "sealed": sealed, "proxy": ()}.get(self.kind, ("from",))
        may = {"token": ("permissions", "resource"), "proxy": ("from", "renewed")}.get(self.kind, ())
        values = {"from": self.source, "service": self.service, "permissions": self.permissions}
        values |= {"resource": self.resource, "key": self.key, "certificate": self.certificate, "signer": self.signer}
        values |= {"renewed": "yes" if self.renewed else None}
        for name, value in values.items():
            if value is None and name in needed:
                raise ValueError(f"kind: {self.kind} needs {name}")
            if value is not None and name not in (*needed, *may):
                raise ValueError(f"kind: {self.kind} has no {name}")
        return self
