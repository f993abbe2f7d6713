"""Each backend is a module with the functions of the Protocol: the same names, parameters, defaults and types."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path

import pytest

from fermigrid.backends import BACKENDS, Backend, load

METHODS = [name for name, member in vars(Backend).items() if inspect.isfunction(member) and not name.startswith("_")]


def functions(source: Path) -> dict[str, ast.FunctionDef]:
    """The functions of a module, read without importing it: an engine's bindings configure themselves when imported."""
    return {node.name: node for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef)}


def source_of(name: str) -> Path:
    found = importlib.util.find_spec(BACKENDS[name])
    assert found is not None, f"{BACKENDS[name]} is not there"
    assert found.origin is not None
    return Path(found.origin)


def signature(name: str, function: ast.FunctionDef) -> list[tuple[str, str, str]]:
    """(name, type, default) of each parameter without self, and the type of the result."""
    parameters = [argument for argument in function.args.args if argument.arg != "self"]
    defaults = [""] * (len(parameters) - len(function.args.defaults)) + [ast.unparse(d) for d in function.args.defaults]
    types = [ast.unparse(argument.annotation) if argument.annotation else "" for argument in parameters]
    assert not function.args.kwonlyargs, f"{name} has parameters that the Protocol does not know"
    result = ast.unparse(function.returns) if function.returns else ""
    return [*zip([p.arg for p in parameters], types, defaults, strict=True), ("return", result, "")]


def protocol() -> dict[str, ast.FunctionDef]:
    tree = ast.parse(Path(inspect.getfile(Backend)).read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Backend")
    return {node.name: node for node in found.body if isinstance(node, ast.FunctionDef)}


def test_the_protocol_has_its_functions() -> None:
    words = "adjust explain explain_removal find hold observe pause release remove resolve resume silence submit take_back used"
    assert sorted(METHODS) == words.split()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_has_the_functions_of_the_protocol(name: str, method: str) -> None:
    found = functions(source_of(name))
    assert method in found
    assert signature(method, found[method]) == signature(method, protocol()[method])


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_can_be_loaded(name: str) -> None:
    backend = load(name)
    assert all(callable(getattr(backend, method)) for method in METHODS)
