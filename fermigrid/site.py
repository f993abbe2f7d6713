"""Where jobs run: the model of a site file, and where site files are looked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, TypeAdapter, model_validator

from fermigrid.campaign import (
    Bind,
    BindPath,
    Bytes,
    Environment,
    Expression,
    Line,
    Rate,
    Resources,
    Seconds,
    Variable,
    Word,
)
from fermigrid.config import Clash, Model, Source, find_unknown, find_wrong, load, validate
from fermigrid.dirac_site import Dirac
from fermigrid.errors import ConfigError, Problem
from fermigrid.grid import Grid
from fermigrid.image import Catalogue, check_version
from fermigrid.inherit import SiteText, is_there, read_site
from fermigrid.retry_rule import Rule
from fermigrid.secret import Secret
from fermigrid.units import parse_bytes, parse_seconds

_ROUTE = re.compile(
    r"(?:sendmail|program|spool):/[^\x00-\x1f\x7f]+|https://[^\s\x00-\x1f]+"
    r"|smtp://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?"
)

_ROOTS = {
    "xrootd": re.compile(r"x?root://[A-Za-z0-9.-]+(?::[0-9]+)?/(?:/[A-Za-z0-9._+=@,:~-]+)+"),
    "http": re.compile(r"https?://[A-Za-z0-9.-]+(?::[0-9]+)?(?:/[A-Za-z0-9._+=@,:~-]+)*"),
}
_ROOT_WORDS = {
    "posix": "an absolute path",
    "xrootd": "a folder, root://host//path or root://host:port//path, without a slash at its end",
    "http": "a folder, https://host/path or https://host:port/path, without a slash at its end",
}


def _route(text: str) -> str:
    if not _ROUTE.fullmatch(text):
        raise ValueError("is no route: sendmail:/path, program:/path, smtp://host:port, https://..., or spool:/folder")
    return text


def _option(text: str) -> str:
    if not re.fullmatch(r"--?[A-Za-z0-9][A-Za-z0-9_=,./:+-]*", text):
        raise ValueError("is no option of a runtime: -x or --name or --name=value, without blanks")
    if text in ("-p", "--pid", "-C", "--containall"):
        raise ValueError("would hide the payload's processes from the worker, which has to signal and end them")
    return text


def check_runtime(text: str) -> str:
    """The name or path of a container runtime, given back. Raises ValueError."""
    if text.rpartition("/")[2] in ("docker", "nerdctl", "crun", "runc"):
        raise ValueError("is no runtime that the worker can use: apptainer, singularity or podman, or the path of one")
    return text


Option = Annotated[str, AfterValidator(_option)]


class Htcondor(Model):
    """How to reach the schedd, and what its pool needs said (`attributes`: strings, `expressions`: of ClassAds)."""

    schedd: str | None = None
    pool: str | None = None
    shared_filesystem: bool = False
    requirements: Expression | None = None
    attributes: dict[Variable, str] = {}
    expressions: dict[Variable, Expression] = {}
    grid: Grid | None = None
    late_above: Annotated[int, Field(ge=0)] = 1000
    max_materialize: Annotated[int, Field(ge=1)] = 5000
    max_idle: Annotated[int, Field(ge=1)] = 1000
    timeout: Seconds = 60
    settle: Seconds = 10


class Local(Model):
    """This machine: `slots` jobs at once (default: its CPUs)."""

    slots: Annotated[int, Field(ge=1, le=4096)] | None = None
    scratch: BindPath | None = None


class NodeCache(Model):
    """A folder of the node that jobs share, for images. Each user has a part of his own, unless it is `shared`."""

    path: BindPath
    limit: Bytes = parse_bytes("20 GiB")
    shared: bool = False


class Ladder(Model):
    """Time limits of the image ladder's rungs; `jitter`: the longest random wait before a download."""

    path: Seconds = 30
    http: Seconds = parse_seconds("30 min")
    jitter: Seconds | None = None


class Container(Model):
    """Who starts the container, how it is asked for, and what the site allows."""

    launch: Literal["site", "worker"]
    order: Literal["wrapper-inside", "wrapper-outside"] = "wrapper-outside"
    dialect: Literal["self-healing", "plain", "universe", "none"] = "none"
    vacate_counter: str = "NumVacatesByReason.SingularityTestFailed"
    runtimes: tuple[Annotated[str, AfterValidator(check_runtime)], ...] = ("apptainer", "singularity")
    options: tuple[Option, ...] = ()
    formats: Annotated[tuple[Literal["directory", "sif"], ...], Field(min_length=1)] = ("directory", "sif")
    preamble: tuple[Line, ...] = ()
    oldest: Annotated[str, AfterValidator(check_version)] | None = None
    binds_anywhere: bool = True
    scratch: BindPath | None = None
    workdir: BindPath = "/srv"
    rehearsal: bool = False
    registry: bool = False
    node_cache: NodeCache | None = None
    limits: Ladder = Ladder()
    backoff: Seconds | None = None

    @model_validator(mode="after")
    def _fits(self) -> Container:
        if self.launch == "site" and self.dialect == "none":
            why = "launch: site needs a dialect (self-healing, plain or universe) to ask the site for the container"
            raise Clash("launch", "dialect", why)
        if self.launch == "worker" and self.dialect != "none":
            why = f"launch: worker starts the container itself, and has no use for dialect: {self.dialect}"
            raise Clash("launch", "dialect", f"{why}; an empty `dialect:` takes away one that is inherited")
        return self


class Output(Model):
    """Where outputs go: `transfer` back with the job, `posix`: a folder of the site's file system, `xrootd` and `http`
    (WebDAV): a folder of a server. `quota`: what is left there for one campaign, where it is known."""

    kind: Literal["transfer", "posix", "xrootd", "http"]
    root: str | None = None
    quota: Bytes | None = None

    @model_validator(mode="after")
    def _root(self) -> Output:
        if self.kind == "transfer":
            if self.root is not None:
                raise ValueError("kind: transfer has no root")
        elif self.root is None:
            raise ValueError(f"kind: {self.kind} needs a root: {_ROOT_WORDS[self.kind]}")
        elif self.kind == "posix":
            TypeAdapter(BindPath).validate_python(self.root)
        elif not _ROOTS[self.kind].fullmatch(self.root) or ".." in self.root.split("/"):
            raise ValueError(f"root {self.root!r} must be {_ROOT_WORDS[self.kind]}")
        return self

    @property
    def is_remote(self) -> bool:
        """Do outputs go to a server? Then their names are parts of URLs."""
        return self.kind in ("xrootd", "http")


class Staging(Model):
    """Limits of stage-in and stage-out, each for all files of a job; `cores`: the most bytes of core files that a
    failed job keeps."""

    stage_in: Seconds = parse_seconds("2 h")
    stage_out: Seconds = parse_seconds("2 h")
    tries: Annotated[int, Field(ge=1, le=20)] = 3
    cores: Bytes = parse_bytes("2 GiB")


class Messages(Model):
    """How start and end messages leave a node: routes in the order to try, each `sendmail:/path`, `program:/path` (the
    message on its stdin), `smtp://host:port`, an https URL to POST to, or `spool:/folder`. A node's P2_SENDMAIL comes
    first. `ca`: a file of certificates for https."""

    via: tuple[Annotated[str, AfterValidator(_route)], ...] = ()
    ca: BindPath | None = None
    timeout: Seconds = 30


class SiteImage(Model):
    """What differs at this site for an image of the catalogue."""

    path: BindPath
    sif: BindPath | None = None


class SiteLimits(Rate):
    """The most that one job may ask for here; and that a campaign may have here: jobs at a time, starts in a minute."""

    cpus: Annotated[int, Field(ge=1)] | None = None
    memory: Bytes | None = None
    disk: Bytes | None = None
    walltime: Seconds | None = None

    def exceeded_by(self, wanted: Resources) -> list[str]:
        """The names of the resources of which `wanted` is more than the site gives."""
        pairs = ((name, getattr(self, name), getattr(wanted, name)) for name in ("cpus", "memory", "disk", "walltime"))
        return [name for name, most, want in pairs if most is not None and want > most]


class SiteRetries(Model):
    """What is done here with jobs that do not end well: after the campaign's rules, before the built-in ones."""

    rules: tuple[Rule, ...] = ()


class Site(Model):
    """A site file."""

    site: Word
    extends: Word | None = None
    title: Line
    contact: Line
    manual: Line
    backend: Literal["htcondor", "local", "dirac"]
    template: Word = "job.sub.j2"
    htcondor: Htcondor = Htcondor()
    local: Local = Local()
    dirac: Dirac | None = None
    container: Container
    images: dict[Word, SiteImage] = {}
    proxy: str | None = None
    binds: tuple[Bind, ...] = ()
    environment: Environment = {}
    secrets: dict[Word, Secret] = {}
    output: Output
    staging: Staging = Staging()
    messages: Messages = Messages()
    limits: SiteLimits = SiteLimits()
    retries: SiteRetries = SiteRetries()
    queue_wait: Seconds | None = None


def load_site(name: str, folders: Sequence[Path]) -> tuple[Site, Source]:
    """The site `name` of the first folder that has it, over what it extends. Raises NotFound, ConfigError: also for
    values that are still to be asked for. A secret of which something is, is left out (`Source.unanswered`)."""
    found = read_site(name, folders)
    wrong = wrong_values(found)
    if wrong or found.blocks:
        raise ConfigError([*wrong, *found.open_problems()], found.way_out if found.questions else "")
    data, source = found.without_open_secrets()
    return validate(Site, data, source), source


def wrong_values(found: SiteText) -> list[Problem]:
    """Everything that is wrong with a site; open questions are not."""
    problems = [*find_wrong(Site, found.data, found.source), *find_unknown(Site, found.taken, found.source)]
    written, file = found.data.get("site"), found.files[0]
    if isinstance(written, str) and written != file.stem:
        problems.append(
            found.source.problem(("site",), f"{written!r} is in a file named {file.name}: they must be the same")
        )
    return problems


def load_catalogue(folders: Sequence[Path]) -> Catalogue:
    """All images and software; an entry of an earlier folder hides one of a later folder. Raises ConfigError."""
    return read_catalogue(folders)[0]


def read_catalogue(folders: Sequence[Path]) -> tuple[Catalogue, dict[tuple[str, str], Source]]:
    """The same, and for each entry (`("images", name)`) the file that has it. Raises ConfigError."""
    images, software, problems = {}, {}, list[Problem]()
    sources: dict[tuple[str, str], Source] = {}
    for folder in reversed(folders):
        path = folder / "images.yaml"
        if not is_there(path):
            continue
        try:
            found, source = load(Catalogue, path)
        except ConfigError as error:
            problems += error.problems
            continue
        images.update(found.images)
        software.update(found.software)
        sources.update({("images", name): source for name in found.images})
        sources.update({("software", name): source for name in found.software})
    if problems:
        raise ConfigError(problems)
    return Catalogue(images=images, software=software), sources
