"""The guard of all tests: none finds the person's own campaigns, sites or settings; unit tests reach no network."""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
WITH_LOCAL_JOBS = (HERE / "unit", HERE / "contract")
WITHOUT_ENGINES = (HERE / "unit", HERE / "golden", HERE / "test_layers.py")  # Python alone; the others have engines


def pytest_configure() -> None:
    """A test run in the background (`make test &`, `nohup`) inherits INT, QUIT or HUP ignored, and so would everything
    that it starts. An example takes as long as it takes: the machine may have other work."""
    from hypothesis import settings

    settings.register_profile("fermigrid", deadline=None)
    settings.load_profile("fermigrid")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drills, the long forms of tests, are run only where `-m` asks for them."""
    if not config.option.markexpr:
        drills = [item for item in items if item.get_closest_marker("drill")]
        items[:] = [item for item in items if item not in drills]
        config.hook.pytest_deselected(items=drills)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures of drills (`record_property("figures", text)`) are for a person, also when the test was good."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "figures":
                terminalreporter.write_line(str(text))


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Campaigns that a test submits are remembered in a folder of its own."""
    state = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("FERMIGRID_STATE", str(state))
    monkeypatch.setenv("FERMIGRID_ALERTS", "")
    for name in ("FERMIGRID_SITES", "FERMIGRID_POLL_S", "FERMIGRID_START"):
        monkeypatch.delenv(name, raising=False)
    return state


@pytest.fixture(autouse=True)
def own_slots(request: pytest.FixtureRequest, own_state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The local backend's slots are those of a user on a machine, in the folder for temporary files. Jobs that another
    test left, or another checkout's tests have, must not take them. (`own_state` has made pytest's own folder before.)"""
    del own_state
    if not any(request.path.is_relative_to(part) for part in WITH_LOCAL_JOBS):
        yield
        return
    folder = tempfile.mkdtemp(prefix="fgt-", dir="/tmp")  # short: sockets may lie in it
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def guard(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Tests that need Python alone have no network and a home folder in which nothing may be written."""
    if not any(request.path.is_relative_to(part) for part in WITHOUT_ENGINES):
        yield
        return
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket.socket, "connect", _refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", _refuse)
    monkeypatch.setattr(socket, "getaddrinfo", _refuse)
    yield
    assert list(home.iterdir()) == [], "something was written into the home folder"


def _refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("a test without engines reached for the network")
