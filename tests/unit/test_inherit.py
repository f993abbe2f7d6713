"""Site files that extend each other, and values that are still to be asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermigrid.assemble import assemble_kept
from fermigrid.check import find_problems
from fermigrid.config import parse_yaml
from fermigrid.errors import ConfigError, NotFound
from fermigrid.inherit import read_site, site_names
from fermigrid.ledger import open_ledger
from fermigrid.runfolder import RunFolder
from fermigrid.site import Site, load_site, read_catalogue
from fermigrid.submit import begin
from tests.campaigns import SITES, SMALL, assemble, complaints, make_hand

BASE = """\
site: base
title: Base
contact: ada@example.org
manual: https://example.org/
backend: htcondor
htcondor:
  requirements: HasSingularity
  attributes: {ProjectName: Fermi, Queue: long}
container:
  launch: worker
  limits: {path: 10 s, http: 20 min}
  runtimes: [apptainer, singularity]
binds: [{from: /sps, mode: rw}, {from: /pbs}]
environment: {A: base, B: base}
secrets: {db: {kind: path, from: /db, point: {TNS_ADMIN: .}}}
output: {kind: posix, root: /sps/out, quota: 1 TiB}
"""


def put(folder: Path, files: Mapping[str, str]) -> Path:
    """Site files, a name and its text each, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def over(tmp_path: Path, own: str, base: str = BASE) -> Site:
    """The site `own`, which extends `base`."""
    put(tmp_path, {"base": base, "own": f"site: own\nextends: base\n{own}"})
    return load_site("own", [tmp_path])[0]


def refusal(name: str, folders: list[Path]) -> str:
    with pytest.raises(ConfigError) as refused:
        load_site(name, folders)
    return str(refused.value)


# --- what lies over what


def test_keys_are_merged_however_deep(tmp_path: Path) -> None:
    site = over(tmp_path, "container: {limits: {http: 1 h}}\nenvironment: {B: own, C: own}\n")
    assert (site.container.limits.path, site.container.limits.http) == (10, 3600)
    assert site.environment == {"A": "base", "B": "own", "C": "own"}
    assert (site.title, site.contact, site.site, site.extends) == ("Base", "ada@example.org", "own", "base")


def test_lists_and_single_values_are_replaced(tmp_path: Path) -> None:
    site = over(tmp_path, "title: Mine\nbinds: [{from: /data}]\ncontainer: {runtimes: []}\n")
    assert site.title == "Mine"
    assert [bind.source for bind in site.binds] == ["/data"]
    assert site.container.runtimes == ()


def test_an_empty_value_takes_away(tmp_path: Path) -> None:
    site = over(tmp_path, "htcondor: {requirements: , attributes: {Queue: }}\nenvironment:\nbinds: ~\nsecrets: null\n")
    assert site.htcondor.requirements is None
    assert site.htcondor.attributes == {"ProjectName": "Fermi"}
    assert (site.environment, site.binds, site.secrets) == ({}, (), {})


def test_an_empty_text_and_an_empty_mapping_take_nothing_away(tmp_path: Path) -> None:
    site = over(tmp_path, "environment: {A: ''}\nhtcondor: {}\n")
    assert site.environment == {"A": "", "B": "base"}
    assert site.htcondor.requirements == "HasSingularity"


def test_what_is_taken_away_and_needed_is_missed_where_it_was_taken_away(tmp_path: Path) -> None:
    put(tmp_path, {"base": BASE, "own": "site: own\nextends: base\ncontact:\ncontainer:\n  launch:\n"})
    own = tmp_path / "own.yaml"
    assert refusal("own", [tmp_path]) == f"{own}:3: contact: is required\n{own}:5: container.launch: is required"


def test_an_empty_value_for_what_is_not_there_takes_nothing_and_a_wrong_key_is_wrong(tmp_path: Path) -> None:
    assert over(tmp_path, "images:\noutput: {kind: transfer, root: }\nenvironment: {C: }\n").images == {}
    put(tmp_path, {"own": "site: own\nextends: base\nporxy:\ncontainer: {lanch: }\n"})
    proxy, launch = refusal("own", [tmp_path]).splitlines()
    assert "own.yaml:3: porxy: unknown key; did you mean 'proxy'?" in proxy
    assert "own.yaml:4: container.lanch: unknown key; did you mean 'launch'?" in launch


def test_another_kind_takes_the_place_as_a_whole(tmp_path: Path) -> None:
    site = over(tmp_path, "output: {kind: transfer}\nsecrets: {db: {kind: token, service: fermi}}\n")
    assert (site.output.kind, site.output.root, site.output.quota) == ("transfer", None, None)
    assert (site.secrets["db"].source, site.secrets["db"].point) == (None, {})
    again = over(tmp_path, "output: {kind: posix, quota: 2 TiB}\n")
    assert (again.output.root, again.output.quota) == ("/sps/out", 2 * 2**40)


def test_a_variable_named_kind_is_only_a_variable(tmp_path: Path) -> None:
    site = over(tmp_path, "environment: {kind: own}\n", BASE.replace("A: base", "kind: base"))
    assert site.environment == {"kind": "own", "B": "base"}


def test_a_chain_of_three(tmp_path: Path) -> None:
    put(tmp_path, {
        "base": BASE,
        "middle": "site: middle\nextends: base\nenvironment: {A: middle}\ncontainer: {limits: {path: 5 s}}\n",
        "own": "site: own\nextends: middle\nenvironment: {A: }\ntitle: Own\n",
    })  # fmt: skip
    found = read_site("own", [tmp_path])
    assert found.parents == ("middle", "base")
    site, source = load_site("own", [tmp_path])
    assert site.environment == {"B": "base"}
    assert (site.container.limits.path, site.title) == (5, "Own")
    places = {key: source.place(key) for key in [("title",), ("container", "limits", "path"), ("contact",)]}
    lines = [f"{Path(place.file).name}:{place.line}" for place in places.values()]
    assert lines == ["own.yaml:4", "middle.yaml:4", "base.yaml:3"]


def test_an_own_file_lies_over_the_shipped_one_of_its_name(tmp_path: Path) -> None:
    put(tmp_path, {"pool": "site: pool\nextends: pool\ntitle: Ours\n"})
    site, source = load_site("pool", [tmp_path, SITES])
    assert (site.title, site.container.dialect) == ("Ours", load_site("pool", [SITES])[0].container.dialect)
    assert source.place(("title",)).file == str(tmp_path / "pool.yaml")
    assert source.place(("container", "dialect")).file == str(SITES / "pool.yaml")


def test_a_site_extends_what_a_person_put_over_the_shipped_one(tmp_path: Path) -> None:
    own = put(tmp_path / "own", {"base": "site: base\nextends: base\ntitle: Ours\n"})
    later = put(tmp_path / "later", {"base": BASE, "child": "site: child\nextends: base\n"})
    assert load_site("child", [own, later])[0].title == "Ours"


def test_a_folder_given_twice_is_no_circle(tmp_path: Path) -> None:
    own = put(tmp_path / "own", {"base": "site: base\nextends: base\ntitle: Ours\n"})
    (tmp_path / "link").symlink_to(own)
    later = put(tmp_path / "later", {"base": BASE})
    assert load_site("base", [own, own, tmp_path / "link", later])[0].title == "Ours"


tree = st.recursive(
    st.sampled_from(["1", "2"]) | st.lists(st.just("x"), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from("abc"), tree, max_size=3), st.dictionaries(st.sampled_from("abc"), tree, max_size=3)
)
def test_whatever_lies_over_what_each_value_has_its_place(
    tmp_path_factory: pytest.TempPathFactory, own: dict[str, Any], base: dict[str, Any]
) -> None:
    import yaml

    folder = tmp_path_factory.mktemp("sites")
    put(folder, {
        "base": "site: base\n" + yaml.safe_dump({"environment": base}),
        "own": "site: own\nextends: base\n" + yaml.safe_dump({"environment": own}),
    })  # fmt: skip
    found = read_site("own", [folder])

    def walk(value: Any, mine: Any, theirs: Any, key: tuple[str | int, ...]) -> None:
        place = found.source.places[key]
        assert Path(place.file).stem == ("own" if mine is not None else "base"), key
        if isinstance(value, dict):
            below = theirs if isinstance(theirs, dict) and (mine is None or isinstance(mine, dict)) else {}
            assert set(value) == set(mine or {}) | set(below)
            for name, entry in value.items():
                walk(entry, (mine or {}).get(name), below.get(name), (*key, name))
        else:
            assert value == (theirs if mine is None else mine)

    walk(found.data["environment"], own, base, ("environment",))


# --- what is wrong


def test_two_sites_that_extend_each_other(tmp_path: Path) -> None:
    put(tmp_path, {"a": "site: a\nextends: b\n", "b": "site: b\n\nextends: a\n"})
    assert refusal("a", [tmp_path]) == (
        f"{tmp_path}/b.yaml:3: extends: the sites extend each other, round and round: a -> b -> a. Take one `extends` out"
    )


def test_a_longer_circle_behind_a_good_site(tmp_path: Path) -> None:
    circle = {name: f"site: {name}\nextends: {after}\n" for name, after in ("ab", "bc", "cd", "db")}
    put(tmp_path, circle)
    assert refusal("a", [tmp_path]).endswith(
        "d.yaml:2: extends: the sites extend each other, round and round: a -> b -> c -> d -> b. Take one `extends` out"
    )


def test_an_unknown_parent_names_the_nearest(tmp_path: Path) -> None:
    put(tmp_path, {"base": BASE, "own": "site: own\n\nextends: bsae\n"})
    assert refusal("own", [tmp_path]) == (
        f"{tmp_path}/own.yaml:3: extends: no site 'bsae'; did you mean 'base'? Known sites: base"
    )


@pytest.mark.parametrize("name", ["images", "../base", "/etc/passwd", ".hidden", "''", "a b", "x" * 300])
def test_what_is_no_name_of_a_site_is_unknown(tmp_path: Path, name: str) -> None:
    put(tmp_path / "in", {"own": f"site: own\nextends: {name}\n"})
    put(tmp_path, {"base": BASE, "images": "images: {}\n"})
    assert "own.yaml:2: extends: no site " in refusal("own", [tmp_path / "in"])


@pytest.mark.parametrize("value", ["[a, b]", "{a: b}"])
def test_only_one_site_is_extended(tmp_path: Path, value: str) -> None:
    put(tmp_path, {"own": f"site: own\nextends: {value}\n"})
    assert "own.yaml:2: extends: " in refusal("own", [tmp_path]) and "must be a single text" in refusal(
        "own", [tmp_path]
    )


def test_a_site_that_extends_itself_without_a_later_folder(tmp_path: Path) -> None:
    put(tmp_path, {"own": "site: own\nextends: own\n"})
    assert refusal("own", [tmp_path, SITES]) == (
        f"{tmp_path}/own.yaml:2: extends: 'own' is this site itself; "
        "it means the 'own' of a later folder, and there is none. Take the line out, or name another site"
    )


def test_a_parent_that_cannot_be_read(tmp_path: Path) -> None:
    put(tmp_path, {"own": "site: own\nextends: base\n"})
    (tmp_path / "base.yaml").symlink_to("/proc/self/mem")  # there, and not even root can read it from its beginning
    assert refusal("own", [tmp_path]) == (
        f"{tmp_path}/own.yaml:2: extends: 'base': {tmp_path}/base.yaml cannot be read: Input/output error"
    )


def test_a_parent_that_is_not_yaml_says_so_at_its_own_line(tmp_path: Path) -> None:
    put(tmp_path, {"own": "site: own\nextends: base\n", "base": "site: base\ntitle: [\n"})
    assert refusal("own", [tmp_path]).startswith(f"{tmp_path}/base.yaml:3: not YAML")


def test_every_problem_is_where_the_bad_value_stands(tmp_path: Path) -> None:
    bad = BASE.replace("limits: {path: 10 s", "limits: {path: 10").replace("from: /pbs", "from: pbs")
    put(
        tmp_path,
        {"base": bad, "own": "site: own\nextends: base\nhtcondor:\n  max_idle: none\n  attributes: {A B: x}\n"},
    )
    places = [line.split(" ")[0] for line in refusal("own", [tmp_path]).splitlines()]
    assert places == [
        f"{tmp_path}/base.yaml:11:",
        f"{tmp_path}/base.yaml:13:",
        f"{tmp_path}/own.yaml:4:",
        f"{tmp_path}/own.yaml:5:",
    ]


def test_a_bad_value_that_another_took_the_place_of_is_nobodys_problem(tmp_path: Path) -> None:
    assert over(tmp_path, "title: Good\n", BASE.replace("title: Base", "title: [1]")).title == "Good"


def test_a_name_is_not_inherited(tmp_path: Path) -> None:
    put(tmp_path, {"base": BASE, "own": "extends: base\n"})
    assert refusal("own", [tmp_path]) == f"{tmp_path}/own.yaml:1: site: is required"


@pytest.mark.parametrize("name", ["gone", "folder", "pipe", "loop"])
def test_what_has_the_name_of_a_site_and_is_no_file_is_told(tmp_path: Path, name: str) -> None:
    """In its place the site of a later folder would be used, without a word."""
    own = tmp_path / "own"
    put(tmp_path / "later", dict.fromkeys(("base", "gone", "folder", "pipe", "loop"), BASE) | {"images": ""})
    put(own, {"base": BASE, "images": "", ".base": ""})
    (own / "gone.yaml").symlink_to("nowhere")
    (own / "loop.yaml").symlink_to("loop.yaml")
    (own / "folder.yaml").mkdir()
    os.mkfifo(own / "pipe.yaml")
    assert site_names([own, tmp_path / "absent"]) == ["base", "folder", "gone", "loop", "pipe"]
    said = {"gone": "a link to a file that is not there", "loop": "cannot be read: Too many levels of symbolic links",
            "folder": "is a folder, not a file", "pipe": "is no plain file"}  # fmt: skip
    assert f"{own}/{name}.yaml: " in (told := refusal(name, [own, tmp_path / "later"])) and said[name] in told
    (own / "images.yaml").unlink()
    (own / "images.yaml").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"images\.yaml: is a link to a file that is not there"):
        read_catalogue([own, tmp_path / "later"])


@pytest.mark.parametrize("name", ["base.yaml", "sites/base", "./base.yaml", "/etc/base.yml"])
def test_a_path_in_place_of_a_name(tmp_path: Path, name: str) -> None:
    put(tmp_path, {"base": BASE, "own": f"site: own\nextends: {name}\n"})
    with pytest.raises(NotFound, match="give its name, 'base', and its folder with --sites"):
        read_site(name, [tmp_path])
    assert "own.yaml:2: extends: no site " in refusal("own", [tmp_path])


# --- what is to be asked for

ASKS = BASE.replace("requirements: HasSingularity", 'requirements: !ask "which slots run containers?"').replace(
    "{from: /pbs}", "{from: !ask where is pbs}"
)


def test_open_questions_are_listed_where_they_stand_with_the_contact_and_the_way_out(tmp_path: Path) -> None:
    put(tmp_path, {"base": ASKS, "own": 'site: own\nextends: base\nproxy: !ask "the proxy"\ncontact: me\n'})
    with pytest.raises(ConfigError) as refused:
        load_site("own", [tmp_path])
    assert str(refused.value).splitlines() == [
        f"{tmp_path}/base.yaml:7: htcondor.requirements: ask me: which slots run containers?",
        f"{tmp_path}/base.yaml:13: binds[1].from: ask me: where is pbs",
        f"{tmp_path}/own.yaml:3: proxy: ask me: the proxy",
    ]
    files = f"{tmp_path}/base.yaml:7, 13 and {tmp_path}/own.yaml:3"
    assert refused.value.hint == f"Answer these in {files}: put each answer in the place of its !ask."


def test_a_site_with_open_questions_can_be_extended_and_answered(tmp_path: Path) -> None:
    answers = "htcondor: {requirements: HasSingularity}\nbinds: [{from: /sps}]\n"
    site = over(tmp_path, answers, ASKS)
    assert (site.htcondor.requirements, len(site.binds)) == ("HasSingularity", 1)
    assert read_site("own", [tmp_path]).questions == ()
    assert len(read_site("base", [tmp_path]).questions) == 2


def test_a_question_can_be_taken_away(tmp_path: Path) -> None:
    assert (
        over(
            tmp_path, "htcoondor:\nhtcondor: {requirements: }\nbinds:\n".replace("htcoondor:\n", ""), ASKS
        ).htcondor.requirements
        is None
    )


def test_what_is_wrong_and_what_is_open_are_told_together(tmp_path: Path) -> None:
    put(tmp_path, {"base": ASKS.replace("backend: htcondor", "backend: slurm")})
    said = refusal("base", [tmp_path]).splitlines()
    assert [line.split(": ")[1] for line in said] == ["backend", "htcondor.requirements", "binds[1].from"]


def test_a_question_stands_anywhere_and_is_never_called_wrong(tmp_path: Path) -> None:
    """Each value of a whole site in turn is a question: that is all that is said of it."""
    for line in ("title: Base", "quota: 1 TiB", "launch: worker", "backend: htcondor", "{path: 10 s, http: 20 min}",
                 "[apptainer, singularity]", "Queue: long", "{db: {kind: path, from: /db, point: {TNS_ADMIN: .}}}"):  # fmt: skip
        assert line in BASE
        value = line if line[0] in "[{" else line.split(": ", 1)[1]
        put(tmp_path, {"base": BASE.replace(line, line.replace(value, '!ask "what?"'))})
        (said,) = refusal("base", [tmp_path]).splitlines()
        assert said.endswith(": what?"), said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("!ask", "!ask takes one text, the question"),
        ("!ask ''", "!ask takes one text, the question"),
        ("!ask [a]", "!ask takes one text, the question"),
        ("!ask {a: b}", "!ask takes one text, the question"),
        ("!aks what", "unknown tag !aks; did you mean '!ask'? Known: !ask"),
        ("!secret what", "unknown tag !secret. Known: !ask"),
        ('!ask "a\\nb"', "a line break"),
    ],
)
def test_wrong_tags(value: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_yaml(f"a: b\nproxy: {value}\n", "f.yaml")
    assert str(refused.value).startswith("f.yaml:2: proxy: ")
    assert said in str(refused.value)


@pytest.mark.parametrize("value", ["!!str 5", "! 5", "'!ask x'"])
def test_yamls_own_tags_and_quoted_ones_are_no_questions(value: str) -> None:
    assert parse_yaml(f"a: {value}\n", "f.yaml")[0]["a"] in ("5", "!ask x")


def test_a_campaign_cannot_leave_anything_open(tmp_path: Path) -> None:
    text = SMALL.replace("image: light", 'image: !ask "which?"')
    assert complaints(tmp_path, text) == ["campaign.yaml:2: image: is to be filled in: which?"]


def test_a_campaign_at_a_site_with_open_questions_is_refused_with_them_and_the_way_out(tmp_path: Path) -> None:
    own = put(tmp_path / "own", {"base": ASKS})
    for text, site in ((SMALL, "base"), (SMALL + "sites: {base: 1, pool: 1}\n", None)):
        with pytest.raises(ConfigError) as refused:
            assemble(tmp_path, text, site=site, own=[own])
        assert [problem.line for problem in refused.value.problems] == [7, 13]
        assert f"Answer these in {own}/base.yaml:7, 13: " in refused.value.hint


def test_a_secret_that_is_to_be_filled_in_is_asked_for_by_who_names_it_alone(tmp_path: Path) -> None:
    wallet = 'wallet: {kind: path, from: !ask "where?"}, '
    own = put(tmp_path / "own", {"base": BASE.replace("secrets: {", "secrets: {" + wallet)})
    named = SMALL.replace("    command:", "    secrets: [db, wallet]\n    command:", 1)
    assert list(assemble(tmp_path, SMALL, site="base", own=[own]).sites["base"].secrets) == ["db"]
    (problem,) = find_problems(assemble(tmp_path, named, site="base", own=[own]))
    assert problem.key.endswith("secrets[1]") and "ask " in problem.message and "where?" in problem.message
    assert "base.yaml:15)" in problem.message and f"Answer these in {own}/base.yaml:15: " in problem.message


# --- a run folder keeps them all


def test_a_submitted_campaign_keeps_its_site_with_all_that_it_extends(tmp_path: Path) -> None:
    own = put(tmp_path / "own", {"pool": "site: pool\nextends: pool\nenvironment: {OWN: mine}\n"})
    child = put(
        tmp_path / "child", {"mine": "site: mine\nextends: middle\n", "middle": "site: middle\nextends: pool\n"}
    )
    search = [child, own, SITES]
    assembled = assemble(tmp_path, site="mine", own=[child, own])
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir(mode=0o700)
    begin(assembled, folder, "mine", [str(path) for path in search], make_hand()).close()
    for file in (*own.iterdir(), *child.iterdir()):
        file.write_text("changed: since\n")
    ledger = open_ledger(folder.ledger)
    again = assemble_kept(folder, ledger.campaign())
    ledger.close()
    assert again.sites == assembled.sites
    assert again.sites["mine"].environment == {"OWN": "mine"}
    places = again.site_sources["mine"].places
    assert all(Path(place.file).is_relative_to(folder.sites) for place in places.values())
