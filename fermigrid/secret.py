"""The model of a secret in a site file: a name that campaigns ask for, and how it comes to the node. No values."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fermigrid.campaign import BindPath, Environment, Variable, Word
from fermigrid.config import Model


class Secret(Model):
    """A secret or configuration set, staged privately for each job. `kind` says how it comes to the node:

    - `path`: a folder or file on the site's file systems.
    - `transfer`: one on the submit machine, sent by HTCondor's file transfer, encrypted.
    - `sealed`: a file of `fermigrid secret seal` on the submit machine, opened on the node with `key` and `certificate`
      there, and signed by `signer`, whose certificate is on the submit machine.
    - `token`: of HTCondor's credential daemon, by the name of its `service`.
    - `proxy`: an X.509 proxy on the submit machine, delegated and renewed by HTCondor.

    `point`: variable -> path below the staged folder (`TNS_ADMIN: .`). `environment`: plain settings that go with it.
    """

    kind: Literal["path", "transfer", "sealed", "token", "proxy"]
    source: BindPath | None = Field(default=None, alias="from")
    service: Word | None = None
    key: BindPath | None = None
    certificate: BindPath | None = None
    signer: BindPath | None = None
    point: dict[Variable, str] = {}
    environment: Environment = {}

    @model_validator(mode="after")
    def _fits(self) -> Secret:
        needed = {"token": ("service",), "sealed": ("from", "key", "certificate", "signer")}.get(self.kind, ("from",))
        values = {"from": self.source, "service": self.service, "key": self.key}
        values |= {"certificate": self.certificate, "signer": self.signer}
        for name, value in values.items():
            if value is None and name in needed:
                raise ValueError(f"kind: {self.kind} needs {name}")
            if value is not None and name not in needed:
                raise ValueError(f"kind: {self.kind} has no {name}")
        return self
