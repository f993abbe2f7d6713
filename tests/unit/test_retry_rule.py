"""The table of retries: which rule fits, what becomes of a job, what the batch system carries out; bounded always."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermigrid.check import find_problems
from fermigrid.errors import ConfigError
from fermigrid.report import INFRASTRUCTURE
from fermigrid.retry_rule import (
    BUILT_IN,
    Chances,
    Do,
    End,
    Kind,
    Rule,
    When,
    contradictions,
    end_of_exit,
    fate_of_hold,
    find_rule,
    in_queue,
    judge_end,
    read_hold,
    usual,
)
from tests.campaigns import SMALL, assemble

PAGE = Path(__file__).parents[2] / "docs/reference/retries.md"
GIB = 2**30
FRESH = Chances(used=0, most=3, memory=2 * GIB, ask=2 * GIB)


def rule(do: str, **values: object) -> Rule:
    more = {name: values.pop(name) for name in ("after", "factor", "most") if name in values}
    return Rule.model_validate({"when": values, "do": do, **more})


# --- which fits


@pytest.mark.parametrize(
    ("code", "true_code", "end"),
    [
        (82, None, End(Kind.WORKER, 82)),
        (42, 42, End(Kind.EXIT, 42)),
        (79, 82, End(Kind.EXIT, 82)),  # the payload's own, in the report
        (79, None, End(Kind.EXIT, 79)),
        (137, 137, End(Kind.SIGNAL, 9)),
        (200, 200, End(Kind.EXIT, 200)),
    ],
)
def test_an_exit_code_tells_how_it_ended(code: int, true_code: int | None, end: End) -> None:
    assert end_of_exit(code, true_code) == end


def test_the_first_rule_that_fits_counts() -> None:
    rules = (rule("give-up", hold="34/104"), rule("ask", hold="34"), *BUILT_IN)
    assert judge_end(read_hold("34/104"), rules, FRESH).do is Do.GIVE_UP
    assert judge_end(read_hold("34/102"), rules, FRESH).do is Do.ASK
    assert judge_end(read_hold("34/102"), BUILT_IN, FRESH).do is Do.MORE_MEMORY
    assert judge_end(read_hold("34/104"), BUILT_IN, FRESH).do is Do.ASK


def test_without_a_rule_held_asks_and_the_rest_has_failed() -> None:
    for end in (End(Kind.EXIT, 42), End(Kind.WORKER, 80), End(Kind.SIGNAL, 11), End(Kind.SIGNAL, 15)):
        assert judge_end(end, BUILT_IN, FRESH).do is Do.GIVE_UP
    assert judge_end(read_hold("4711/1"), BUILT_IN, FRESH).do is Do.ASK


def test_infrastructure_and_memory_are_tried_again_by_built_in_rules() -> None:
    assert {code for code in range(80, 100) if judge_end(End(Kind.WORKER, code), BUILT_IN, FRESH).do.again} == set(
        INFRASTRUCTURE
    )
    assert judge_end(End(Kind.SIGNAL, 9), BUILT_IN, FRESH).memory == 3 * GIB


def test_the_built_in_rules_do_not_contradict_each_other() -> None:
    assert list(contradictions(BUILT_IN)) == []


# --- what becomes of it


def test_memory_grows_from_what_was_used_and_not_beyond_what_there_is() -> None:
    grow, killed = (rule("more-memory", signal="KILL", factor=2, most="16 GiB"),), End(Kind.SIGNAL, 9)

    def judge(**changes: int) -> tuple[Do, int | None]:
        chances = Chances(**{**FRESH.__dict__, **changes})
        verdict = judge_end(killed, grow, chances)
        return verdict.do, verdict.memory

    assert judge() == (Do.MORE_MEMORY, 4 * GIB)
    assert judge(measured=5 * GIB) == (Do.MORE_MEMORY, 10 * GIB)
    assert judge(measured=12 * GIB) == (Do.MORE_MEMORY, 16 * GIB)
    assert judge(measured=12 * GIB, room=8 * GIB) == (Do.MORE_MEMORY, 8 * GIB)
    assert judge(memory=16 * GIB) == (Do.ASK, None)
    assert judge(memory=8 * GIB, room=8 * GIB) == (Do.ASK, None)
    assert judge(used=3) == (Do.GIVE_UP, None)


def test_another_site_needs_one() -> None:
    rules = (rule("other-site", worker=82),)
    away = judge_end(End(Kind.WORKER, 82), rules, Chances(0, 3, GIB, GIB, sites=("in2p3", "cern")))
    assert (away.do, away.site) == (Do.OTHER_SITE, "in2p3")
    nowhere = judge_end(End(Kind.WORKER, 82), rules, FRESH)
    assert (nowhere.do, nowhere.why) == (Do.ASK, "worker 82: there is no other site for it")


def test_what_is_spent_has_failed_and_a_held_job_asks() -> None:
    spent = Chances(3, 3, GIB, GIB)
    assert judge_end(End(Kind.WORKER, 82), BUILT_IN, spent).do is Do.GIVE_UP
    assert judge_end(read_hold("13/2"), BUILT_IN, spent).do is Do.ASK
    assert judge_end(End(Kind.SIGNAL, 9), BUILT_IN, Chances(0, 0, GIB, GIB)).do is Do.GIVE_UP


kinds = st.sampled_from([Do.WAIT, Do.OTHER_NODE, Do.OTHER_SITE, Do.MORE_MEMORY, Do.GIVE_UP, Do.ASK])
ends = st.one_of(
    st.builds(End, st.just(Kind.WORKER), st.integers(80, 99)),
    st.builds(End, st.just(Kind.EXIT), st.integers(1, 60)),
    st.builds(End, st.just(Kind.SIGNAL), st.sampled_from([6, 9, 11, 15])),
    st.builds(End, st.just(Kind.HOLD), st.sampled_from([4, 13, 34, 4711]), st.sampled_from([0, 102, 104])),
)


def rule_of(end: End, do: Do) -> Rule:
    value = f"{end.value}/{end.sub}" if end.kind is Kind.HOLD else end.value
    return Rule(when=When.model_validate({str(end.kind): value}), do=do)


@given(
    st.lists(st.builds(rule_of, ends, kinds), max_size=8),
    st.lists(ends, min_size=1, max_size=60),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_whatever_happens_a_job_comes_to_an_end(rules: list[Rule], happens: list[End], most: int, sites: int) -> None:
    """It goes round until the rules let it go: never oftener than `max`, never with less memory or more than there is,
    and what no rule names is not repeated."""
    table, memory, there, last = (*rules, *BUILT_IN), GIB, tuple(f"s{n}" for n in range(sites)), None
    for used, end in enumerate([*happens, *[happens[-1]] * (most + 2)]):
        verdict = judge_end(end, table, Chances(used, most, memory, GIB, room=6 * GIB, sites=there))
        last = verdict.do
        if not last.again:
            break
        named = find_rule(table, end)
        assert named is not None and named.do is last
        assert used + 1 <= most
        if verdict.memory is not None:
            assert memory < verdict.memory <= 6 * GIB
            memory = verdict.memory
        there = tuple(site for site in there if site != verdict.site)
    assert last in (Do.GIVE_UP, Do.ASK)


# --- what the batch system does itself


def fits(table_keys: object, end: End) -> bool:
    """As the submit file asks: the code with its subcode first, then the code alone."""
    keys = set(table_keys)  # type: ignore[call-overload]
    return f"{end.value}/{end.sub}" in keys


@given(st.lists(st.builds(rule_of, ends, kinds), max_size=8), ends)
def test_the_batch_system_does_nothing_but_what_the_rules_say(rules: list[Rule], end: End) -> None:
    table = (*rules, *BUILT_IN)
    mine = in_queue(table, GIB, None)
    found = find_rule(table, end)
    do = found.do if found else usual(end)
    if end.kind is Kind.HOLD:
        pair, code = f"{end.value}/{end.sub}", str(end.value)
        cured = pair in mine.cures or (code in mine.cures and pair not in mine.leaves)
        leaves = pair in mine.leaves or (code in mine.leaves and pair not in mine.cures)
        assert cured == (found is not None and do in (Do.WAIT, Do.OTHER_NODE, Do.MORE_MEMORY))
        assert leaves == (found is not None and not cured)
        assert (end.value in mine.grows) or do is not Do.MORE_MEMORY
    else:
        shown = end.value + 128 if end.kind is Kind.SIGNAL else end.value
        assert (shown in mine.again) == (do is Do.OTHER_NODE)


def test_where_jobs_cannot_grow_in_the_queue_they_leave_it() -> None:
    there = in_queue(BUILT_IN, GIB, None, grows_there=False)
    assert "34/102" in there.leaves and not there.grows


# --- what a person writes


CHECKED = SMALL + "retries:\n  max: 2\n  rules:\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{when: {worker: 42}, do: ask}", "42 is no exit code of the worker's own: 80 to 99; one of the payload is"),
        ("{when: {exit: 0}, do: ask}", "0 is no exit code of a payload that failed: 1 to 255"),
        ("{when: {signal: KILLED}, do: ask}", "'KILLED' is no signal: a name such as KILL, or 1 to 64"),
        ("{when: {hold: memory}, do: ask}", "'memory' is no code of a hold: 34, or with its subcode 34/102"),
        ("{when: {hold: [1]}, do: give-up}", "1 is the hold of a person, who releases the job: no rule is for that"),
        ("{when: {hold: 34, exit: 2}, do: ask}", "give exactly one of worker, exit, signal, hold, stuck"),
        ("{when: {hold: 34}, do: again}", "'wait', 'other-node', 'other-site', 'more-memory', 'give-up' or 'ask'"),
        ("{when: {hold: 34}, do: ask, factor: 2}", "factor goes with do: more-memory, not with ask"),
        ("{when: {exit: 3}, do: other-node, after: 5 min}", "after goes with do: wait, not with other-node"),
        ("{when: {stuck: true}, do: more-memory}", "a stuck job is told of (ask), or begun anew"),
        ("{when: {signal: KILL}, do: more-memory, most: 1 GiB}", "1 GiB is not more than what each step asks for"),
        ("{when: {oom: true}, do: ask}", "oom"),
    ],
)  # fmt: skip
def test_bad_rules_are_refused_with_their_line(tmp_path: Path, line: str, says: str) -> None:
    told = problems(tmp_path, CHECKED + f"    - {line}\n")
    where = len(SMALL.splitlines()) + 4
    assert [text for text in told if text.startswith(f"campaign.yaml:{where}:") and says in text], told


def test_rules_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    text = CHECKED + "    - {when: {hold: 34}, do: ask}\n    - {when: {hold: [13, 34/102]}, do: more-memory}\n"
    (told,) = problems(tmp_path, text)
    assert told.startswith(f"campaign.yaml:{len(SMALL.splitlines()) + 5}: retries.rules[1]")
    assert "hold 34/102 is in rules[0] already (do: ask), and the first counts" in told


def problems(folder: Path, text: str) -> list[str]:
    try:
        found = find_problems(assemble(folder, text))
    except ConfigError as error:
        found = tuple(error.problems)
    return [str(each).replace(f"{folder}/", "") for each in found]


def test_one_value_is_short_for_a_list_of_it() -> None:
    assert rule("ask", hold="34").when.hold == ("34",)
    assert rule("ask", signal=["SIGSEGV", "9", "abrt"]).when.signal == (11, 9, 6)


# --- the page


def test_the_page_of_retries_is_the_table() -> None:
    rows = re.findall(r"(?m)^\| `when: \{(.+?)\}` \| (.+?) \|", PAGE.read_text())
    table = []
    for each in BUILT_IN:
        kind = each.when.ends[0].kind
        values = ", ".join(end.words.removeprefix(f"{kind} ") for end in each.when.ends)
        table.append(("stuck: true" if kind is Kind.STUCK else f"{kind}: [{values}]", f"`{each.words}`"))
    assert rows == table


def test_a_persons_hold_stays() -> None:
    assert fate_of_hold(1, 0, BUILT_IN) == "stays until somebody releases or removes it"
