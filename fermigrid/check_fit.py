"""A site x the image x the campaign: what does not fit together, with the line in each file. Pure.

Each problem stands at its line of the campaign's file; its words name the line of the site's or the catalogue's file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fermigrid.advance import blocks_of
from fermigrid.campaign import Step
from fermigrid.check_dirac import SANDBOX_OWN, find_dirac_misfits
from fermigrid.check_site import names_in_scratch, why_not_carried
from fermigrid.config import Key, Place, nearest
from fermigrid.errors import Problem
from fermigrid.image import Image, is_at_least
from fermigrid.inherit import ways_to_answer
from fermigrid.plan import Assembled, image_paths, shares
from fermigrid.runs import Run
from fermigrid.secret import Secret
from fermigrid.site import Site
from fermigrid.split import count_jobs
from fermigrid.units import show_bytes, show_count, show_seconds

UBER_JOBS = 50  # an uber image is copied whole to each node: above this, its distribution must be taken care of
_SIF_NEEDS = "singularity 3.0"  # the format came with it; `oras` with 3.3, `library` with 3.0 (Singularity's changelog)
_REGISTRY_NEEDS = {"oras": "singularity 3.3", "library": "singularity 3.0"}
_SHARD = re.compile(r"s[0-9]{4,}-[0-9a-f]{32}\.rows")
_SCRATCH = frozenset(
    ("job.env", "bundle.tar.gz", "worker.sh", "condor_exec.exe", "gathered", "out", "work", "tmp", "var", *SANDBOX_OWN)
)


def find_misfits(a: Assembled, site: Site) -> Iterator[Problem]:
    """Everything of the campaign that the site cannot do, or not with this image."""
    yield from _image(a, site)
    yield from _runtime(a, site)
    yield from _targets(a, site)
    if not site.container.binds_anywhere:
        yield from _mount_points(a, site)
    yield from _resources(a, site)
    yield from _quota(a, site)
    yield from _published(a, site)
    yield from find_dirac_misfits(a, site)
    for name, step in a.campaign.steps.items():
        yield from _secrets(a, site, name, step)


def count_all_jobs(a: Assembled) -> int:
    """The jobs of the whole campaign."""
    return sum(count_jobs(step, a.runs) for step in a.campaign.steps.values())


def _at_site(a: Assembled, site: Site, *key: str | int) -> Place:
    return a.site_sources[site.site].place(key)


def _in_catalogue(a: Assembled, kind: str, name: str, *key: str) -> Place:
    return a.catalogue_sources[kind, name].place((kind, name, *key))


# --- the image


def _image(a: Assembled, site: Site) -> Iterator[Problem]:
    """An image that the site cannot get, cannot start, or should not get so often."""
    c, image = a.campaign, a.catalogue.images[a.campaign.image]
    paths, formats = image_paths(c.image, image, site), site.container.formats
    entry = _in_catalogue(a, "images", c.image)
    over_http = (image.http and "sif" in formats) or (image.tar and "directory" in formats)
    if site.backend != "local" and not (paths or over_http or (image.registry and site.container.registry)):
        takes = f"it takes {' and '.join(formats)} images{_listed(_at_site(a, site, 'container', 'formats'), entry)}"
        yield a.source.problem(("image",), f"{c.image!r} has no source that site {site.site!r} can use; {takes}")
    if site.container.launch == "site" and not paths:
        text = f"{c.image!r} has no path (on CVMFS or at the site), which site {site.site!r} needs to start it"
        where = _listed(_at_site(a, site, "container", "launch"), entry)
        yield a.source.problem(("image",), text + where)
    jobs = count_all_jobs(a)
    if image.flavour == "uber" and jobs >= UBER_JOBS and image.distribution != "cvmfs" and not c.allow_uber:
        text = (
            f"{c.image!r} is an uber image that each node fetches whole; for {jobs} jobs ({UBER_JOBS} or more) "
            "use a light image with software from CVMFS, or an uber image distributed by CVMFS, or say allow_uber: true"
            f"{_listed(entry)}"
        )
        yield a.source.problem(("image",), text)


def _runtime(a: Assembled, site: Site) -> Iterator[Problem]:
    """An image that the oldest runtime of the site's nodes does not start, whatever its source."""
    name, oldest = a.campaign.image, site.container.oldest
    if oldest is None:
        return
    image = a.catalogue.images[name]
    sources = _sources(name, image, site)
    if site.container.launch == "site":
        sources = sources[:1]  # the one that the site is asked to start
    lacking = [(what, need) for what, needs in sources for need in needs if not is_at_least(oldest, need)]
    if sources and {what for what, _ in lacking} == {what for what, _ in sources}:
        why = "; ".join(f"{what} needs {need}" for what, need in lacking)
        where = _listed(_at_site(a, site, "container", "oldest"), _in_catalogue(a, "images", name))
        text = f"nodes of site {site.site!r} may have no more than {oldest}, which cannot start {name!r}: {why}{where}"
        yield a.source.problem(("image",), text)


def _sources(name: str, image: Image, site: Site) -> list[tuple[str, list[str]]]:
    """What the site may take the image from, in its order, and what each needs of the runtime."""
    always = [image.needs] if image.needs else []
    here = site.images.get(name, image)
    sources = []
    for path in image_paths(name, image, site):
        is_sif = path == here.sif or path.endswith(".sif")
        sources.append((f"the {'SIF' if is_sif else 'folder'} {path}", [*always, *([_SIF_NEEDS] if is_sif else [])]))
    if image.http and "sif" in site.container.formats:
        sources.append((f"the SIF {image.http.urls[0]}", [*always, _SIF_NEEDS]))
    elif image.tar and "directory" in site.container.formats:
        sources.append((f"the folder in {image.tar.urls[0]}", always))
    if image.registry and site.container.registry:
        scheme = image.registry.partition(":")[0]
        sources.append((f"{scheme}:// of its registry", [*always, *_REGISTRY_NEEDS.get(scheme, "").splitlines()]))
    return sources


# --- binds


def _targets(a: Assembled, site: Site) -> Iterator[Problem]:
    """No two binds to one place, and none that hides the job's working folder."""
    software = [(i, name, a.catalogue.software[name]) for i, name in enumerate(a.campaign.software)]
    binds: list[tuple[Key, str, str, Place | None]] = [
        (("image",), bind.source, bind.to, _at_site(a, site, "binds", i)) for i, bind in enumerate(site.binds)
    ]
    binds += [(("binds", i, "to"), bind.source, bind.to, None) for i, bind in enumerate(a.campaign.binds)]
    for i, name, entry in software:
        binds.append((("software", i), entry.source, entry.target, _in_catalogue(a, "software", name, "to")))
    sources: dict[str, tuple[str, Place | None]] = {}
    workdir = site.container.workdir
    for key, source, target, place in binds:
        first, other = sources.setdefault(target, (source, place))
        if first != source:
            where = _listed(other, place)
            text = f"{first} and {source} would both be bound to {target} at site {site.site!r}{where}"
            yield a.source.problem(key, text)
        if f"{workdir}/".startswith(f"{target.rstrip('/')}/") or f"{target}/".startswith(f"{workdir}/.fermigrid/"):
            where = _listed(place, _at_site(a, site, "container", "workdir"))
            text = f"{target} at site {site.site!r} would hide the job's working folder {workdir}{where}"
            yield a.source.problem(key, text)


def _listed(*places: Place | None) -> str:
    found = list(dict.fromkeys(str(place) for place in places if place))
    return f" ({', '.join(found)})" if found else ""


def _mount_points(a: Assembled, site: Site) -> Iterator[Problem]:
    """A site without overlay and underlay binds only to folders that the image has."""
    name = a.campaign.image
    has = {*a.catalogue.images[name].mount_points, site.container.workdir}
    wanted: list[tuple[Key, str, Place | None]] = [
        (("binds", i, "to"), bind.to, None) for i, bind in enumerate(a.campaign.binds)
    ]
    wanted += [
        (("image",), bind.to, _at_site(a, site, "binds", i)) for i, bind in enumerate(site.binds) if bind.required
    ]
    for i, software in enumerate(a.campaign.software):
        place = _in_catalogue(a, "software", software, "to")
        wanted.append((("software", i), a.catalogue.software[software].target, place))
    rule = _at_site(a, site, "container", "binds_anywhere")
    for key, target, bind in wanted:
        if target not in has:
            where = _listed(bind, rule, _in_catalogue(a, "images", name, "mount_points"))
            text = (
                f"site {site.site!r} allows neither overlay nor underlay, and image {name!r} "
                f"has no mount point {target}; it has {', '.join(sorted(has))}{where}"
            )
            yield a.source.problem(key, text)


# --- resources and outputs


def _resources(a: Assembled, site: Site) -> Iterator[Problem]:
    """More than the site gives a job; more output than the job has disk for."""
    for name, step in a.campaign.steps.items():
        for what in site.limits.exceeded_by(step.resources):
            want, most = (_show(what, getattr(of, what)) for of in (step.resources, site.limits))
            place = _at_site(a, site, "limits", what)
            text = f"{want} is more than the {most} that site {site.site!r} gives a job ({place})"
            yield a.source.problem(("steps", name, "resources", what), text)


def _quota(a: Assembled, site: Site) -> Iterator[Problem]:
    """More output than the site has room for. What no step says it expects counts as nothing."""
    quota, runs = site.output.quota, _runs_at(a, site)
    if quota is None:
        return
    expected = [(name, step.resources.output or 0, count_jobs(step, runs)) for name, step in a.campaign.steps.items()]
    expected = [(name, each, jobs) for name, each, jobs in expected if each and jobs]
    total = sum(each * jobs for _, each, jobs in expected)
    if total > quota:
        parts = ", ".join(f"{show_count(jobs, 'job')} of {name} x {show_bytes(each)}" for name, each, jobs in expected)
        place = _at_site(a, site, "output", "quota")
        room = f"the {show_bytes(quota)} that site {site.site!r} has room for ({place})"
        text = f"{parts}: {show_bytes(total)} of output is more than {room}"
        largest = max(expected, key=lambda part: part[1] * part[2])[0]
        yield a.source.problem(("steps", largest, "resources", "output"), text)


def _runs_at(a: Assembled, site: Site) -> tuple[Run, ...]:
    """The runs of the blocks that go to the site."""
    if len(a.sites) == 1:
        return a.runs
    size = a.campaign.block
    order = shares(a.campaign.sites, blocks_of(a.campaign, a.runs))
    blocks = (a.runs[index * size : (index + 1) * size] for index, name in enumerate(order) if name == site.site)
    return tuple(run for block in blocks for run in block)


def _published(a: Assembled, site: Site) -> Iterator[Problem]:
    """Outputs that a worker in the container publishes to a folder that the container does not have."""
    output, container = site.output, site.container
    if output.root and output.kind == "posix" and (container.launch, container.order) == ("worker", "wrapper-inside"):
        binds = (bind for bind in (*site.binds, *a.campaign.binds) if bind.mode == "rw")
        if not any(f"{output.root}/".startswith(f"{bind.to.rstrip('/')}/") for bind in binds):
            where = f"site {site.site!r} publishes to {output.root} from within the container"
            text = f"{where}, and no bind with mode rw has it ({_at_site(a, site, 'output', 'root')})"
            yield a.source.problem(("sites",), text)


def _show(what: str, value: int) -> str:
    if what == "cpus":
        return f"{value} cpus"
    return show_seconds(value) if what == "walltime" else show_bytes(value)


# --- secrets


def _secrets(a: Assembled, site: Site, name: str, step: Step) -> Iterator[Problem]:
    """Secrets that the site does not offer, cannot deliver, or that get in each other's way."""
    places: dict[str, str] = {}
    files: dict[str, str] = {}
    for index, asked in enumerate(step.secrets):
        key: Key = ("steps", name, "secrets", index)
        if asked in step.secrets[:index]:
            yield a.source.problem(key, f"{asked!r} is written twice")
            continue
        if asked in (unanswered := a.site_sources[site.site].unanswered):
            yield from _unanswered(a, key, site.site, unanswered[asked])
            continue
        if asked not in site.secrets:
            known, place = sorted(site.secrets), _at_site(a, site, "secrets")
            what = f"site {site.site!r} offers no secret {asked!r}{nearest(asked, known)}"
            yield a.source.problem(key, f"{what} It offers: {', '.join(known) or 'none'} ({place})")
            continue
        secret, place = site.secrets[asked], _at_site(a, site, "secrets", asked)
        if why := why_not_carried(site, secret):
            text = f"secret {asked!r} of site {site.site!r} cannot reach its nodes: {why} ({place})"
            yield a.source.problem(key, text)
        for text in (*_claim_places(asked, secret, places), *_claim_files(asked, secret, files)):
            yield a.source.problem(key, f"{text} at site {site.site!r} ({place})")


def _unanswered(a: Assembled, key: Key, site: str, questions: Sequence[Problem]) -> Iterator[Problem]:
    """A secret that the site's file does not describe to the end."""
    for one in questions:
        way = " ".join(ways_to_answer(site, a.site_sources[site].file, [one]))
        yield a.source.problem(key, f"{one.key} of site {site!r}: {one.message} ({one.file}:{one.line}). {way}")


def _claim_places(name: str, secret: Secret, taken: dict[str, str]) -> Iterator[str]:
    claims = [(variable, f"set {variable}") for variable in (*secret.point, *secret.environment)]
    claims += [(f"~/{file}", f"are {file} in the home folder") for file in secret.home]
    if secret.kind == "proxy":
        claims.append(("a proxy", "are X.509 proxies, and HTCondor gives a job one"))
    if secret.kind == "token":
        claims.append(
            (f"a token of {secret.service}", f"are tokens of {secret.service}, and a job has one of each service")
        )
    for what, words in claims:
        if (other := taken.get(what)) and other != name:
            yield f"secrets {other!r} and {name!r} both {words}"
        taken.setdefault(what, name)


def _claim_files(name: str, secret: Secret, taken: dict[str, str]) -> Iterator[str]:
    """The names that files have where they arrive: the job's scratch folder, which has files of its own."""
    for file, what in names_in_scratch(name, secret).items():
        if file in _SCRATCH or _SHARD.fullmatch(file):
            yield f"secret {name!r} would arrive as {file}, which is a name of the job's own ({what}): rename it"
        elif other := taken.get(file):
            yield f"secrets {other!r} and {name!r} would both arrive as {file} ({what}): rename one"
        taken.setdefault(file, name)
