"""Work + sites -> batches: for each a header (what all its jobs share) and an iterator of rows. Pure.

A batch of a million jobs is never in memory: its rows are made some thousands at a time, from a text compiled once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fermigrid.advance import Work
from fermigrid.campaign import Campaign, PipelineMessages, Resources, Step
from fermigrid.errors import SecretRefused
from fermigrid.gather import Gathering, Given, Good, come_with_jobs
from fermigrid.image import Http, Image, Software
from fermigrid.jobtext import JobText
from fermigrid.placeholder import compile_text
from fermigrid.quoting import encode_field
from fermigrid.rates import limits_of, scopes_of
from fermigrid.retry_rule import BUILT_IN, InQueue, Rule, in_queue
from fermigrid.runs import Run
from fermigrid.sealed import SealedFiles, file_names
from fermigrid.secret import Secret
from fermigrid.site import Site, SiteImage
from fermigrid.split import chosen_pieces, count_jobs

if TYPE_CHECKING:
    from pathlib import Path

    from fermigrid.code import Bundle
    from fermigrid.config import Source
    from fermigrid.image import Catalogue

Fields = tuple[tuple[str, str], ...]
_NONE = frozenset[str]()
_NOTHING: Mapping[str, str] = {}
_EVERY: Mapping[str, frozenset[str]] = {}
LFN = "LFN:"  # so a name of DIRAC's file catalogue begins
_OVER_HTTP = re.compile(r"https?:|\{")  # or it may be, as the run table says
_NO_COUNTS: Mapping[str, int] = {}
_SCHEME = re.compile(r"(?:file|https?|x?root)://|LFN:/|/")


@dataclass(frozen=True)
class Assembled:
    """A campaign with all that it refers to (assemble.py reads it).

    `text` is the campaign file as written; `folder` is where its relative paths start. `site_sources` and
    `catalogue_sources` (by `("images", name)`, `("software", name)`) say in which file and line each value stands.
    `sealed`: by site and name, the sealed secrets that steps name, or why one cannot be read.
    """

    campaign: Campaign
    source: Source
    text: str
    folder: Path
    sites: Mapping[str, Site]
    catalogue: Catalogue
    runs: tuple[Run, ...]
    bundle: Bundle | None
    site_sources: Mapping[str, Source]
    catalogue_sources: Mapping[tuple[str, str], Source]
    sealed: Mapping[tuple[str, str], SealedFiles | str] = field(default_factory=dict)
    trial: int = 0  # so many runs are a trial: they come first, and are the first block
    drained: frozenset[str] = frozenset()  # sites that get no new work now


@dataclass(frozen=True)
class Request:
    """What the batch system is asked for, the same for all jobs of a batch. Memory and disk in bytes, walltime in s."""

    resources: Resources
    site: Site
    image_path: str | None
    image_digest: str
    limited: bool  # by a number of jobs that run, or start
    max_running: int | None
    retries: int
    in_queue: InQueue  # what of the retries needs no `watch`
    accounting_group: str | None
    accounting_user: str | None
    priority: int
    has_code: bool
    has_gathered: bool  # files from the run folder that each job is given
    secrets: Mapping[str, Secret]
    has_lfns: bool = False  # inputs of DIRAC's file catalogue, which DIRAC brings


@dataclass(frozen=True)
class Header:
    """What identifies a batch, what the worker is told (`worker`: the fields of job.env), what is asked of the site."""

    campaign: str
    step: str
    site: str
    block: str
    generation: int
    jobs: int
    worker: Fields
    request: Request

    @property
    def name(self) -> str:
        """For people: `P400.b0000.clump.g0`."""
        return f"{self.campaign}.{self.block}.{self.step}.g{self.generation}"


@dataclass(frozen=True, slots=True)
class Rows:
    """Some of a batch's jobs, in order: their names, and the line of a shard of each (without the line break), with
    those of what it gathers after it."""

    jobs: list[str]
    lines: list[str]


@dataclass(frozen=True)
class Plan:
    """A header and its rows; `rows()` starts anew each time."""

    header: Header
    assembled: Assembled
    work: Work
    given: Given

    def rows(self) -> Iterator[Rows]:
        """The jobs in order, some thousands at a time. That no two publish the same output is
        the affair of check_outputs.py."""
        work, step = self.work, self.assembled.campaign.steps[self.work.step]
        row = JobText(_row_text(self.assembled, work, step), work.step, step, encode_field)
        more = self._gathered(step) if step.gather else None
        for jobs, lines in zip(self._jobs(), row.of(work.runs, work.pieces), strict=True):
            yield Rows(jobs, [_with_more(line, next(more)) for line in lines] if more else lines)

    def jobs(self) -> Iterator[str]:
        """Their names, in the same order."""
        return (job for jobs in self._jobs() for job in jobs)

    def _jobs(self) -> Iterator[list[str]]:
        step = self.assembled.campaign.steps[self.work.step]
        return JobText("{job}", self.work.step, step).of(self.work.runs, self.work.pieces)

    def _gathered(self, step: Step) -> Iterator[tuple[str, ...]]:
        """For each job the lines of what it is given."""
        a, work = self.assembled, self.work
        gathering = Gathering(a.campaign, work.step, a.sites, work.site, self.given)
        for run in work.runs:
            for piece in chosen_pieces(step, run, work.pieces):
                yield tuple(gathering.lines(run, piece))


def _with_more(row: str, lines: Sequence[str]) -> str:
    return "\n".join((f"{row}\tmore={len(lines)}", *lines))


def constants_of(campaign: Campaign, step: str, site: str, parameters: Mapping[str, str] = _NOTHING) -> dict[str, str]:
    """The placeholders that are the same for all jobs of a step; `parameters` replace the campaign's and `version`."""
    fixed = {"campaign": campaign.campaign, "step": step, "site": site}
    return {**campaign.parameters, "version": campaign.version, **parameters, **fixed}


def variables_of(step: Step, example: Run) -> frozenset[str]:
    """The placeholders that each job has for itself; `example` is any run of the table."""
    names = {"run", "job", *(example.columns or ())}
    if example.events is not None:
        names.add("events")
    if step.foreach != "run":
        names |= {"piece", "first_event", "event_count"}
    if step.foreach in ("chunk", "crumb"):
        names.add("chunk")
    if step.foreach == "crumb":
        names.add("crumb")
    return frozenset(names)


def job_name(step: str, run: str, piece: str) -> str:
    """`clump.r0239557414.c003`, `crumb.r0239557414.k003u012`, or `merge.r0239557414` for a whole run."""
    return f"{step}.{run}.{piece}" if piece else f"{step}.{run}"


def plan_batch(assembled: Assembled, work: Work, given: Given | None = None) -> Plan:
    """One batch: the runs of one block for one step at one site.

    `given`: what was accepted of the steps that it gathers from; None: as if every job were good, as `render` shows.
    """
    campaign, site = assembled.campaign, assembled.sites[work.site]
    step = campaign.steps[work.step]
    image = assembled.catalogue.images[campaign.image]
    resources = step.resources
    if work.memory is not None and work.memory > resources.memory:
        resources = resources.model_copy(update={"memory": work.memory})
    running, starts = limits_of(scopes_of(campaign.limits, assembled.sites), work.step, work.site)
    request = Request(
        resources=resources,
        site=site,
        image_path=next(iter(image_paths(campaign.image, image, site)), None),
        image_digest=image.http.sha256 if image.http else image.marker or "",
        limited=running is not None or starts is not None,
        max_running=running,
        retries=campaign.retries.max if work.retries is None else work.retries,
        in_queue=in_queue(rules_of(campaign, site), step.resources.memory, site.limits.memory, not site.htcondor.grid),
        accounting_group=campaign.accounting.group,
        accounting_user=campaign.accounting.user,
        priority=campaign.accounting.priority,
        has_code=assembled.bundle is not None,
        has_gathered=come_with_jobs(step, assembled.sites),
        secrets={name: site.secrets[name] for name in step.secrets},
        has_lfns=site.backend == "dirac" and any(map(lfn_of, step.inputs.values())),
    )
    header = Header(
        campaign=campaign.campaign,
        step=work.step,
        site=work.site,
        block=work.block,
        generation=work.generation,
        jobs=count_jobs(step, work.runs, work.pieces),
        worker=tuple(_worker_fields(assembled, work, site, step, image)),
        request=request,
    )
    return Plan(header, assembled, work, given or _as_if_good(assembled, work))


def _as_if_good(a: Assembled, work: Work) -> Given:
    def given(step: str, output: str, run: Run) -> dict[str, Good]:
        what, constants = a.campaign.steps[step], constants_of(a.campaign, step, work.site, work.parameters)
        form = compile_text(what.outputs[output], constants, variables_of(what, a.runs[0]))
        jobs = jobs_of(step, what, (run,))
        return {values["piece"]: Good(form.format_map(values), work.site) for values in jobs}

    return given


def rules_of(campaign: Campaign, site: Site) -> tuple[Rule, ...]:
    """What is done with jobs that do not end well: the first rule that fits."""
    return (*campaign.retries.rules, *site.retries.rules, *BUILT_IN)


def image_paths(name: str, image: Image, site: Site) -> tuple[str, ...]:
    """Where the image lies on the site's file systems, in the formats that the site's runtime accepts."""
    here: Image | SiteImage = site.images.get(name, image)
    formats = {
        path: "sif" if path == here.sif or path.endswith(".sif") else "directory"
        for path in (here.path, here.sif)
        if path
    }
    return tuple(path for path, form in formats.items() if form in site.container.formats)


def _worker_fields(a: Assembled, work: Work, site: Site, step: Step, image: Image) -> Iterator[tuple[str, str]]:
    """The fields of job.env, in the order of docs/architecture.md."""
    yield from (("format", "1"), ("campaign", a.campaign.campaign), ("step", work.step), ("site", site.site))
    yield from (("block", work.block), ("generation", str(work.generation)))
    yield "walltime", str(step.resources.walltime)
    yield from _container_fields(site)
    yield from _image_fields(a.campaign.image, image, site)
    for bind in (*site.binds, *a.campaign.binds):
        yield from (("bind", bind.source), ("bind.to", bind.to), ("bind.mode", bind.mode))
        yield "bind.required", "yes" if bind.required else "no"
    for name in a.campaign.software:
        yield from _software_fields(name, a.catalogue.software[name])
    for name, value in _environment(a, work, site).items():
        if name not in step.environment:
            yield "env", f"{name}={value}"
    for name in step.secrets:
        yield from _secret_fields(a, site, name)
    if a.bundle:
        yield from (("code", "bundle.tar.gz"), ("code.sha256", a.bundle.sha256))
    yield "output.kind", site.output.kind
    if site.output.root:
        yield "output.root", site.output.root
    yield from (("limit.stage_in", str(site.staging.stage_in)), ("limit.stage_out", str(site.staging.stage_out)))
    yield from (("stage.tries", str(site.staging.tries)), ("cores.limit", str(_cores(site))))
    yield from (("gather", folder) for folder in step.gather)
    gathers_over_http = step.gather and any(other.output.kind == "http" for other in a.sites.values())
    if gathers_over_http or any(_OVER_HTTP.match(place) for places in step.inputs.values() for place in places):
        yield "stage.http", "yes"
    if a.campaign.messages:
        yield from _message_fields(a.campaign.messages, site)


def _cores(site: Site) -> int:
    """The most of core files that a job keeps: with one, DIRAC's output sandbox would be too large for the log, too."""
    return 0 if site.backend == "dirac" else site.staging.cores


def _message_fields(who: PipelineMessages, site: Site) -> Iterator[tuple[str, str]]:
    yield from (("message.to", who.to), ("message.from", who.source), ("message.instance", who.instance))
    yield "message.log", who.log
    if who.workdir:
        yield "message.workdir", who.workdir
    yield from (("message.via", route) for route in site.messages.via)
    if site.messages.ca:
        yield "message.ca", site.messages.ca
    yield "message.timeout", str(site.messages.timeout)


def _environment(a: Assembled, work: Work, site: Site) -> dict[str, str]:
    """site < campaign; what a step sets itself is in the rows, because it may differ from job to job."""
    constants = constants_of(a.campaign, work.step, site.site, work.parameters)
    written = a.campaign.environment.items()
    return {
        **site.environment,
        **{name: compile_text(text, constants, _NONE).format() for name, text in written},
    }


def _container_fields(site: Site) -> Iterator[tuple[str, str]]:
    container = site.container
    yield "launch", container.launch
    if container.rehearsal:
        yield "rehearsal", "yes"
    yield "order", container.order
    yield from (("runtime", runtime) for runtime in container.runtimes)
    yield from (("runtime.option", option) for option in container.options)
    yield from (("preamble", line) for line in container.preamble)
    yield "container.workdir", container.workdir
    if site.htcondor.grid and site.htcondor.grid.kind != "condor":
        yield "batch_system", site.htcondor.grid.kind
    if site.backend == "dirac":
        yield "batch_system", "dirac"
    if container.scratch:
        yield "scratch", container.scratch
    if container.backoff:
        yield "backoff", str(container.backoff)


def _image_fields(name: str, image: Image, site: Site) -> Iterator[tuple[str, str]]:
    container = site.container
    yield "image", name
    if image.marker:
        yield "image.marker", image.marker
    yield from (("image.path", path) for path in image_paths(name, image, site))
    if image.http and "sif" in container.formats:
        yield from _download_fields("sif", image.http)
    elif image.tar and "directory" in container.formats:
        yield from _download_fields("directory", image.tar)
    if image.registry and container.registry:
        yield "image.registry", image.registry
    if container.node_cache:
        yield from (
            ("node_cache", container.node_cache.path),
            ("node_cache.limit", str(container.node_cache.limit)),
        )
        if container.node_cache.shared:
            yield "node_cache.shared", "yes"
    if site.proxy:
        yield "http_proxy", site.proxy
    yield from (("limit.path", str(container.limits.path)), ("limit.http", str(container.limits.http)))
    if container.limits.jitter:
        yield "jitter", str(container.limits.jitter)


def _download_fields(form: str, http: Http) -> Iterator[tuple[str, str]]:
    yield "image.format", form
    yield from (("image.url", url) for url in http.urls)
    yield from (("image.sha256", http.sha256), ("image.size", str(http.size)))


def _software_fields(name: str, software: Software) -> Iterator[tuple[str, str]]:
    yield from (("software", name), ("software.from", software.source), ("software.to", software.target))
    yield from (("software.env", f"{variable}={value}") for variable, value in software.environment.items())


def _secret_fields(a: Assembled, site: Site, name: str) -> Iterator[tuple[str, str]]:
    secret = site.secrets[name]
    yield "secret", name
    if secret.kind == "path" or (site.backend == "local" and secret.kind in ("transfer", "proxy")):
        yield "secret.from", secret.source or ""  # of the node, or of the machine that is both
    else:
        yield "secret.kind", secret.kind
        yield from _sent_fields(a, site, name, secret)
    yield from (("secret.point", f"{variable}={where}") for variable, where in secret.point.items())
    yield from (("secret.home", f"{file}={where}") for file, where in secret.home.items())
    yield from (("secret.set", f"{variable}={value}") for variable, value in secret.environment.items())


def _sent_fields(a: Assembled, site: Site, name: str, secret: Secret) -> Iterator[tuple[str, str]]:
    """How a secret is called that comes with the job, and what proves it."""
    if secret.kind == "token":
        yield "secret.from", f"{secret.service}.use"
    elif secret.kind == "sealed":
        files, (envelope, signer) = sealed_files(a, site, name), file_names(name)
        yield from (("secret.from", envelope), ("secret.sha256", files.sealed.sha256))
        yield from (("secret.key", secret.key or ""), ("secret.certificate", secret.certificate or ""))
        yield from (("secret.signer", signer), ("secret.signer.sha256", files.signer_sha256))
    else:
        yield "secret.from", secret.name_in_scratch


def sealed_files(a: Assembled, site: Site, name: str) -> SealedFiles:
    """What the plan carries of a sealed secret. Raises SecretRefused where it could not be read."""
    found = a.sealed.get((site.site, name))
    if not isinstance(found, SealedFiles):
        raise SecretRefused(found or f"the sealed secret {name} of site {site.site} was not read")
    return found


def secret_files(plan: Plan) -> Iterator[tuple[str, bytes]]:
    """What a plan carries of its secrets, by name: envelopes and signers' certificates, nothing that is secret."""
    site = plan.header.request.site
    for name, secret in plan.header.request.secrets.items():
        if secret.kind == "sealed":
            files = sealed_files(plan.assembled, site, name)
            yield from zip(file_names(name), (files.sealed.envelope, files.signer), strict=True)


def _row_text(a: Assembled, work: Work, step: Step) -> str:
    """The row of every job of a step as one format string over `variables_of`, escapes of the literals done."""
    constants = constants_of(a.campaign, work.step, work.site, work.parameters)
    variables = variables_of(step, a.runs[0])
    first = next(jobs_of(work.step, step, work.runs, work.pieces))

    def text(written: str) -> str:
        return compile_text(written, constants, variables, encode_field)

    fields = ["job={job}", "run={run}", "piece={piece}"]
    program, *arguments = step.command
    inside = program.removeprefix("./")
    if a.bundle and inside in a.bundle.names:
        fields.append(f"arg=./{text(inside)}")
    else:
        fields.append(f"arg={text(program)}")
    fields += [f"arg={text(argument)}" for argument in arguments]
    fields += [f"env={name}={text(value)}" for name, value in step.environment.items()]
    for local, places in step.inputs.items():
        fields.append(f"in={text(local)}")
        fields += [f"in.from={_place(text(place), a, first)}" for place in _usable(places, a.sites[work.site])]
    for local, to in step.outputs.items():
        fields += [f"out={text(local)}", f"out.to={text(to)}"]
    return "\t".join(fields)


def lfn_of(places: Sequence[str]) -> str | None:
    """Of an input's places the one in DIRAC's file catalogue."""
    return next((place for place in places if place.startswith(LFN)), None)


def _usable(places: Sequence[str], site: Site) -> Sequence[str]:
    """An input's places that the site has a use for: only DIRAC knows its file catalogue."""
    return [place for place in places if site.backend == "dirac" or not place.startswith(LFN)]


def _double(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")


def _place(compiled: str, a: Assembled, first: Mapping[str, str]) -> str:
    """An input's place; a relative path starts at the campaign file's folder. The first job tells whether it is one."""
    if _SCHEME.match(compiled.format_map(first)):
        return compiled
    return _double(encode_field(f"{a.folder}/")) + compiled


def jobs_of(
    step: str, what: Step, runs: Iterable[Run], only: Mapping[str, frozenset[str]] = _EVERY
) -> Iterator[dict[str, str]]:
    """The values of `variables_of` for each job of a step, in order; of a run that is in `only` no other pieces than
    those. One dict for a run, changed in place: copy it to keep it."""
    values: dict[str, str] = {}
    of_chunks = what.foreach in ("chunk", "crumb")
    for run in runs:
        values = dict(run.columns or {}, run=run.name, events=str(run.events))
        for piece in chosen_pieces(what, run, only):
            values["job"] = job_name(step, run.name, piece.name)
            values["piece"] = piece.name
            values["first_event"], values["event_count"] = str(piece.first), str(piece.count)
            if of_chunks:
                values["chunk"], values["crumb"] = piece.chunk, piece.crumb
            yield values


def shares(weights: Mapping[str, int], blocks: int, before: Mapping[str, int] = _NO_COUNTS) -> list[str]:
    """Which site each block goes to: in proportion to the weights, and the same every time. `before`: how many of the
    proportion each site has already."""
    total = sum(weights.values())
    given = {name: before.get(name, 0) for name in sorted(weights)}
    order = []
    first = sum(given.values()) + 1
    for block in range(first, first + blocks):
        site = max(given, key=lambda name: weights[name] * block / total - given[name])
        given[site] += 1
        order.append(site)
    return order
