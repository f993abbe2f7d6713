"""The model of DIRAC in a site file: where jobs are handed in, and what is asked of it for them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fermigrid.campaign import BindPath, Seconds
from fermigrid.config import Clash, Model

SERVER_CHUNK = 20  # jobs that a DiracX server takes at a time
SITE_NAME = 100  # characters that DIRAC's job table has for the name of a site


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~-]+)*/?", text):
        raise ValueError("is no URL of a server: https://host, https://host:port or https://host/path")
    return text


NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._+-]{{0,{SITE_NAME - 1}}}")  # of its sites, and of others of its things


def _named(what: str, form: str) -> AfterValidator:
    def check(text: str) -> str:
        if not NAME.fullmatch(text):
            raise ValueError(f"is no {what}: {form}, {SITE_NAME} characters at most")
        return text

    return AfterValidator(check)


_LETTERS = "letters, digits and . _ + -, beginning with a letter or digit"
DiracSite = Annotated[str, _named("site of DIRAC", "such as LCG.IN2P3-CC.fr")]
DiracName = Annotated[str, _named("name that DIRAC carries unchanged", _LETTERS)]


def _folder(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*(?:/[A-Za-z0-9][A-Za-z0-9._+-]*)*", text):
        raise ValueError("is no folder below your own in the catalogue: mc/2026, without a slash at its ends")
    return text


class Dirac(Model):
    """DIRAC as a site's backend: how jobs are handed in, and what the JDL says of all of them.

    `transport`: `diracx` (the HTTP API of the server at `url`) or `commands` (`dirac-wms-job-submit` and its like, as
    they are set up on the submit machine). `vo` and `group`: whose jobs they are. `sites` and `banned_sites`: names of
    DIRAC's own sites. `cpu_time_factor`: `CPUTime` is the walltime times this, what a core of the site does in a second
    in DIRAC's units; `max_cpu_time`: the most that the server takes. `memory`: the attribute by which memory is asked
    for (`MinRAM`: MiB, `RAM`: GiB). `chunk`: jobs of one document. `output_se`, `output_path`: where DIRAC puts outputs
    that come back (`output: {kind: transfer}`), instead of into the output sandbox. `credentials`: the file with the
    tokens or the proxy. `flights`: requests under way at once. `transfer`: how long one of DIRAC's commands may take to
    bring sandboxes or output data.
    """

    transport: Literal["diracx", "commands"] = "diracx"
    url: Annotated[str, AfterValidator(_url)] | None = None
    vo: DiracName
    group: DiracName
    sites: tuple[DiracSite, ...] = ()
    banned_sites: tuple[DiracSite, ...] = ()
    tags: tuple[DiracName, ...] = ()
    platform: DiracName | None = None
    job_type: DiracName = "User"
    cpu_time_factor: Annotated[float, Field(ge=1, le=1000)] = 10.0
    max_cpu_time: Annotated[int, Field(ge=100)] = 500_000
    memory: Literal["MinRAM", "RAM", "none"] = "MinRAM"
    chunk: Annotated[int, Field(ge=1, le=1000)] = SERVER_CHUNK
    output_se: tuple[DiracName, ...] = ()
    output_path: Annotated[str, AfterValidator(_folder)] | None = None
    credentials: BindPath | None = None
    timeout: Seconds = 60
    transfer: Seconds = 600
    settle: Seconds = 10
    flights: Annotated[int, Field(ge=1, le=32)] = 4

    @model_validator(mode="after")
    def _fits(self) -> Dirac:
        if self.transport == "diracx":
            if self.url is None:
                raise ValueError("transport: diracx needs url: that of the DiracX server")
            if self.platform is not None:
                why = "DiracX 0.7.0 refuses every job with a platform; use tags, or transport: commands"
                raise Clash("platform", "transport", why)
            if self.output_se:
                why = "nothing of DiracX brings output data back; use output: {kind: xrootd} or http, or leave it out"
                raise Clash("output_se", "transport", why)
            if self.chunk > SERVER_CHUNK:
                raise Clash("chunk", "transport", f"a DiracX server takes {SERVER_CHUNK} jobs at a time")
        elif self.credentials is not None:
            why = "transport: commands uses the proxy that DIRAC's own commands find (X509_USER_PROXY)"
            raise Clash("credentials", "transport", why)
        elif self.url is not None:
            why = "transport: commands asks the servers of DIRAC's own configuration, and has no url"
            raise Clash("url", "transport", why)
        if both := sorted({*self.sites} & {*self.banned_sites}):
            raise Clash("banned_sites", "sites", f"{both[0]} is in both")
        if self.output_path is not None and not self.output_se:
            raise ValueError("output_path without output_se: the storage element whose path it is")
        return self
