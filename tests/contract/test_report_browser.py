"""The page of `fermigrid report` as people see it: in a real browser, on a phone and on a desk, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fermigrid.backends import Cursor
from fermigrid.commands.following import following
from fermigrid.states import State
from fermigrid.submit import Hand
from fermigrid.summary_campaign import summarize
from fermigrid.summary_page import write_page
from tests.browser import Browser, browser
from tests.campaigns import ROOT
from tests.synthetic import BEGIN, synthetic

STYLE = (ROOT / "submit_templates/report/report.css").read_text()
HOSTILE = "</title></svg><script>document.title='taken'</script><img src=x onerror=document.title='taken'>" + "W" * 300
PHONE, DESK = 360, 1280

OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"
WIDE_PARTS = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && e.getClientRects().length
 && (e.getBoundingClientRect().right > innerWidth + .5 || e.getBoundingClientRect().left < -.5)).map(e => e.outerHTML.slice(0, 90))"""
CUT_OFF = """[...document.querySelectorAll('svg text')].filter(e => e.getClientRects().length).filter(e => {
 const t = e.getBoundingClientRect(), s = e.ownerSVGElement.getBoundingClientRect();
 return t.left < s.left - 1 || t.right > s.right + 1 || t.top < s.top - 1 || t.bottom > s.bottom + 1 }).map(e => e.textContent)"""
OVERLAP = """[...document.querySelectorAll('svg')].filter(s => s.getClientRects().length).flatMap(s => {
 const all = [...s.querySelectorAll('text')], hit = [];
 all.forEach((a, i) => all.slice(i + 1).forEach(b => {
  const p = a.getBoundingClientRect(), q = b.getBoundingClientRect();
  if (p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 3 && q.top < p.bottom - 3)
   hit.push(a.textContent + ' / ' + b.textContent) }));
 return hit })"""
SMALLEST = "Math.min(...[...document.querySelectorAll('svg text')].filter(e => e.getClientRects().length).map(e => e.getBoundingClientRect().height))"
SHOWN = "[...document.querySelectorAll('svg')].filter(s => s.getClientRects().length).map(s => s.getBoundingClientRect().width)"
GROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 runs of 12 clumps in eight blocks at two sites; some jobs are held for a reason that no page should believe."""
    folder = tmp_path_factory.mktemp("page")
    run = synthetic(folder / "c", 40, 12, block=5, done=0.85)
    with following(run, Hand("me@here", lambda: BEGIN + timedelta(days=8), lambda _: None)) as f:
        jobs = f.ledger.jobs_in(State.DONE)[:30]
        f.ledger.apply([replace(job, state=State.HELD, reason=HOSTILE) for job in jobs], Cursor(), [(HOSTILE, 82)] * 3)
        path = folder / "report.html"
        path.write_text(write_page(summarize(f), STYLE), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser") / "profile") as one:
        yield one


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, PHONE, 768, DESK])
def test_the_page_fits_every_screen(page: Path, window: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    window.open(page, width, dark=dark)
    assert window.evaluate(OVERFLOW) <= 0
    assert window.evaluate(WIDE_PARTS) == []
    assert window.evaluate(CUT_OFF) == []
    assert window.evaluate(OVERLAP) == []
    assert window.evaluate(SMALLEST) >= 10, "letters are as large as they were drawn, at any width"
    assert len(window.evaluate(SHOWN)) == 9, "each plot once"
    window.shot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000


def test_light_and_dark_are_what_the_person_prefers(page: Path, window: Browser) -> None:
    grounds = []
    for dark in (False, True):
        window.open(page, DESK, dark=dark)
        light = sum(map(int, window.evaluate(GROUND).removeprefix("rgb(").removesuffix(")").split(","))) / 3
        grounds.append(light)
    assert grounds[0] > 200 and grounds[1] < 60


def test_nothing_is_fetched_and_nothing_runs(page: Path, window: Browser) -> None:
    window.open(page, DESK)
    assert window.asked == [page.as_uri()]
    assert window.said == []
    assert window.evaluate("document.title") == "P400: campaign report"
    assert window.evaluate("document.querySelectorAll('script, img, link').length") == 0
    assert "onerror=document.title" in window.evaluate("document.body.innerText")


def test_numbers_open_without_a_script(page: Path, window: Browser) -> None:
    window.open(page, PHONE)
    window.evaluate("document.querySelectorAll('summary').forEach(s => s.click())")
    assert window.evaluate("[...document.querySelectorAll('details')].every(d => d.open)")
    assert window.evaluate(OVERFLOW) <= 0
    assert window.evaluate(WIDE_PARTS) == []


def test_on_paper_there_are_the_numbers_too(page: Path, window: Browser, tmp_path: Path) -> None:
    window.open(page, DESK, dark=True)
    window.call("Emulation.setEmulatedMedia", media="print")
    hidden = "[...document.querySelectorAll('details table')].filter(t => !t.getClientRects().length).length"
    assert window.evaluate(hidden) == 0
    window.print(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    window.call("Emulation.setEmulatedMedia", media="")


def test_a_reader_of_screens_hears_each_plot(page: Path, window: Browser) -> None:
    window.open(page, DESK)
    tree = window.call("Accessibility.getFullAXTree")["nodes"]
    images = [node for node in tree if node["role"]["value"] in ("image", "img") and not node["ignored"]]
    names = [node["name"]["value"] for node in images]
    assert len(names) == 9 and all(names)
    assert any(name.startswith("Progress Jobs with an accepted result") for name in names), names
