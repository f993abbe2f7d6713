"""A batch -> its files, through submit_templates/. Pure: the same plan gives the same bytes.

Templates only place strings and ask whether something is set; every string of a person has been through an encoder of
quoting.py before it meets a template, and `finalize` refuses what slipped through.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from fermigrid import __version__
from fermigrid.errors import Unrepresentable
from fermigrid.grid_row import grid_row
from fermigrid.jdl_text import cpu_time_of, encode_jdl_list, encode_jdl_string, memory_of
from fermigrid.plan import Header, Plan, Request
from fermigrid.quoting import (
    encode_lines,
    encode_path,
    encode_submit_expression,
    encode_submit_string,
    encode_submit_value,
)
from fermigrid.retry_row import retry_row
from fermigrid.sealed import file_names
from fermigrid.secret import Secret
from fermigrid.site import Site

PATIENCE_S = (
    300  # the batch system stops a job that is so long over its walltime: its worker should have done so itself
)
DEFAULT_TEMPLATE = "job.sub.j2"
_NOT_AS_TEXT = re.compile(r"""[^A-Za-z0-9/._+@:,~-]""")  # `grep | cut -d= -f2`, quotes and blanks stripped
SHARD_BYTES = 64 * 1024  # a job fetches its shard whole: small enough for a slow link, large enough to be few files


@dataclass(frozen=True)
class Shard:
    """A file of rows, and the lines of items.txt for its jobs."""

    name: str
    data: bytes
    items: bytes


def render_shards(plan: Plan) -> Iterator[Shard]:
    """The rows in shards of at most SHARD_BYTES (a longer row has one to itself), named by number and digest. A row's
    number is that of its first line."""
    names: list[str] = []
    lines: list[str] = []
    size = number = 0
    for rows in plan.rows():
        ends = list(itertools.accumulate(_sizes(rows.lines)))
        begin = before = 0
        while begin < len(ends):
            fit = bisect_right(ends, before + SHARD_BYTES - size, begin)
            if fit == begin and lines:
                yield _shard(number, names, lines)
                number, size, names, lines = number + 1, 0, [], []
                continue
            fit = max(fit, begin + 1)
            names += rows.jobs[begin:fit]
            lines += rows.lines[begin:fit]
            begin, size, before = fit, size + ends[fit - 1] - before, ends[fit - 1]
    if lines:
        yield _shard(number, names, lines)


def _sizes(lines: Sequence[str]) -> Iterator[int]:
    """Bytes of each line, with its line break."""
    ascii = all(map(str.isascii, lines))
    return (length + 1 for length in map(len, lines if ascii else map(str.encode, lines)))


def _shard(number: int, names: list[str], lines: list[str]) -> Shard:
    text = "\n".join(lines)
    data = text.encode() + b"\n"
    name = f"s{number:04d}-{hashlib.sha256(data).hexdigest()[:32]}.rows"
    numbers: Iterable[int] = itertools.count(1)
    if text.count("\n") >= len(lines):  # rows of several lines
        numbers = itertools.accumulate((line.count("\n") + 1 for line in lines), initial=1)
    items = "".join([f"{job} {name} {row}\n" for job, row in zip(names, numbers, strict=False)])
    return Shard(name, data, items.encode())


def render_job_env(header: Header) -> str:
    """job.env: what all jobs of the batch share."""
    return encode_lines(header.worker)


def render_manifest(header: Header, files: dict[str, str]) -> str:
    """plan.json; `files` are the names and sha256 of all other files of the plan."""
    manifest = {
        "format": 1,
        "fermigrid": __version__,
        "campaign": header.campaign,
        "step": header.step,
        "site": header.site,
        "block": header.block,
        "generation": header.generation,
        "jobs": header.jobs,
        "cpus": header.request.resources.cpus,
        "files": dict(sorted(files.items())),
    }
    return json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"


def render_submit(header: Header, templates: Path) -> str:
    """The HTCondor submit file, by the site's template. Raises Unrepresentable for a text it cannot carry."""
    return _template(templates / "htcondor", submit_template(header.request.site)).render(submit_row(header))


def render_jdl(header: Header, templates: Path) -> str:
    """The JDL of the batch's documents, by the site's template; `$(fg_...)` stands for what differs between them
    (jdl.py). Raises Unrepresentable for a text that DIRAC cannot carry."""
    return _template(templates / "dirac", submit_template(header.request.site)).render(jdl_row(header))


def _template(folder: Path, name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    return environment.get_template(name)


def submit_template(site: Site) -> str:
    """The name of the site's submit template: its own, or the one for its backend and universe."""
    if site.template != DEFAULT_TEMPLATE:
        return site.template
    if site.backend == "dirac":
        return "job.jdl.j2"
    grid = site.htcondor.grid
    if grid is None:
        return DEFAULT_TEMPLATE
    return "grid.sub.j2" if grid.is_batch else f"{grid.kind}.sub.j2"


def _finalize(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        raise TypeError(f"a template prints {value!r}")
    if any(ord(char) < 32 and char != "\t" for char in str(value)):
        raise Unrepresentable("a text of the submit file", str(value), "it has a control character")
    return value


def image_request(request: Request) -> str | None:
    """The right side of `+SingularityImage =` in the site's dialect; None where the site is asked otherwise or not.

    Raises Unrepresentable for a path that pilots, who read the job's ad as text, would take for another.
    """
    container = request.site.container
    if request.image_path is None or container.dialect in ("none", "universe"):
        return None
    image = encode_submit_string(request.image_path, "the image's path")
    if container.dialect == "plain":
        if bad := _NOT_AS_TEXT.search(request.image_path):
            why = f"pilots read the job's ad as text, and {bad[0]!r} ends or alters the path there (dialect: plain)"
            raise Unrepresentable("the image's path", request.image_path, why)
        return image
    return f"ifThenElse(({container.vacate_counter} ?: 0) >= 1, undefined, {image})"


def container_image(request: Request) -> str | None:
    """The image for HTCondor's container universe (dialect `universe`): a directory, or a SIF by its name's end."""
    if request.image_path is None or request.site.container.dialect != "universe":
        return None
    return encode_submit_value(request.image_path, "the image's path")


def secret_row(secrets: Mapping[str, Secret]) -> dict[str, Any]:
    """What the submit file says of the step's secrets: names of files and services, no value."""
    sent = [encode_path(each.source or "", name) for name, each in secrets.items() if each.kind == "transfer"]
    sealed = [name for name, each in secrets.items() if each.kind == "sealed"]
    proxies = [encode_path(each.source or "", name) for name, each in secrets.items() if each.kind == "proxy"]
    tokens = [each for each in secrets.values() if each.kind == "token"]
    return {
        "secret_files": [*(f"$(fg_plan)/secrets/{file}" for name in sealed for file in file_names(name)), *sent],
        "encrypted": bool(sent),
        "tokens": token_lines(tokens).rstrip("\n").split("\n") if tokens else [],
        "user_proxy": next(iter(proxies), None),
    }


def token_lines(secrets: Sequence[Secret]) -> str:
    """What a submit file says of tokens, and nothing else: for asking the credential daemon."""
    lines = [f"use_oauth_services = {', '.join(str(each.service) for each in secrets)}"]
    for each in secrets:
        lines += [f"{each.service}_oauth_permissions = {each.permissions}"] if each.permissions else []
        lines += [f"{each.service}_oauth_resource = {each.resource}"] if each.resource else []
    return "\n".join(lines) + "\n"


def is_late(header: Header) -> bool:
    """Does HTCondor make the batch's jobs as there is room for them? Only then a limit can be changed later."""
    return header.request.limited or header.jobs > header.request.site.htcondor.late_above


def submit_row(header: Header) -> dict[str, Any]:
    """What the submit template is given: encoded strings, numbers, and None for what is not set."""
    request = header.request
    site, resources = request.site, request.resources
    condor = site.htcondor
    memory_mb = -(-resources.memory // 2**20)
    most = min(condor.max_materialize, request.max_running or condor.max_materialize)
    late = is_late(header)
    return {
        "batch_name": encode_submit_value(header.name, "batch name"),
        "cpus": resources.cpus,
        "memory_mb": memory_mb,
        "disk_kb": -(-resources.disk // 2**10),
        "stop_after_s": resources.walltime + PATIENCE_S,
        "requirements": condor.requirements,
        "singularity_image": image_request(request),
        "container_image": container_image(request),
        "container_folder": encode_submit_value(site.container.workdir, "workdir"),
        "accounting_group": request.accounting_group,
        "accounting_group_user": request.accounting_user,
        "priority": request.priority,
        "has_bundle": request.has_code,
        "has_gathered": request.has_gathered,
        **retry_row(request.in_queue, request.retries, memory_mb),
        **secret_row(request.secrets),
        "max_materialize": most if late else None,
        "max_idle": condor.max_idle if late else None,
        "attributes": {
            **{name: encode_submit_string(value, name) for name, value in condor.attributes.items()},
            **{name: encode_submit_expression(value, name) for name, value in condor.expressions.items()},
        },
        "campaign": encode_submit_string(header.campaign),
        "step": encode_submit_string(header.step),
        "site": encode_submit_string(header.site),
        "block": encode_submit_string(header.block),
        "generation": header.generation,
        "image_digest": encode_submit_string(request.image_digest),
        "grid": grid_row(condor.grid, resources, site.limits, PATIENCE_S) if condor.grid else None,
    }


def jdl_row(header: Header) -> dict[str, Any]:
    """What the JDL's template is given: encoded strings and lists ("" for an empty one), numbers, None for what is not
    set."""
    request, dirac = header.request, header.request.site.dirac
    if dirac is None:
        raise TypeError(f"site {header.site} has no section dirac")
    return {
        "job_type": encode_jdl_string(dirac.job_type, "dirac.job_type"),
        "cpu_time": cpu_time_of(request.resources, dirac),
        "memory_attribute": dirac.memory,
        "memory": memory_of(request.resources, dirac),
        "cpus": request.resources.cpus,
        "priority": request.priority or None,
        "sites": _jdl_list(dirac.sites, "dirac.sites"),
        "banned_sites": _jdl_list(dirac.banned_sites, "dirac.banned_sites"),
        "tags": _jdl_list(dirac.tags, "dirac.tags"),
        "platform": dirac.platform and encode_jdl_string(dirac.platform, "dirac.platform"),
        "output_se": _jdl_list(dirac.output_se, "dirac.output_se"),
        "output_path": dirac.output_path and encode_jdl_string(dirac.output_path, "dirac.output_path"),
        "brings_outputs": request.site.output.kind == "transfer",
        "has_lfns": request.has_lfns,
    }


def _jdl_list(texts: Sequence[str], what: str) -> str:
    return encode_jdl_list(texts, what) if texts else ""
