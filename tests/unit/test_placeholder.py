"""Placeholders: taken apart once, filled in for each job, never confused with text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermigrid.placeholder import compile_text, fields_of

text = st.text(st.characters(exclude_categories=["Cs"]))


def test_constants_go_in_now_and_variables_stay() -> None:
    compiled = compile_text("{run}_v{version}.fit", {"version": "400"}, frozenset({"run"}))
    assert compiled == "{run}_v400.fit"
    assert fields_of(compiled) == {"run"}


@pytest.mark.parametrize(
    "wrong", ["{", "}", "a{b", "{}", "{0}", "{run.x}", "{run[0]}", "{run!r}", "{run:>3}", "{ run }", "{run"]
)
def test_what_is_no_placeholder_is_told_how_to_write_a_brace(wrong: str) -> None:
    with pytest.raises(ValueError, match="a literal brace is written twice"):
        compile_text(wrong, {}, frozenset({"run"}))


def test_an_unknown_name_gives_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match=r"no placeholder \{rnu\}; did you mean 'run'") as wrong:
        compile_text("{rnu}", {"site": "x"}, frozenset({"run"}))
    assert "There are: run, site" in str(wrong.value)


def test_doubled_braces_are_single_ones() -> None:
    compiled = compile_text("{{run}} {run} {{{{", {}, frozenset({"run"}))
    assert compiled.format_map({"run": "r1"}) == "{run} r1 {{"


@given(text, text, text)
def test_values_are_never_read_as_placeholders(literal: str, constant: str, value: str) -> None:
    written = literal.replace("{", "{{").replace("}", "}}") + "{c}{v}"
    compiled = compile_text(written, {"c": constant}, frozenset({"v"}))
    assert compiled.format_map({"v": value}) == literal + constant + value


@given(text, text)
def test_the_encoder_meets_literals_and_constants_whole(literal: str, constant: str) -> None:
    written = literal.replace("{", "{{").replace("}", "}}") + "{c}"
    compiled = compile_text(written, {"c": constant}, frozenset(), lambda part: part.replace("\\", "\\\\"))
    assert compiled.format() == (literal + constant).replace("\\", "\\\\")
