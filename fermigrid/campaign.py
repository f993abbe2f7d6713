"""What a person wants done: the model of a campaign file."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fermigrid.config import Model
from fermigrid.retry_rule import Ban, Rule, Stuck
from fermigrid.units import parse_bytes, parse_seconds

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def _word(text: str) -> str:
    if not _WORD.match(text) or len(text) > 60:
        raise ValueError(
            "may hold only letters, digits, '.', '_' and '-', begin with a letter or digit, and have 60 at most"
        )
    return text


def _step_name(text: str) -> str:
    if "." in _word(text):
        raise ValueError("a step's name has no '.': it separates the parts of a job's name")
    return text


def _variable(text: str) -> str:
    if not _NAME.match(text):
        raise ValueError("is no name of a variable: letters, digits and '_', not beginning with a digit")
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("must be an absolute path")
    if ":" in text or "," in text:
        raise ValueError("a path with ':' or ',' cannot be written in a bind; bind a folder above it")
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise ValueError("contains a control character")
    if ".." in text.split("/"):
        raise ValueError("may not contain '..'")
    return text


def check_version(text: str) -> str:
    """A version, as names of files have it. Raises ValueError."""
    if any(char.isspace() or not char.isprintable() for char in text):
        raise ValueError("has no blanks in it: it is part of the names of files")
    return text


def _line(text: str) -> str:
    if any(ord(char) < 32 and char != "\t" for char in text):
        raise ValueError("must be one line without control characters")
    return text


_STRINGS = re.compile(r"""\"(?:[^"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'""")
_PAIRS = {")": "(", "]": "[", "}": "{"}


def _expression(text: str) -> str:
    """One ClassAd expression, as far as can be seen without HTCondor: it ends where it should, and not before."""
    bare, opened = _STRINGS.sub("s", _line(text)), list[str]()
    if '"' in bare or "'" in bare:
        raise ValueError("is no ClassAd expression: a string in it is not closed")
    for char in bare:
        if char in _PAIRS.values():
            opened.append(char)
        elif char in _PAIRS and (not opened or opened.pop() != _PAIRS[char]):
            raise ValueError(f"is no ClassAd expression: {char!r} closes nothing")
    if opened:
        raise ValueError(f"is no ClassAd expression: {opened[-1]!r} is not closed")
    if not bare.strip() or re.search(r"[-=<>&|+*/%?:,!]\s*\Z", bare):
        raise ValueError("is no ClassAd expression: something is missing at its end")
    return text


Line = Annotated[str, AfterValidator(_line)]
Version = Annotated[str, AfterValidator(check_version)]
Expression = Annotated[str, AfterValidator(_expression)]
Word = Annotated[str, AfterValidator(_word)]
Variable = Annotated[str, AfterValidator(_variable)]
BindPath = Annotated[str, AfterValidator(_absolute)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Seconds = Annotated[int, BeforeValidator(parse_seconds)]


def _inputs(written: object) -> object:
    """A list of places, or local name -> place or list of places: always made local name -> list."""
    if isinstance(written, list) and all(isinstance(place, str) for place in written):
        names = [place.rsplit("/", 1)[-1] for place in written]
        if len(set(names)) != len(names):
            raise ValueError("two inputs have the same file name: give them local names (name: place)")
        written = dict(zip(names, written, strict=True))
    if isinstance(written, dict):
        return {name: [place] if isinstance(place, str) else place for name, place in written.items()}
    return written


Inputs = Annotated[dict[str, Annotated[tuple[str, ...], Field(min_length=1)]], BeforeValidator(_inputs)]


def _payload_variable(text: str) -> str:
    if _variable(text) in SHELL_OWN or text.startswith("FERMIGRID_"):
        raise ValueError("is set by the shell or by the worker itself: choose another name")
    return text


# Names that a shell keeps for itself or does not give on, whatever is assigned to them.
SHELL_OWN = frozenset((
    "UID", "EUID", "PPID", "GROUPS", "SHELLOPTS", "BASHOPTS", "BASH_VERSINFO", "BASH_VERSION", "IFS",
    "OPTIND", "OPTARG", "PWD", "OLDPWD", "SHLVL", "_", "PS1", "PS2", "PS4", "RANDOM", "SECONDS", "LINENO",
    "BASH_ENV", "ENV",
))  # fmt: skip
PayloadVariable = Annotated[str, AfterValidator(_payload_variable)]
Environment = dict[PayloadVariable, str]


class Bind(Model):
    """A folder of the host in the container (`{from, to, mode, required}`)."""

    source: BindPath = Field(alias="from")
    target: BindPath | None = Field(default=None, alias="to")
    mode: Literal["ro", "rw"] = "ro"
    required: bool = True

    @property
    def to(self) -> str:
        """Where it appears in the container: `to`, or the same path as on the host."""
        return self.target or self.source


class Runs(Model):
    """Which runs: a table (CSV with a header), a list of names, or just a number of jobs."""

    table: str | None = None
    list: tuple[Word, ...] | None = None
    count: Annotated[int, Field(ge=1, le=1_000_000)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Runs:
        if sum(value is not None for value in (self.table, self.list, self.count)) != 1:
            raise ValueError("give exactly one of table, list, count")
        return self


class Split(Model):
    """How a run is cut into pieces: `events` in a clump, at most so many in a chunk. The others are of crumbs: at most
    `crumbs` of a chunk, at least `crumb_events` events in each on average, the largest `ratio` times the smallest."""

    events: Annotated[int, Field(ge=1)] = 125_000
    crumbs: Annotated[int, Field(ge=1, le=1000)] = 45
    crumb_events: Annotated[int, Field(ge=1)] = 1500
    ratio: Annotated[float, Field(ge=1, le=100)] = 1.5


class Gather(Model):
    """What a job is given of a step before it: the output (by its local name) of each of that step's good pieces."""

    step: str
    output: str


class Resources(Model):
    """What one job needs; `output`: the bytes that it is expected to publish."""

    cpus: Annotated[int, Field(ge=1, le=1024)] = 1
    memory: Bytes = parse_bytes("2 GiB")
    disk: Bytes = parse_bytes("4 GiB")
    walltime: Seconds = parse_seconds("4 h")
    output: Bytes | None = None


def _after(written: object) -> object:
    """A list of steps is short for: all their pieces accepted."""
    return dict.fromkeys(written, "accepted") if isinstance(written, list | tuple) else written


After = Annotated[dict[str, Literal["accepted", "done"]], BeforeValidator(_after)]


class Step(Model):
    """One stage of a campaign, done once for each run or for each piece of a run.

    `after`: the steps before it, each with what of a run it waits for: all pieces `accepted`, or all `done`, which is
    accepted or failed for good; then it is given the good ones. `gather`: folder of the job -> what is put into it.
    """

    foreach: Literal["run", "clump", "chunk", "crumb"] = "run"
    split: Split | None = None
    after: After = {}
    gather: dict[Word, Gather] = {}
    command: Annotated[tuple[str, ...], Field(min_length=1)]
    inputs: Inputs = {}
    outputs: dict[str, str] = {}
    environment: Environment = {}
    resources: Resources = Resources()
    secrets: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _split(self) -> Step:
        written = self.split.model_fields_set if self.split else set[str]()
        if self.foreach == "clump" and "events" not in written:
            raise ValueError("foreach: clump needs to know the size of a clump: write split: {events: 20000}")
        if self.foreach == "run" and self.split is not None:
            raise ValueError("split goes with foreach: clump, chunk or crumb")
        if self.foreach != "crumb" and (of_crumbs := sorted(written - {"events"})):
            raise ValueError(f"split.{of_crumbs[0]} goes with foreach: crumb")
        return self


class Retries(Model):
    """What is done with jobs that do not end well: begun again at most `max` times, over all generations. `rules`: the
    first that fits, before those of the site and the built-in ones."""

    max: Annotated[int, Field(ge=0, le=20)] = 3
    rules: tuple[Rule, ...] = ()
    stuck: Stuck = Stuck()
    ban: Ban = Ban()


class Rate(Model):
    """`running`: jobs in the queue at a time, so at most so many run. `starts`: jobs that begin in a minute, on
    average."""

    running: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    starts: Annotated[int, Field(ge=1, le=100_000)] | None = None


class Limits(Rate):
    """What a campaign may take: in all, each step, and at each site."""

    steps: dict[str, Rate] = {}
    sites: dict[str, Rate] = {}


class Accounting(Model):
    """Who pays, and how urgent it is (HTCondor: accounting_group, priority)."""

    group: Word | None = None
    user: Word | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0


def _instance(text: str) -> str:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError("is no process instance: a number of 18 digits at most, as in PIPELINE_PROCESSINSTANCE")
    return text


def _address(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._%+=/-]+@[A-Za-z0-9.-]+", text) or text.startswith("-"):
        raise ValueError("is no mail address: name@host, in plain letters")
    return text


Address = Annotated[str, AfterValidator(_address)]


def _mail_route(text: str) -> str:
    if not re.fullmatch(
        r"(?:sendmail|program):/[^\x00-\x1f\x7f]+|smtp://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?", text
    ):
        raise ValueError("is no way for a mail: smtp://host:port, sendmail:/path or program:/path")
    return text


_SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?% of the last ([0-9]+)\Z")
WINDOW_MOST = 10_000  # results that the ledger keeps for the circuit breaker


def parse_share(text: str) -> tuple[float, int]:
    """`20 % of the last 200` -> (0.2, 200). Raises ValueError."""
    match = _SHARE.match(" ".join(text.split()))
    if not match:
        raise ValueError("is no share: write it as in `20 % of the last 200`")
    percent, last = float(match[1]), int(match[2])
    if not 0 < percent <= 100 or not 1 <= last <= WINDOW_MOST:
        raise ValueError(f"is no share: more than 0 % and at most 100 %, of the last 1 to {WINDOW_MOST}")
    return percent / 100, last


def _share(text: str) -> str:
    parse_share(text)
    return text


Share = Annotated[str, AfterValidator(_share)]


class StopIf(Model):
    """The circuit breaker: when no more of the campaign may start, until a person says `fermigrid resume`. `failed` and
    `http` are shares of the last jobs that ended, `disk` is the least space of the run folder's file system."""

    failed: Share | None = None
    http: Share | None = None
    disk: Bytes | None = None


class Mail(Model):
    """Whom to write, and by which ways in their order: `smtp://host:port`, `sendmail:/path`, `program:/path`."""

    to: Annotated[tuple[Address, ...], Field(min_length=1)]
    source: Address = Field(alias="from")
    via: Annotated[tuple[Annotated[str, AfterValidator(_mail_route)], ...], Field(min_length=1)] = (
        "sendmail:/usr/sbin/sendmail",
    )


class Webhook(Model):
    """Where to POST: the URL is a secret as a rule, so it stands in a file or in a variable of the environment."""

    file: BindPath | None = None
    variable: Variable | None = None
    ca: BindPath | None = None

    @model_validator(mode="after")
    def _one(self) -> Webhook:
        if (self.file is None) == (self.variable is None):
            raise ValueError("give one of file (that has the URL in it) and variable (of the environment)")
        return self


class Alerts(Model):
    """How a person is told what needs one. `metrics`: a folder for a file in Prometheus' text format. `repeat`: the
    same is told again after this time. `stall`: so long nothing changed; `silence`: so long no answer came."""

    mail: Mail | None = None
    webhook: Webhook | None = None
    metrics: BindPath | None = None
    repeat: Seconds = parse_seconds("24 h")
    stall: Seconds = parse_seconds("12 h")
    silence: Seconds = parse_seconds("1 h")


class EventAudit(Model):
    """How the events of a step's output are compared, run by run, with those they were selected from. `of`: the output
    (not needed where there is only one). `source`: an input of the step, a folder that it gathers, or a step before it.
    `run`: the column with the run's number; without it a file's events are all of its run. `unique`: within what an
    event's `column` is its own. `may_drop`: it is a selection, so that not all events come out."""

    of: str | None = None
    source: str = Field(alias="from")
    table: str = "EVENTS"
    column: str = "EVENT_ID"
    run: str | None = None
    unique: Literal["run", "campaign"] = "run"
    may_drop: bool = False


class Audit(Model):
    """What `fermigrid audit` looks at besides files and reports; `events`: step -> how its events are compared."""

    events: dict[str, EventAudit] = {}


class PipelineMessages(Model):
    """Start and end messages of a job of the Fermi pipeline (only for a campaign of one job): who sends them to whom,
    for which process instance, the name of its log file, and the folder it works in when that is not the worker's."""

    instance: Annotated[str, AfterValidator(_instance)]
    source: Address = Field(alias="from")
    to: Address
    log: str
    workdir: BindPath | None = None


class Campaign(Model):
    """A campaign file."""

    campaign: Word
    title: str = ""
    version: Version = ""
    image: str
    software: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    parameters: dict[Variable, str] = {}
    environment: Environment = {}
    binds: tuple[Bind, ...] = ()
    runs: Runs
    block: Annotated[int, Field(ge=1, le=100_000)] = 500
    steps: Annotated[dict[Annotated[str, AfterValidator(_step_name)], Step], Field(min_length=1)]
    sites: dict[str, Annotated[int, Field(ge=1)]] = {}
    limits: Limits = Limits()
    retries: Retries = Retries()
    accounting: Accounting = Accounting()
    stop_if: StopIf = StopIf()
    alerts: Alerts = Alerts()
    audit: Audit = Audit()
    allow_uber: bool = False
    messages: PipelineMessages | None = None
