"""The verbs at a site of DIRAC: what `check --explain`, `render` and `diff` show of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaigns import SMALL, fermigrid
from tests.dirac_parser import DiracParser

SITE = """\
site: SITE
extends: dirac-like
dirac: {url: "https://diracx.example.org", sites: [LCG.IN2P3-CC.fr], DIRAC}
"""


@pytest.fixture(scope="module")
def parser() -> Iterator[DiracParser]:
    with DiracParser() as running:
        yield running


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "sites").mkdir()
    for name, dirac in (
        ("grid", "tags: [EL9]"),
        ("grid2", "tags: [EL8], memory: RAM, job_type: Test, banned_sites: [LCG.CNAF.it]"),
    ):
        (tmp_path / f"sites/{name}.yaml").write_text(SITE.replace("SITE", name).replace("DIRAC", dirac))
    (tmp_path / "c.yaml").write_text(SMALL.replace("count: 2", "count: 25") + "accounting: {priority: 4}\n")
    return tmp_path


def verb(here: Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    found, out, err = fermigrid(*arguments, "--sites", "sites", cwd=here)
    assert found == code, (out, err)
    return out, err


def test_check_and_explain(here: Path) -> None:
    out, _ = verb(here, "check", "c.yaml", "--site", "grid")
    assert out.startswith("c.yaml: good. Campaign small, 25 runs")
    out, _ = verb(here, "check", "c.yaml", "--site", "grid", "--explain")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    asked = lines[lines.index("step go at grid: what the batch system is asked for") :]
    for line in (
        'Site rendered {"LCG.IN2P3-CC.fr"}',
        'Tags rendered {"EL9"}',
        "CPUTime rendered 144000",
        "MinRAM rendered 2048",
        "Priority rendered 4",
    ):
        assert line in asked
    assert any(line.startswith("dirac.cpu_time_factor") and line.endswith(" 10.0") for line in lines)
    assert any(line.startswith("dirac.chunk built-in 20") for line in lines)


def test_render_shows_the_documents(here: Path, parser: DiracParser) -> None:
    out, _ = verb(here, "render", "c.yaml", "--site", "grid", "-o", "plan", "--documents")
    assert "plan/b0000/go.g0.documents: 2 documents" in out
    folder = here / "plan/b0000/go.g0.documents"
    assert sorted(path.name for path in folder.iterdir()) == ["0000000.jdl", "0000020.jdl"]
    names = []
    for path in sorted(folder.iterdir()):
        assert str(here) not in path.read_text()
        read = parser.read(path.read_text())
        assert read.errors == [] and {job["JobGroup"] for job in read.jobs} == {"0" * 32}
        names += [job["JobName"] for job in read.jobs]
    assert names == [line.split()[0] for line in (here / "plan/b0000/go.g0/items.txt").read_text().splitlines()]
    verb(here, "render", "c.yaml", "--site", "grid", "-o", "other")
    assert verb_of_diff(here, "plan", "other", code=0) == "the same\n"


def test_documents_are_for_dirac(here: Path) -> None:
    _, err = verb(here, "render", "c.yaml", "--site", "local", "-o", "plan", "--documents", code=2)
    assert "--documents is for sites of DIRAC; local is backend: local" in err and not (here / "plan").exists()


def verb_of_diff(here: Path, *plans: str, code: int = 1) -> str:
    found, out, err = fermigrid("diff", *plans, cwd=here)
    assert found == code, err
    return out


def test_diff_in_the_words_of_the_site(here: Path) -> None:
    for site in ("grid", "grid2", "pool"):
        verb(here, "render", "c.yaml", "--site", site, "-o", site)
    words = [" ".join(line.split()) for line in verb_of_diff(here, "grid", "grid2").splitlines()]
    assert 'dirac.tags: {"EL9"} -> {"EL8"}' in words and 'dirac.job_type: "User" -> "Test"' in words
    assert 'dirac.banned_sites: now {"LCG.CNAF.it"}' in words
    assert not any("MinRAM" in line or "resources.memory" in line for line in words)  # the same, in other words
    words = [" ".join(line.split()) for line in verb_of_diff(here, "grid", "pool").splitlines()]
    assert "backend: dirac -> htcondor" in words and not any("htcondor.grid.kind" in line for line in words)


def test_secrets_of_dirac_are_only_for_nodes_to_see(here: Path) -> None:
    (here / "c.yaml").write_text(
        (here / "c.yaml").read_text().replace("    command:", "    secrets: [proxy]\n    command:")
    )
    verb(here, "check", "c.yaml", "--site", "grid")
    _, err = verb(here, "secret", "check", "c.yaml", "--site", "grid")
    assert "secret proxy is the one that DIRAC gives each job: only the nodes can see it" in err
