"""YAML files of people: every problem at once, each at its line; texts arrive as they were typed; bombs are refused."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fermigrid.campaign import Campaign
from fermigrid.config import load, nearest, parse_yaml, read_text, show_key, validate
from fermigrid.errors import MOST_SHOWN, ConfigError, Problem
from tests.campaigns import SMALL, complaints, write


def refusals(text: str) -> list[str]:
    """What is said of a text that must be refused, without the file's name."""
    with pytest.raises(ConfigError) as refused:
        validate(Campaign, *parse_yaml(text, "f.yaml"))
    return [str(problem).removeprefix("f.yaml:") for problem in refused.value.problems]


def problems_of(text: str) -> tuple[Problem, ...]:
    """What is wrong with a text, perhaps nothing."""
    try:
        validate(Campaign, *parse_yaml(text, "f.yaml"))
    except ConfigError as error:
        return error.problems
    return ()


# --- what a person typed arrives


@pytest.mark.parametrize(
    "written",
    [
        "yes",
        "no",
        "on",
        "Off",
        "true",
        "007",
        "0o17",
        "0x1F",
        "1e3",
        "1_000",
        "4:30",
        "2027-03-04",
        ".inf",
        "=",
        "1.50",
    ],
)
def test_scalars_arrive_as_written(written: str) -> None:
    data, _ = parse_yaml(f"command: [{written}, {written}]\nname: {written}\n", "f.yaml")
    assert data == {"command": [written, written], "name": written}


def test_empty_and_null_are_not_the_same() -> None:
    data, _ = parse_yaml("a: ''\nb:\nc: ~\nd: null\ne: 'null'\n", "f.yaml")
    assert data == {"a": "", "b": None, "c": None, "d": None, "e": "null"}


# YAML refuses some characters more: those are refused, not changed (test_files_that_are_no_keys_with_values).
yaml_text = st.text(
    st.characters(
        exclude_categories=["Cs", "Cc"],
        exclude_characters="\ufeff\u2028\u2029"
        + "".join(chr(0x10000 * n + x) for n in range(17) for x in (0xFFFE, 0xFFFF)),
    )
)


@given(yaml_text)
@example("  blanks  ")
@example("it's: {a} [b] # c")
def test_any_text_in_quotes_arrives(text: str) -> None:
    quoted = text.replace("'", "''")
    data, _ = parse_yaml(f"title: '{quoted}'\n", "f.yaml")
    assert data == {"title": text}


def test_windows_line_ends_and_a_byte_order_mark_are_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    campaign, _ = load(Campaign, path)
    assert campaign.campaign == "small"


def test_an_alias_stands_for_its_anchor() -> None:
    data, source = parse_yaml("a: &x [1, 2]\nb: *x\n", "f.yaml")
    assert data == {"a": ["1", "2"], "b": ["1", "2"]}
    assert source.problem(("b",), "m").line == 2


# --- what is refused, and where


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1: has nothing in it; it must be keys with values"),
        ("# nothing\n", "1: has nothing in it; it must be keys with values"),
        ("- a\n- b\n", "1: must be keys with values"),
        ("just words\n", "1: must be keys with values"),
        ("a:\n\tb: c\n", "2: not YAML: a tab: indent with blanks"),
        ("a: [b\nc: d\n", "2: not YAML: the list or mapping that is opened in line 1 is not closed with ]"),
        ("x: y\na: {b: c\nd: e}\n", "3: not YAML: the list or mapping that is opened in line 2 is not closed with }"),
        ("a: *b\n", "1: not YAML: '*b' means a value with the mark '&b'"),
        ("a: b\n---\nc: d\n", "2: not YAML: a line '---' begins a second document"),
        ("x: y\na: b: c\n", "2: not YAML: a ': ' too many"),
        ("a: @b\n", "1: not YAML: a text that begins with '@' needs quotes"),
        ('x: y\na: "b\nc: d\n', "not YAML: the quote that is opened in line 2 is not closed"),
        ("x:\n- a\n b: c\n", "3: not YAML: a ': ' too many, a ':' without its blank before, or not indented"),
        ("x:\n  - {a: b}\n   - {b: c}\n", "3: not YAML: it fits neither the line before nor what begins in line 2"),
        ("a: - b\n", "1: not YAML: a list does not begin behind a key"),
        ('a: "\\q"\n', "1: not YAML: in \"...\" a backslash is an escape, and 'q' is none: write \\\\"),
        ("a: !!python/object:os.system ls\n", "1: a: unknown tag tag:yaml.org,2002:python/object:os.system"),
        ("a: !!binary aGE=\n", "1: a: unknown tag"),
        ('x: y\na: "b\0c"\n', "2: not YAML: the character '\\x00'"),
        ("x: y\na: b\x07c\n", "2: not YAML: the character '\\x07'"),
        ('x: y\na: "\\UFFFFFFFF"\n', "not YAML: an escape is no character"),
        ('x: y\na: "\\U00110000"\n', "not YAML: an escape is no character"),
        ("a: &a [*a]\n", "nested too deeply: does an alias contain itself?"),
        ("x: y\n? [a, b]\n: c\n", "2: a key must be a single text"),
        ("x: y\n? {a: b}\n: c\n", "2: a key must be a single text"),
    ],
)
def test_files_that_are_no_keys_with_values(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_yaml(text, "f.yaml")
    assert said in str(refused.value)
    assert str(refused.value).startswith("f.yaml")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ('"a\\0b"', "NUL"),
        ('"a\\rb"', "a carriage return"),
        ('"a\\nb"', "a line break"),
        ("|\n    a\n    b", "a line break"),
        ('"\\ud800"', "half a character"),
    ],
)
@pytest.mark.parametrize("where", ["command: [/bin/true, {}]", "inputs: {{x: {}}}"])
def test_characters_that_no_batch_system_carries(value: str, name: str, where: str) -> None:
    if (value.startswith("|") and "[" in where) or (value.startswith("|") and "{{" in where):
        value = '"a\\nb"'
    text = SMALL.replace('command: [/bin/true, "{run}"]', "command: [/bin/true]\n    resources: {cpus: 1}")
    text = text.replace("    resources: {cpus: 1}", "    " + where.format(value))
    text = text.replace("    command: [/bin/true]\n", "", int(where.startswith("command")))
    (said,) = refusals(text)
    line = next(number for number, written in enumerate(text.splitlines(), 1) if where[:6] in written)
    assert said.startswith(f"{line}: steps.go.{where.split(':')[0]}")
    assert name in said


@pytest.mark.parametrize("value", ["a\0b", "a\ud800b"])
def test_an_environment_carries_line_breaks_and_refuses_the_rest(value: str) -> None:
    breaks = "a\n\rb\n"
    data, _ = parse_yaml(f"environment: {{A: {json.dumps(breaks)}}}\n", "f.yaml")
    assert data["environment"]["A"] == breaks
    assert refusals(SMALL + f"environment: {{A: {json.dumps(value)}}}\n")


def test_a_block_of_lines_is_refused_at_its_key() -> None:
    (said,) = refusals(SMALL + "title: |\n  two\n  lines\n")
    assert said.startswith("8: title: ")
    assert "a line break" in said


def test_a_key_may_not_hold_them_either() -> None:
    (said,) = refusals(SMALL + 'parameters: {"a\\nb": c}\n')
    assert "a line break" in said


def test_a_key_written_twice_names_both_lines() -> None:
    assert refusals(SMALL + "image: other\n") == ["8: image: written twice (first in line 2)"]
    nested = SMALL.replace("    outputs:", "    command: [b]\n    outputs:")
    assert refusals(nested) == ["7: steps.go.command: written twice (first in line 6)"]


def test_unknown_keys_name_the_nearest_and_all() -> None:
    missing, step, top = refusals(SMALL.replace("    command", "    comand") + "imgae: x\n")
    assert missing == "5: steps.go.command: is required"
    assert step.startswith("6: steps.go.comand: unknown key; did you mean 'command'? Allowed here: after, command,")
    assert top.startswith("8: imgae: unknown key; did you mean 'image'?")


def test_an_unknown_key_without_a_neighbour_still_lists_what_is_allowed() -> None:
    (said,) = refusals(SMALL + "zzz: 1\n")
    assert said.startswith("8: zzz: unknown key. Allowed here: accounting, ")
    assert "title" in said


def test_everything_wrong_is_said_at_once_in_the_order_of_the_file() -> None:
    text = """\
campaign: a b
image: light
runs: {count: 0}
steps:
  go:
    command: []
    resources: {memory: 2, cpus: many, walltime: 4 weeks, disk: [1]}
  to: {command: [x], foreach: clmup}
block: 1.5
allow_uber: perhaps
"""
    said = refusals(text)
    assert [line.split(":")[0] for line in said] == ["1", "3", "6", "7", "7", "7", "7", "8", "9", "10"]
    assert "steps.go.resources.memory: '2': has no unit: write one of B, kB" in said[5]
    assert "such as 2 GiB" in said[5]
    assert "did you mean 'clump'? Allowed: 'run', 'clump', 'chunk' or 'crumb'" in said[7]
    assert "block: '1.5' must be a whole number" in said[8]


@pytest.mark.parametrize(
    "value", ["", "[1, 2]", "{a: b}", "~", "-1 GiB", "0 GiB", "1 gib", "1e3 GiB", "9" * 500 + " GiB"]
)
def test_a_quantity_of_any_shape_is_refused_and_never_a_fault(value: str) -> None:
    (said,) = refusals(SMALL.replace("    outputs", f"    resources: {{memory: {value}}}\n    outputs"))
    assert said.startswith("7: steps.go.resources.memory: ")
    assert len(said) < 250


@pytest.mark.parametrize(
    "key", ["campaign", "image", "steps", "runs", "sites", "binds", "code", "block", "retries", "parameters"]
)
@pytest.mark.parametrize("value", ["", "[]", "{}", "[[a]]", "{a: {b: [c]}}", "'x'", "'" + "é" * 300 + "'"])
def test_any_shape_under_any_key_is_judged_and_never_a_fault(key: str, value: str) -> None:
    lines = [line for line in SMALL.splitlines() if not line.startswith(key)]
    text = "\n".join([line for line in lines if key != "steps" or not line.startswith("  ")] + [f"{key}: {value}\n"])
    for problem in problems_of(text):
        assert problem.line
        assert len(str(problem)) < 400


# --- files


def test_a_file_that_is_not_utf8_names_byte_and_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"campaign: a\ntitle: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:2: not UTF-8: byte 0xe9"):
        read_text(path)


def test_a_file_that_is_absent_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_text(tmp_path / "absent")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_text(tmp_path)


def test_the_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "images.yaml").write_text("images:\n  mine: {flavour: heavy}\n")
    (own / "here.yaml").write_text("site: here\ntitle: T\n")
    text = SMALL.replace("{count: 2}", "{table: runs.csv}") + "code: [absent.py]\n"
    said = "\n".join(complaints(tmp_path, text, "run,events\nr1,x\n", site="here", own=[own]))
    assert "runs.csv:2: events: 'x' is no number of events" in said
    assert "own/images.yaml:2: images.mine.flavour" in said
    assert "own/here.yaml:1: contact: is required" in said
    assert "campaign.yaml:8: code[0]: 'absent.py': no such file" in said


# --- bombs


def laughs(levels: int) -> str:
    """A billion laughs: each level ten times the one before it."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def test_a_billion_laughs_are_refused_in_no_time_and_no_memory() -> None:
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match="aliases"):
            parse_yaml(laughs(10), "f.yaml")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 2
    assert peak < 10 * 2**20


def test_a_large_honest_file_is_no_bomb() -> None:
    names = ", ".join(f"r{i}" for i in range(20_000))
    data, _ = parse_yaml(f"runs: {{list: [{names}]}}\n", "f.yaml")
    assert len(data["runs"]["list"]) == 20_000


@given(st.text("[]{},a:\n -?*&!'\"|", max_size=60))
def test_whatever_is_written_no_file_without_aliases_is_a_bomb(text: str) -> None:
    assert not any("aliases" in problem.message for problem in problems_of(text))


@pytest.mark.parametrize(
    "text", ["a: " + "[" * 5000, "a: " + "{b: " * 5000, "a:\n" + "".join(" " * i + "- \n" for i in range(2000))]
)
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        validate(Campaign, *parse_yaml(text, "f.yaml"))


# --- words


def test_keys_are_shown_as_people_write_them() -> None:
    assert show_key(("steps", "clump", "command", 2)) == "steps.clump.command[2]"
    assert show_key(()) == ""


def test_the_nearest_word_ends_the_sentence() -> None:
    assert nearest("comand", ["command", "after"]) == "; did you mean 'command'?"
    assert nearest("zzz", ["command"]) == "."


def test_a_source_gives_the_line_of_the_nearest_parent(tmp_path: Path) -> None:
    _, source = load(Campaign, write(tmp_path))
    assert source.problem(("steps", "go", "resources", "cpus"), "m").line == 5
    assert source.problem(("nowhere",), "m").line == 1


def test_a_text_in_braces_is_told_to_need_quotes(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(SMALL.replace('"{run}.fit"', "{run}"))
    with pytest.raises(ConfigError) as refused:
        load(Campaign, tmp_path / "c.yaml")
    assert "{'run': None} must be a single text; one that begins with '{' needs quotes" in str(refused.value)


def test_of_very_many_problems_the_first_are_shown(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(SMALL + "".join(f"k{n}: v\n" for n in range(500)))
    with pytest.raises(ConfigError) as refused:
        load(Campaign, tmp_path / "c.yaml")
    lines = str(refused.value).splitlines()
    assert (len(refused.value.problems), len(lines)) == (500, MOST_SHOWN + 1)
    assert lines[-1] == f"... and {500 - MOST_SHOWN} more"


def test_a_file_that_is_not_there_and_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "campaign.yaml").write_text("campaign: x\n")
    with pytest.raises(ConfigError, match=r"cannot be read: No such file or directory; did you mean 'campaign.yaml'\?"):
        read_text(tmp_path / "campaign")
    with pytest.raises(ConfigError, match=r"cannot be read: No such file or directory$"):
        read_text(tmp_path / "other/x")
