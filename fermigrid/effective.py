"""A campaign at its sites, value by value, each with where it comes from (`check --explain`). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fermigrid.advance import all_work, blocks_of
from fermigrid.campaign import Bind, Campaign, Step
from fermigrid.config import Key, Place, parse_yaml
from fermigrid.placeholder import compile_text
from fermigrid.plan import Assembled, constants_of, image_paths, plan_batch
from fermigrid.rates import scopes_of
from fermigrid.render import render_jdl, render_submit
from fermigrid.site import Site
from fermigrid.values import Layer, Origin, Value, show, values_of

if TYPE_CHECKING:
    from fermigrid.inherit import SiteText

_LINE = re.compile(r"(\+?[A-Za-z_.]+) *= *(.*)")
_ASKS = re.compile(  # the lines of a submit file that say what is wanted, and of whom
    r"universe|grid_resource|batch_(?:queue|project|runtime|extra_submit_args)|request_[a-z]+|container_[a-z]+"
    r"|requirements|accounting_group(?:_user)?|priority|allowed_execute_duration|max_(?:materialize|idle)"
    r"|use_oauth_services|x509userproxy|\+(?!Fermigrid|Periodic)[A-Za-z_]+"
)

_ATTRIBUTE = re.compile(r"  ([A-Za-z]+) = (.*);")
_JDL_ASKS = re.compile(
    "JobType|CPUTime|MinRAM|RAM|(?:Max)?NumberOfProcessors|Site|BannedSites|Tags|Platform|Priority|Input(?:Data|DataPolicy)"
    "|Output(?:Sandbox|Data|SE|Path)"
)


@dataclass(frozen=True)
class Section:
    """Values that belong together; `site` and `step` are empty where it is not about one."""

    title: str
    site: str
    step: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class CommandLine:
    """What the command line says over the files."""

    site: str | None
    parameters: Mapping[str, str]


def explain(a: Assembled, sites: Mapping[str, SiteText], said: CommandLine, templates: Path) -> Iterator[Section]:
    """Every effective value of a campaign that was checked: for itself, each site, and each step at each site."""
    data, _ = parse_yaml(a.text, a.source.file)
    yield Section(f"campaign {a.campaign.campaign}", "", "", tuple(_campaign(a, data, said)))
    if limits := tuple(_limits(a)):
        yield Section("limits: the smaller of campaign and site", "", "", limits)
    for name, site in a.sites.items():
        yield Section(f"site {name}", name, "", tuple(_site(sites[name])))
        yield Section(f"image {a.campaign.image} at {name}", name, "", tuple(_image(a, site)))
        yield Section(f"binds at {name}", name, "", tuple(_binds(a, site)))
        for step, what in a.campaign.steps.items():
            values = (*_step(a, data, step), *_environment(a, site, step, what))
            yield Section(f"step {step} at {name}", name, step, values)
            if asked := tuple(_request(a, name, step, templates)):
                yield Section(f"step {step} at {name}: what the batch system is asked for", name, step, asked)


def site_values(site: SiteText) -> Iterator[Value]:
    """Every effective value of a site, open questions too."""
    yield from values_of(Site, site.data, Origin(site.source, Layer.SITE))


def _campaign(a: Assembled, data: dict[str, Any], said: CommandLine) -> Iterator[Value]:
    elsewhere = {"steps", "binds", "environment", *(("sites",) if said.site else ())}
    for value in values_of(Campaign, data, Origin(a.source, Layer.CAMPAIGN)):
        top, name = value.key[0], str(value.key[-1])
        if top == "parameters" and name in said.parameters:
            yield _commanded(value.key, said.parameters[name], f"--set {name}")
        elif top not in elsewhere:
            yield value
    if said.site:
        yield _commanded(("sites",), said.site, "--site")


def _limits(a: Assembled) -> Iterator[Value]:
    """The limits that hold. Of the campaign's for a site and the site's own the smaller."""
    campaign = Origin(a.source, Layer.CAMPAIGN)
    for scope in scopes_of(a.campaign.limits, a.sites):
        _, *rest = scope.key.split(".", 2)
        for name, value in (("running", scope.running), ("starts", scope.starts)):
            if value is None:
                continue
            key: Key = ("limits", *rest, name)
            own = getattr(a.sites[scope.site].limits, name) if scope.site else None
            if scope.site and own == value:
                layer, place = _origin(a, a.sites[scope.site]).of(("limits", name))
            else:
                layer, place = campaign.of(key)
            yield Value(key[1:], value, str(value), layer, place)


def _commanded(key: Key, text: str, option: str) -> Value:
    return Value(key, text, show(text), Layer.COMMAND_LINE, Place(option, 0))


def _site(site: SiteText) -> Iterator[Value]:
    yield from (value for value in site_values(site) if value.key[0] not in ("binds", "environment", "images"))


def _image(a: Assembled, site: Site) -> Iterator[Value]:
    """The catalogue's entry, then the sources that a worker here tries, in their order."""
    name, container = a.campaign.image, site.container
    image, entry = a.catalogue.images[name], Origin(a.catalogue_sources["images", name], Layer.CATALOGUE)
    here = _origin(a, site)
    for key, value in image.model_dump(mode="json", by_alias=True).items():
        layer, place = entry.of(("images", name, key))
        yield Value((key,), value, show(value), layer, place)
    sources: list[tuple[str, tuple[Layer, Place | None]]] = []
    for path in image_paths(name, image, site):
        if own := site.images.get(name):
            sources.append((path, here.of(("images", name, "sif" if path == own.sif else "path"))))
        else:
            sources.append((path, entry.of(("images", name, "sif" if path == image.sif else "path"))))
    if container.node_cache:
        sources.append((f"cache {container.node_cache.path}", here.of(("container", "node_cache", "path"))))
    for form, copy, accepted in (("http", image.http, "sif"), ("tar", image.tar, "directory")):
        if copy and accepted in container.formats:
            sources += [(url, entry.of(("images", name, form, "urls", i))) for i, url in enumerate(copy.urls)]
            break
    if image.registry and container.registry:
        sources.append((image.registry, entry.of(("images", name, "registry"))))
    for number, (text, (layer, place)) in enumerate(sources, 1):
        yield Value((f"source {number}",), text, text, layer, place)


def _binds(a: Assembled, site: Site) -> Iterator[Value]:
    campaign, here = Origin(a.source, Layer.CAMPAIGN), _origin(a, site)
    binds = [(bind, here.of(("binds", index))) for index, bind in enumerate(site.binds)]
    binds += [(bind, campaign.of(("binds", index))) for index, bind in enumerate(a.campaign.binds)]
    for bind, (layer, place) in binds:
        yield Value((bind.to,), bind.model_dump(mode="json", by_alias=True), _show_bind(bind), layer, place)
    for name in a.campaign.software:
        software = a.catalogue.software[name]
        layer, place = Origin(a.catalogue_sources["software", name], Layer.CATALOGUE).of(("software", name))
        data = {"from": software.source, "to": software.target, "software": name}
        yield Value((software.target,), data, f"{software.source} (software {name})", layer, place)


def _show_bind(bind: Bind) -> str:
    return f"{bind.source} ({bind.mode}{'' if bind.required else ', where it is'})"


def _step(a: Assembled, data: dict[str, Any], step: str) -> Iterator[Value]:
    key: Key = ("steps", step)
    for value in values_of(Step, data["steps"][step], Origin(a.source, Layer.CAMPAIGN), key):
        if (short := value.key[2:])[0] != "environment":
            yield replace(value, key=short)


def _environment(a: Assembled, site: Site, name: str, step: Step) -> Iterator[Value]:
    """The payload's environment in the order of the worker: software < site < campaign < secrets < step."""
    campaign, here = Origin(a.source, Layer.CAMPAIGN), _origin(a, site)
    constants = constants_of(a.campaign, name, site.site)
    found: dict[str, tuple[str, tuple[Layer, Place | None]]] = {}
    for entry in a.campaign.software:
        origin = Origin(a.catalogue_sources["software", entry], Layer.CATALOGUE)
        software = a.catalogue.software[entry]
        for variable, text in software.environment.items():
            found[variable] = (
                text.replace("{path}", software.target),
                origin.of(("software", entry, "environment", variable)),
            )
    for variable, text in site.environment.items():
        found[variable] = (text, here.of(("environment", variable)))
    for variable, text in a.campaign.environment.items():
        filled = compile_text(text, constants, frozenset()).format()
        found[variable] = (filled, campaign.of(("environment", variable)))
    for secret in step.secrets:
        for variable, text in site.secrets[secret].environment.items():
            found[variable] = (text, here.of(("secrets", secret, "environment", variable)))
        for variable, text in site.secrets[secret].point.items():
            where = f"{{secret {secret}}}" + ("" if text == "." else f"/{text}")
            found[variable] = (where, here.of(("secrets", secret, "point", variable)))
    for variable, text in step.environment.items():
        found[variable] = (text, campaign.of(("steps", name, "environment", variable)))
    for variable, (text, (layer, place)) in found.items():
        yield Value(("environment", variable), text, show(text), layer, place)


def _request(a: Assembled, site: str, step: str, templates: Path) -> Iterator[Value]:
    """The lines of the submit file or JDL that ask the batch system for something, as `render` writes them."""
    backend = a.sites[site].backend
    if backend == "local":
        return
    work = next(w for w in all_work(a.campaign, a.runs, [site] * blocks_of(a.campaign, a.runs)) if w.step == step)
    header = plan_batch(a, work).header
    text = render_jdl(header, templates) if backend == "dirac" else render_submit(header, templates)
    form, asks = (_ATTRIBUTE, _JDL_ASKS) if backend == "dirac" else (_LINE, _ASKS)
    memory = -(-header.request.resources.memory // 2**20)
    for line in text.splitlines():
        if (found := form.match(line)) and asks.fullmatch(found[1]):
            value = found[2].strip()
            if "$(fg_memory)" in value:
                value = f"{memory}M, and more after a hold for want of it"
            yield Value((found[1],), value, value, Layer.RENDERED)


def _origin(a: Assembled, site: Site) -> Origin:
    return Origin(a.site_sources[site.site], Layer.SITE)
