"""Site files and the image catalogue: the shipped ones, a person's own, and wrong ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from fermigrid.config import Model
from fermigrid.errors import ConfigError, NotFound
from fermigrid.inherit import site_names
from fermigrid.site import Htcondor, load_catalogue, load_site
from fermigrid.units import parse_bytes
from tests.campaigns import ANSWERS, SITES

MINE = """\
site: mine
title: Mine
contact: me
manual: https://example.org/
backend: local
container: {launch: worker}
output: {kind: transfer}
"""
SHIPPED = site_names([SITES])


def refusal(folder: Path, text: str, name: str = "mine") -> str:
    (folder / f"{name}.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_site(name, [folder, SITES])
    return str(refused.value)


def test_the_shipped_sites() -> None:
    assert {"local", "pool", "slac", "slac-lsf", "in2p3", "in2p3-ce", "osg-like", "dirac-like"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_each_shipped_site_has_a_contact_and_a_manual(name: str) -> None:
    site, _ = load_site(name, [ANSWERS, SITES])
    assert len(site.contact) > 3
    assert re.match(r"https://[a-z0-9.-]+\.[a-z]+/", site.manual)
    assert site.title


@pytest.mark.parametrize("name", SHIPPED)
def test_images_of_a_site_are_in_the_catalogue(name: str) -> None:
    site, _ = load_site(name, [ANSWERS, SITES])
    assert set(site.images) <= set(load_catalogue([SITES]).images)


def test_an_own_folder_comes_before_the_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "local.yaml").write_text(MINE.replace("mine", "local").replace("Mine", "My own"))
    site, source = load_site("local", [tmp_path, SITES])
    assert site.title == "My own"
    assert source.file == str(tmp_path / "local.yaml")


def test_own_images_hide_shipped_ones_entry_by_entry(tmp_path: Path) -> None:
    (tmp_path / "images.yaml").write_text("images: {light: {flavour: uber, path: /mine}}\n")
    images = load_catalogue([tmp_path, SITES]).images
    assert images["light"].path == "/mine"
    assert "cc-sl6" in images


def test_a_site_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(NotFound, match="no site 'slca'; did you mean 'slac'") as missing:
        load_site("slca", [SITES])
    assert "Known sites: dirac-like, in2p3, in2p3-ce, local, osg-like, pool, slac, slac-lsf" in missing.value.hint
    with pytest.raises(NotFound):
        load_site("images", [SITES])
    with pytest.raises(NotFound):
        load_site("../sites/slac", [SITES / "nowhere"])


def test_a_site_is_named_like_its_file(tmp_path: Path) -> None:
    assert "'mine' is in a file named other.yaml" in refusal(tmp_path, MINE, "other")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "backend: local",
            "backend: slurm",
            ":5: backend: 'slurm' is not allowed. Allowed: 'htcondor', 'local' or 'dirac'",
        ),
        ("backend: local", "backend: locl", "did you mean 'local'"),
        ("{launch: worker}", "{launch: site}", ":6: container.launch: launch: site needs a dialect"),
        ("{launch: worker}", "{launch: worker, dialect: plain}", "container.dialect is at"),
        ("{launch: worker}", "{launch: worker, workdir: srv}", "must be an absolute path"),
        ("{launch: worker}", "{launch: worker, limits: {path: 30}}", "has no unit"),
        ("{launch: worker}", "{launch: worker, node_cache: {path: /c, limit: 5}}", "container.node_cache.limit"),
        ("{launch: worker}", "{launch: worker, runtimes: [docker]}", "container.runtimes[0]: 'docker': is no runtime"),
        ("{launch: worker}", "{launch: worker, runtimes: [apptainer, /usr/bin/crun]}", "container.runtimes[1]"),
        (
            "{launch: worker}",
            "{launch: worker, options: [--userns x]}",
            "container.options[0]: '--userns x': is no option",
        ),
        ("{launch: worker}", "{launch: worker, options: [--pid]}", "would hide the payload's processes"),
        ("{launch: worker}", '{launch: worker, preamble: ["a\\nb"]}', "container.preamble[0]"),
        ("{kind: transfer}", "{kind: posix}", "kind: posix needs a root"),
        ("{kind: transfer}", "{kind: transfer, root: /x}", "kind: transfer has no root"),
        ("{kind: transfer}", "{kind: s3}", "Allowed: 'transfer', 'posix', 'xrootd' or 'http'"),
        ("{kind: transfer}", "{kind: posix, root: srv}", "must be an absolute path"),
        ("{kind: transfer}", "{kind: xrootd}", "kind: xrootd needs a root: a folder, root://host//path"),
        ("{kind: transfer}", "{kind: xrootd, root: 'root://h/x'}", "must be a folder, root://host//path"),
        ("{kind: transfer}", "{kind: xrootd, root: 'root://h//x/'}", "without a slash at its end"),
        ("{kind: transfer}", "{kind: http, root: 'https://h/a b'}", "must be a folder, https://host/path"),
        ("{kind: transfer}", "{kind: http, root: 'https://h/../b'}", "must be a folder, https://host/path"),
        ("title: Mine", "title: Mine\nmessages: {via: ['http://h/x']}", "is no route"),
        ("title: Mine", "title: Mine\nmessages: {via: ['smtp://host:port']}", "is no route"),
        ("contact: me", "contcat: me", "contcat: unknown key; did you mean 'contact'?"),
        ("site: mine", "site: mi ne", "may hold only letters"),
        ("title: Mine", "title: Mine\nlocal: {slots: 0}", "local.slots"),
        ("title: Mine", "title: Mine\nsecrets: {db: {kind: sealed, from: /x}}", "kind: sealed needs key"),
        ("title: Mine", "title: Mine\nsecrets: {db: {kind: vault, from: /x}}", "Allowed: 'path', 'transfer', 'sealed'"),
        ("title: Mine", "title: Mine\nhtcondor: {attributes: {A B: x}}", "is no name of a variable"),
        ("title: Mine", 'title: Mine\nhtcondor: {requirements: "a\\nb"}', "a line break"),
    ],
)
def test_wrong_site_files(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in refusal(tmp_path, MINE.replace(old, new))


def test_a_list_with_a_wrong_entry_is_not_called_empty(tmp_path: Path) -> None:
    said = refusal(tmp_path, MINE.replace("{launch: worker}", "{launch: worker, formats: [squash]}"))
    assert "container.formats[0]: 'squash' is not allowed" in said
    assert "empty" not in said


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("{flavour: medium}", "Allowed: 'light' or 'uber'"),
        ("{flavour: light, path: img}", "must be an absolute path"),
        ("{flavour: light, marker: two words}", "is no marker"),
        ("{flavour: light, http: {urls: [], sha256: " + "a" * 64 + ", size: 1 GiB}}", "may not be empty"),
        ("{flavour: light, http: {urls: ['ftp://h/x'], sha256: " + "a" * 64 + ", size: 1 GiB}}", "no http(s) URL"),
        ("{flavour: light, http: {urls: ['http://h/x'], sha256: " + "A" * 64 + ", size: 1 GiB}}", "is no sha256"),
        ("{flavour: light, http: {urls: ['http://h/x'], sha256: " + "a" * 64 + ", size: 1}}", "has no unit"),
        ("{flavour: light, registry: 'docker://h/x:latest'}", "must name the image by digest"),
    ],
)
def test_wrong_images(tmp_path: Path, image: str, said: str) -> None:
    (tmp_path / "images.yaml").write_text(f"images:\n  mine: {image}\n")
    with pytest.raises(ConfigError) as refused:
        load_catalogue([tmp_path, SITES])
    assert said in str(refused.value)
    assert "images.yaml:2: images.mine" in str(refused.value)


def test_the_catalogues_of_all_folders_are_judged_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "images.yaml").write_text("imgaes: {}\n")
    with pytest.raises(ConfigError) as refused:
        load_catalogue([tmp_path / "a", tmp_path / "b"])
    assert len(refused.value.problems) == 2


def test_limits_say_what_is_too_much(tmp_path: Path) -> None:
    from fermigrid.campaign import Resources
    from fermigrid.site import SiteLimits

    limits = SiteLimits.model_validate({"cpus": "8", "memory": "16 GiB"})
    assert limits.exceeded_by(Resources()) == []
    assert limits.exceeded_by(Resources.model_validate({"cpus": "9", "memory": "17 GiB", "walltime": "9 d"})) == [
        "cpus",
        "memory",
    ]
    assert limits.memory == parse_bytes("16 GiB")


def test_every_model_refuses_unknown_keys() -> None:
    def all_of(kind: type[Model]) -> set[type[Model]]:
        return {kind}.union(*(all_of(child) for child in kind.__subclasses__()))

    assert len(all_of(Model)) > 15
    for kind in all_of(Model):
        assert kind.model_config["extra"] == "forbid", kind
        assert kind.model_config["frozen"], kind


UNBINDABLE = [
    ("/a:b", "':' or ','"),
    ("/a,b", "':' or ','"),
    ("/a\tb", "control character"),
    ("/a\x7fb", "control character"),
]
PLACES = [
    ("binds: [{{from: {path}}}]", "8: binds[0].from"),
    ("binds: [{{from: /a, to: {path}}}]", "8: binds[0].to"),
    ("images: {{light: {{path: {path}}}}}", "8: images.light.path"),
    ("images: {{light: {{path: /x, sif: {path}}}}}", "8: images.light.sif"),
    ("local: {{scratch: {path}}}", "8: local.scratch"),
    ("secrets: {{s: {{kind: path, from: {path}}}}}", "8: secrets.s.from"),
]


@pytest.mark.parametrize(("path", "why"), UNBINDABLE)
@pytest.mark.parametrize(("line", "where"), PLACES)
def test_what_no_runtime_can_bind_is_refused_where_it_is_written(
    tmp_path: Path, path: str, why: str, line: str, where: str
) -> None:
    said = refusal(tmp_path, MINE + line.format(path=json.dumps(path)) + "\n")
    assert f"mine.yaml:{where}: {path!r}: " in said and why in said


@pytest.mark.parametrize(("path", "why"), UNBINDABLE)
@pytest.mark.parametrize("key", ["workdir: {path}", "node_cache: {{path: {path}}}"])
def test_the_places_of_the_container(tmp_path: Path, path: str, why: str, key: str) -> None:
    said = refusal(
        tmp_path, MINE.replace("{launch: worker}", f"{{launch: worker, {key.format(path=json.dumps(path))}}}")
    )
    assert "mine.yaml:6: container." in said and why in said


@pytest.mark.parametrize(("path", "why"), UNBINDABLE)
@pytest.mark.parametrize(
    "line",
    [
        "images: {{x: {{flavour: light, path: {path}}}}}",
        "software: {{x: {{from: /a, to: {path}}}}}",
        "software: {{x: {{from: {path}, to: /a}}}}",
    ],
)
def test_the_places_of_the_catalogue(tmp_path: Path, path: str, why: str, line: str) -> None:
    (tmp_path / "images.yaml").write_text(line.format(path=json.dumps(path)) + "\n")
    with pytest.raises(ConfigError) as refused:
        load_catalogue([tmp_path])
    assert "images.yaml:1: " in str(refused.value) and why in str(refused.value)


@pytest.mark.parametrize(
    "written",
    ["GLIDEIN_Site == ", "True) || (True", "(True", 'Name == "a', "a[1", "a &&", "", "stringListMember(a, 'b)"],
)
def test_requirements_that_are_no_expression(written: str) -> None:
    with pytest.raises(ValidationError, match="is no ClassAd expression"):
        Htcondor.model_validate({"requirements": written})


@pytest.mark.parametrize(
    "written",
    [
        "HasSingularity",
        'GLIDEIN_Site == "SITEA)"',
        "HAS_SINGULARITY =?= true && (Cpus ?: 1) > 0",
        'x == "\\")"',
        "a[0]",
    ],
)
def test_requirements_that_are_one(written: str) -> None:
    assert Htcondor.model_validate({"requirements": written}).requirements == written
