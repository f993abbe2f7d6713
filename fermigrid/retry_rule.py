"""What is done with a job that did not end well: the table of rules, and which of them fits. Pure.

A rule names ends (`when`) and says what becomes of a job that ended so (`do`). The first that fits counts: those of the
campaign, then of the site, then the built-in ones. What no rule names: a held job asks a person, any other has failed.
docs/reference/retries.md shows the built-in rules; a test compares the two.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fermigrid.config import Model
from fermigrid.units import parse_bytes, parse_seconds, show_bytes, show_seconds

WAIT_S = 60
FACTOR = 1.5
MOST_TIMES = 4  # so many times what the step asks for, where no rule says `most`
_STEP = 64 * 2**20  # memory is asked for in whole multiples of this
_PERSONS = frozenset({1, 15, 16})  # hold codes: what a person held, or sent so
_HOLD = re.compile(r"(-?[0-9]{1,4})(?:/(-?[0-9]{1,6}))?\Z")
_ALL = 10_000  # hold codes below it


class Do(StrEnum):
    """What becomes of a job."""

    WAIT = "wait"
    OTHER_NODE = "other-node"
    OTHER_SITE = "other-site"
    MORE_MEMORY = "more-memory"
    GIVE_UP = "give-up"
    ASK = "ask"

    @property
    def again(self) -> bool:
        """Is the job done once more?"""
        return self not in (Do.GIVE_UP, Do.ASK)


class Kind(StrEnum):
    """By what an end is told from others: the worker's own exit code, the payload's, a signal, a hold; or it has not
    ended and does nothing."""

    WORKER = "worker"
    EXIT = "exit"
    SIGNAL = "signal"
    HOLD = "hold"
    STUCK = "stuck"


def list_of(written: object) -> object:
    """One value is short for a list of it."""
    return written if isinstance(written, list | tuple) else (written,)


def _worker(code: int) -> int:
    if not 80 <= code <= 99:
        raise ValueError(f"{code} is no exit code of the worker's own: 80 to 99; one of the payload is `exit: {code}`")
    return code


def _exit(code: int) -> int:
    if not 1 <= code <= 255:
        raise ValueError(f"{code} is no exit code of a payload that failed: 1 to 255")
    return code


def _signal(written: object) -> object:
    text = str(written).upper().removeprefix("SIG")
    names = {one.name.removeprefix("SIG"): int(one) for one in signal.Signals}
    if text in names:
        return names[text]
    if not text.isdigit() or not 1 <= int(text) <= 64:
        raise ValueError(f"{written!r} is no signal: a name such as KILL, or 1 to 64")
    return int(text)


def _hold(text: str) -> str:
    found = _HOLD.match(text)
    if not found or not 0 <= int(found[1]) < _ALL:
        raise ValueError(f"{text!r} is no code of a hold: 34, or with its subcode 34/102")
    if int(found[1]) in _PERSONS:
        raise ValueError(f"{found[1]} is the hold of a person, who releases the job: no rule is for that")
    return text


_List = BeforeValidator(list_of)
_Filled = Field(min_length=1)
Worker = Annotated[int, AfterValidator(_worker)]
Exit = Annotated[int, AfterValidator(_exit)]
Signal = Annotated[int, BeforeValidator(_signal)]
HoldCode = Annotated[str, AfterValidator(_hold)]


class When(Model):
    """Which ends: exactly one kind, and one or several of its values. `worker`: its own exit codes, 80 to 99; `exit`:
    the payload's; `signal`: what ended the payload, or the worker; `hold`: code or code/subcode; `stuck`: a job that
    runs and does nothing."""

    worker: Annotated[tuple[Worker, ...], _List, _Filled] | None = None
    exit: Annotated[tuple[Exit, ...], _List, _Filled] | None = None
    signal: Annotated[tuple[Signal, ...], _List, _Filled] | None = None
    hold: Annotated[tuple[HoldCode, ...], _List, _Filled] | None = None
    stuck: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> When:
        if sum(value is not None for value in (self.worker, self.exit, self.signal, self.hold, self.stuck)) != 1:
            raise ValueError("give exactly one of worker, exit, signal, hold, stuck: one rule for each")
        if self.stuck is False:
            raise ValueError("stuck: true, or nothing")
        return self

    @property
    def ends(self) -> tuple[End, ...]:
        """The ends that it names; a hold without a subcode stands for all of that code."""
        if self.hold is not None:
            return tuple(read_hold(text) for text in self.hold)
        for kind in (Kind.WORKER, Kind.EXIT, Kind.SIGNAL):
            if (values := getattr(self, kind)) is not None:
                return tuple(End(kind, value) for value in values)
        return (End(Kind.STUCK),)


class Rule(Model):
    """A line of the table. `after`: how long to `wait`; `factor`, `most`: of `more-memory`."""

    when: When
    do: Do
    after: Annotated[int, BeforeValidator(parse_seconds)] | None = None
    factor: Annotated[float, Field(gt=1, le=10)] | None = None
    most: Annotated[int, BeforeValidator(parse_bytes)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Rule:
        if self.after is not None and self.do is not Do.WAIT:
            raise ValueError(f"after goes with do: wait, not with {self.do}")
        for name in ("factor", "most"):
            if getattr(self, name) is not None and self.do is not Do.MORE_MEMORY:
                raise ValueError(f"{name} goes with do: more-memory, not with {self.do}")
        if self.when.stuck and self.do not in (Do.OTHER_NODE, Do.OTHER_SITE, Do.ASK):
            raise ValueError(f"a stuck job is told of (ask), or begun anew (other-node, other-site): not {self.do}")
        return self

    @property
    def wait_s(self) -> int:
        """Before the job goes on. One that gets more memory has nothing to wait for."""
        if self.do is Do.MORE_MEMORY:
            return 0
        return WAIT_S if self.after is None else self.after

    @property
    def words(self) -> str:
        """What it does, for a table."""
        if self.do is Do.WAIT:
            return f"{self.do} ({show_seconds(self.wait_s)})"
        if self.do is Do.MORE_MEMORY:
            most = f"{MOST_TIMES} times what the step asks for" if self.most is None else show_bytes(self.most)
            return f"{self.do} (times {self.factor or FACTOR:g}, at most {most})"
        return str(self.do)


class Stuck(Model):
    """When a running job is stuck: it runs `times` as long as half of the step's jobs needed, longer than `after`, and
    has used less than `cpu` of one core."""

    times: Annotated[float, Field(ge=2, le=1000)] = 5.0
    after: Annotated[int, BeforeValidator(parse_seconds)] = parse_seconds("30 min")
    cpu: Annotated[float, Field(gt=0, lt=1)] = 0.01


class Ban(Model):
    """When `watch` sends no more jobs to a node: so many `failures` of the node `within` some time. At most `share` of
    the nodes that are known to be good are banned so, but one always."""

    failures: Annotated[int, Field(ge=2, le=10_000)] = 10
    within: Annotated[int, BeforeValidator(parse_seconds)] = parse_seconds("1 h")
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1


@dataclass(frozen=True)
class End:
    """How a job ended. `value`: exit code, signal, or hold code; `sub`: the hold's subcode, None: any."""

    kind: Kind
    value: int = 0
    sub: int | None = None

    def fits(self, other: End) -> bool:
        """Does this, from a rule, stand for what happened?"""
        same = (self.kind, self.value) == (other.kind, other.value)
        return same and self.sub in (None, other.sub)

    @property
    def words(self) -> str:
        """`hold 34/102`, `signal KILL`, `exit 42`."""
        if self.kind is Kind.STUCK:
            return "stuck"
        if self.kind is Kind.SIGNAL:
            return f"signal {_NAMES.get(self.value, self.value)}"
        return f"{self.kind} {self.value}" + (f"/{self.sub}" if self.sub is not None else "")


_NAMES = {int(one): one.name.removeprefix("SIG") for one in signal.Signals}


def read_hold(text: str) -> End:
    """`34/102` or `34`, as rules and the ledger have it."""
    code, _, sub = text.partition("/")
    return End(Kind.HOLD, int(code), int(sub) if sub else None)


def end_of_exit(code: int, true_code: int | None = None) -> End:
    """Of an exit code of the worker; `true_code`: the payload's own, where its report came back."""
    if 80 <= code <= 99:
        return End(Kind.WORKER, code)
    if 128 < code <= 192:
        return End(Kind.SIGNAL, code - 128)
    return End(Kind.EXIT, code if true_code is None or code != 79 else true_code)


def _rule(do: Do, **when: object) -> Rule:
    return Rule(when=When.model_validate(when), do=do)


BUILT_IN: tuple[Rule, ...] = (
    _rule(Do.OTHER_NODE, worker=(81, 82, 83, 84, 86, 88, 89, 91, 99)),
    _rule(Do.ASK, worker=(85, 90)),
    _rule(Do.MORE_MEMORY, signal="KILL"),
    _rule(Do.MORE_MEMORY, hold=("34/102", "21/102")),
    _rule(Do.ASK, hold=("3", "5", "32", "33", "34", "35", "46", "47")),
    _rule(Do.WAIT, hold=("6", "7", "11", "12", "13", "14", "18", "19", "22", "45")),
    _rule(Do.ASK, stuck=True),
)


def find_rule(rules: Iterable[Rule], end: End) -> Rule | None:
    """The first that fits."""
    return next((rule for rule in rules if any(each.fits(end) for each in rule.when.ends)), None)


def usual(end: End) -> Do:
    """What becomes of a job whose end no rule names."""
    return Do.ASK if end.kind in (Kind.HOLD, Kind.STUCK) else Do.GIVE_UP


_THEN = "as often as the retries allow; then it waits for a person"


def fate_of_hold(code: int, sub: int | None, rules: Iterable[Rule]) -> str:
    """What becomes of a held job by itself, in words: "the job ..."."""
    if code in _PERSONS:
        return "stays until somebody releases or removes it"
    rule = find_rule(rules, End(Kind.HOLD, code, sub))
    if rule is None:
        return "leaves the queue after a while, and waits for a person"
    if rule.do is Do.WAIT:
        return f"is released after {show_seconds(rule.wait_s)}, {_THEN}"
    return {
        Do.OTHER_NODE: f"is released, for another machine, {_THEN}",
        Do.MORE_MEMORY: f"is released, and asks for more memory, {_THEN}",
        Do.OTHER_SITE: "leaves the queue at once, and is done at another site",
        Do.GIVE_UP: "leaves the queue at once, and has failed",
        Do.ASK: "leaves the queue at once, and waits for a person",
    }[rule.do]


def contradictions(rules: Sequence[Rule]) -> Iterator[tuple[int, str]]:
    """(index of a rule, why) of those of one file that say something else of an end than one before them."""
    for index, rule in enumerate(rules):
        for end in rule.when.ends:
            first = next(((n, each) for n, each in enumerate(rules[:index]) if find_rule((each,), end)), None)
            if first:
                same = "the same" if first[1].do is rule.do else f"do: {first[1].do}"
                yield index, f"{end.words} is in rules[{first[0]}] already ({same}), and the first counts"
                break


@dataclass(frozen=True)
class Chances:
    """What a job has left. `used`: how often it was begun again by a rule, `most` times at most; `memory`: bytes asked
    for when it ended so, `ask`: by the step; `measured`: what it used, where that is known; `room`: the most that the
    site gives; `sites`: others where it may go."""

    used: int
    most: int
    memory: int
    ask: int
    measured: int | None = None
    room: int | None = None
    sites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What becomes of a job, and why. `memory`: bytes to ask for; `site`: where; `wait_s`: before it goes on."""

    do: Do
    why: str
    memory: int | None = None
    site: str | None = None
    wait_s: int = 0


def judge_end(end: End, rules: Iterable[Rule], chances: Chances) -> Verdict:
    """What becomes of a job that ended so. What no rule can cure any more: a person is asked about what was held or
    needs more than there is; anything else has failed."""
    rule = find_rule(rules, end)
    do = rule.do if rule else usual(end)
    if rule is None or not do.again:
        return Verdict(do, end.words)
    if chances.used >= chances.most:
        left = Do.ASK if end.kind in (Kind.HOLD, Kind.STUCK) else Do.GIVE_UP
        return Verdict(left, f"{end.words}, after {chances.used} of {chances.most} retries")
    if do is Do.OTHER_SITE:
        if not chances.sites:
            return Verdict(Do.ASK, f"{end.words}: there is no other site for it")
        return Verdict(do, f"{end.words}: at {chances.sites[0]}", site=chances.sites[0])
    if do is Do.MORE_MEMORY:
        more = grown(rule, chances)
        if more <= chances.memory:
            return Verdict(Do.ASK, f"{end.words}: it had {show_bytes(chances.memory)}, the most that it may ask for")
        return Verdict(do, f"{end.words}: {show_bytes(more)} instead of {show_bytes(chances.memory)}", memory=more)
    return Verdict(do, end.words, wait_s=rule.wait_s if do is Do.WAIT else 0)


def grown(rule: Rule, chances: Chances) -> int:
    """The memory to ask for next, in bytes: grown from what was used or asked for, whichever is more."""
    wanted = max(chances.memory, chances.measured or 0) * (rule.factor or FACTOR)
    most = memory_most(rule, chances.ask, chances.room)
    return int(min(math.ceil(wanted / _STEP) * _STEP, most))


def memory_most(rule: Rule, ask: int, room: int | None) -> int:
    """The most memory that a rule may come to, in bytes, of a step that asks for `ask` at a site that gives `room`."""
    return min(rule.most or MOST_TIMES * ask, room or (rule.most or MOST_TIMES * ask))


# --- what a batch system carries out itself


@dataclass(frozen=True)
class InQueue:
    """The part of the table that needs no `watch`. `again`: exit codes after which the job starts once more, signals as
    128 + n. `cures`: holds that are released, code or code/subcode -> after so many seconds; `leaves`: those that leave
    the queue at once. A code with a subcode comes before the code alone. `grows`: the codes of holds of `cures` after
    which the job asks for `factor` times as much memory, at most `most` bytes."""

    again: tuple[int, ...]
    cures: Mapping[str, int]
    leaves: tuple[str, ...]
    grows: tuple[int, ...] = ()
    factor: float = FACTOR
    most: int = 0


def in_queue(rules: Sequence[Rule], ask: int, room: int | None, grows_there: bool = True) -> InQueue:
    """What a batch system does by itself, of these rules, for a step that asks for `ask` bytes of memory.

    `grows_there`: its jobs may ask for more memory while they are in the queue."""
    again, cures, leaves, grows = set[int](), dict[str, int](), list[str](), dict[int, Rule]()
    for end in _named(rules):
        rule = find_rule(rules, end)
        if rule is None:
            continue
        if end.kind is Kind.HOLD:
            key = str(end.value) if end.sub == _OTHER else f"{end.value}/{end.sub}"
            if rule.do is Do.MORE_MEMORY and grows_there:
                grows.setdefault(end.value, rule)
                cures[key] = rule.wait_s
            elif rule.do in (Do.WAIT, Do.OTHER_NODE):
                cures[key] = rule.wait_s
            else:
                leaves.append(key)
        elif rule.do is Do.OTHER_NODE and not (end.kind is Kind.EXIT and 79 <= end.value <= 99):
            again.add(end.value + 128 if end.kind is Kind.SIGNAL else end.value)
    first = next(iter(grows.values()), None)
    return InQueue(
        tuple(sorted(again)),
        cures,
        tuple(leaves),
        tuple(sorted(grows)),
        (first.factor or FACTOR) if first else FACTOR,
        min((memory_most(rule, ask, room) for rule in grows.values()), default=ask),
    )


_OTHER = -999_999  # the subcode of a hold that no rule names


def _named(rules: Sequence[Rule]) -> Iterator[End]:
    """Every end that a rule names, once; of a hold's code also its other subcodes."""
    found = dict.fromkeys(end for rule in rules for end in rule.when.ends if end.kind is not Kind.STUCK)
    for end in list(found):
        if end.kind is Kind.HOLD and end.sub is None:
            found[End(Kind.HOLD, end.value, _OTHER)] = None
            del found[end]
    yield from found
