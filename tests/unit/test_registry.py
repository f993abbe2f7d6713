"""Campaigns by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from fermigrid.errors import NotFound, RunFolderError
from fermigrid.registry import find_campaign, my_campaigns, refuse_second, register, registry_path
from fermigrid.runfolder import RunFolder


def run(folder: Path, name: str) -> RunFolder:
    (folder / name).mkdir(parents=True)
    (folder / name / "ledger.sqlite").touch()
    return RunFolder(folder / name)


def test_where_the_registry_is(own_state: Path) -> None:
    assert registry_path({"FERMIGRID_STATE": "/x"}) == Path("/x/campaigns")
    assert registry_path({"FERMIGRID_STATE": ""}).name == "campaigns"


def test_campaigns_are_found_by_name_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, one = tmp_path / "state" / "campaigns", run(tmp_path, "one")
    for _ in range(2):
        register(one, "P400", registry)
    assert my_campaigns(registry) == [("P400", one)]
    assert find_campaign("P400", registry) == one
    assert find_campaign(str(one.path), registry) == one
    monkeypatch.chdir(tmp_path)
    assert find_campaign("one", registry) == one
    assert registry.stat().st_mode & 0o077 == 0


def test_two_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    registry = tmp_path / "state"
    for name in ("one", "two"):
        register(run(tmp_path, name), "P400", registry)
    with pytest.raises(NotFound, match="2 campaigns are named 'P400'") as refused:
        find_campaign("P400", registry)
    assert (
        f"{tmp_path}/one, {tmp_path}/two" in refused.value.hint
        or f"{tmp_path}/two, {tmp_path}/one" in refused.value.hint
    )


def test_what_is_gone_is_not_listed(tmp_path: Path) -> None:
    registry, one = tmp_path / "state", run(tmp_path, "one")
    register(one, "P400", registry)
    one.ledger.unlink()
    assert my_campaigns(registry) == []
    register(run(tmp_path, "two"), "P400", registry)
    assert find_campaign("P400", registry).path == tmp_path / "two"


def test_an_unknown_name_gives_the_nearest(tmp_path: Path) -> None:
    registry = tmp_path / "state"
    with pytest.raises(NotFound) as none:
        find_campaign("P400", registry)
    assert none.value.hint == "No campaign was submitted yet."
    register(run(tmp_path, "one"), "P400-FITS", registry)
    with pytest.raises(NotFound, match="no campaign 'P400-FIST'; did you mean 'P400-FITS'") as near:
        find_campaign("P400-FIST", registry)
    assert near.value.hint == "Known: P400-FITS"


def test_a_path_that_leads_nowhere_and_one_that_is_no_run_folder(tmp_path: Path) -> None:
    run(tmp_path, "p400")
    with pytest.raises(NotFound, match=r"there is no .*/p40; did you mean 'p400'"):
        find_campaign(f"{tmp_path}/p40", tmp_path / "state")
    with pytest.raises(NotFound, match="is no run folder of a campaign: there is no ledger in it"):
        find_campaign(f"{tmp_path}/", tmp_path / "state")


def test_rubbish_in_the_registry_is_passed_over(tmp_path: Path) -> None:
    registry = tmp_path / "state"
    register(run(tmp_path, "one"), "P400", registry)
    (registry / "notes.txt").write_text("x")
    (registry / ".P400~abc.123").symlink_to(tmp_path)
    assert len(my_campaigns(registry)) == 1


def test_the_same_command_typed_elsewhere_does_not_submit_again(tmp_path: Path) -> None:
    registry, one = tmp_path / "state", run(tmp_path, "one")
    register(one, "P400", registry)
    with pytest.raises(RunFolderError, match="was submitted before") as refused:
        refuse_second("P400", RunFolder(tmp_path / "elsewhere"), registry)
    assert str(one.path) in refused.value.hint
    refuse_second("P400", one, registry)
    refuse_second("P401", RunFolder(tmp_path / "elsewhere"), registry)


def test_a_name_too_long_for_a_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        find_campaign("x" * 5000, tmp_path)
