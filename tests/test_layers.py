"""The layers of docs/architecture.md: who may import what, and what `fermigrid --help` costs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaigns import ROOT, finish, python

PACKAGE = ROOT / "fermigrid"
PURE = (
    "advance", "split", "plan", "states", "quoting", "report", "placeholder", "check", "render", "units",
    "check_fit", "check_site", "credential", "pipeline", "pipeline_campaign", "difference", "plan_words", "yaml_words", "values",
    "effective", "json_schema", "kinds", "jdl_text", "check_dirac", "audit", "audit_expected", "audit_names",
    "breaker", "alerts", "metrics", "space", "trial", "rates", "setting",
    "check_audit", "event_source",
    "attempt", "axis", "charts", "histogram", "pace", "summary", "summary_page", "summary_tables", "timeline",
)  # fmt: skip
WORLD = {
    "htcondor2", "classad2", "sqlite3", "subprocess", "os", "click", "rucio", "socket", "shutil", "tempfile",
    "time", "random", "secrets", "getpass", "platform", "threading", "multiprocessing", "urllib", "requests", "rich",
}  # fmt: skip
SURROUNDINGS = {"now", "utcnow", "today", "environ", "getenv", "cwd", "home", "expanduser", "gethostname"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(module with its dots, line) of each import, those inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield str(node.module), node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def importers(path: Path, top: set[str]) -> list[str]:
    return [f"{path.name}:{line} imports {name}" for name, line in imports(path) if name.split(".")[0] in top]


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_do_not_touch_the_world(name: str) -> None:
    assert importers(PACKAGE / f"{name}.py", WORLD) == []


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_read_no_clock_and_no_environment(name: str) -> None:
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in SURROUNDINGS - {"home"}]
    used += [
        node.func  # Path.home(); a secret has an attribute of that name
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "home"
    ]
    called = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"open", "print", "input"}
    ]
    assert [f"{name}.py:{node.lineno}" for node in (*used, *called)] == []


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_do_not_import_the_edge(name: str) -> None:
    edge = {"ledger", "backends", "submit", "watch", "commands", "cli", "runfolder", "planfolder", "accept", "assemble"}
    found = [f"{full}:{line}" for full, line in imports(PACKAGE / f"{name}.py") if edge & set(full.split(".")[1:2])]
    assert found == []


def test_only_the_ledger_and_its_like_import_sqlite() -> None:
    known = {"ledger.py", "ledger_file.py", "name_book.py", "retry_book.py"}
    assert {path.name for path in MODULES if importers(path, {"sqlite3"})} == known


def test_only_the_htcondor_backend_imports_its_bindings() -> None:
    found = {
        str(path.relative_to(PACKAGE)) for path in MODULES if importers(path, {"htcondor2", "classad2", "htcondor"})
    }
    assert found
    assert all(name.startswith("backends/htcondor") for name in found)


def test_the_core_does_not_know_its_command_line() -> None:
    core = [path for path in PACKAGE.glob("*.py") if path.name not in ("cli.py", "__main__.py")]
    known = [
        f"{path.name}:{line}"
        for path in core
        for name, line in imports(path)
        if name.startswith(("fermigrid.commands", "fermigrid.cli")) or name.split(".")[0] == "click"
    ]
    assert known == []


def test_errors_are_known_by_all_and_know_nobody() -> None:
    assert [name for name, _ in imports(PACKAGE / "errors.py") if name.startswith("fermigrid")] == []


def test_no_shell_and_no_bare_except() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword):
                assert node.arg != "shell", f"{path.name}:{node.value.lineno}: shell="
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path.name}:{node.lineno}: bare except"


HEAVY = ("htcondor2", "classad2", "rucio", "pydantic", "rich", "jinja2", "yaml", "sqlite3", "platformdirs", "socket")


@pytest.mark.parametrize("arguments", ["--help", "--version", "submit --help", "pipeline submit --help"])
def test_help_imports_little(arguments: str) -> None:
    code = f"""
import sys
there = set(sys.modules)  # a package of the extra `dirac` makes every interpreter import things
from fermigrid.cli import run
status = run({arguments.split()!r})
print(sorted(set({HEAVY!r}) & set(sys.modules) - there), file=sys.stderr)
sys.exit(status)
"""
    status, out, err = finish(python(code))
    assert (status, err.strip()) == (0, "[]")
    assert "fermigrid" in out
