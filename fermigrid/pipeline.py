"""A job of the Fermi pipeline as its job control hands it over: environment -> what is asked for. Pure.

The environment is the only way in which the pipeline says where messages go and which container is wanted, so all of it
is read here, and everything wrong with it is said at once.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from pydantic import ValidationError

from fermigrid.campaign import SHELL_OWN, Bind, PipelineMessages
from fermigrid.credential import has_secret_name, looks_secret
from fermigrid.errors import PipelineRefused
from fermigrid.site import check_runtime

REQUIRED = (
    "PIPELINE_FROMADDRESS",
    "PIPELINE_TOADDRESS",
    "PIPELINE_PROCESSINSTANCE",
    "PIPELINE_ERRORADDRESS",
    "JOBCONTROL_LOGFILE",
)
T = TypeVar("T")
_SAYS = {"instance": REQUIRED[2], "from": REQUIRED[0], "to": REQUIRED[1], "log": REQUIRED[4]}

# --- which variables travel

_OURS = re.compile(r"(?:PIPELINE_|GPL_|JOBCONTROL_)\w*\Z|P2_SENDMAIL\Z", re.ASCII)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# What belongs to the machine, its loader, its interpreters and its batch system is wrong on another machine.
_HOST = re.compile(
    r"LD_|DYLD_|PYTHON|PERL|RUBY|GEM_|NODE_|R_LIBS|JAVA_|_JAVA_|CLASSPATH|BASH|GCONV_|LOCPATH|NLSPATH|MALLOC_|GLIBC_"
    r"|FERMIGRID_|APPTAINER|SINGULARITY|_?CONDOR_|LSB_|LSF_|LS_|SLURM_|SBATCH_|PBS_|SGE_|SSH_|XDG_|DBUS_|KRB5|GIT_|SUDO_"
    r"|(?:HOME|PATH|MANPATH|INFOPATH|TMP|TMPDIR|TEMP|USER|USERNAME|LOGNAME|SHELL|HOSTNAME|HOST|TERM|DISPLAY|XAUTHORITY"
    r"|MAIL|PIPELINE_SUMMARY)\Z"
)


@dataclass(frozen=True)
class Passed:
    """The variables that travel with the job, and the names of those that were asked for and stay behind."""

    values: Mapping[str, str]
    withheld: tuple[str, ...]


@dataclass(frozen=True)
class Order:
    """What a job's environment asks for. `image`, `runtime`: as written, None where the site decides."""

    messages: PipelineMessages
    image: str | None
    binds: tuple[Bind, ...]
    runtime: str | None
    passed: Passed

    @property
    def instance(self) -> str:
        """The process instance: a number that the pipeline gives to each try of a process."""
        return self.messages.instance


def read_order(
    environment: Mapping[str, str],
    listed: Sequence[str] = (),
    wanted: Sequence[str] = (),
    exists: Callable[[str], bool] = lambda _: False,
) -> Order:
    """What the environment asks for. `listed`: names in the pipeline's own `pipeline_env`; `wanted`: names and patterns
    of the command line; `exists`: is there such a file? Raises PipelineRefused with everything that is wrong."""
    problems = [f"{name} is not set" for name in REQUIRED if not environment.get(name)]
    messages = None if problems else _read_messages(environment, problems)
    binds = _attempt(problems, "PIPELINE_CONTAINER_BIND", parse_binds, environment.get("PIPELINE_CONTAINER_BIND", ""))
    runtime = _attempt(problems, "PIPELINE_CONTAINER_BIN", parse_runtime, environment.get("PIPELINE_CONTAINER_BIN", ""))
    passed = choose_variables(environment, listed, wanted, exists, problems)
    if problems or messages is None:
        hint = "Nothing was changed. The pipeline's job control sets these variables; see docs/how-to/pipeline.md."
        raise PipelineRefused("\n".join(problems), hint)
    return Order(messages, environment.get("PIPELINE_CONTAINER", "").strip() or None, binds or (), runtime, passed)


def _attempt(problems: list[str], name: str, parse: Callable[[str], T], text: str) -> T | None:
    try:
        return parse(text)
    except ValueError as error:
        problems.append(f"{name}={text!r}: {error}")
        return None


def _read_messages(environment: Mapping[str, str], problems: list[str]) -> PipelineMessages | None:
    source, to, instance, _, log = (environment[name].strip() for name in REQUIRED)
    written = {"instance": instance, "from": source, "to": to, "log": log}
    if any(ord(char) < 32 or ord(char) == 127 for char in log):
        problems.append(f"JOBCONTROL_LOGFILE={log!r} contains a control character")
    try:
        return PipelineMessages.model_validate(written)
    except ValidationError as error:
        for each in error.errors():
            name = _SAYS[str(each["loc"][0])]
            problems.append(f"{name}={each['input']!r} {each['msg'].removeprefix('Value error, ')}")
    return None


def parse_runtime(text: str) -> str | None:
    """`PIPELINE_CONTAINER_BIN`: a runtime's name or absolute path; None when it is empty. Raises ValueError."""
    text = text.strip()
    if not text:
        return None
    if not re.fullmatch(r"(?:/|(?:/[A-Za-z0-9._+-]+)+/)?[A-Za-z0-9._+-]+", text):
        raise ValueError("is no container runtime: the name of a program, or its absolute path")
    return check_runtime(text)


def parse_binds(text: str) -> tuple[Bind, ...]:
    """`-B /sps:/sps -B /data:/data:ro,/pbs` -> binds, in order. As for the runtimes, one without a mode may be written.

    Raises ValueError for whatever is not understood: a bind that is guessed at is worse than none.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"cannot be taken apart: {error}") from error
    found: dict[str, Bind] = {}
    wrong = []
    for written in _bind_words(words):
        try:
            bind = _parse_bind(written)
        except ValueError as error:
            wrong.append(str(error))
            continue
        if (other := found.setdefault(bind.to, bind)) != bind:
            wrong.append(f"binds {other.source} ({other.mode}) and {bind.source} ({bind.mode}) to {bind.to}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return tuple(found.values())


def _bind_words(words: Iterable[str]) -> Iterator[str]:
    """The binds themselves: `-B X`, `-BX`, `--bind X`, `--bind=X` or X, each perhaps several with commas between."""
    left = iter(words)
    for word in left:
        if word in ("-B", "--bind"):
            word = next(left, "")
            if not word or word.startswith("-"):
                raise ValueError("ends with an option that has no bind behind it")
        elif word.startswith("--bind="):
            word = word.removeprefix("--bind=")
        elif word.startswith("-B"):
            word = word[2:]
        elif word.startswith("-"):
            raise ValueError(f"{word!r} is no option for binds: write -B /source:/target")
        yield from word.split(",")


def _parse_bind(written: str) -> Bind:
    source, *rest = written.split(":")
    mode = rest.pop() if rest and rest[-1] in ("ro", "rw") and len(rest) < 3 else "rw"
    if len(rest) > 1:
        raise ValueError(f"{written!r} is no bind: /source:/target, with :ro or :rw behind it")
    values = {"from": _plain(source), "to": _plain(rest[0]) if rest else None, "mode": mode}
    try:
        return Bind.model_validate(values)
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"{written!r} is no bind: {why}") from error


def _plain(path: str) -> str:
    return path.rstrip("/") or path[:1]


def choose_variables(
    environment: Mapping[str, str],
    listed: Sequence[str],
    wanted: Sequence[str],
    exists: Callable[[str], bool],
    problems: list[str],
) -> Passed:
    """The variables that travel: PIPELINE_*, GPL_*, JOBCONTROL_*, P2_SENDMAIL, those that `listed` has and those that
    `wanted` names or matches. Never those of the machine and its loader, never what looks like a credential: a telling
    name passes only with the path of a file that exists, a telling value (a key, a signed token, a password in a URL)
    not at all."""
    exact = {name for name in wanted if not set(name) & set("*?[")}
    for name in sorted(exact):
        if name not in environment:
            problems.append(f"--env {name}: it is not set")
        elif not _NAME.match(name) or _belongs_to_host(name):
            problems.append(f"--env {name}: it belongs to this machine and may not travel: set it in the script")
        elif is_credential(name, environment[name], exists):
            problems.append(f"--env {name}: it looks like a credential; the site's secrets (--secret) are for those")
    asked = exact | set(listed)
    patterns = [name for name in wanted if name not in exact]
    values: dict[str, str] = {}
    withheld = []
    for name in sorted(environment):
        ours = bool(_OURS.match(name))
        if not (ours or name in asked or any(fnmatchcase(name, pattern) for pattern in patterns)):
            continue
        if not _NAME.match(name) or _belongs_to_host(name):
            continue
        if name not in REQUIRED and is_credential(name, environment[name], exists):
            withheld.append(name)
            continue
        try:
            environment[name].encode()
        except UnicodeEncodeError:
            problems.append(f"{name}={environment[name]!r} is not UTF-8")
            continue
        values[name] = environment[name]
    return Passed(values, tuple(withheld))


def _belongs_to_host(name: str) -> bool:
    return bool(_HOST.match(name)) or name in SHELL_OWN


def is_credential(name: str, value: str, exists: Callable[[str], bool]) -> bool:
    """Does a variable look as if its value were a secret, and not the path of one?"""
    if looks_secret(value):
        return True
    return bool(value and has_secret_name(name)) and not (value.startswith("/") and exists(value))


def parse_names(pipeline_env: str) -> tuple[str, ...]:
    """The names in what `export -p` printed; the values, of an earlier try, are not taken."""
    return tuple(dict.fromkeys(re.findall(r"^(?:declare -\w*x\w* |export )([A-Za-z_]\w*)=", pipeline_env, re.M | re.A)))
