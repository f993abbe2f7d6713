"""The plans of one campaign for each shipped site, as plain text; the same input gives the same bytes anywhere."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from fermigrid.inherit import site_names
from fermigrid.planfolder import write_plan
from tests.campaigns import ANSWERS, SITES, assemble, fermigrid, plans

HERE = Path(__file__).parent
CAMPAIGN, PIECES = HERE / "campaign", HERE / "pieces"
IMAGES = {  # a new site needs a line here; one with open questions its answers in sites/, which extend the shipped file
    "local": "light", "pool": "light", "osg-like": "light",
    "slac": "fermi-rhel6", "slac-lsf": "light",
    "in2p3": "cc-sl6", "in2p3-ce": "cc-sl6", "dirac-like": "light",
}  # fmt: skip
OF_PIECES = ("local", "pool", "slac", "in2p3-ce")  # outputs that come back, and those that stay at the site
MASK = "<not in golden files>"  # worker.sh changes all the time, and the bundle's bytes are zlib's affair


def render(site: str, folder: Path, campaign: Path = CAMPAIGN) -> dict[str, str]:
    """Every text file of every plan: path -> text, what changes for other reasons masked."""
    source = folder / "source"
    shutil.copytree(campaign, source)
    text = (source / "campaign.yaml").read_text().replace("IMAGE", IMAGES[site])
    files = {}
    table = (source / "runs.csv").read_text()
    for plan in plans(assemble(source, text, table, site=site, own=[ANSWERS]), site):
        place = f"{plan.header.block}/{plan.header.step}"
        write_plan(plan, folder / place)
        for path in (folder / place).rglob("*"):
            if path.is_file() and path.name not in ("worker.sh", "bundle.tar.gz"):
                files[f"{place}/{path.relative_to(folder / place)}"] = masked(path)
    return files


def masked(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.name == "job.env":
        return re.sub(r"(?m)^code\.sha256=[0-9a-f]{64}$", f"code.sha256={MASK}", text)
    if path.name == "plan.json":
        manifest = json.loads(text)
        for name in {"worker.sh", "bundle.tar.gz", "job.env"} & set(manifest["files"]):
            manifest["files"][name] = MASK
        return json.dumps({**manifest, "fermigrid": MASK}, indent=1, ensure_ascii=False) + "\n"
    return text


def test_each_shipped_site_has_a_golden_case() -> None:
    assert set(IMAGES) == set(site_names([SITES]))


@pytest.mark.parametrize("site", IMAGES)
def test_plans(site: str, tmp_path: Path, update_golden: bool) -> None:
    compare(render(site, tmp_path), HERE / "plans" / site, update_golden)


@pytest.mark.parametrize("site", OF_PIECES)
def test_plans_of_chunks_and_crumbs(site: str, tmp_path: Path, update_golden: bool) -> None:
    compare(render(site, tmp_path, PIECES), HERE / "plans-of-pieces" / site, update_golden)


def compare(found: Mapping[str, str], golden: Path, update_golden: bool) -> None:
    site = golden.name
    if update_golden:
        shutil.rmtree(golden, ignore_errors=True)
        for name, text in found.items():
            (golden / name).parent.mkdir(parents=True, exist_ok=True)
            (golden / name).write_text(text, encoding="utf-8")
    wanted = {
        str(path.relative_to(golden)): path.read_text(encoding="utf-8") for path in golden.rglob("*") if path.is_file()
    }
    assert sorted(found) == sorted(wanted), "make golden, and look at the diff"
    for name in sorted(found):
        assert found[name] == wanted[name], f"{site}/{name} is another: make golden, and look at the diff"


def test_the_same_campaign_gives_the_same_bytes_whoever_renders_it_where_and_when(tmp_path: Path) -> None:
    trees = []
    for number, (name, user) in enumerate([("one", "fermi"), ("another/place", "prod")]):
        folder = tmp_path / name
        shutil.copytree(CAMPAIGN, folder)
        text = (folder / "campaign.yaml").read_text().replace("IMAGE", "light")
        (folder / "campaign.yaml").write_text(text)
        surroundings = {
            "PYTHONHASHSEED": str(number),
            "USER": user,
            "LOGNAME": user,
            "TZ": ["UTC", "Asia/Tokyo"][number],
            "LC_ALL": ["C", "C.UTF-8"][number],
        }
        code, _, err = fermigrid(
            "render", "campaign.yaml", "--site", "pool", "-o", "plans", cwd=folder, env=surroundings
        )
        assert code == 0, err
        trees.append({str(p.relative_to(folder)): p.read_bytes() for p in (folder / "plans").rglob("*") if p.is_file()})
    assert trees[0].keys() == trees[1].keys()
    assert [name for name in trees[0] if trees[0][name] != trees[1][name]] == []
    assert sum(name.endswith("job.sub") for name in trees[0]) == 4


def test_a_plan_knows_no_run_folder_time_user_or_batch(tmp_path: Path) -> None:
    for name, text in render("pool", tmp_path).items():
        assert str(tmp_path) not in text, name
