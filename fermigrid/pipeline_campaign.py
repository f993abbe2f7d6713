"""A job of the pipeline as a campaign of one job: what its campaign file, catalogue and site file would say. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from fermigrid.campaign import Bind
from fermigrid.errors import PipelineRefused, Unrepresentable
from fermigrid.image import Catalogue, Image
from fermigrid.pipeline import Order
from fermigrid.site import Site

STEP = "script"
WRAPPER = ("pipeline_wrapper", "./pipeline_wrapper")
_SHELL = re.compile(rb"#!\s*(?:/usr)?/bin/(?:env\s+)?(?:ba|da)?sh")
LEAST_WALL_S = 3600  # a job waits for files and mounts, too: its walltime is never so close to its CPU time as this
# Who reads this: bash, for every job. Where the log cannot be written, the output goes to the batch system's log.
# ulimit: XCPU at the limit, as the batch systems did; `exec`, so that signals meet the script and nothing else.
LAUNCH = (
    'cd -- "$1" || exit 126; '
    'if [ -n "$2" ] && { : >> "$2"; } 2> /dev/null; then exec >> "$2" 2>&1; fi; '
    '[ -z "$3" ] || ulimit -S -t "$3"; '
    "shift 3; "
    '[ "$1" != ./script ] || [ -x script ] || chmod u+x script || exit 126; '
    'exec "$@"'
)


@dataclass(frozen=True)
class Limits:
    """What the job control asks for: seconds, MB (10^6 bytes); None where the site's and fermigrid's defaults hold."""

    max_cpu_s: int | None = None
    max_wall_s: int | None = None
    max_memory_mb: int | None = None
    disk_mb: int | None = None
    cpus: int | None = None
    retries: int | None = None
    group: str | None = None
    priority: int | None = None
    software: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """The job folder as the job sees it. `log`: where its output goes from the node, None where the nodes do not see
    the folder; then `files` travel with the job, and its log comes back."""

    folder: str
    log: str | None
    files: tuple[str, ...] = ()


def campaign_name(order: Order, name: str | None) -> str:
    """`<name>-<process instance>`, made tame; what a batch system shows."""
    wanted = name or order.passed.values.get("PIPELINE_PROCESS") or "pipeline"
    stem = re.sub(r"[^A-Za-z0-9._]+", "-", wanted).strip("-._")[:40].strip("-._") or "pipeline"
    return f"{stem}-{order.instance}"


def describe_job(
    order: Order, limits: Limits, place: Place, *, name: str | None, image: str, command: Sequence[str], site: Site
) -> dict[str, Any]:
    """What a campaign file for this job would say. Raises Unrepresentable, PipelineRefused."""
    for number, word in enumerate(command, 1):
        if re.search("[\0\r\n\ud800-\udfff]", word):
            raise Unrepresentable(f"word {number} of the command", word, "it has a line break, or is not UTF-8")
    cpu = "" if limits.max_cpu_s is None else str(limits.max_cpu_s)
    launch = ["bash", "-c", LAUNCH, "pipeline", place.folder, place.log or "", cpu, *command]
    step: dict[str, Any] = {
        "command": [_literal(word) for word in launch],
        "resources": _resources(limits, site),
        "secrets": list(limits.secrets),
    }
    accounting = {"group": limits.group, "priority": limits.priority}
    return {
        "campaign": campaign_name(order, name),
        "title": "a job of the Fermi pipeline",
        "image": image,
        "software": list(limits.software),
        "code": list(place.files),
        "environment": {name: _literal(value) for name, value in order.passed.values.items()},
        "binds": [_bind(bind) for bind in _binds(order, place, site)],
        "runs": {"list": [order.instance]},
        "retries": {} if limits.retries is None else {"max": str(limits.retries)},
        "accounting": {key: str(value) for key, value in accounting.items() if value is not None},
        "messages": {**order.messages.model_dump(by_alias=True, exclude_none=True), **_workdir(place)},
        "steps": {STEP: step},
    }


def _literal(word: str) -> str:
    return word.replace("{", "{{").replace("}", "}}")


def _workdir(place: Place) -> dict[str, str]:
    return {} if place.log is None else {"workdir": place.folder}


def _bind(bind: Bind) -> dict[str, str]:
    required = "true" if bind.required else "false"
    return {"from": bind.source, "to": bind.to, "mode": bind.mode, "required": required}


def _resources(limits: Limits, site: Site) -> dict[str, str]:
    wall = limits.max_wall_s
    if wall is None and limits.max_cpu_s is not None:
        wall = max(2 * limits.max_cpu_s, limits.max_cpu_s + LEAST_WALL_S)
        most = site.limits.walltime
        wall = wall if most is None or limits.max_cpu_s > most else min(wall, most)
    written = {
        "cpus": limits.cpus,
        "memory": None if limits.max_memory_mb is None else f"{limits.max_memory_mb} MB",
        "disk": None if limits.disk_mb is None else f"{limits.disk_mb} MB",
        "walltime": None if wall is None else f"{wall} s",
    }
    return {key: str(value) for key, value in written.items() if value is not None}


def _binds(order: Order, place: Place, site: Site) -> list[Bind]:
    """The order's binds that the site does not have, and the job folder where the nodes see it."""
    known = {bind.to: bind for bind in site.binds}
    found = []
    for bind in order.binds:
        other = known.get(bind.to)
        if other and other.source != bind.source:
            text = f"PIPELINE_CONTAINER_BIND binds {bind.source} to {bind.to}, site {site.site!r} binds {other.source}"
            raise PipelineRefused(text, "Nothing was changed. Leave it out, or correct the site file.")
        if not other or other.mode != bind.mode:
            found.append(bind)
    if place.log is not None and not covers(place.folder, (*site.binds, *found)):
        found.append(Bind.model_validate({"from": place.folder, "mode": "rw"}))
    return found


def covers(folder: str, binds: Sequence[Bind]) -> bool:
    """Do the binds show this folder under its own name, so that it can be written?"""
    return any(
        bind.mode == "rw" and bind.source == bind.to and f"{folder}/".startswith(f"{bind.source.rstrip('/')}/")
        for bind in binds
    )


def choose_image(wanted: str | None, site: Site, catalogue: Catalogue) -> tuple[str, dict[str, Any] | None]:
    """The image's name in the catalogue, and the entry to add when it is not in there. Raises PipelineRefused.

    Without `wanted`, the one image that the site file has under `images:`.
    """
    if wanted is None:
        if len(site.images) == 1:
            return next(iter(site.images)), None
        text = f"no image: no PIPELINE_CONTAINER, no --image, and site {site.site!r} has not one image of its own"
        raise PipelineRefused(text, f"The catalogue has: {', '.join(sorted(catalogue.images))}.")
    if wanted in catalogue.images:
        return wanted, None
    where = wanted.removeprefix("file://")
    for name, image in catalogue.images.items():
        here = site.images.get(name)
        places = [
            image.path,
            image.sif,
            image.registry,
            *(url for http in (image.http, image.tar) if http for url in http.urls),
        ]
        if where in (*places, *((here.path, here.sif) if here else ())):
            return name, None
    if where.startswith("/"):
        kind = {"path": where}
    elif re.match(r"(?:docker|oras|library)://\S+@sha256:[0-9a-f]{64}\Z", where):
        kind = {"registry": where}
    else:
        text = f"PIPELINE_CONTAINER={wanted!r} is no image of the catalogue and no absolute path"
        if "://" in where:
            text += ", and what is behind a URL must be known by its digest before a job may trust it"
        known = ", ".join(sorted(catalogue.images))
        hint = f"Write an entry into an images.yaml of your own (docs/reference/images.md). There are: {known}."
        raise PipelineRefused(text, hint)
    try:
        Image.model_validate({"flavour": "light", **kind})
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise PipelineRefused(f"PIPELINE_CONTAINER={wanted!r} {why}", "Nothing was changed.") from error
    stem = re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(where.partition("@")[0]).stem).strip("-")[:40]
    entry = {"title": "as PIPELINE_CONTAINER names it", "flavour": "light", "distribution": "site", **kind}
    return f"{stem or 'image'}-{sha256(where.encode()).hexdigest()[:8]}", entry


def payload_of(
    command: Sequence[str], environment: Mapping[str, str], first_line: bytes
) -> tuple[tuple[str, ...], bool]:
    """The words of the payload, and whether they are the job folder's `script`. `first_line` is that of the script.

    The old `pipeline_wrapper` is nobody's payload: fermigrid's worker does what it did, so a command that starts it
    means the script. Without a command, PIPELINE_COMMAND, whose words were taken apart at blanks by that wrapper.
    """
    words = tuple(command)
    if not words or _program(words) in WRAPPER:
        words = tuple(environment.get("PIPELINE_COMMAND", "").split())
    program = _program(words)
    if program and program not in (*WRAPPER, "script", "./script"):
        return words, False
    rest = words[words.index(program) + 1 :] if program.endswith("script") else ()
    # `bash` for a script of the shell, which needs no x bit then; another language's script starts itself
    of_shell = not first_line.startswith(b"#!") or _SHELL.fullmatch(first_line.strip())
    return (("bash", "./script") if of_shell else ("./script",)) + rest, True


def _program(words: Sequence[str]) -> str:
    """The word that is run: the first, or the one behind the shell."""
    return next((word for word in words if word not in ("bash", "sh", "/bin/bash", "/bin/sh")), "")
