"""What a plan says, under the keys by which people write it: `resources.walltime: 4 h`, not `walltime=14400`. Pure.

Every field of job.env and of a row has its words. Of a submit file only those lines have them that carry a value of a
campaign or a site; the others are fermigrid's own way with HTCondor, or a site's template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from fermigrid.units import exact_bytes, exact_seconds

Fields = Sequence[tuple[str, str]]

_TIMES = {  # fields of job.env in seconds
    "walltime": "resources.walltime", "backoff": "container.backoff", "jitter": "container.limits.jitter",
    "limit.path": "container.limits.path", "limit.http": "container.limits.http",
    "limit.stage_in": "staging.stage_in", "limit.stage_out": "staging.stage_out", "message.timeout": "messages.timeout",
}  # fmt: skip
_SIZES = {"node_cache.limit": "container.node_cache.limit", "cores.limit": "staging.cores"}  # in bytes
_TEXTS = {
    "launch": "container.launch", "order": "container.order", "rehearsal": "container.rehearsal",
    "runtime": "container.runtimes", "runtime.option": "container.options", "preamble": "container.preamble",
    "scratch": "container.scratch", "batch_system": "htcondor.grid.kind", "http_proxy": "proxy",
    "node_cache": "container.node_cache.path", "node_cache.shared": "container.node_cache.shared",
    "stage.tries": "staging.tries", "arg": "command", "message.via": "messages.via", "message.ca": "messages.ca",
}  # fmt: skip
_HEADS = {"software": "software", "secret": "secrets", "in": "inputs", "out": "outputs"}
_INNER = {"env": "environment", "set": "environment"}  # NAME=VALUE of a head, as `point` and `home` are
_LINES = {  # commands of the submit file
    "request_memory": "resources.memory", "fg_memory": "resources.memory",
    "request_disk": "resources.disk", "fg_retries": "retries.max",
    "accounting_group": "accounting.group", "accounting_group_user": "accounting.user",
    "priority": "accounting.priority", "max_materialize": "htcondor.max_materialize", "max_idle": "htcondor.max_idle",
    "requirements": "htcondor.requirements", "batch_queue": "htcondor.grid.queue",
    "batch_project": "htcondor.grid.project", "batch_extra_submit_args": "htcondor.grid.options",
    "arc_rte": "htcondor.grid.rte", "Site": "dirac.sites", "BannedSites": "dirac.banned_sites", "Tags": "dirac.tags",
    "Platform": "dirac.platform", "JobType": "dirac.job_type", "OutputSE": "dirac.output_se",
    "OutputPath": "dirac.output_path", "Priority": "accounting.priority", "MinRAM": "resources.memory",
    "RAM": "resources.memory",
}  # fmt: skip
_UNITS = {"M": 2**20, "K": 2**10}
_RAM = {"MinRAM": 2**20, "RAM": 2**30}
_OWN_PART = "$(fg_elsewhere_ok) && $(fg_bad_starts) < $(fg_container_tries)"
_OWN_OPTIONS = re.compile(
    r"#\$ ?|--job-name=\$\(fg_job\)\.\$\(fg_batch\)|--dependency=singleton|--cpus-per-task=\d+"
    r"|\$\(fg_exclude\)"
)
_OWN_ATTRIBUTES = re.compile(
    r"\+(?:remote_)?(?:Fermigrid.*|Periodic.*|OnExit.*|AllowedExecuteDuration|NodeNumber|SMPGranularity|maxWallTime"
    r"|BatchRuntime|WantContainer|ContainerImage|ContainerTargetDir|TransferContainer|WantSIF|WantSandboxImage"
    r"|SingularityImage)"
)


def settings_in_words(fields: Fields) -> Iterator[tuple[str, str]]:
    """The fields of job.env or of a row. What belongs to a head carries its name: `secrets.db.point.DB`."""
    heads: dict[str, str] = {}
    bind: dict[str, str] = {}
    for key, value in fields:
        head, _, rest = key.partition(".")
        if head == "bind":
            bind[rest] = value
            if rest == "required":  # the last of its fields
                yield f"binds {bind['to']}", _bind(bind)
        elif key == "env":
            name, _, text = value.partition("=")
            yield f"environment.{name}", text
        elif head in _HEADS and not rest:
            heads[head] = value
            yield _HEADS[head], value
        elif head in _HEADS:
            yield _of_head(_HEADS[head], heads.get(head, ""), rest, value)
        else:
            yield _setting(key, value)


def _bind(bind: Mapping[str, str]) -> str:
    return f"{bind.get('')} ({bind.get('mode')}{', where it is' if bind['required'] == 'no' else ''})"


def _of_head(word: str, name: str, rest: str, value: str) -> tuple[str, str]:
    if rest in ("env", "set", "point", "home"):
        variable, _, value = value.partition("=")
        return f"{word}.{name}.{_INNER.get(rest, rest)}.{variable}", value
    short = (word, rest) in (("inputs", "from"), ("outputs", "to"))  # as a campaign has them: {name: place}
    return f"{word}.{name}{'' if short else f'.{rest}'}", value


def _setting(key: str, value: str) -> tuple[str, str]:
    if key in _TIMES:
        return _TIMES[key], _exact(value, exact_seconds)
    if key in _SIZES:
        return _SIZES[key], _exact(value, exact_bytes)
    return _TEXTS.get(key, key), value


def _exact(value: str, show: Callable[[int], str]) -> str:
    """With its unit, if it is a number: a plan may have been altered."""
    return show(int(value)) if value.isascii() and value.isdigit() else value


def line_in_words(name: str, value: str) -> Fields:
    """A line of the submit file as values of a campaign or a site; none for one that is neither's."""
    if name == "+SingularityImage":
        return [("container.dialect", "plain" if value.startswith('"') else "self-healing")]
    if name == "container_image":
        return [("container.dialect", "universe")]
    if name == "grid_resource":
        return _grid(*value.split())
    if name.startswith("+") and not _OWN_ATTRIBUTES.fullmatch(name):
        return [_attribute(name, value)]
    said = _said(name, value) if name in _LINES else ""
    return [(_LINES[name], said)] if said else []


def _grid(kind: str = "", *where: str) -> Fields:
    if kind == "batch":
        return [("htcondor.grid.kind", " ".join(where))]
    keys = ("ce", "pool") if kind == "condor" else ("url",)
    return [
        ("htcondor.grid.kind", kind),
        *((f"htcondor.grid.{key}", text) for key, text in zip(keys, where, strict=False)),
    ]


def _said(name: str, value: str) -> str:
    """What the person said of it; empty when that is nothing."""
    if name == "fg_memory":
        return exact_bytes(int(value) * _UNITS["M"])
    if name == "request_memory" and "$(fg_memory)" in value:
        return ""
    if name in ("request_memory", "request_disk") and value[-1:] in _UNITS and value[:-1].isdigit():
        return exact_bytes(int(value[:-1]) * _UNITS[value[-1]])
    if name in _RAM and value.isdigit():
        return exact_bytes(int(value) * _RAM[name])
    if name == "requirements":
        rest = value.removeprefix(_OWN_PART).removeprefix(" && $(fg_not_banned)")
        return rest.removeprefix(" && (").removesuffix(")")
    if name == "batch_extra_submit_args":
        return " ".join(word for word in value.split() if not _OWN_OPTIONS.fullmatch(word))
    return value


def _attribute(name: str, value: str) -> tuple[str, str]:
    if name.startswith("+remote_"):
        return f"htcondor.grid.attributes.{name.removeprefix('+remote_')}", value
    kind = "attributes" if value.startswith('"') else "expressions"
    return f"htcondor.{kind}.{name[1:]}", value
