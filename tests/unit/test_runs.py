"""Run tables: read whole, every problem with its line, and written again."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermigrid.campaign import Runs
from fermigrid.config import Source
from fermigrid.errors import ConfigError
from fermigrid.runs import Run, load_runs, parse_table, write_table


def refusals(text: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parse_table(text, "t.csv")
    return [str(problem) for problem in refused.value.problems]


def load(folder: Path, **written: object) -> tuple[Run, ...]:
    return load_runs(
        Runs.model_validate(written), folder, Source.of_lines("c.yaml", {("runs", "list"): 3, ("runs", "table"): 3})
    )


def test_a_table() -> None:
    text = 'run, events ,season\nr1,5, winter \n\nr2,0,"a, b"\n'
    assert parse_table(text, "t") == (Run("r1", 5, {"season": "winter"}), Run("r2", 0, {"season": "a, b"}))


def test_a_table_of_names_only() -> None:
    assert parse_table("run\nr1\nr2\n", "t") == (Run("r1"), Run("r2"))


def test_line_ends_of_windows_and_a_missing_last_one() -> None:
    assert [run.name for run in parse_table("run,events\r\nr1,1\r\nr2,2", "t")] == ["r1", "r2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "t.csv:1: the first line must name the columns, one of them 'run'; it has: nothing"),
        ("r1\nr2\n", "one of them 'run'; it has: r1"),
        ("run\n", "t.csv:1: has a header and no run"),
        ("run,run\nr1,r1\n", "t.csv:1: column 'run' is there twice"),
        ("run,a b\nr1,x\n", "t.csv:1: column 'a b'"),
        ("run,\nr1,x\n", "t.csv:1: column ''"),
        ("run,1st\nr1,x\n", "t.csv:1: column '1st'"),
        ("run,x\nr1\n", "t.csv:2: has 1 value for 2 columns"),
        ("run\nr1,x\n", "t.csv:2: has 2 values for 1 column"),
        ("run\nr1\nr2\nr1\n", "t.csv:4: run: r1 is there twice (first in line 2)"),
        ("run\nr 1\n", "t.csv:2: run: 'r 1' is no name of a run"),
        ("run\n../x\n", "t.csv:2: run: '../x' is no name of a run"),
        ("run\n" + "r" * 61 + "\n", "60 at most"),
        ("run,events\nr1,\n", "t.csv:2: events: '' is no number of events"),
        ("run,events\nr1,-1\n", "t.csv:2: events: '-1' is no number of events"),
        ("run,events\nr1,1e3\n", "'1e3' is no number of events"),
        ("run,events\nr1,\u0663\n", "is no number of events"),
        ("run,events\nr1," + "9" * 5000 + "\n", "is no number of events"),
        ("run,x\nr1,a\0b\n", "contains a control character"),
        ('run,x\nr1,"a\nb"\n', "t.csv:3: x: 'a\\nb' contains a control character"),
        ('run,x\nr1,"a\n', "t.csv:2: not CSV: unexpected end of data"),
        ('run,x\nr1,"a"b\n', "t.csv:2: not CSV:"),
        ("run,x\nr1," + "x" * 200_000 + "\n", "t.csv:2: not CSV: field larger"),
    ],
)
def test_wrong_tables(text: str, said: str) -> None:
    assert said in "\n".join(refusals(text))


def test_all_problems_come_at_once() -> None:
    said = refusals("run,events,x\nr1,a,b\nr1,1\nr 2,1,x\n")
    assert [line.split(":")[1] for line in said] == ["2", "3", "4"]


def test_a_table_that_is_wrong_throughout_does_not_flood_the_screen() -> None:
    said = refusals("run,events\n" + "".join(f"r{i},x\n" for i in range(1000)))
    assert len(said) == 20
    assert said[0].startswith("t.csv:2: events")
    assert said[-1] == "t.csv:21: events: 'x' is no number of events; and 980 more problems of this table"


def test_the_table_is_found_beside_the_campaign(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfrun\nr1\n")
    assert load(tmp_path, table="t.csv") == (Run("r1"),)
    with pytest.raises(ConfigError, match=r"c\.yaml:3: runs\.table: no such file: .*absent\.csv"):
        load(tmp_path, table="absent.csv")
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path, table=".")


def test_a_table_that_is_not_utf8_names_byte_and_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"run,x\nr1,caf\xe9\n")
    with pytest.raises(ConfigError, match=r"t\.csv:2: not UTF-8: byte 0xe9"):
        load(tmp_path, table="t.csv")


def test_lists_and_numbers(tmp_path: Path) -> None:
    assert [run.name for run in load(tmp_path, list=["b", "a"])] == ["b", "a"]
    assert [run.name for run in load(tmp_path, count="3")] == ["0000", "0001", "0002"]
    assert load(tmp_path, count="12345")[-1].name == "12344"
    with pytest.raises(ConfigError, match=r"c\.yaml:3: runs\.list: named twice: a"):
        load(tmp_path, list=["a", "b", "a"])
    with pytest.raises(ConfigError, match="names no run"):
        load(tmp_path, list=[])


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12).map(str.strip)


@given(
    st.lists(names, unique=True, min_size=1, max_size=6),
    st.booleans(),
    st.lists(st.sampled_from(["a", "season", "Z_1"]), unique=True),
    st.data(),
)
def test_a_table_comes_back(run_names: list[str], counted: bool, columns: list[str], data: st.DataObject) -> None:
    runs = tuple(
        Run(
            name,
            data.draw(st.integers(0, 10**15 - 1)) if counted else None,
            {c: data.draw(cells) for c in columns} or None,
        )
        for name in run_names
    )
    file = io.StringIO(newline="")
    write_table(runs, file)
    assert parse_table(file.getvalue(), "t") == runs
