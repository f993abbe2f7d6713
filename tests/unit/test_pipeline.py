"""A job as the pipeline hands it over: what of its environment travels, what is refused, what its campaign says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fermigrid.assemble import assemble_data
from fermigrid.commands.pipeline import _spread
from fermigrid.errors import LedgerBusy, NotFound, PipelineRefused, RunFolderError, Unrepresentable
from fermigrid.pipeline import REQUIRED, Order, is_credential, parse_binds, parse_names, parse_runtime, read_order
from fermigrid.pipeline_campaign import (
    Limits,
    Place,
    campaign_name,
    choose_image,
    covers,
    describe_job,
    payload_of,
)
from fermigrid.pipeline_folder import Clusters, Entry, JobFolder, locate_folder
from fermigrid.pipeline_result import Standing
from fermigrid.quoting import decode_lines
from fermigrid.render import render_job_env
from fermigrid.site import Site, load_catalogue, load_site
from fermigrid.states import State
from tests.campaigns import ANSWERS, SITES, SMALL_DISK, argv, finish, plans, python, rows

GIVEN = {
    "PIPELINE_FROMADDRESS": "l1@example.org",
    "PIPELINE_TOADDRESS": "pipeline@example.org",
    "PIPELINE_PROCESSINSTANCE": "12345678",
    "PIPELINE_ERRORADDRESS": "errors@example.org",
    "JOBCONTROL_LOGFILE": "/nfs/jobs/1/logFile.txt",
}
SHARED = Place("/nfs/jobs/1", "/nfs/jobs/1/logFile.txt")
values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


def order(**more: str) -> Order:
    return read_order({**GIVEN, **more})


def refusal(environment: Mapping[str, str], **how: Any) -> list[str]:
    with pytest.raises(PipelineRefused) as refused:
        read_order(environment, **how)
    return str(refused.value).splitlines()


# --- the variables that must be there


def test_all_missing_variables_are_named_at_once() -> None:
    assert refusal({}) == [f"{name} is not set" for name in REQUIRED]
    assert refusal({**GIVEN, REQUIRED[1]: "", REQUIRED[4]: ""}) == [f"{name} is not set" for name in REQUIRED[1::3]]


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("PIPELINE_PROCESSINSTANCE", "12a", "is no process instance"),
        ("PIPELINE_PROCESSINSTANCE", "../1", "is no process instance"),
        ("PIPELINE_TOADDRESS", "-oQ/tmp@x", "is no mail address"),
        ("PIPELINE_FROMADDRESS", "me", "is no mail address"),
        ("JOBCONTROL_LOGFILE", "a\nb", "contains a control character"),
        ("PIPELINE_CONTAINER_BIND", "-B 'x", "cannot be taken apart"),
        ("PIPELINE_CONTAINER_BIND", "-B /a:b,/c:/d:rx", "'/c:/d:rx' is no bind"),
        ("PIPELINE_CONTAINER_BIN", "apptainer --debug", "is no container runtime"),
        ("PIPELINE_CONTAINER_BIN", "bin/apptainer", "is no container runtime"),
        ("PIPELINE_CONTAINER_BIN", "/usr/bin/docker", "is no runtime that the worker can use"),
        ("PIPELINE_OTHER", "\udce9", "is not UTF-8"),
    ],
)
def test_what_cannot_be_understood_is_named_with_its_value(name: str, value: str, why: str) -> None:
    (said,) = refusal({**GIVEN, name: value})
    assert said.startswith(f"{name}={value!r}")
    assert why in said


def test_everything_wrong_is_said_at_once() -> None:
    bad = {**GIVEN, "PIPELINE_CONTAINER_BIN": "a b", "PIPELINE_CONTAINER_BIND": "-v /a:/b", "PIPELINE_TOADDRESS": "x"}
    assert len(refusal(bad, wanted=["NONE"])) == 4


# --- binds and runtime


@pytest.mark.parametrize(
    ("text", "binds"),
    [
        ("", []),
        ("-B /sps:/sps", ["/sps:/sps:rw"]),
        ("-B/sps", ["/sps:/sps:rw"]),
        ("-B /a:/b:ro -B /c", ["/a:/b:ro", "/c:/c:rw"]),
        ("--bind /a:/b,/c:/d:ro", ["/a:/b:rw", "/c:/d:ro"]),
        ("--bind=/a:/b:rw", ["/a:/b:rw"]),
        ("/a:/b /c/", ["/a:/b:rw", "/c:/c:rw"]),
        ("-B /a:/b -B /a:/b", ["/a:/b:rw"]),
        ("-B '/with blank:/x'", ["/with blank:/x:rw"]),
        ("-B /a:ro", ["/a:/a:ro"]),
    ],
)
def test_binds(text: str, binds: list[str]) -> None:
    assert [f"{bind.source}:{bind.to}:{bind.mode}" for bind in parse_binds(text)] == binds
    assert all(bind.required for bind in parse_binds(text))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("-B", "no bind behind it"),
        ("-B -B /a", "no bind behind it"),
        ("-v /a:/b", "'-v' is no option for binds"),
        ("a:/b", "must be an absolute path"),
        ("/a:b", "must be an absolute path"),
        ("/a:/b:rx", "is no bind"),
        ("/a:/b:ro:rw", "is no bind"),
        ("/a,,/b", "must be an absolute path"),
        ("/a:/../b", "may not contain '..'"),
        ("/a:/x /b:/x", "binds /a (rw) and /b (rw) to /x"),
        ("/a /a:/a:ro", "binds /a (rw) and /a (ro) to /a"),
        ("$HOME:/x", "must be an absolute path"),
    ],
)
def test_binds_that_are_none(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        parse_binds(text)


@pytest.mark.parametrize("text", ["apptainer", "/opt/singularity/bin/singularity", " podman "])
def test_runtimes(text: str) -> None:
    assert parse_runtime(text) == text.strip()


# --- which variables travel


def test_the_pipelines_own_variables_travel_and_others_do_not() -> None:
    own = {"PIPELINE_TASK": "t", "GPL_STAGEROOT": "/s", "JOBCONTROL_X": "", "P2_SENDMAIL": "/p"}
    assert order(**own, OTHER="x", PATH="/bin", MYGPL_X="1").passed.values == {**GIVEN, **own}


def test_more_variables_by_name_pattern_and_the_pipelines_list() -> None:
    environment = {**GIVEN, "RUNID": "r1", "DOWNLINK_ID": "7", "DOWNLINK_DIR": "/d", "LISTED": "l", "OTHER": "x"}
    read = read_order(environment, ["LISTED", "GONE"], ["RUNID", "DOWNLINK_*"])
    assert set(read.passed.values) - set(GIVEN) == {"RUNID", "DOWNLINK_ID", "DOWNLINK_DIR", "LISTED"}


HOST = ["LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "PERL5LIB", "PATH", "HOME", "TMPDIR", "BASH_ENV", "IFS", "SHLVL",
        "BASH_FUNC_x%%", "FERMIGRID_JOB", "APPTAINER_BIND", "_CONDOR_SLOT", "LSB_JOBID", "SLURM_JOB_ID", "USER",
        "PIPELINE_SUMMARY", "ENV", "_", "SSH_AUTH_SOCK", "KRB5CCNAME"]  # fmt: skip


def test_what_belongs_to_the_machine_stays() -> None:
    environment = {**GIVEN, **dict.fromkeys(HOST, "x")}
    assert read_order(environment, HOST, ["*"]).passed.values == GIVEN
    assert set(read_order({**environment, "HOMEPAGE": "x", "PATHS": "y"}, [], ["*"]).passed.values) - set(GIVEN) == {
        "HOMEPAGE", "PATHS"
    }  # fmt: skip


LOCK_ON_A_FULL_DISK = """
import contextlib, sys
from pathlib import Path
from fermigrid.pipeline_folder import JobFolder
folder = Path(sys.argv[1])
with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
    (folder / ".fermigrid").mkdir()
    while True:
        file.write(b"x" * 4096)
with JobFolder(folder).locked(1):
    print("held")
print((folder / ".fermigrid/lock").stat().st_size)
"""


def test_the_lock_holds_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    wrap = [*SMALL_DISK, "64k", str(tmp_path / "disk")]
    code, out, err = finish(python(LOCK_ON_A_FULL_DISK, tmp_path / "disk", wrap=wrap))
    assert (code, out) == (0, "held\n0\n"), err


def test_a_job_folder_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot be read"):
        locate_folder({}, tmp_path / "absent")


@pytest.mark.parametrize("name", ["LD_LIBRARY_PATH", "HOME", "BASH_FUNC_x%%"])
def test_naming_one_of_them_is_an_error(name: str) -> None:
    (said,) = refusal({**GIVEN, name: "x"}, wanted=[name])
    assert said.startswith(f"--env {name}: it belongs to this machine")


CANARY = "hunter2-canary"
CREDENTIALS = [
    ("PIPELINE_PASSWORD", CANARY),
    ("GPL_DB_PASSWD", CANARY),
    ("PIPELINE_API_KEY", CANARY),
    ("GPL_TOKEN", CANARY),
    ("JOBCONTROL_SECRET_X", CANARY),
    ("GPL_TOKEN", "/looks/like/a/path/but/is/none"),
    ("PIPELINE_DB", f"jdbc:oracle://scott:{CANARY}@db.example.org/x"),
    ("PIPELINE_DB", f"glast/{CANARY}@slacprod"),
    ("PIPELINE_DB", f"glast:{CANARY}@db.example.org"),
    ("GPL_PROXY", f"-----BEGIN RSA PRIVATE KEY-----\n{CANARY}\n"),
    ("GPL_X", f"eyJhbGciOiJ.eyJzdWIiOiJ.{CANARY}"),
    ("PIPELINE_ARGS", f"a=1,password={CANARY}"),
    ("PIPELINE_HEADER", f"Authorization: Bearer {CANARY}"),
]


@pytest.mark.parametrize(("name", "value"), CREDENTIALS)
def test_credentials_stay_and_are_named_without_their_value(name: str, value: str) -> None:
    passed = order(**{name: value}).passed
    assert passed.values == GIVEN
    assert passed.withheld == (name,)
    (said,) = refusal({**GIVEN, name: value}, wanted=[name])
    assert "looks like a credential" in said
    assert CANARY not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X509_USER_PROXY", "/tmp/x509up_u1000"),
        ("PIPELINE_TASKPATH", "L1Proc.doRun"),
        ("GPL_PASSES", "3"),
        ("PIPELINE_PASS", ""),
        ("PIPELINE_TOKENIZER", "x"),
        ("GPL_URL", "https://example.org:8443/a@b"),
        ("GPL_XROOTD", "root://glast-rdr.slac.stanford.edu//glast/Data"),
        ("PIPELINE_ERRORADDRESS2", "a/b@example"),
    ][:-1],
)
def test_what_is_no_credential(name: str, value: str) -> None:
    assert not is_credential(name, value, lambda _: False)


def test_the_path_of_a_credential_travels_when_the_file_exists() -> None:
    assert not is_credential("GPL_TOKEN_FILE", "/run/token", lambda path: path == "/run/token")
    assert is_credential("GPL_TOKEN_FILE", "/run/other", lambda path: path == "/run/token")


def test_names_of_the_saved_environment() -> None:
    text = (
        'declare -x A="1"\nexport B=\'x\nexport C=2\n\'\ndeclare -rx D=""\ndeclare -x NOVALUE\nE=5\n declare -x F=1\n'
    )
    assert parse_names(text) == ("A", "B", "C", "D")


# --- the campaign


def site(name: str = "local", **changes: Any) -> Site:
    return load_site(name, (ANSWERS, SITES))[0].model_copy(update=changes)


def describe(read: Order, limits: Limits = Limits(), place: Place = SHARED, **how: Any) -> dict[str, Any]:  # noqa: B008
    given: dict[str, Any] = {"name": None, "image": "light", "command": ("bash", "./script"), "site": site()}
    return describe_job(read, limits, place, **{**given, **how})


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(["PIPELINE_A", "PIPELINE_B", "GPL_C"]), values))
def test_every_value_is_in_job_env_as_it_was(variables: dict[str, str]) -> None:
    read = order(**variables)
    assembled = assemble_data(describe(read), Path("/"), "local", (SITES,))
    (plan,) = plans(assembled)
    text = render_job_env(plan.header)
    told = dict(value.split("=", 1) for key, value in decode_lines(text) if key == "env")
    assert {name: told[name] for name in read.passed.values} == read.passed.values


def test_a_job_on_a_shared_file_system() -> None:
    assembled = assemble_data(describe(order(PIPELINE_PROCESS="doChunk")), Path("/"), "local", (SITES,))
    (plan,) = plans(assembled)
    fields = render_job_env(plan.header).splitlines()
    assert plan.header.campaign == "doChunk-12345678"
    assert {"bind=/nfs/jobs/1", "bind.mode=rw", "message.workdir=/nfs/jobs/1", "message.instance=12345678"} <= set(
        fields
    )
    (row,) = rows(plan)
    assert argv(row)[:2] == ["bash", "-c"]
    assert argv(row)[3:] == ["pipeline", "/nfs/jobs/1", "/nfs/jobs/1/logFile.txt", "", "bash", "./script"]
    assert assembled.bundle is None


def test_a_job_whose_files_travel(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("exit\n")
    data = describe(order(), place=Place(".", None, ("script",)))
    assembled = assemble_data(data, tmp_path, "local", (SITES,))
    (plan,) = plans(assembled)
    assert assembled.bundle is not None
    assert assembled.bundle.names == {"script"}
    assert argv(rows(plan)[0])[4:] == [".", "", "", "bash", "./script"]
    assert not any(line.startswith(("bind=", "message.workdir=")) for line in render_job_env(plan.header).splitlines())


@pytest.mark.parametrize(
    ("limits", "most", "wall"),
    [
        (Limits(), None, None),
        (Limits(max_cpu_s=600), None, "4200 s"),
        (Limits(max_cpu_s=64000), None, "128000 s"),
        (Limits(max_cpu_s=64000), 100000, "100000 s"),
        (Limits(max_cpu_s=64000), 60000, "128000 s"),  # more than the site gives: check says so
        (Limits(max_cpu_s=64000, max_wall_s=70000), None, "70000 s"),
    ],
)
def test_the_walltime(limits: Limits, most: int | None, wall: str | None) -> None:
    at = site()
    at = at.model_copy(update={"limits": at.limits.model_copy(update={"walltime": most})})
    assert describe(order(), limits, site=at)["steps"]["script"]["resources"].get("walltime") == wall


def test_limits_reach_the_batch_system() -> None:
    limits = Limits(max_cpu_s=100, max_memory_mb=3000, disk_mb=5000, cpus=2, retries=1, group="L1", priority=5)
    assembled = assemble_data(describe(order(), limits), Path("/"), "local", (SITES,))
    (plan,) = plans(assembled)
    request = plan.header.request
    assert (request.resources.memory, request.resources.disk, request.resources.cpus) == (3 * 10**9, 5 * 10**9, 2)
    assert (request.retries, request.accounting_group, request.priority) == (1, "L1", 5)
    assert argv(rows(plan)[0])[6] == "100"


@pytest.mark.parametrize(
    ("name", "campaign"),
    [
        (None, "pipeline-12345678"),
        ("a b/c;d", "a-b-c-d-12345678"),
        ("é", "pipeline-12345678"),
        ("x" * 100, "x" * 40 + "-12345678"),
    ],
)
def test_the_name_is_tame(name: str | None, campaign: str) -> None:
    assert campaign_name(order(), name) == campaign


def test_binds_of_the_order_and_of_the_site() -> None:
    at = site("slac")
    read = order(PIPELINE_CONTAINER_BIND="-B /sdf:/sdf -B /x:/y:ro")
    place = Place("/sdf/jobs/1", "/sdf/jobs/1/log")
    assert [bind["from"] for bind in describe(read, place=place, site=at)["binds"]] == ["/x"]  # the site has the others
    elsewhere = order(PIPELINE_CONTAINER_BIND="-B /other:/sdf")
    with pytest.raises(PipelineRefused, match="binds /other to /sdf, site 'slac' binds /sdf"):
        describe(elsewhere, site=at)


def test_which_binds_show_a_folder() -> None:
    binds = parse_binds("/sps /data:/elsewhere /ro:/ro:ro")
    assert [covers(folder, binds) for folder in ("/sps/a", "/sps", "/spsx", "/data/a", "/ro/a")] == [
        True, True, False, False, False
    ]  # fmt: skip


def test_a_word_with_a_line_break_is_refused() -> None:
    with pytest.raises(Unrepresentable, match="word 2 of the command"):
        describe(order(), command=("echo", "a\nb"))


# --- the image

DIGEST = "docker://example.org/a@sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("wanted", "at", "name", "entry"),
    [
        ("light", "local", "light", None),
        ("/cvmfs/singularity.in2p3.fr/images/official/cc-sl6", "in2p3", "cc-sl6", None),
        ("file:///cvmfs/singularity.in2p3.fr/images/official/cc-sl6", "in2p3", "cc-sl6", None),
        ("/sdf/group/fermi/sw/containers/fermi-rhel6.sif", "slac", "fermi-rhel6", None),
        (None, "slac", "fermi-rhel6", None),
        ("/sps/x/my image.sif", "in2p3", "my-image-", {"path": "/sps/x/my image.sif"}),
        (DIGEST, "local", "a-", {"registry": DIGEST}),
    ],
)
def test_the_image(wanted: str | None, at: str, name: str, entry: dict[str, str] | None) -> None:
    got, added = choose_image(wanted, site(at), load_catalogue((SITES,)))
    assert got.startswith(name)
    assert (entry is None) == (got == name) == (added is None)
    assert entry is None or (added is not None and entry.items() <= added.items())


@pytest.mark.parametrize(
    "wanted", [None, "ligth", "https://example.org/x.sif", "docker://example.org/a:latest", "a.sif"]
)
def test_images_that_are_none(wanted: str | None) -> None:
    with pytest.raises(PipelineRefused, match=r"no image|is no image") as refused:
        choose_image(wanted, site(), load_catalogue((SITES,)))
    assert "light" in refused.value.hint


# --- the payload


@pytest.mark.parametrize(
    ("command", "variable", "first", "words", "is_script"),
    [
        ((), "", b"echo\n", ("bash", "./script"), True),
        ((), "", b"#!/bin/bash\n", ("bash", "./script"), True),
        ((), "", b"#!/usr/bin/env bash\n", ("bash", "./script"), True),
        ((), "", b"#!/bin/sh -e\n", ("./script",), True),
        ((), "", b"#!/usr/bin/env python\n", ("./script",), True),
        ((), "", b"#!/bin/tcsh\n", ("./script",), True),
        (("bash", "pipeline_wrapper"), "", b"", ("bash", "./script"), True),
        (("bash", "./pipeline_wrapper"), "./script", b"", ("bash", "./script"), True),
        (("bash", "pipeline_wrapper"), "recon.sh  7", b"", ("recon.sh", "7"), False),
        ((), "recon.sh  7", b"", ("recon.sh", "7"), False),
        ((), "bash script a b", b"", ("bash", "./script", "a", "b"), True),
        (("python", "x y.py"), "ignored", b"", ("python", "x y.py"), False),
        (("bash", "myscript", "1"), "", b"", ("bash", "myscript", "1"), False),
    ],
)
def test_the_payload(
    command: tuple[str, ...], variable: str, first: bytes, words: tuple[str, ...], is_script: bool
) -> None:
    assert payload_of(command, {"PIPELINE_COMMAND": variable}, first) == (words, is_script)


@pytest.mark.parametrize(
    ("args", "spread"),
    [
        (["-s", "x"], ["-s", "x"]),
        (["--extra-options", "--cpus 2|--group 'a b'"], ["--cpus", "2", "--group", "a b"]),
        (["--extra-options=--cpus 2", "-s", "x"], ["--cpus", "2", "-s", "x"]),
    ],
)
def test_extra_options(args: list[str], spread: list[str]) -> None:
    assert _spread(args) == spread


# --- the job folder


def test_the_archive_takes_everything_and_overwrites_nothing(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    (tmp_path / "archive/7").mkdir(parents=True)
    for number, content in enumerate(("one", "two"), 1):
        for name in ("pipeline_summary", ".fermigrid/5/ledger.sqlite", ".fermigrid/9/x"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        moved = folder.archive(["pipeline_summary", "absent"], but="9")
        assert moved == tmp_path / f"archive/{7 + number}"
        assert (moved / "pipeline_summary").read_text() == (moved / ".fermigrid/5/ledger.sqlite").read_text() == content
        assert [run.path.name for run in folder.tries()] == ["9"]
    assert folder.archive(["pipeline_summary"], but="9") is None
    found = folder.find("5")
    assert found is not None
    assert found.path.is_relative_to(tmp_path / "archive")


class Killed(Exception):
    """As kill -9 would, in the middle."""


@pytest.mark.parametrize("moment", range(6))
def test_an_archive_that_was_cut_short_is_finished(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names = JobFolder(tmp_path), ["a", "b", "c"]
    for name in (*names, ".fermigrid/5/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    renames, rename = 0, Path.rename

    def dying(self: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames > moment:
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dying)
        try:
            folder.archive(names, but="6")
        except Killed:
            assert moment < 5
    (tmp_path / "a").write_text("new") if moment == 3 else None
    folder.archive(names, but="6")
    archived = sorted(path.read_text() for path in (tmp_path / "archive").rglob("*") if path.is_file())
    assert archived == sorted([*names, ".fermigrid/5/d", *(["new"] if moment == 3 else [])])
    assert not (tmp_path / "archive/.new").exists()
    assert [path.name for path in (tmp_path / "archive").iterdir()] == ["1"]


def test_the_names_of_the_saved_environment_outlive_the_archive(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    assert folder.saved_environment() == ""
    (tmp_path / "archive/3").mkdir(parents=True)
    (tmp_path / "archive/12").mkdir()
    (tmp_path / "archive/12/pipeline_env").write_text("twelve")
    assert folder.saved_environment() == "twelve"
    (tmp_path / "pipeline_env").write_text("now")
    assert folder.saved_environment() == "now"


def test_one_submission_at_a_time(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    with folder.locked(0), pytest.raises(LedgerBusy, match=f"process {os.getpid()}"), folder.locked(0.1):
        pass
    with folder.locked(0):
        pass


def test_the_job_folder_has_the_job_controls_name(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    assert locate_folder({"JOBCONTROL_LOGFILE": f"{link}/log"}, real).path == link
    assert locate_folder({"PWD": str(link)}, real).path == link
    assert locate_folder({"JOBCONTROL_LOGFILE": "/elsewhere/log", "PWD": "/"}, real).path == real
    odd = tmp_path / "with blank"
    odd.mkdir()
    with pytest.raises(RunFolderError, match="' '") as refused:
        locate_folder({}, odd)
    assert "--run-dir" not in refused.value.hint


def test_clusters_lead_to_their_folders(tmp_path: Path, own_state: Path) -> None:
    clusters = Clusters(os.environ)
    one, two = (Entry("4711", instance, JobFolder(tmp_path / instance)) for instance in ("99", "100"))
    for entry in (one, two, one):
        entry.folder.path.mkdir(exist_ok=True)
        clusters.remember(entry)
    assert clusters.open_ones() == [one, two]
    assert clusters.find("4711", tmp_path) == two  # two schedds with one number: the newest try
    assert clusters.find("4711", one.folder.path) == one
    clusters.close(one)
    assert clusters.open_ones() == [two]
    assert clusters.find("4711", one.folder.path) == one
    for unknown in ("471", "47112", "x", "../1", ""):
        with pytest.raises(NotFound):
            clusters.find(unknown, tmp_path)


def test_the_line_of_a_job_has_no_blank_in_a_value() -> None:
    now = Standing(
        "7", State.HELD, "12", host="a b", starts=2, since="s", reason="no such file: /x y", cpu_s=1.5, exit=0
    )
    assert now.line == "7 held instance=12 exit=0 cpu_s=1.500 host=a_b starts=2 since=s"
    assert Standing("7", State.UNKNOWN, "").line == "7 unknown"
