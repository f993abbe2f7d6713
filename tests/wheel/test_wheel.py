"""The wheel, in an empty environment outside the checkout: everything is in it, and it does the example campaign."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from fermigrid import __version__
from tests.docs.transcript import write_local_site

CHECKOUT = Path(__file__).resolve().parents[2]
RUNS = 6


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and a folder of a person who has nothing else of the project."""

    wheel: Path
    python: Path
    home: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """No checkout on PATH or on Python's path."""
        kept = {name: value for name, value in os.environ.items() if name in ("LANG", "USER")}
        path = [str(self.python.parent), *(part for part in os.environ["PATH"].split(":") if ".venv" not in part)]
        return kept | {
            "PATH": ":".join(path),
            "HOME": str(self.home),
            "TMPDIR": str(self.home / "tmp"),
            "FERMIGRID_STATE": str(self.home / "state"),
            "FERMIGRID_SITES": str(self.home / "sites"),
            "FERMIGRID_POLL_S": "0.2",
        }

    def run(self, *words: str) -> str:
        """What a command prints; asserts that it ends well."""
        done = subprocess.run(
            words, cwd=self.home, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, so that nothing in the checkout is touched or taken by accident."""
    source, dist = tmp_path_factory.mktemp("source") / "fermigrid", tmp_path_factory.mktemp("dist")
    source.mkdir()
    for name in ("fermigrid", "sites", "schemas", "submit_templates"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(dist), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own, and the example's files in a person's folder."""
    home = tmp_path_factory.mktemp("home")
    (home / "tmp").mkdir()
    write_local_site(home / "sites")
    for file in (*CHECKOUT.glob("examples/l1/*.py"), CHECKOUT / "examples/l1/campaign.yaml"):
        shutil.copy(file, home)
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, timeout=120)
    found = Installed(wheel, place / "bin/python", home)
    pip = [found.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[l1]"]
    subprocess.run(pip, cwd=home, check=True, timeout=600)
    found.run("python", "make_events.py", "--runs", str(RUNS))
    return found


def metadata_of(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(f"fermigrid-{__version__}.dist-info/METADATA"))


def test_sites_schemas_and_templates_are_in_the_wheel_as_they_are(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for top in ("sites", "schemas", "submit_templates"):
            ours = [path for path in sorted((CHECKOUT / top).rglob("*")) if path.is_file()]
            assert ours
            for path in ours:
                assert archive.read(f"fermigrid/{path.relative_to(CHECKOUT)}") == path.read_bytes()


def test_nothing_else_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        assert tops == {"fermigrid", f"fermigrid-{__version__}.dist-info"}
        assert not [name for name in archive.namelist() if name.endswith(".pyc") or "/tests/" in name]


def test_metadata_and_licence(wheel: Path) -> None:
    metadata = metadata_of(wheel)
    assert (metadata["Name"], metadata["Version"]) == ("fermigrid", __version__)
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).startswith("# fermigrid")
    with zipfile.ZipFile(wheel) as archive:
        info = f"fermigrid-{__version__}.dist-info"
        assert archive.read(f"{info}/licenses/LICENSE") == (CHECKOUT / "LICENSE").read_bytes()
        assert b"fermigrid = fermigrid.cli:main" in archive.read(f"{info}/entry_points.txt")


def test_it_runs_from_where_it_is_installed(installed: Installed) -> None:
    assert installed.run("fermigrid", "--version").split()[-1] == __version__
    where = installed.run("python", "-c", "import fermigrid, sys; print(fermigrid.__file__, *sys.path, sep='\\n')")
    first, *rest = where.splitlines()
    assert Path(first).is_relative_to(installed.python.parent.parent)
    assert not [part for part in rest if Path(part).is_relative_to(CHECKOUT) and part]


def test_check_and_sites(installed: Installed) -> None:
    assert "campaign.yaml: good" in installed.run("fermigrid", "check", "campaign.yaml", "--site", "pool")
    listed = installed.run("fermigrid", "site", "list")
    assert {path.stem for path in CHECKOUT.glob("sites/*.yaml")} - {"images"} <= set(listed.split())


def test_the_plan_has_the_same_bytes_as_the_checkouts(installed: Installed) -> None:
    installed.run("fermigrid", "render", "campaign.yaml", "--site", "pool", "--output", "plan")
    ours = [sys.executable, "-m", "fermigrid", "render", "campaign.yaml", "--site", "pool", "--output", "ours"]
    environment = {**installed.environment, "PYTHONPATH": str(CHECKOUT)}
    subprocess.run(ours, cwd=installed.home, env=environment, check=True, capture_output=True, timeout=60)
    contents = [files_in(installed.home / top) for top in ("plan", "ours")]
    assert contents[0] == contents[1]
    assert any(path.name == "job.sub" for path in contents[0])


def files_in(folder: Path) -> dict[Path, bytes]:
    """Path below the folder -> contents."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_example_campaign(installed: Installed) -> None:
    printed = installed.run("fermigrid", "submit", "campaign.yaml", "--site", "local", "--run-dir", "run", "--wait")
    assert f"{RUNS} jobs, {RUNS} done" in printed
    audit = ("python", "audit.py", "--runs", "runs.csv", "--events", "events.fits", "--outputs", "run/outputs")
    assert "all agree" in installed.run(*audit, "--emin", "300", "--zmax", "100")
