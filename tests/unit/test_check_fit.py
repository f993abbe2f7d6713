"""Site x image x campaign: what does not fit is told at its line of the campaign, with the lines of the other files."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermigrid.check_fit import find_misfits
from fermigrid.check_site import find_site_problems, find_unusable_secrets, why_not_carried
from fermigrid.config import Source, find_wrong, parse_yaml, validate
from fermigrid.image import Catalogue, is_at_least
from fermigrid.plan import shares
from fermigrid.secret import Secret
from fermigrid.site import Site, load_site, read_catalogue
from fermigrid.units import parse_bytes
from tests.campaigns import ANSWERS, SITES, SMALL, assemble, complaints

SITE = """\
site: mine
title: T
contact: c
manual: m
backend: htcondor
container: {launch: worker}
output: {kind: transfer}
"""
GRIDS = {
    "condor": "{kind: condor, ce: ce.example.org, pool: 'ce.example.org:9619'}",
    "slurm": "{kind: slurm, queue: milano}",
    "lsf": "{kind: lsf}",
    "pbs": "{kind: pbs}",
    "sge": "{kind: sge}",
    "arc": "{kind: arc, url: 'https://arc.example.org/arex'}",
}
SECRETS = """\
secrets:
  path: {kind: path, from: /sdf/wallet, point: {TNS_ADMIN: .}}
  transfer: {kind: transfer, from: /home/me/xrootd}
  sealed: {kind: sealed, from: /home/me/x.cms, key: /k, certificate: /c, signer: /home/me/s.pem}
  token: {kind: token, service: scitokens}
  proxy: {kind: proxy, from: /tmp/x509up_u1000}
"""
CARRIED = {
    "local": {"path", "transfer", "sealed", "proxy"},
    "pool": {"path", "transfer", "sealed", "token", "proxy"},
    **{name: {"path", "sealed"} for name in GRIDS},
}


def way(name: str, more: str = SECRETS) -> str:
    """A site that is reached in a way of CARRIED."""
    if name == "local":
        return SITE.replace("backend: htcondor", "backend: local") + more
    grid = "" if name == "pool" else f"htcondor: {{grid: {GRIDS[name]}}}\n"
    site = SITE.replace("{kind: transfer}", "{kind: posix, root: /data}") if name == "arc" else SITE
    return site + grid + more


def said_of(folder: Path, site: str, text: str = SMALL, *, images: str = "", table: str | None = None) -> list[str]:
    """What is said of a campaign at a site, the folder's name taken out."""
    own = folder / "own"
    own.mkdir()
    (own / "mine.yaml").write_text(site)
    (own / "images.yaml").write_text(f"images:\n  bare: {{flavour: light, path: /cvmfs/bare}}\n{images}")
    found = complaints(folder, text, table, site="mine", own=[own])
    return [line.replace(f"{folder}/", "") for line in found]


def step(line: str) -> str:
    return SMALL.replace("    outputs:", f"    {line}\n    outputs:")


def test_the_shipped_sites_and_their_golden_answers_are_good() -> None:
    catalogue, _ = read_catalogue([SITES])
    for path in SITES.glob("*.yaml"):
        if path.stem != "images":
            site, source = load_site(path.stem, [ANSWERS, SITES])
            assert [*find_site_problems(site, source, catalogue), *find_unusable_secrets(site, source)] == [], path


# --- the line in each file


@pytest.mark.parametrize(
    ("site", "text", "said"),
    [
        (
            SITE + "limits:\n  cpus: 8\n  walltime: 1 d\n",
            step("resources: {walltime: 2 d}"),
            "7: steps.go.resources.walltime: 2 d is more than the 1 d that site 'mine' gives a job (own/mine.yaml:10)",
        ),
        (
            SITE + "secrets:\n  oracle: {kind: path, from: /x}\n",
            step("secrets: [orcale]"),
            "offers no secret 'orcale'; did you mean 'oracle'? It offers: oracle (own/mine.yaml:8)",
        ),
        (
            SITE.replace("{launch: worker}", "\n  launch: worker\n  binds_anywhere: false")
            + "binds:\n- {from: /sps}\n",
            SMALL.replace("light", "bare"),
            "2: image: site 'mine' allows neither overlay nor underlay, and image 'bare' has no mount point /sps; "
            "it has /srv (own/mine.yaml:11, own/mine.yaml:8, own/images.yaml:2)",
        ),
        (
            SITE + "binds:\n- {from: /a}\n- {from: /b, to: /d}\n",
            SMALL + "binds: [{from: /c, to: /d}]\n",
            "8: binds[0].to: /b and /c would both be bound to /d at site 'mine' (own/mine.yaml:10)",
        ),
        (
            SITE.replace("{kind: transfer}", "\n  kind: transfer\n  quota: 1 GiB"),
            step("resources: {output: 600 MiB}"),
            "7: steps.go.resources.output: 2 jobs of go x 600 MiB: 1.17 GiB of output is more than the 1 GiB that site "
            "'mine' has room for (own/mine.yaml:9)",
        ),
        (
            SITE.replace("{launch: worker}", "\n  launch: worker\n  oldest: singularity 2.6"),
            SMALL.replace("light", "sif"),
            "2: image: nodes of site 'mine' may have no more than singularity 2.6, which cannot start 'sif': the SIF "
            "/cvmfs/x.sif needs singularity 3.0 (own/mine.yaml:8, own/images.yaml:3)",
        ),
    ],
)
def test_each_file_has_its_line(tmp_path: Path, site: str, text: str, said: str) -> None:
    (found,) = said_of(tmp_path, site, text, images="  sif: {flavour: light, path: /cvmfs/x.sif}\n")
    assert found.startswith("campaign.yaml:")
    assert said in found


def test_a_value_of_what_a_site_extends_stands_in_that_file(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/base.yaml").write_text(SITE.replace("mine", "base") + "limits: {cpus: 1}\n")
    (tmp_path / "own/mine.yaml").write_text("site: mine\nextends: base\ntitle: Mine\n")
    (said,) = complaints(tmp_path, step("resources: {cpus: 2}"), site="mine", own=[tmp_path / "own"])
    assert said.endswith(f"({tmp_path}/own/base.yaml:8)")


# --- runtimes and images

VERSIONS = ["singularity 2.6", "singularity 3.0", "singularity 3.8.7", "apptainer 1.0", "apptainer 1.4"]


@pytest.mark.parametrize(("index", "version"), [*enumerate(VERSIONS)])
def test_the_order_of_the_runtimes(index: int, version: str) -> None:
    assert [is_at_least(version, needed) for needed in VERSIONS] == [at <= index for at in range(len(VERSIONS))]


def test_singularity_4_and_apptainer_have_each_their_own() -> None:
    assert is_at_least("singularity 4.1", "singularity 3.8")
    assert not is_at_least("singularity 4.1", "apptainer 1.0")
    assert not is_at_least("apptainer 1.4", "singularity 4.0")


@given(st.lists(st.integers(0, 99), min_size=1, max_size=3), st.sampled_from(["apptainer", "singularity"]))
def test_every_version_has_what_came_with_it_and_not_what_comes_after(numbers: list[int], name: str) -> None:
    text = f"{name} {'.'.join(map(str, numbers))}"
    later = f"{name} {'.'.join(map(str, [*numbers[:-1], numbers[-1] + 1]))}"
    assert is_at_least(text, text) and is_at_least(later, text) and not is_at_least(text, later)


SHA = "0" * 64
IMAGES = f"""\
  sif: {{flavour: light, path: /cvmfs/x.sif}}
  both: {{flavour: light, path: /cvmfs/x, sif: /cvmfs/x.sif}}
  http: {{flavour: light, http: {{urls: ['http://h/x.sif'], sha256: {SHA}, size: 1 GiB}}}}
  tar: {{flavour: light, tar: {{urls: ['http://h/x.tar'], sha256: {SHA}, size: 1 GiB}}}}
  oras: {{flavour: light, registry: 'oras://h/x@sha256:{SHA}'}}
  docker: {{flavour: light, registry: 'docker://h/x@sha256:{SHA}'}}
  new: {{flavour: light, path: /cvmfs/x, needs: apptainer 1.3}}
"""


@pytest.mark.parametrize(
    ("image", "enough", "too_old"),
    [
        ("sif", "singularity 3.0", "singularity 2.6"),
        ("both", "singularity 2.4", None),
        ("http", "singularity 3.0", "singularity 2.6.1"),
        ("tar", "singularity 2.4", None),
        ("oras", "singularity 3.3", "singularity 3.2"),
        ("docker", "singularity 2.4", None),
        ("new", "apptainer 1.3", "apptainer 1.2.9"),
        ("new", "apptainer 1.3", "singularity 4.1"),
    ],
)
def test_images_and_runtimes(tmp_path: Path, image: str, enough: str, too_old: str | None) -> None:
    for oldest in (enough, too_old):
        if oldest is None:
            continue
        site = SITE.replace("{launch: worker}", f"{{launch: worker, registry: true, oldest: {oldest}}}")
        folder = tmp_path / oldest.replace(" ", "-")
        folder.mkdir()
        said = said_of(folder, site, SMALL.replace("light", image), images=IMAGES)
        assert len(said) == (oldest == too_old), said
        assert all(f"may have no more than {oldest}" in line for line in said)


def test_a_site_that_starts_the_container_starts_its_first_path(tmp_path: Path) -> None:
    """The worker would take the folder; the site is asked for the SIF."""
    site = SITE.replace("{launch: worker}", "{launch: site, dialect: plain, oldest: singularity 2.6}")
    images = (
        "  both: {flavour: light, path: /cvmfs/x.sif, tar: {urls: ['http://h/x'], sha256: " + SHA + ", size: 1 B}}\n"
    )
    (said,) = said_of(tmp_path, site, SMALL.replace("light", "both"), images=images)
    assert "the SIF /cvmfs/x.sif needs singularity 3.0" in said


# --- outputs and quotas

TWO_SITES = (
    SMALL.replace("{count: 2}", "{count: 100}").replace("    outputs:", "    resources: {output: 1 GB}\n    outputs:")
    + "block: 10\nsites: {mine: 70, other: 30}\n"
)


@pytest.mark.parametrize(("quota", "good"), [("70 GB", True), ("69.9 GB", False)])
def test_the_quota_is_for_the_blocks_that_go_there(tmp_path: Path, quota: str, good: bool) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "mine.yaml").write_text(SITE.replace("{kind: transfer}", f"{{kind: transfer, quota: {quota}}}"))
    (own / "other.yaml").write_text(SITE.replace("mine", "other"))
    said = complaints(tmp_path, TWO_SITES, site=None, own=[own])
    assert (said == []) is good, said
    assert all("70 jobs of go x 954 MiB" in line for line in said)


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 9), st.integers(1, 9))
def test_all_runs_are_at_one_site(runs: int, block: int, one: int, two: int) -> None:
    order = shares({"a": one, "b": two}, -(-runs // block))
    sizes = [min(block, runs - start) for start in range(0, runs, block)]
    assert sum(size for size, _ in zip(sizes, order, strict=True)) == runs


def test_what_no_step_says_it_expects_is_not_counted(tmp_path: Path) -> None:
    site = SITE.replace("{kind: transfer}", "{kind: transfer, quota: 1 B}")
    assert said_of(tmp_path, site) == []


def test_output_that_does_not_fit_on_the_jobs_disk(tmp_path: Path) -> None:
    (said,) = complaints(tmp_path, step("resources: {output: 5 GiB, disk: 4 GiB}"))
    assert said == (
        "campaign.yaml:7: steps.go.resources.output: 5 GiB of expected output does not fit into the job's 4 GiB of disk"
    )


# --- secrets


@pytest.mark.parametrize("kind", ["path", "transfer", "sealed", "token", "proxy"])
@pytest.mark.parametrize("name", CARRIED)
def test_which_way_carries_which_secret(tmp_path: Path, name: str, kind: str) -> None:
    said = said_of(tmp_path, way(name), step(f"secrets: [{kind}]"))
    assert (said == []) is (kind in CARRIED[name]), said
    for line in said:
        assert line.startswith(f"campaign.yaml:7: steps.go.secrets[0]: secret '{kind}' of site 'mine' cannot reach")
        assert re.search(r"Use kind: sealed or path \(own/mine\.yaml:\d+\)$", line)


def test_secrets_that_no_step_asks_for_are_in_nobodys_way_but_site_check_names_them(tmp_path: Path) -> None:
    assert said_of(tmp_path, way("slurm")) == []
    site, source = load_site("mine", [tmp_path / "own"])
    keys = [problem.key for problem in find_unusable_secrets(site, source)]
    assert keys == ["secrets.transfer.kind", "secrets.token.kind", "secrets.proxy.kind"]


@pytest.mark.parametrize(
    ("secrets", "asked", "said"),
    [
        ("a: {kind: path, from: /x, point: {V: .}}\n  b: {kind: path, from: /y, point: {V: .}}", "a, b", "both set V"),
        (
            "a: {kind: path, from: /x, point: {V: .}}\n  b: {kind: path, from: /y, environment: {V: x}}",
            "b, a",
            "secrets 'b' and 'a' both set V",
        ),
        (
            "a: {kind: path, from: /x, home: {.my.cnf: a}}\n  b: {kind: path, from: /y, home: {.my.cnf: b}}",
            "a, b",
            "secrets 'a' and 'b' both are .my.cnf in the home folder at site 'mine' (own/mine.yaml:10)",
        ),
        (
            "a: {kind: proxy, from: /h/a}\n  b: {kind: proxy, from: /h/b}",
            "a, b",
            "secrets 'a' and 'b' both are X.509 proxies, and HTCondor gives a job one",
        ),
        (
            "a: {kind: token, service: s}\n  b: {kind: token, service: s, permissions: x}",
            "a, b",
            "both are tokens of s, and a job has one of each service",
        ),
        ("a: {kind: transfer, from: /h/job.env}", "a", "would arrive as job.env, which is a name of the job's own"),
        ("a: {kind: transfer, from: /h/out}", "a", "would arrive as out"),
        ("a: {kind: proxy, from: /h/bundle.tar.gz}", "a", "would arrive as bundle.tar.gz"),
        (f"a: {{kind: transfer, from: /h/s0000-{'0' * 32}.rows}}", "a", "which is a name of the job's own"),
        (
            "a: {kind: transfer, from: /h/x}\n  b: {kind: transfer, from: /i/x}",
            "a, b",
            "secrets 'a' and 'b' would both arrive as x (/i/x): rename one",
        ),
        (
            "a: {kind: sealed, from: /h/z, key: /k, certificate: /c, signer: /s}\n  b: {kind: transfer, from: /i/a.cms}",
            "a, b",
            "would both arrive as a.cms",
        ),
        ("a: {kind: path, from: /x}", "a, a", "'a' is written twice"),
    ],
)
def test_secrets_that_get_in_each_others_way(tmp_path: Path, secrets: str, asked: str, said: str) -> None:
    (found,) = said_of(tmp_path, SITE + f"secrets:\n  {secrets}\n", step(f"secrets: [{asked}]"))
    assert said in found
    assert "steps.go.secrets[" in found


def test_two_secrets_in_two_steps_do_not_meet(tmp_path: Path) -> None:
    secrets = "secrets:\n  a: {kind: transfer, from: /h/x}\n  b: {kind: transfer, from: /i/x}\n"
    text = step("secrets: [a]") + "  more: {command: [x], secrets: [b]}\n"
    assert said_of(tmp_path, SITE + secrets, text) == []


# --- a site by itself


def alone(lines: str, catalogue: Mapping[str, object] | None = None) -> list[str]:
    """What is said of a site with these further lines, by itself."""
    data, source = parse_yaml(lines, "mine.yaml")
    site = validate(Site, data, source)
    return [str(problem) for problem in find_site_problems(site, source, Catalogue.model_validate(catalogue or {}))]


@pytest.mark.parametrize("name", GRIDS)
def test_launch_site_where_nobody_starts_a_container(name: str) -> None:
    site = way(name, "").replace("{launch: worker}", "{launch: site, dialect: plain}")
    said = alone(site)
    assert (said == []) is (name == "condor"), said
    assert all(line.startswith("mine.yaml:6: container.launch: nobody starts a container behind") for line in said)


@pytest.mark.parametrize("name", GRIDS)
def test_an_arc_ce_brings_no_folder_back(name: str) -> None:
    said = alone(SITE + f"htcondor: {{grid: {GRIDS[name]}}}\n")
    assert (said == []) is (name != "arc")
    assert all(line.startswith("mine.yaml:7: output.kind: an ARC CE brings back files") for line in said)


@pytest.mark.parametrize("name", GRIDS)
def test_only_a_pool_behind_a_ce_looks_at_requirements(name: str) -> None:
    site = SITE.replace("{kind: transfer}", "{kind: posix, root: /data}")
    said = alone(site + f"htcondor:\n  requirements: HasSingularity\n  grid: {GRIDS[name]}\n")
    assert (said == []) is (name == "condor"), said
    assert all(line.startswith("mine.yaml:9: htcondor.requirements: no machine is matched") for line in said)
    assert all(("options of htcondor.grid" in line) is (name != "arc") for line in said)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            SITE.replace("htcondor", "local").replace("{launch: worker}", "{launch: site, dialect: plain}"),
            "6: container",
        ),
        (
            SITE.replace("htcondor", "local") + "htcondor: {grid: {kind: slurm}}\n",
            "8: htcondor.grid: is for backend: htcondor; this site is backend: local",
        ),
        (
            SITE + "htcondor: {grid: {kind: slurm}}\nlimits: {walltime: 90 s}\n",
            "9: limits.walltime: HTCondor hands batch systems (slurm) whole minutes",
        ),
        (SITE + "htcondor: {attributes: {SingularityImage: x}}\n", "SingularityImage is set by fermigrid itself"),
        (SITE + "htcondor: {attributes: {singularityimage: x}}\n", "is set by fermigrid itself"),
        (SITE + "htcondor: {expressions: {FermigridJob: '1'}}\n", "htcondor.expressions.FermigridJob: FermigridJob is"),
        (SITE + "htcondor: {expressions: {Requirements: 'true'}}\n", "is set by fermigrid itself"),
        (SITE + "htcondor: {expressions: {request_memory: '1'}}\n", "is set by fermigrid itself"),
        (
            SITE + "htcondor:\n  attributes: {ProjectName: x}\n  expressions: {projectname: '1'}\n",
            "10: htcondor.expressions.projectname: is set already, as ProjectName",
        ),
        (
            SITE + f"htcondor: {{grid: {GRIDS['condor'][:-1]}, attributes: {{FermigridJob: '1'}}}}}}\n",
            "htcondor.grid.attributes.FermigridJob: FermigridJob is set by fermigrid itself",
        ),
        (
            SITE + f"htcondor: {{grid: {GRIDS['condor'][:-1]}, attributes: {{Requirements: 'true'}}}}}}\n",
            "htcondor.grid.attributes.Requirements: Requirements is set by fermigrid itself",
        ),
        (
            SITE + "images: {ligth: {path: /x}}\n",
            "images.ligth: no image 'ligth' in the catalogue; did you mean 'light'?",
        ),
    ],
)
def test_a_site_that_contradicts_itself(lines: str, said: str) -> None:
    (found,) = alone(lines, {"images": {"light": {"flavour": "light", "path": "/x"}}})
    assert found.startswith("mine.yaml:")
    assert said in found


def test_a_site_that_contradicts_itself_is_refused_with_every_campaign(tmp_path: Path) -> None:
    (said,) = said_of(tmp_path, SITE + "htcondor: {attributes: {FermigridJob: x}}\n")
    assert said.startswith("own/mine.yaml:8: htcondor.attributes.FermigridJob: ")


@pytest.mark.parametrize(
    "good", [".", "tnsnames.ora", "client.plugins.d", "a/b/c", ".my.cnf", "x509up_u1000", "a/.b", "..a", "a.."]
)
def test_points_that_are_good(good: str) -> None:
    assert alone(SITE + f"secrets: {{s: {{kind: path, from: /x, point: {{V: '{good}'}}}}}}\n") == []


@pytest.mark.parametrize(
    "bad", ["", "..", "../x", "a/..", "a/../b", "/etc/passwd", "a//b", "a/", "./a", "a b", "$HOME", "a'"]
)
def test_points_that_leave_the_folder_or_are_not_tame(tmp_path: Path, bad: str) -> None:
    site = SITE + f'secrets: {{s: {{kind: path, from: /x, point: {{V: "{bad}"}}}}}}\n'
    (said,) = said_of(tmp_path, site)
    assert said.startswith("own/mine.yaml:8: secrets.s.point.V: ")


@given(st.text(alphabet="ab./$ -", max_size=12))
def test_no_point_leaves_its_folder(where: str) -> None:
    data = {
        "site": "mine", "title": "", "contact": "", "manual": "", "backend": "local",
        "container": {"launch": "worker"}, "output": {"kind": "transfer"},
        "secrets": {"s": {"kind": "path", "from": "/x", "point": {"V": where}}},
    }  # fmt: skip
    source = Source("f")
    if not find_wrong(Site, data, source) and not find_site_problems(validate(Site, data, source), source, Catalogue()):
        inside = posixpath.normpath(posixpath.join("/secret", where))
        assert inside == ("/secret" if where == "." else f"/secret/{where}")
        assert not set(where) & set("$ ")


@pytest.mark.parametrize("variable", ["PWD", "BASH_ENV", "FERMIGRID_JOB"])
def test_variables_of_the_shell_and_the_worker_cannot_point(variable: str) -> None:
    (said,) = alone(SITE + f"secrets: {{s: {{kind: path, from: /x, point: {{{variable}: .}}}}}}\n")
    assert f"secrets.s.point.{variable}: is set by the shell or by the worker itself" in said


def test_a_variable_of_one_secret_has_one_value() -> None:
    (said,) = alone(SITE + "secrets: {s: {kind: path, from: /x, point: {V: .}, environment: {V: x}}}\n")
    assert "secrets.s.point.V: is in `environment` of the secret, too" in said


@pytest.mark.parametrize("source", ["/h/x/", "/h/a b", "/h/$x", "/h/.hidden", "/h/-x", "/"])
@pytest.mark.parametrize("kind", ["transfer", "proxy"])
def test_what_cannot_be_sent_with_a_job(kind: str, source: str) -> None:
    (said,) = alone(SITE + f"secrets: {{s: {{kind: {kind}, from: '{source}'}}}}\n")
    assert "secrets.s.from: " in said and "cannot be sent with a job" in said


def test_a_secret_on_the_node_may_be_called_anything() -> None:
    assert alone(SITE + "secrets: {s: {kind: path, from: '/h/a b/'}}\n") == []


def test_every_kind_has_an_answer_for_every_way(tmp_path: Path) -> None:
    for name, carried in CARRIED.items():
        site, _ = _load(tmp_path / name, way(name))
        kinds = {key for key, secret in site.secrets.items() if not why_not_carried(site, secret)}
        assert kinds == carried, name
        assert all(isinstance(secret, Secret) for secret in site.secrets.values())


def _load(folder: Path, text: str) -> tuple[Site, Source]:
    folder.mkdir()
    (folder / "mine.yaml").write_text(text)
    return load_site("mine", [folder])


def test_misfits_of_a_good_campaign_are_none(tmp_path: Path) -> None:
    assembled = assemble(tmp_path, SMALL.replace("light", "fermi-rhel6"), site="slac", own=[ANSWERS])
    assert list(find_misfits(assembled, assembled.sites["slac"])) == []
    assert assembled.sites["slac"].output.quota == parse_bytes("20 TB")
