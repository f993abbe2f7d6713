"""What `watch` shows on a terminal: all of it where there is room, the most important where there is little."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fermigrid.commands.following import following
from fermigrid.records import Halt
from fermigrid.screen import Screen, View, lines_of
from fermigrid.standing import standing_of, top_failures
from fermigrid.submit import Hand
from tests.synthetic import BEGIN, synthetic

NOW = BEGIN + timedelta(days=6, hours=20)
HOSTILE = "held: \x1b[2J\x1b]0;taken\x07 \u202eedoc\r\nsecond [bold red]line[/]"


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    run = synthetic(tmp_path_factory.mktemp("screen"), 40, 20, block=5, done=0.8)
    with following(run, Hand("me@here", lambda: NOW, lambda _: None)) as f:
        said = tuple(f"submitted P400.b{number:04d}.merge.g0" for number in range(9))
        return View(
            "P400", standing_of(f), top_failures(f, standing_of(f)), (*said, HOSTILE), NOW - timedelta(seconds=3)
        )


def shown(view: View, width: int, height: int) -> list[str]:
    lines = lines_of(view, NOW, width, height)
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return [line.plain for line in lines]


@given(st.integers(20, 250), st.integers(4, 90))
@settings(max_examples=150, deadline=None)
def test_it_fits_every_terminal(view: View, width: int, height: int) -> None:
    lines = shown(view, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("P400") and lines[-1].startswith("Ctrl-C ends")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_steps_states_rates_and_failures_are_there(view: View, width: int) -> None:
    lines = shown(view, width, 60)
    assert lines[0] == "P400  looked 3 s ago"
    assert any("jobs done" in line and "%" in line for line in lines[:2])
    assert any("jobs/h done" in line for line in lines[:5])
    assert any(line.startswith("ends not before 2025-03-11 03:50 UTC") for line in lines[:5])
    head = next(line for line in lines if line.startswith("step "))
    assert head.split() == ["step", "site", "done", "running", "waiting", "held", "failed", "ended/h"]
    at = lines.index(head)
    assert [line.split()[:2] for line in lines[at + 1 : at + 5]] == [
        ["clump", "east"], ["clump", "west"], ["merge", "east"], ["merge", "west"]]  # fmt: skip
    states = {one.step + one.site: one.states for one in view.standing.by_step}
    numbers = [int(number) for number in lines[at + 1].split()[2:7]]
    assert numbers == [states["clumpeast"][state] for state in ("done", "running", "waiting", "held", "failed")]
    assert any("the payload ended with exit code 3" in line for line in lines[lines.index("Failures") :])
    assert "Said lately" in lines


@pytest.mark.parametrize(
    ("width", "height", "failures", "steps"),
    [(50, 24, True, True), (50, 14, True, True), (50, 10, True, False), (50, 6, False, False), (80, 13, True, True)],
)
def test_with_little_room_halts_stay_longest_then_failures_then_steps(
    view: View, width: int, height: int, failures: bool, steps: bool
) -> None:
    halt = Halt("breaker", "2025-03-10T20:00:00+00:00", "41 of the last 200 jobs failed (more than 20 %)")
    lines = shown(replace(view, standing=replace(view.standing, halts=(halt,))), width, height)
    text = " ".join(line.strip() for line in lines)
    assert "nothing more starts until `fermigrid resume`, since" in text and "41 of the last 200 jobs failed" in text
    assert ("Failures" in lines, any(line.startswith("step ") for line in lines)) == (failures, steps)
    assert "Said lately" not in lines, "everything else comes before"


def test_numbers_are_short_where_there_is_little_room(view: View) -> None:
    one = view.standing.batches[0]
    many = replace(
        one, batch=replace(one.batch, jobs=2_400_000), counts={**one.counts, next(iter(one.counts)): 2_345_678}
    )
    large = replace(view, standing=replace(view.standing, batches=(many,)))
    assert any("2 345 678" in line for line in shown(large, 120, 40))
    assert any("2.35M" in line for line in shown(large, 60, 40))


def test_every_state_has_a_part_of_the_bar(view: View) -> None:
    """One failed job of a million is seen, too."""
    one = view.standing.batches[0]
    counts = dict.fromkeys(one.counts, 1) | {next(iter(one.counts)): 10**6}
    lines = lines_of(
        replace(view, standing=replace(view.standing, batches=(replace(one, counts=counts),))), NOW, 120, 40
    )
    styles = {str(span.style) for line in lines[:2] for span in line.spans}
    assert {"green", "red", "yellow", "bright_blue", "magenta", "cyan"} <= styles


@pytest.mark.parametrize("ascii_only", [False, True])
def test_what_is_written_moves_no_cursor(view: View, ascii_only: bool) -> None:
    hostile = replace(view, failures=[(HOSTILE, 3, "clump.r1")], said=(HOSTILE,))
    out = io.StringIO()
    console = Console(file=out, width=60, height=30, color_system=None, force_terminal=False)
    options = console.options.update_dimensions(60, 30)
    options.encoding = "ascii" if ascii_only else "utf-8"
    for segment in console.render(Screen(hostile, lambda: NOW), options):
        out.write(segment.text)
    text = out.getvalue()
    assert "[bold red]line[/]" in text, "rich's markup is a text, too"
    assert all(char.isprintable() or char == "\n" for char in text)
    assert len(text.splitlines()) <= 30
    if ascii_only:
        assert "█" not in text and "#" in text


def test_before_the_first_look(view: View) -> None:
    empty = replace(view, standing=replace(view.standing, batches=(), pace=type(view.standing.pace)()), failures=(), said=(), looked=None)  # fmt: skip
    lines = shown(empty, 60, 20)
    assert lines[0] == "P400  looking" and "0 of 0 jobs done" in lines[1]


def test_what_is_still_to_be_sent(tmp_path: Path) -> None:
    run = synthetic(tmp_path, 4, 3, block=2, states=False)
    with following(run, Hand("me@here", lambda: NOW, lambda _: None)) as f:
        standing = replace(standing_of(f), unsent_by_step={"clump": 0, "merge": 7})
    lines = shown(View("P400", standing), 80, 20)
    assert "merge  7 not sent" in lines and not any(line.startswith("clump  0") for line in lines)
    several = replace(standing, unsent_by_step={"clump": 1234, "merge": 0, "a-longer-name": 7})
    lines = shown(View("P400", several), 80, 20)
    head = next(line for line in lines if line.startswith("step"))
    assert head.index("site") == len("a-longer-name") + 2
    assert "clump          1 234 not sent" in lines and "a-longer-name      7 not sent" in lines
