"""The fault matrix: the table of docs/reference/worker.md, made of the tests that carry the marker `fault`.

`python -m tests.worker.faults` prints it, `--write` puts it into the page. A row is what a test shows, so only tests that
`make test` runs count (drills do not). What HTCondor does next follows from the exit code by the product's own rule.
"""

from __future__ import annotations

import re
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from fermigrid.report import INFRASTRUCTURE

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/reference/worker.md"
BEGIN, END = "<!-- fault matrix: make golden writes it -->", "<!-- end of the fault matrix -->"
BACKS_OFF = frozenset({81, 82, 91})  # worker.sh waits before it ends with one of these
WHO = {
    "worker": "the worker",
    "site": "the site",
    "inside": "the worker (order wrapper-inside)",
    "host": "nobody, or nobody yet",
    "any": "whoever",
}
HEAD = "| fault | who starts the container | what the worker does | exit code | what HTCondor does next | test |"
KILLED = "killed"  # the code of a worker that was killed: it has none
UNLESS = "; starts again if HTCondor itself ended it"


@dataclass(frozen=True)
class Row:
    """A fault as one or more tests show it; `test` is the first of them."""

    fault: str
    mode: str
    does: str
    code: str
    test: str
    file: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row's cells, in the order of the table."""
        link = f"[{self.test.removeprefix('test_')}](../../{self.file})"
        return self.fault, WHO[self.mode], self.does, self.code, next_step(self.code), link


def next_step(code: str) -> str:
    """What HTCondor does with a job whose worker ended so; the codes of one row (`82 or 83`) must agree."""
    if code == KILLED:
        return f"leaves the queue without a report{UNLESS}"
    steps = {_next_step(int(number)) for number in re.findall(r"\d+", code)}
    if len(steps) != 1:
        raise ValueError(f"the codes '{code}' do not lead to the same next step: {sorted(steps)}")
    return steps.pop()


def _next_step(code: int) -> str:
    if code in INFRASTRUCTURE:
        return "starts again elsewhere" + (", after the back-off" if code in BACKS_OFF else "")
    if code == 0:
        return "leaves the queue, done"
    return f"leaves the queue with its verdict{UNLESS if code > 128 else ''}"


class Collector:
    """A plugin of pytest that reads the markers of what was collected."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.problems: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.problems.append(report.longreprtext)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for marker in item.iter_markers("fault"):
                self.rows.append(self._row(item, marker.kwargs))

    def _row(self, item: pytest.Item, what: dict[str, object]) -> Row:
        if set(what) != {"fault", "mode", "does", "code"} or what["mode"] not in WHO:
            raise pytest.UsageError(f"{item.nodeid}: the marker fault has {what}")
        words = {name: str(value).replace("|", "\\|") for name, value in what.items()}
        if words["code"] == "-9":
            words["code"] = KILLED
        name = getattr(item, "originalname", item.name)
        return Row(**words, test=name, file=str(item.path.relative_to(ROOT)))


def collect() -> list[Row]:
    """The rows, by exit code, each once. Raises RuntimeError when the tests cannot be collected."""
    collector = Collector()
    options = ["--collect-only", "-qq", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    with redirect_stdout(StringIO()):
        status = pytest.main([*options, str(ROOT / "tests/worker"), str(ROOT / "tests/pool")], plugins=[collector])
    if status != pytest.ExitCode.OK:
        raise RuntimeError("\n".join(collector.problems) or f"pytest ended with {status!r}")
    unique = {(row.fault, row.mode, row.does, row.code): row for row in reversed(collector.rows)}
    return sorted(unique.values(), key=_order)


def _order(row: Row) -> tuple[int, str, str, str]:
    number = re.search(r"\d+", row.code)
    return int(number[0]) if number else 999, row.file, row.fault, row.mode


def table(rows: list[Row]) -> str:
    """The rows as a table of Markdown, between the marks of the page."""
    lines = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
    lines += ["| " + " | ".join(row.cells) + " |" for row in rows]
    return "\n".join([BEGIN, *lines, END])


def with_table(page: str, text: str) -> str:
    """The page with this table in the place of the one that it has."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} lacks the marks {BEGIN} and {END}")
    return before + text + after


def main() -> None:
    """`--write` or print."""
    text = table(collect())
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(with_table(PAGE.read_text(), text))
    else:
        print(text)


if __name__ == "__main__":
    main()
