"""`fermigrid report`: tables, JSON, CSV, and one page with plots that shows hostile texts as texts."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fermigrid import cli
from fermigrid.axis import byte_ticks, duration_ticks, number_ticks, show_number, time_ticks
from fermigrid.backends import Cursor
from fermigrid.charts import NARROW, WIDE, Axis, Series, Shares, Times, over_time, shares, svg
from fermigrid.commands.following import following
from fermigrid.pace import end_words
from fermigrid.plainfile import whole_file
from fermigrid.runfolder import RunFolder
from fermigrid.states import State
from fermigrid.submit import Hand
from fermigrid.summary_campaign import summarize
from fermigrid.summary_page import write_page
from fermigrid.summary_tables import show_work
from tests.audited import ONE, ran
from tests.campaigns import ROOT
from tests.synthetic import BEGIN, synthetic

STYLE = (ROOT / "submit_templates/report/report.css").read_text()
HOSTILE = "</script><script>document.title='taken'</script><img src=http://evil.example/x onerror=alert(1)>\"'&<b>"
VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return synthetic(tmp_path_factory.mktemp("p400"), 20, 10, block=5, done=0.8)


def page_of(run: RunFolder, style: str = STYLE) -> str:
    with following(run, Hand("me@here", lambda: BEGIN + timedelta(days=9), lambda _: None)) as f:
        return write_page(summarize(f), style)


class Page(HTMLParser):
    """A page taken apart: what is in it, and whether each element ends where it should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}


# --- the page


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(folder: RunFolder) -> None:
    text = page_of(folder)
    page = Page(text)
    assert page.names() & {"script", "link", "img", "iframe", "object", "use", "image", "a"} == set()
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "src", "style")], tag
    assert re.findall(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text) == []
    policy = next(attributes for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes)
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_every_plot_can_be_heard_and_has_its_numbers(folder: RunFolder) -> None:
    text = page_of(folder)
    plots = [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.S)]
    assert len(plots) == 2 * 9, "each for a wide and for a narrow screen"
    ids = [element.get("id") for plot in plots for element in plot.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) == 2 * len(plots)
    space = "{http://www.w3.org/2000/svg}"
    for plot in plots:
        title, words = plot[0], plot[1]
        assert (title.tag, words.tag, plot.get("role")) == (f"{space}title", f"{space}desc", "img")
        assert plot.get("aria-labelledby") == f"{title.get('id')} {words.get('id')}"
        assert title.text and words.text
    figures = re.findall(r"<figure>.*?</details>", text, re.S)
    assert len(figures) == 9 and all("<table>" in figure for figure in figures)


def test_a_plot_stays_in_its_frame_and_letters_do_not_touch(folder: RunFolder) -> None:
    for found in re.findall(r"<svg.*?</svg>", page_of(folder), re.S):
        plot = ET.fromstring(found)
        width, height = float(plot.get("width", 0)), float(plot.get("height", 0))
        assert width in (WIDE, NARROW)
        rows: dict[float, list[tuple[float, float]]] = {}
        for element in plot.iter():
            for name, most in (
                ("x", width),
                ("x1", width),
                ("x2", width),
                ("y", height),
                ("y1", height),
                ("y2", height),
            ):
                assert 0 <= float(element.get(name, 0)) <= most
            if element.tag.endswith("text"):
                text, x = element.text or "", float(element.get("x", 0))
                size = len(text) * 6.2
                begin = {"start": x, "middle": x - size / 2, "end": x - size, None: x}[element.get("text-anchor")]
                assert begin >= -4 and begin + size <= width + 14, text
                rows.setdefault(float(element.get("y", 0)), []).append((begin, begin + size))
        for spans in rows.values():
            assert all(left[1] < right[0] + 4 for left, right in itertools.pairwise(sorted(spans))), spans


def test_hostile_texts_are_shown_as_texts(tmp_path: Path) -> None:
    """Reasons, hosts and folders come from jobs and machines that nobody trusts."""
    run = synthetic(tmp_path, 4, 4, block=2)
    with following(run, Hand("me@here", lambda: BEGIN + timedelta(days=9), lambda _: None)) as f:
        jobs = f.ledger.jobs_in(State.DONE)[:2]
        f.ledger.apply([replace(job, state=State.HELD, reason=HOSTILE, host=HOSTILE) for job in jobs], Cursor(),
                       [(HOSTILE, 82)] * 3)  # fmt: skip
        summary = replace(summarize(f), folder=HOSTILE, state=HOSTILE)
        text = write_page(summary, STYLE)
    page = Page(text)
    assert page.names() & {"script", "img", "b"} == set()
    assert "".join(page.words).count("document.title") >= 4
    for found in re.findall(r"<svg.*?</svg>", text, re.S):
        ET.fromstring(found)


def test_a_campaign_of_which_nothing_is_known_yet_has_a_page(tmp_path: Path) -> None:
    text = page_of(synthetic(tmp_path, 3, 2, states=False))
    assert "<svg" not in text and "0 of 9" in "".join(Page(text).words)


def test_one_job_is_enough_for_all_plots(tmp_path: Path) -> None:
    text = page_of(synthetic(tmp_path, 1, 1, block=1))
    assert text.count("<svg") >= 2 * 7 and "nan" not in text.lower().replace("nance", "")
    Page(text)


# --- colours

_SEEN = {  # how people see colours: Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
    "usual": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}  # fmt: skip


def palettes() -> Iterator[tuple[str, dict[str, str]]]:
    light, dark, printed = (dict(re.findall(r"--([a-z0-9]+):(#[0-9a-f]{3,6})", part)) for part in re.findall(r":root\{(.*?)\}", STYLE, re.S))  # fmt: skip
    yield from (("light", light), ("dark", {**light, **dark}), ("printed", {**light, **printed}))


def linear(colour: str) -> list[float]:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    shares_ = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    return [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares_]


def lab(rgb: list[float]) -> tuple[float, float, float]:
    weights = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    whole = [sum(w * max(0.0, c) for w, c in zip(row, rgb, strict=True)) for row in weights]
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (whole[0] / 0.95047, whole[1], whole[2] / 1.08883))  # fmt: skip
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def contrast(one: str, other: str) -> float:
    lights = sorted(sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear(x), strict=True)) for x in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


@pytest.mark.parametrize(("name", "colours"), list(palettes()))
@pytest.mark.parametrize("eyes", _SEEN)
def test_colours_can_be_told_apart_by_everybody(name: str, colours: dict[str, str], eyes: str) -> None:
    seen = {}
    for style in ("s0", "s1", "s2", "s3", "s4", "s5", "bad"):
        rgb = linear(colours[style])
        seen[style] = lab([sum(m * c for m, c in zip(row, rgb, strict=True)) for row in _SEEN[eyes]])
    closest = min((math.dist(seen[a], seen[b]), a, b) for a, b in itertools.combinations(seen, 2))
    assert closest[0] >= 12, closest


@pytest.mark.parametrize(("name", "colours"), list(palettes()))
def test_texts_can_be_read(name: str, colours: dict[str, str]) -> None:
    for ground in ("page", "card"):
        assert contrast(colours["ink"], colours[ground]) >= 7
        assert contrast(colours["soft"], colours[ground]) >= 4.5
    assert min(contrast(colours[style], colours["card"]) for style in ("s0", "s2", "s3", "s5", "bad")) >= 3


# --- axes


@pytest.mark.parametrize("most", [1e-4, 0.3, 1, 7, 10, 99, 101, 12_345, 3e6, 2.5e10])
@pytest.mark.parametrize("count", [3, 5])
def test_ticks_of_numbers_are_round_and_reach_beyond_the_largest(most: float, count: int) -> None:
    ticks = number_ticks(most, count)
    values = [value for value, _ in ticks]
    assert values[0] == 0 and most <= values[-1] * (1 + 1e-9) and values[-1] < 2.6 * most
    assert 2 <= len(ticks) <= count + 2
    assert len({text for _, text in ticks}) == len(ticks), ticks
    step = values[1]
    assert f"{step:.4e}"[0] in "125"


@pytest.mark.parametrize(
    ("value", "step", "text"), [(1200, 100, "1\u202f200"), (0.5, 0.25, "0.50"), (3_200_000, 1e5, "3.2 M"), (0, 1, "0")]
)
def test_numbers_as_people_read_them(value: float, step: float, text: str) -> None:
    assert show_number(value, step) == text


def test_ticks_of_bytes_and_durations() -> None:
    assert [text for _, text in byte_ticks(3.2 * 2**30, 4)] == ["0 GiB", "1 GiB", "2 GiB", "3 GiB", "4 GiB"]
    assert byte_ticks(700, 3)[0][1] == "0 B"
    assert [text for _, text in duration_ticks(3, 7000)] == ["10 s", "1 min", "10 min", "1 h"]
    assert [text for _, text in duration_ticks(100, 1000)] == ["2 min", "5 min", "10 min"]


@pytest.mark.parametrize("seconds", [1, 30, 600, 3600, 86400, 5 * 86400, 60 * 86400, 400 * 86400, 3000 * 86400])
@pytest.mark.parametrize("count", [3, 8])
def test_ticks_of_time_are_round_and_not_too_many(seconds: int, count: int) -> None:
    begin = 1_800_000_123
    ticks = time_ticks(begin, begin + seconds, count)
    assert len(ticks) <= count + 1
    assert all(begin <= at <= begin + seconds for at, _ in ticks)
    assert ticks or seconds < 60
    assert len({text for _, text in ticks}) == len(ticks)


def test_time_is_told_in_utc() -> None:
    ticks = {text: at for at, text in time_ticks(1741046400, 1741046400 + 86400, 8)}
    assert ticks["12:00"] == 1741046400 + 43200 and ticks["4 Mar"] == 1741046400


# --- plots


def test_areas_lie_on_top_of_each_other() -> None:
    series = [Series("a", [2.0, 4.0], "s0"), Series("b", [6.0, 0.0], "s1")]
    body, height = over_time(Times(0, 60, 2), series, Axis("jobs"), WIDE, stacked=True)
    plot = ET.fromstring(svg("x", "t", "d", WIDE, height, body))
    lower, upper = (element.get("d") or "" for element in plot if "area" in (element.get("class") or ""))
    tops = [float(point.split()[1]) for point in upper[1:-1].split("L")]
    bottoms = [float(point.split()[1]) for point in lower[1:-1].split("L")]
    assert min(tops) == pytest.approx(26, abs=0.1), "8 of 8 is the top"
    assert min(bottoms) == pytest.approx(26 + (250 - 30 - 26) / 2, abs=0.1)


@given(
    st.integers(1_700_000_000, 1_800_000_000),
    st.integers(1, 10**6),
    st.integers(1, 300),
    st.sampled_from([WIDE, NARROW]),
)
@settings(max_examples=300, deadline=None)
def test_moments_below_a_plot_do_not_touch(begin: int, size: int, bins: int, width: int) -> None:
    times = Times(begin, size, bins)
    body, height = over_time(times, [Series("a", [1.0] * bins, "s0")], Axis("jobs"), width, stacked=True)
    texts = [e for e in ET.fromstring(svg("x", "t", "d", width, height, body)) if e.tag.endswith("text")]
    below = [e for e in texts if float(e.get("y", 0)) > height - 20]
    ends = 0.0
    for one in below:
        long, share = 6.2 * len(one.text or ""), {"start": 0.0, "middle": 0.5, "end": 1.0}[one.get("text-anchor", "")]
        left = float(one.get("x", 0)) - share * long
        assert ends <= left and left + long <= width
        ends = left + long + 3


def test_what_jobs_took_together_is_told_in_a_unit_that_fits() -> None:
    assert [show_work(seconds) for seconds in (0, 3, 4000, 36_000, 4.4e9)] == [
        "0 s", "3 s", "1 h 6 min", "10 h", "1\u202f222\u202f222 h"]  # fmt: skip


def test_shares_fill_their_row() -> None:
    rows = [Shares("east", {"a": 1.0, "b": 3.0}), Shares("west", {"a": 5.0, "b": 0.0})]
    body, height = shares(rows, {"a": "s0", "b": "s1"}, WIDE)
    parts = [e for e in ET.fromstring(svg("x", "t", "d", WIDE, height, body)) if e.tag.endswith("rect")]
    widths = [float(part.get("width", 0)) for part in parts]
    assert widths[0] + widths[1] == pytest.approx(widths[2] + widths[3], abs=0.2) == pytest.approx(WIDE - 22, abs=0.2)
    assert widths[0] == pytest.approx((WIDE - 22) / 4, abs=0.1) and widths[3] == 0


# --- the verb


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.run([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_tables_json_csv_and_page(folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "report", folder.path)
    assert (code, err) == (0, "")
    for title in ("Jobs", "Wall and CPU time", "Memory", "Image source", "Phases", "Failures", "Slowest runs"):
        assert f"\n{title}\n" in f"\n{out}"
    assert "P400: 220 jobs, 171 done, " in out
    code, out, _ = call(capsys, "report", folder.path, "--json")
    assert code == 0 and json.loads(out)["campaign"] == "P400"
    html, table = tmp_path / "r.html", tmp_path / "r.csv"
    code, out, err = call(capsys, "report", folder.path, "--html", html, "--csv", table)
    assert (code, out, err) == (0, "", f"wrote {table}\nwrote {html}\n")
    assert html.read_text().startswith("<!doctype html>") and html.read_text().endswith("</html>\n")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == len({row["job"] for row in rows}) and {row["step"] for row in rows} == {"clump", "merge"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.csv", "r.html"]


def test_the_files_are_private_and_stay_as_open_as_a_person_made_them(
    folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html = tmp_path / "r.html"
    for mode in (0o600, 0o644):
        assert call(capsys, "report", folder.path, "--html", html)[0] == 0
        assert stat.S_IMODE(html.stat().st_mode) == mode
        html.chmod(0o644)


def test_a_link_is_replaced_not_followed(folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    other.chmod(0o666)
    (tmp_path / "r.html").symlink_to(other)
    assert call(capsys, "report", folder.path, "--html", tmp_path / "r.html")[0] == 0
    assert other.read_text() == "mine" and not (tmp_path / "r.html").is_symlink()
    assert stat.S_IMODE((tmp_path / "r.html").stat().st_mode) == 0o600


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:  # noqa: PT012
        file.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before" and [each.name for each in tmp_path.iterdir()] == ["r.html"]


def test_a_place_that_cannot_be_written_is_told(
    folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "report", folder.path, "--html", tmp_path / "no/r.html")
    assert code >= 10
    assert "cannot be written: No such file or directory" in err


def test_a_formula_is_a_text_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = synthetic(tmp_path, 2, 2, block=2)
    with following(run, Hand("me@here", lambda: BEGIN, lambda _: None)) as f:
        (job, *_) = f.ledger.jobs_in(State.DONE)
        f.ledger.apply([replace(job, state=State.HELD, reason='=HYPERLINK("http://evil")', host="+1")], Cursor())
    run.event_log("b0000").unlink()  # which says that it has ended
    table = tmp_path / "r.csv"
    assert call(capsys, "report", run.path, "--csv", table)[0] == 0
    row = next(row for row in csv.DictReader(table.read_text().splitlines()) if row["state"] == "held")
    assert row["cause"].startswith("'=HYPERLINK")


# --- campaigns that are not as usual


def test_jobs_that_nobody_knows_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown is a state: neither failed, nor among those of which the end can be told."""
    run = synthetic(tmp_path, 20, 30, block=20, done=0.9)
    now = BEGIN + timedelta(days=8)
    with following(run, Hand("me@here", lambda: now, lambda _: None)) as f:
        jobs = f.ledger.jobs_in(State.RUNNING)[:3]
        f.ledger.apply([replace(job, state=State.UNKNOWN, reason="it has left the queue") for job in jobs], Cursor())
        summary = summarize(f)
    assert ", 3 unknown" in summary.state
    assert summary.pace.aside == 3 + sum(one.states[State.HELD] for one in summary.counts)
    run.event_log("b0000").unlink()  # which would be asked about them
    code, out, _ = call(capsys, "report", run.path)
    head, row = (line.split() for line in out.splitlines()[1:3])
    assert code == 0 and row[head.index("unknown")] == "3"


def test_what_was_done_again_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its first life is in the times that were lost, and in no other sum."""
    with ran(tmp_path) as campaign:
        campaign.retire(f"clump.{ONE}.c001", f"merge.{ONE}")
        campaign.run_step("b0000", "clump", (ONE,), {ONE: frozenset({"c001"})})
        campaign.run_step("b0000", "merge", (ONE,))
    code, out, _ = call(capsys, "report", tmp_path / "run", "--json")
    data = json.loads(out)
    assert code == 0 and [(one["step"], one["accepted"], one["not_counted"]) for one in data["steps"]] == [
        ("clump", 6, 1), ("merge", 3, 1)]  # fmt: skip
    assert sum(sum(one["states"].values()) for one in data["jobs"]) == 9
    table = tmp_path / "jobs.csv"
    assert call(capsys, "report", tmp_path / "run", "--csv", table)[0] == 0
    rows = {row["job"]: row for row in csv.DictReader(table.read_text().splitlines())}
    assert len(rows) == 9 and rows[f"clump.{ONE}.c001"]["generation"] == "1"


def test_a_rehearsal_says_that_it_was_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ran(tmp_path, told={f"merge.{ONE}": {"rehearsal": True}}):
        pass
    page = tmp_path / "page.html"
    assert call(capsys, "report", tmp_path / "run", "--html", page)[0] == 0
    note = "rehearsal: not containerised (1 job ran on the host)"
    assert f"<p>{note}</p>" in page.read_text().split("</header>")[0]
    assert note in call(capsys, "report", tmp_path / "run")[1]
    assert note in json.loads(call(capsys, "report", tmp_path / "run", "--json")[1])["notes"]


def test_an_estimate_stands_on_the_page(tmp_path: Path) -> None:
    run = synthetic(tmp_path, 60, 20, block=10, done=0.8)
    with following(run, Hand("me@here", lambda: BEGIN + timedelta(days=6, hours=20), lambda _: None)) as f:
        summary = summarize(f)
    words = end_words(summary.pace, summary.made)
    assert words.startswith("ends ") and words in write_page(summary, STYLE)
