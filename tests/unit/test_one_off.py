"""One command from the command line: its words arrive as they are, its program travels with it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fermigrid.assemble import assemble_data
from fermigrid.check import find_problems
from fermigrid.errors import ConfigError, Unrepresentable
from fermigrid.one_off import describe
from fermigrid.plan import Assembled
from tests.campaigns import NOW, SITES, argv, plans, rows, values

DEFAULTS: dict[str, Any] = {
    "image": "light", "name": None, "jobs": 1, "code": (), "software": (), "secrets": (), "outputs": (),
    "cpus": None, "memory": None, "disk": None, "walltime": None, "retries": None,
}  # fmt: skip


def one_off(folder: Path, *words: str, **options: Any) -> Assembled:
    return assemble_data(describe(words, folder, NOW, **{**DEFAULTS, **options}), folder, "local", (SITES,))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), max_size=20), max_size=5)
)
def test_every_word_arrives(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (plan,) = plans(one_off(Path(folder), "/bin/echo", *words))
    assert argv(rows(plan)[0]) == ["/bin/echo", *words]


@pytest.mark.parametrize(
    ("word", "what"), [("a\nb", "a line break"), ("a\rb", "a carriage return"), ("\udce9", "not UTF-8")]
)
def test_words_that_cannot_travel_are_named(tmp_path: Path, word: str, what: str) -> None:
    with pytest.raises(Unrepresentable, match=f"word 2 of the command: .*{what}"):
        one_off(tmp_path, "echo", word)


@pytest.mark.parametrize("program", ["go.sh", "./go.sh", "sub/go.sh"])
def test_a_program_that_is_a_file_here_travels(tmp_path: Path, program: str) -> None:
    (tmp_path / program).parent.mkdir(exist_ok=True)
    (tmp_path / program).write_text("#!/bin/sh\n")
    assembled = one_off(tmp_path, program, "--run", "{run}")
    assert assembled.bundle is not None
    assert assembled.bundle.names == {"go.sh"}
    assert argv(rows(plans(assembled)[0])[0]) == ["./go.sh", "--run", "{run}"]


@pytest.mark.parametrize("program", ["python3", "/bin/sh", "absent.sh"])
def test_a_program_that_is_none_does_not(tmp_path: Path, program: str) -> None:
    assembled = one_off(tmp_path, program)
    assert assembled.bundle is None
    assert argv(rows(plans(assembled)[0])[0]) == [program]


def test_outputs_keep_their_names_and_several_jobs_put_theirs_before(tmp_path: Path) -> None:
    (one,) = plans(one_off(tmp_path, "x", outputs=("a{b}.fit", "d/e")))
    assert (values(rows(one)[0], "out"), values(rows(one)[0], "out.to")) == (["a{b}.fit", "d/e"], ["a{b}.fit", "d/e"])
    (two,) = plans(one_off(tmp_path, "x", outputs=("a",), jobs=2))
    assert [values(row, "out.to") for row in rows(two)] == [["command.0000.a"], ["command.0001.a"]]


def test_its_name_is_that_of_the_program_and_the_time(tmp_path: Path) -> None:
    assert one_off(tmp_path, "./my prog$.sh").campaign.campaign == "my-prog-20270304-050607-000000"
    assert one_off(tmp_path, "é").campaign.campaign == "command-20270304-050607-000000"
    assert one_off(tmp_path, "x", name="mine").campaign.campaign == "mine"


def test_what_is_wrong_is_said_without_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        one_off(tmp_path, "x", memory="2", name="a b", jobs=0, cpus=0)
    said = str(refused.value).splitlines()
    assert len(said) == 4
    assert all(line.startswith("command line: ") for line in said)
    (problem,) = find_problems(one_off(tmp_path, "x", image="ligth"))
    assert str(problem).startswith("command line: image: no image 'ligth'; did you mean 'light'?")
