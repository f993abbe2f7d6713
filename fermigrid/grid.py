"""The model of HTCondor's grid universe in a site file: what takes the jobs behind the schedd."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from fermigrid.campaign import Expression, Variable, Word
from fermigrid.config import Model


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.@-]+(?::[0-9]{1,5})?", text):
        raise ValueError("is no name of a host or daemon: host, host:port or name@host")
    return text


def _service(text: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:/[A-Za-z0-9._/-]*)?", text):
        raise ValueError("is no http(s) URL of a service")
    return text


def _project(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:@-]*", text):
        raise ValueError("is no account of a batch system: letters, digits and . _ : @ -")
    return text


def _batch_option(text: str) -> str:
    if not re.fullmatch(r"--?[A-Za-z0-9][A-Za-z0-9_=,.:/+@-]*(?: [A-Za-z0-9_=,.:/+@\[\]>-]+)?", text):
        raise ValueError("is no option of a batch system that HTCondor carries unchanged: -x, -x value, --name=value")
    return text


# Options that would multiply a job, name it anew, or take the place of what fermigrid writes itself
_OWN_OPTIONS = {
    "slurm": "-a --array -J --job-name -d --dependency -o --output -e --error -D --chdir -p --partition -A --account "
    "-t --time --mem --mem-per-cpu -c --cpus-per-task -n --ntasks -N --nodes --wrap --parsable --test-only -W --wait",
    "lsf": "-J -w -o -oo -e -eo -cwd -q -W -n -I -K",
    "pbs": "-t -J -N -W -o -e -d -w -q -A -I",
    "sge": "-t -N -hold_jid -o -e -wd -cwd -q -A -pe -sync",
}


def _is_own(kind: str, option: str) -> bool:
    """Is it an option that fermigrid writes itself, or one that a job may not have? Slurm takes `-pmilano`, too."""
    own = _OWN_OPTIONS.get(kind, "").split()
    name = re.split("[= ]", option)[0]
    return name in own or (kind == "slurm" and re.match("-[A-Za-z]", name) is not None and name[:2] in own)


def _runtime_environment(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/+-]*(?: [A-Za-z0-9._/+=:@-]+)*", text):
        raise ValueError("is no runtime environment of ARC: NAME, or NAME and its options with a blank between them")
    return text


class Grid(Model):
    """HTCondor's grid universe: the schedd hands the jobs on to another system (`grid_resource`).

    `condor`: an HTCondor-CE or another schedd (`ce`, and its collector `pool`). `slurm`, `lsf`, `pbs`, `sge`: a batch
    system whose commands the schedd's machine has, and with which it shares the run folder (HTCondor's blahp). `arc`:
    an ARC CE (`url`; `rte`: runtime environments that its administrator offers). `attributes`: what the other side's
    job ad gets (`+remote_NAME`), as ClassAd expressions.
    """

    kind: Literal["condor", "slurm", "lsf", "pbs", "sge", "arc"]
    ce: Annotated[str, AfterValidator(_host)] | None = None
    pool: Annotated[str, AfterValidator(_host)] | None = None
    url: Annotated[str, AfterValidator(_service)] | None = None
    queue: Word | None = None
    project: Annotated[str, AfterValidator(_project)] | None = None
    options: tuple[Annotated[str, AfterValidator(_batch_option)], ...] = ()
    rte: tuple[Annotated[str, AfterValidator(_runtime_environment)], ...] = ()
    attributes: dict[Variable, Expression] = {}

    @property
    def is_batch(self) -> bool:
        """Is it a batch system on the schedd's own file system?"""
        return self.kind in ("slurm", "lsf", "pbs", "sge")

    @model_validator(mode="after")
    def _fits(self) -> Grid:
        needed = {"condor": ("ce", "pool"), "arc": ("url",)}.get(self.kind, ())
        for name in ("ce", "pool", "url"):
            if name in needed and getattr(self, name) is None:
                raise ValueError(f"kind: {self.kind} needs {name}")
            if name not in needed and getattr(self, name) is not None:
                raise ValueError(f"kind: {self.kind} has no {name}")
        for name in ("queue", "project", "options"):
            if getattr(self, name) and not self.is_batch and (name, self.kind) != ("queue", "arc"):
                raise ValueError(f"{name} is for batch systems (slurm, lsf, pbs, sge); kind: {self.kind} has none")
        for option in self.options:
            if _is_own(self.kind, option):
                text = f"options: {option!r} is fermigrid's own affair (what is started, how often, its name and place)"
                raise ValueError(f"{text}: queue and project are keys here, time, memory and cpus are the campaign's")
        if self.rte and self.kind != "arc":
            raise ValueError("rte is for kind: arc")
        if self.attributes and self.kind != "condor":
            raise ValueError("attributes are for kind: condor")
        return self
