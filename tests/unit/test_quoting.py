"""The encoders and their inverses: over all of Unicode, on hostile texts, and against real bash."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fermigrid.errors import Unrepresentable
from fermigrid.quoting import (
    decode_arguments,
    decode_classad_string,
    decode_environment,
    decode_field,
    decode_lines,
    decode_path,
    decode_row,
    decode_shell_word,
    decode_submit_expression,
    decode_submit_string,
    decode_submit_value,
    encode_arguments,
    encode_classad_string,
    encode_environment,
    encode_field,
    encode_lines,
    encode_path,
    encode_row,
    encode_shell_word,
    encode_submit_expression,
    encode_submit_string,
    encode_submit_value,
    refuse_control,
    tame,
)

unicode_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"))
syntax_text = st.text("$$$(()[]{}'\"\\ \t,;=#:.|DOLARdxn0_\v\x01\x7fé")
text = st.one_of(unicode_text, syntax_text)
keys = st.builds("{}{}".format, st.sampled_from("akz"), st.text("az09_.", max_size=4))
field_text = st.one_of(text, st.text("\r\n\t\\ntr a"))  # values for the worker may have line breaks
fields = st.lists(st.tuples(keys, field_text), max_size=8)
names = st.builds("{}{}".format, st.sampled_from("_aAzZ"), st.text("azAZ09_", max_size=4))

Encode = Callable[[str], str]
ALWAYS: list[tuple[Encode, Encode]] = [
    (encode_classad_string, decode_classad_string),
    (encode_shell_word, decode_shell_word),
    (encode_field, decode_field),
]


@given(st.lists(text))
def test_arguments_come_back(args: list[str]) -> None:
    assert decode_arguments(encode_arguments(args)) == tuple(args)


@given(st.dictionaries(names, text))
def test_environment_comes_back(variables: dict[str, str]) -> None:
    encoded = encode_environment(variables)
    assert decode_environment(encoded) == variables
    assert encoded == encode_environment(dict(reversed(variables.items())))


@pytest.mark.parametrize(("encode", "decode"), ALWAYS)
@given(value=text)
def test_any_text_comes_back(encode: Encode, decode: Encode, value: str) -> None:
    assert decode(encode(value)) == value


@pytest.mark.parametrize(
    ("encode", "decode"),
    [
        (encode_submit_value, decode_submit_value),
        (encode_submit_string, decode_submit_string),
        (encode_submit_expression, decode_submit_expression),
    ],
)
@given(value=text)
def test_submit_text_comes_back_or_is_refused_by_name(encode: Encode, decode: Encode, value: str) -> None:
    try:
        encoded = encode(value)
    except Unrepresentable as error:
        refused = error
    else:
        assert decode(encoded) == value
        return
    assert refused.value == value
    assert "submit" in refused.what


@given(fields)
def test_rows_and_lines_come_back(pairs: list[tuple[str, str]]) -> None:
    row = encode_row(pairs)
    assert decode_row(row) == tuple(pairs)
    assert row.count("\t") == max(len(pairs) - 1, 0)
    assert decode_lines(encode_lines(pairs)) == tuple(pairs)
    assert encode_lines(pairs).count("\n") == len(pairs)


@given(fields)
def test_the_fast_row_is_the_same_row(pairs: list[tuple[str, str]]) -> None:
    assert encode_row(pairs) == "\t".join(f"{key}={encode_field(value)}" for key, value in pairs)


def bash_prints(script: str, lines: Sequence[str], locale: str) -> list[bytes]:
    """What bash prints, NUL after each, for the lines on its standard input."""
    data = "".join(f"{line}\n" for line in lines).encode()
    done = subprocess.run(
        ["bash", "-c", script],
        input=data,
        capture_output=True,
        timeout=60,
        check=True,
        env={"LC_ALL": locale},
    )
    assert done.stderr == b""
    return done.stdout.split(b"\0")[:-1]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@settings(max_examples=10, deadline=None)
@given(values=st.lists(field_text, min_size=20, max_size=200))
def test_bash_decodes_fields_to_the_same_bytes(locale: str, values: list[str]) -> None:
    script = r"""while IFS= read -r field; do printf -v x '%b' "$field"; printf '%s\0' "$x"; done"""
    got = bash_prints(script, [encode_field(value) for value in values], locale)
    assert got == [value.encode() for value in values]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@settings(max_examples=10, deadline=None)
@given(rows=st.lists(fields, min_size=5, max_size=50))
def test_bash_splits_rows_into_the_same_fields(locale: str, rows: list[list[tuple[str, str]]]) -> None:
    script = r"""while IFS=$'\t' read -r -a fields; do
        for field in ${fields[@]+"${fields[@]}"}; do
            printf -v x '%b' "${field#*=}"; printf '%s=%s\0' "${field%%=*}" "$x"; done; done"""
    got = bash_prints(script, [encode_row(row) for row in rows], locale)
    assert got == [f"{key}={value}".encode() for row in rows for key, value in row]


@settings(max_examples=10, deadline=None)
@given(values=st.lists(text, min_size=20, max_size=100))
def test_bash_reads_shell_words(values: list[str]) -> None:
    script = "printf '%s\\0' " + " ".join(map(encode_shell_word, values))
    assert bash_prints(script, [], "C") == [value.encode() for value in values]


@pytest.mark.parametrize(
    ("args", "encoded"),
    [
        ([], '""'),
        ([""], "\"''\""),
        (["--run", "r0239557414"], '"--run r0239557414"'),
        (["two  blanks", "it's", 'a "b"'], "\"'two  blanks' 'it''s' 'a \"\"b\"\"'\""),
        (["$(HOME)"], "\"$'(HOME)'\""),
        (["$(DOLLAR)"], "\"$'(DOLLAR)'\""),
        (["a$ENV(HOME)"], "\"'a'$'ENV(HOME)'\""),
        (["$$(Cpus)"], "\"$$'(DOLLARDOLLAR)(Cpus)'\""),
        (["$$$([1+1])"], "\"$$'(DOLLARDOLLAR)'$'([1+1])'\""),
        (["costs $5"], "\"'costs '$'5'\""),
    ],
)
def test_arguments_look_like_the_manual_says(args: list[str], encoded: str) -> None:
    assert encode_arguments(args) == encoded


def test_environment_looks_like_the_manual_says() -> None:
    encoded = encode_environment({"B": "x y;z", "A": "", "HOME_": "$(HOME)"})
    assert encoded == "\"A= 'B=x y;z' 'HOME_='$'(HOME)'\""


def test_submit_values_and_strings() -> None:
    assert encode_submit_value("costs $5, 'a' \"b\"") == "costs $5, 'a' \"b\""
    assert encode_submit_value("$(HOME) $$x(y) $$$F(x)") == "$(DOLLAR)(HOME) $$x(y) $$$(DOLLAR)F(x)"
    assert encode_submit_string('a\\b "c" $(HOME)') == '"a\\b \\"c\\" $(DOLLAR)(HOME)"'
    assert encode_classad_string('a\\b "c"') == '"a\\\\b \\"c\\""'


@pytest.mark.parametrize("bad", ["a\0b", "a\rb", "a\nb", "\n", "a\ud800b"])
@pytest.mark.parametrize(
    ("encode", "place"),
    [
        (lambda bad: encode_arguments(["fine", bad]), "argument 2"),
        (lambda bad: encode_environment({"X": bad}), "environment variable X"),
        (lambda bad: encode_submit_value(bad, "batch name"), "batch name"),
        (lambda bad: encode_submit_string(bad, "attribute Z"), "attribute Z"),
        (lambda bad: encode_classad_string(bad, "attribute Z"), "attribute Z"),
        (lambda bad: encode_shell_word(bad, "word"), "word"),
        (lambda bad: refuse_control(bad, "campaign.yaml:3: command"), "campaign.yaml:3: command"),
    ],
)
def test_what_no_syntax_carries_is_refused_by_place_and_value(encode: Encode, place: str, bad: str) -> None:
    with pytest.raises(Unrepresentable) as refused:
        encode(bad)
    assert refused.value.what == place
    assert refused.value.value == bad
    assert "character" in refused.value.why


@pytest.mark.parametrize("bad", ["a\0b", "a\ud800b"])
def test_rows_carry_line_breaks_and_refuse_the_rest(bad: str) -> None:
    for write, read in ((encode_row, decode_row), (encode_lines, decode_lines)):
        with pytest.raises(Unrepresentable, match="env"):
            write([("env", bad)])
        assert read(write([("env", "a\r\n\n\tb\\n"), ("x", "\n")])) == (("env", "a\r\n\n\tb\\n"), ("x", "\n"))


@pytest.mark.parametrize("bad", ["", " a", "a\t", "\va", "a\\", '"a"', '"', "$$(Cpus)", "x $(dollar)", "$$$(x)"])
def test_values_that_condor_submit_would_change_are_refused(bad: str) -> None:
    with pytest.raises(Unrepresentable, match="batch name"):
        encode_submit_value(bad, "batch name")


@pytest.mark.parametrize("bad", ["a\\", "$$(Cpus)", "$(DOLLAR)"])
def test_strings_that_condor_submit_would_change_are_refused(bad: str) -> None:
    with pytest.raises(Unrepresentable, match="campaign"):
        encode_submit_string(bad, "campaign")


@given(text)
def test_a_path_comes_back_as_it_is_or_is_refused(path: str) -> None:
    try:
        assert decode_path(encode_path(path)) == encode_path(path) == path
    except Unrepresentable:
        return
    assert path.startswith("/") and not set(path) & set(" \t,;:$\\\"'*?()")


BAD_PATHS = (
    "", "/", "a", "./a", "/a/", "/a//b", "/a/../b", "/a/.", "/a b", "/a,b", "/a:b", "/$(HOME)", "/$$(x)", "/a\\b", '/"a"',
    "/*", "/é", "~/a", "/a\n", " /a",
)  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS)
def test_paths_that_htcondor_would_change_are_refused(path: str) -> None:
    with pytest.raises(Unrepresentable, match="secret oracle"):
        encode_path(path, "secret oracle")


@pytest.mark.parametrize("name", ["", "1A", "A B", "A=B", "A-B", "É", "A\n", "A$(B)"])
def test_names_of_variables_are_checked(name: str) -> None:
    with pytest.raises(Unrepresentable, match="name of an environment variable"):
        encode_environment({name: "x"})


@pytest.mark.parametrize("key", ["", "A", "1a", "a b", "a-b", "a\tb", "a=b", "é", "a\n"])
def test_keys_are_checked(key: str) -> None:
    for write in (encode_row, encode_lines):
        with pytest.raises(Unrepresentable, match="key"):
            write([(key, "x")])


@pytest.mark.parametrize("word", ["clump.r0239557414.c003", "a", "9", "a" * 200, "s0000-0123456789abcdef.rows"])
def test_tame_words_pass(word: str) -> None:
    assert tame(word, "job") == word


@pytest.mark.parametrize("word", ["", ".a", "-a", "_a", "a b", "a/b", "a" * 201, "é", "a\n", "a,b", "$a"])
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(Unrepresentable, match="job name"):
        tame(word, "job name")


@pytest.mark.parametrize(
    ("decode", "damaged"),
    [
        (decode_arguments, "bare"),
        (decode_arguments, '"a"b"'),
        (decode_arguments, '"a'),
        (decode_arguments, '"it\'s"'),
        (decode_arguments, '"' + "a" * 5000 + "'\""),
        (decode_arguments, '"$(HOME)"'),
        (decode_environment, '"A"'),
        (decode_environment, '"A=1 A=2"'),
        (decode_environment, '"1=2"'),
        (decode_submit_value, "$(HOME)"),
        (decode_submit_value, "$(DOLLAR)(DOLLAR)"),
        (decode_submit_string, "bare"),
        (decode_submit_string, '"a"b"'),
        (decode_submit_string, '"a\\"'),
        (decode_classad_string, '"a\\n"'),
        (decode_classad_string, '"a"b"'),
        (decode_shell_word, "a b"),
        (decode_shell_word, "'a"),
        (decode_shell_word, ""),
        (decode_field, "a\\b"),
        (decode_field, "a\nb"),
        (decode_field, "a\rb"),
        (decode_field, "a\\"),
        (decode_field, "a\tb"),
        (decode_row, "job"),
        (decode_row, "job=a\t"),
        (decode_row, "Job=a"),
        (decode_row, "job=a\n"),
        (decode_lines, "job=a"),
        (decode_lines, "job=a\n\n"),
    ],
)
def test_decoders_refuse_what_no_encoder_writes(decode: Encode, damaged: str) -> None:
    with pytest.raises(Unrepresentable):
        decode(damaged)


def test_a_shell_word_is_what_the_shell_library_reads() -> None:
    assert shlex.split(f"echo {encode_shell_word('a $(b)')}") == ["echo", "a $(b)"]


def test_rows_of_a_large_campaign_are_fast() -> None:
    """100,000 rows in about 0.3 s; the limit here is ten times that, for a machine with other work."""
    row = [("job", "clump.r0239557414.c003"), *[("arg", f"--option-{n}=value") for n in range(8)]]
    begin = time.process_time()
    for _ in range(10_000):
        encode_row(row)
    assert time.process_time() - begin < 0.3
