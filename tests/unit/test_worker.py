"""The worker for a batch: its parts together."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fermigrid.resources import shipped
from fermigrid.worker import OPTIONAL, assemble_worker, parts_needed

WORKER = shipped("submit_templates") / "worker/worker.sh"


def test_the_parts_together_are_clean(tmp_path: Path) -> None:
    """shellcheck sees the worker as one file, with the comments that tell it what is meant."""
    lines = (WORKER.parent / "worker.sh").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("here=")]
    for number, line in enumerate(lines):
        if match := re.fullmatch(r'\. "\$here/(\w+\.sh)"', line):
            lines[number] = (WORKER.parent / match[1]).read_text()
    whole = tmp_path / "worker.sh"
    whole.write_text("\n".join(lines) + "\n")
    done = subprocess.run(["shellcheck", whole], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_part_is_in_the_worker() -> None:
    text = WORKER.read_text()
    assert [part.name for part in WORKER.parent.glob("*.sh") if f'/{part.name}"' not in text and part != WORKER] == []


NEEDS = {
    "download": ("image.url", "https://images.example.org/light.sif"),
    "fetch": ("stage.http", "yes"),
    "cache": ("node_cache", "/cache"),
    "adler32": ("verify", "adler32"),
    "gather": ("gather", "crumbs"),
    "unpack": ("image.format", "directory"),
    "registry": ("image.registry", "docker://x"),
    "inside": ("order", "wrapper-inside"),
    "messages": ("message.to", "pipeline@example.org"),
    "oci": ("runtime", "podman"),
    "preamble": ("preamble", "module load apptainer"),
    "scratch": ("scratch", "/lscratch"),
    "dirac": ("batch_system", "dirac"),
    "secrets": ("secret", "oracle"),
    "secrets_live": ("secret.kind", "token"),
    "secrets_sealed": ("secret.kind", "sealed"),
    "secrets_wallet": ("secret.point", "TNS_ADMIN=."),
    "stage_names": ("output.kind", "posix"),
    "stage_posix": ("output.kind", "posix"),
    "stage_remote": ("output.kind", "xrootd"),
}


@pytest.mark.parametrize("optional", OPTIONAL)
def test_a_worker_without_a_part_has_no_function_of_it(optional: str) -> None:
    """The node's worker has the parts that its job.env needs; a function that is not there is called by none of the others."""
    assert optional in parts_needed([NEEDS[optional]])
    function = re.compile(r"^(_\w+)\(\)", re.MULTILINE)
    own = set(function.findall((WORKER.parent / f"{optional}.sh").read_text()))
    text = assemble_worker(
        WORKER.parents[1], [field for field in NEEDS.values() if optional not in parts_needed([field])]
    )
    assert not own & set(function.findall(text))
    assert own & set(function.findall(assemble_worker(WORKER.parents[1], [NEEDS[optional]])))


@pytest.mark.parametrize("plan", sorted((Path(__file__).parents[1] / "golden").rglob("job.env")), ids=str)
def test_what_goes_to_a_node_is_small(plan: Path) -> None:
    fields = [(key, value) for key, _, value in (line.partition("=") for line in plan.read_text().splitlines())]
    assert len(assemble_worker(WORKER.parents[1], fields)) < 60_000


def test_no_function_hides_what_the_worker_knows() -> None:
    """A trap runs in the middle of any function: what it reads may not be another's local variable."""
    parts = {path.name: path.read_text() for path in WORKER.parent.glob("*.sh")}
    known = parts["worker.sh"].partition("# ==== what is known\n")[2].partition("# ==== the flow\n")[0]
    names = set(re.findall(r"(?m)(?:^| )([a-z_]+)=", known))
    assert {"job", "signals", "phase", "secret_dir"} <= names
    hidden = {
        (name, part)
        for part, text in parts.items()
        for words in re.findall(r"\blocal ([^;\n]*)", text)
        for name in names & set(re.findall(r"(?:^| )([a-z_]+)", re.sub(r"'[^']*'|\"[^\"]*\"|\([^)]*\)", "", words)))
    }
    assert hidden <= {("runtime", "report.sh"), ("answer", "secrets_live.sh")}, "each of these is no affair of a trap's"
