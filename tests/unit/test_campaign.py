"""The model of a campaign: what people may write, and what is said when they wrote something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from fermigrid.campaign import Campaign
from fermigrid.config import parse_yaml, validate
from fermigrid.errors import ConfigError
from tests.campaigns import SMALL, write


def campaign(text: str) -> Campaign:
    return validate(Campaign, *parse_yaml(text, "f.yaml"))


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        campaign(text)
    return str(refused.value)


def step(lines: str) -> str:
    return SMALL.replace("    outputs:", f"    {lines}\n    outputs:")


def test_defaults() -> None:
    c = campaign(SMALL)
    assert (c.block, c.retries.max, c.limits.running, c.accounting.priority) == (500, 3, None, 0)
    r = c.steps["go"].resources
    assert (r.cpus, r.memory, r.disk, r.walltime) == (1, 2 * 2**30, 4 * 2**30, 4 * 3600)


def test_models_do_not_change_after_loading() -> None:
    with pytest.raises(ValueError, match="frozen"):
        campaign(SMALL).campaign = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["a b", "a/b", ".a", "-a", "é", "a" * 61, "''", "a:b", "a$b", "[a]"])
def test_names_of_campaigns_are_tame(name: str) -> None:
    assert "f.yaml:1: campaign: " in refusal(SMALL.replace("campaign: small", f"campaign: {name}"))


@pytest.mark.parametrize("name", ["a.b", "a b", "é", "x" * 61])
def test_names_of_steps_are_tame_and_have_no_point(name: str) -> None:
    assert f"f.yaml:5: steps.{name}: " in refusal(SMALL.replace("  go:", f"  {name}:"))


@pytest.mark.parametrize("name", ["1A", "A-B", "A B", "é", "''", "A=B"])
def test_names_of_variables(name: str) -> None:
    said = refusal(step(f"environment: {{{name}: x}}") + f"parameters: {{{name}: x}}\n")
    assert "f.yaml:7: steps.go.environment." in said
    assert "f.yaml:9: parameters." in said
    assert said.count("is no name of a variable") == 2


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ("{}", "give exactly one of table, list, count"),
        ("{count: 2, list: [a]}", "give exactly one of table, list, count"),
        ("{count: 0}", "greater than or equal to 1"),
        ("{count: 1000001}", "less than or equal to 1000000"),
        ("{list: [a b]}", "may hold only letters"),
        ("{tabel: x.csv}", "did you mean 'table'?"),
    ],
)
def test_runs(runs: str, said: str) -> None:
    text = refusal(SMALL.replace("{count: 2}", runs))
    assert said in text
    assert "f.yaml:3: runs" in text


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("foreach: clump", "needs to know the size of a clump"),
        ("split: {events: 10}", "split goes with foreach: clump"),
        ("foreach: clump\n    split: {events: 0}", "greater than or equal to 1"),
        ("resources: {cpus: 0}", "greater than or equal to 1"),
        ("resources: {cpus: 1.5}", "must be a whole number"),
        ("resources: {walltime: 4 h 30 min}", "such as 4 h"),
    ],
)
def test_steps(lines: str, said: str) -> None:
    assert said in refusal(step(lines))


@pytest.mark.parametrize(
    ("bind", "said"),
    [
        ("{from: sdf}", "binds[0].from: 'sdf': must be an absolute path"),
        ("{from: '/a:b'}", "with ':' or ','"),
        ("{from: '/a,b'}", "with ':' or ','"),
        ("{from: /a/../b}", "may not contain '..'"),
        ("{from: /a, mode: rx}", "Allowed: 'ro' or 'rw'"),
        ("{from: /a, required: maybe}", "must be true or false"),
        ('{from: "/a\\x01"}', "binds[0].from: '/a\\x01': contains a control character"),
        ('{from: "/a\\x7f"}', "control character"),
        ('{from: /a, to: "/a\\tb"}', "binds[0].to: '/a\\tb': contains a control character"),
        ("{from: /a, to: '/a:b'}", "binds[0].to: '/a:b': a path with ':' or ','"),
        ("{to: /a}", "binds[0].from: is required"),
        ("/a", "must be keys with values"),
    ],
)
def test_binds(bind: str, said: str) -> None:
    assert said in refusal(SMALL + f"binds: [{bind}]\n")


def test_a_bind_without_to_appears_where_it_is() -> None:
    first, second = campaign(SMALL + "binds: [{from: /sdf}, {from: /a, to: /b, mode: rw}]\n").binds
    assert (first.to, first.mode, first.required, second.to, second.mode) == ("/sdf", "ro", True, "/b", "rw")


def test_inputs_in_each_of_their_forms() -> None:
    plain = campaign(step("inputs: [/data/a.fit, 'root://host//b.fit']")).steps["go"].inputs
    named = campaign(step("inputs: {a.fit: /data/x, b.fit: [/one, 'http://host/two']}")).steps["go"].inputs
    assert plain == {"a.fit": ("/data/a.fit",), "b.fit": ("root://host//b.fit",)}
    assert named == {"a.fit": ("/data/x",), "b.fit": ("/one", "http://host/two")}


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ("[/a/x, /b/x]", "two inputs have the same file name"),
        ("{a: []}", "may not be empty"),
        ("x", "must be keys with values"),
    ],
)
def test_inputs_that_are_none(inputs: str, said: str) -> None:
    assert said in refusal(step(f"inputs: {inputs}"))


@pytest.mark.parametrize("priority", ["-1001", "1001", "high"])
def test_priorities(priority: str) -> None:
    assert "accounting.priority" in refusal(SMALL + f"accounting: {{priority: {priority}}}\n")


def test_octals_and_booleans_of_yaml_are_text_for_the_payload(tmp_path: Path) -> None:
    text = SMALL.replace('[/bin/true, "{run}"]', "[/bin/true, 007, yes, 1e3, 4:30, null-ish]")
    c = validate(Campaign, *parse_yaml(write(tmp_path, text).read_text(), "f"))
    assert c.steps["go"].command == ("/bin/true", "007", "yes", "1e3", "4:30", "null-ish")


def test_null_is_no_word_of_a_command() -> None:
    assert "f.yaml:6: steps.go.command[1]: empty must be a single text" in refusal(SMALL.replace('"{run}"', "null", 1))
