"""A site file by itself: what contradicts itself in it. Pure; `site check` and `check` both say it, at its lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from fermigrid.campaign import SHELL_OWN
from fermigrid.check_dirac import find_dirac_problems
from fermigrid.config import Key, Source, nearest
from fermigrid.credential import site_credentials
from fermigrid.errors import Problem
from fermigrid.image import Catalogue
from fermigrid.retry_rule import contradictions
from fermigrid.sealed import file_names
from fermigrid.secret import Secret
from fermigrid.site import Site

_TAME = re.compile(r"[A-Za-z0-9._+=@%/-]+")
_SENT = re.compile(r"(?:/[A-Za-z0-9._+@=-]+)*/[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_OWN = frozenset((  # attributes that fermigrid's submit file sets by its own means, in lower case
    "accountinggroup", "acctgroup", "acctgroupuser", "allowedexecuteduration", "args", "arguments",
    "batchname", "batchruntime", "cmd", "containerimage", "containertargetdir", "env", "environment", "err",
    "gridresource", "in", "iwd", "jobbatchname", "jobprio", "jobuniverse", "leavejobinqueue", "maxwalltime",
    "onexithold", "onexitremove", "out", "owner", "periodichold", "periodicrelease", "periodicremove", "rank",
    "requestcpus", "requestdisk", "requestmemory", "requirements", "shouldtransferfiles", "singularityimage",
    "transfercontainer", "transferinput", "transferoutput", "userlog", "wantcontainer", "wantdockerimage",
    "wantsandboximage", "wantsif", "whentotransferoutput", "x509userproxy",
))  # fmt: skip
MINUTE_S = 60
_CARRIES = {  # how a site is reached -> the kinds of secrets that this way carries
    "local": {"path", "transfer", "sealed", "proxy"},
    "htcondor": {"path", "transfer", "sealed", "token", "proxy"},
    "dirac": {"path", "sealed", "proxy"},
}
_ON_THE_NODE = {"path", "sealed"}  # what the others carry: nothing of HTCondor's own stands between schedd and node


def find_site_problems(site: Site, source: Source, catalogue: Catalogue) -> tuple[Problem, ...]:
    """Everything that is wrong with a site whatever the campaign, in the order of its file."""
    problems = [*_grid(site, source), *_attributes(site, source), *_images(site, source, catalogue)]
    problems += find_dirac_problems(site, source)
    problems += site_credentials(site, source)
    for name, secret in site.secrets.items():
        problems += _secret(source, name, secret)
        problems += _proxy(site, source, name, secret)
    problems += [source.problem(("retries", "rules", index), why) for index, why in contradictions(site.retries.rules)]
    return tuple(sorted(problems))


def find_unusable_secrets(site: Site, source: Source) -> tuple[Problem, ...]:
    """The secrets that the site offers and its way cannot carry: of no use, but in nobody's way."""
    found = ((name, why_not_carried(site, secret)) for name, secret in site.secrets.items())
    return tuple(source.problem(("secrets", name, "kind"), why) for name, why in found if why)


def way_of(site: Site) -> str:
    """How jobs reach the site, in words: `this machine`, `an HTCondor pool`, `the grid universe (slurm)`."""
    if site.backend != "htcondor":
        return "this machine" if site.backend == "local" else "DIRAC"
    grid = site.htcondor.grid
    return f"HTCondor's grid universe ({grid.kind})" if grid else "an HTCondor pool"


def why_not_carried(site: Site, secret: Secret) -> str:
    """Why a secret of this kind cannot come to the site's nodes; empty when it can."""
    if secret.kind in _carried(site):
        return ""
    why = {
        "transfer": "HTCondor's encrypted transfer ends before the node, and the file would lie on disks of others"
        if site.backend == "htcondor"
        else "a sandbox is stored as it is, on a server and on disks of others",
        "token": "no credential daemon gives the job its token there",
        "proxy": "nobody delegates the proxy to the job and renews it there",
    }[secret.kind]
    return f"kind: {secret.kind} does not go by {way_of(site)}: {why}. Use kind: sealed or path"


def _carried(site: Site) -> set[str]:
    if site.backend == "htcondor" and site.htcondor.grid:
        return _ON_THE_NODE
    return _CARRIES[site.backend]


def _grid(site: Site, source: Source) -> Iterator[Problem]:
    """What the way to the site's nodes does not have."""
    grid, launch = site.htcondor.grid, site.container.launch
    if site.backend == "local":
        if launch == "site":
            yield source.problem(("container", "launch"), "nothing on this machine starts containers: launch: worker")
        if grid:
            yield source.problem(("htcondor", "grid"), "is for backend: htcondor; this site is backend: local")
        return
    if grid is None:
        return
    if launch == "site" and grid.kind != "condor":
        text = f"nobody starts a container behind {way_of(site)}: launch: worker"
        yield source.problem(("container", "launch"), text)
    if site.htcondor.requirements is not None and grid.kind != "condor":
        text = f"no machine is matched for {way_of(site)}, and so nobody looks at requirements"
        yield source.problem(("htcondor", "requirements"), text + "; use options of htcondor.grid" * grid.is_batch)
    if grid.kind == "arc" and site.output.kind == "transfer":
        text = "an ARC CE brings back files, no folders: outputs go elsewhere (posix, xrootd or http)"
        yield source.problem(("output", "kind"), text)
    if grid.is_batch and (site.limits.walltime or 0) % MINUTE_S:
        text = f"HTCondor hands batch systems ({grid.kind}) whole minutes: write the limit in whole minutes"
        yield source.problem(("limits", "walltime"), text)


def _attributes(site: Site, source: Source) -> Iterator[Problem]:
    """Attributes that are fermigrid's own, or set twice; HTCondor does not tell capital letters from small ones."""
    condor = site.htcondor
    names: list[tuple[Key, str]] = [(("htcondor", "attributes", name), name) for name in condor.attributes]
    names += [(("htcondor", "expressions", name), name) for name in condor.expressions]
    yield from _taken(names, source)
    if condor.grid:
        remote: list[tuple[Key, str]] = [
            (("htcondor", "grid", "attributes", name), name) for name in condor.grid.attributes
        ]
        yield from _taken(remote, source)


def _taken(names: list[tuple[Key, str]], source: Source) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for key, name in names:
        plain = name.lower()
        if plain.startswith("fermigrid") or plain.replace("_", "") in _OWN:
            yield source.problem(key, f"{name} is set by fermigrid itself: remove it")
        elif other := first.get(plain):
            yield source.problem(key, f"is set already, as {other}: HTCondor sees one attribute")
        first.setdefault(plain, name)


def _images(site: Site, source: Source, catalogue: Catalogue) -> Iterator[Problem]:
    for name in site.images:
        if name not in catalogue.images:
            text = f"no image {name!r} in the catalogue{nearest(name, sorted(catalogue.images))}"
            yield source.problem(("images", name), text)


def _secret(source: Source, name: str, secret: Secret) -> Iterator[Problem]:
    """Where its variables point, and what they are called."""
    for variable, where in secret.point.items():
        key: Key = ("secrets", name, "point", variable)
        if variable in SHELL_OWN or variable.startswith("FERMIGRID_"):
            yield source.problem(key, "is set by the shell or by the worker itself: choose another name")
        if not _TAME.fullmatch(where):
            text = f"{where!r} may hold only letters, digits and ._+=@%-/: every program has to understand the variable"
            yield source.problem(key, text)
        if variable in secret.environment:
            yield source.problem(key, "is in `environment` of the secret, too: it can have one value")
    for what in ("from", "signer") if secret.kind in ("transfer", "sealed", "proxy") else ():
        path = secret.source if what == "from" else secret.signer
        if path is not None and not _SENT.fullmatch(path):
            text = f"{path!r} cannot be sent with a job: use letters, digits and ._+@=- only, and no '/' at the end"
            yield source.problem(("secrets", name, what), text)


def _proxy(site: Site, source: Source, name: str, secret: Secret) -> Iterator[Problem]:
    """Where a proxy comes from: DIRAC gives each job one, the others send one from here."""
    if secret.kind != "proxy" or (secret.source is None) == (site.backend == "dirac"):
        return
    if secret.source is None:
        yield source.problem(("secrets", name), "kind: proxy needs from: the proxy on this machine")
    else:
        text = "DIRAC gives each job a proxy of its own, and none is sent from here: leave it out"
        yield source.problem(("secrets", name, "from"), text)


def names_in_scratch(name: str, secret: Secret) -> Mapping[str, str]:
    """The names that a secret's files have in the job's scratch folder, and what each is."""
    if secret.kind == "sealed":
        return dict(zip(file_names(name), ("the sealed file", "its signer's certificate"), strict=True))
    if secret.kind in ("transfer", "proxy") and secret.source:
        return {secret.name_in_scratch: secret.source}
    return {}
