"""JDL, read back by DIRAC's own code: what it is given arrives as written, or is refused."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fermigrid.backends import RenderedBatch
from fermigrid.errors import RunFolderError, Unrepresentable
from fermigrid.jdl import documents, names_of, with_sandbox
from fermigrid.jdl_text import (
    check_group,
    decode_jdl_list,
    decode_jdl_string,
    encode_entry,
    encode_jdl_list,
    encode_jdl_string,
    encode_lfn,
)
from fermigrid.planfolder import write_plan
from tests.campaigns import ANSWERS, SMALL, TWO_STEPS, assemble, complaints, plans
from tests.dirac_parser import DiracParser, Hung, Read

BATCH = "0123456789abcdef0123456789abcdef"
SITE = """\
site: grid
extends: dirac-like
dirac: {url: "https://diracx.example.org:8443", DIRAC}
"""
SANDBOX = "SB:SandboxSE|/S3/sandboxes/glast.org/glast_user/fermiuser/sha256:" + "0" * 64 + ".tar.zst"


@pytest.fixture(scope="module")
def parser() -> Iterator[DiracParser]:
    with DiracParser() as running:
        yield running


def site(folder: Path, dirac: str = "", more: str = "") -> Path:
    """A folder with the site `grid`; `dirac`: keys of its section."""
    own = folder / "own"
    own.mkdir(exist_ok=True)
    (own / "grid.yaml").write_text(SITE.replace(", DIRAC", f", {dirac}" if dirac else "") + more)
    return own


def batch_of(
    folder: Path, text: str = SMALL, table: str | None = None, dirac: str = "", more: str = "", step: int = 0
) -> RenderedBatch:
    """The first batch of a campaign at the site `grid`, on disk."""
    source = folder / "source"
    assembled = assemble(source, text, table, site="grid", own=[site(folder, dirac, more)])
    plan = plans(assembled, "grid")[step]
    write_plan(plan, folder / "plan")
    return RenderedBatch(
        BATCH, plan.header.name, folder / "plan", folder / "work", folder / "log", plan.header.jobs, {"chunk": 20}
    )


def read_all(parser: DiracParser, batch: RenderedBatch) -> list[dict[str, object]]:
    """Every job of a batch as DIRAC has it. It has nothing against any."""
    jobs = []
    for document in documents(batch):
        read = parser.read(with_sandbox(document, [SANDBOX]))
        assert read.errors == [] and len(read.jobs) == document.jobs
        jobs += read.jobs
    return jobs


# --- the encoder, through DIRAC's parser


NAMES = st.text(st.sampled_from("abcXYZ0189._+@=:/|*- "), min_size=1, max_size=30)
GOOD = st.text(st.sampled_from("abXZ019._+@=:/"), max_size=6)
SIGNS = st.sampled_from([*map(chr, range(9, 127)), "%s", "%n", "%j", "%(row)s", "é"])
ANY = st.tuples(GOOD, SIGNS, GOOD).map("".join) | NAMES | st.text(st.characters(), max_size=30)


BEHIND = '  JobName = "behind";\n  Parameters = {"p"};\n  Parameters.row = {"q"};\n'


def read_string(parser: DiracParser, encoded: str) -> Read:
    return parser.read(f'[\n  Executable = "worker.sh";\n  OutputPath = {encoded};\n{BEHIND}]')


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=ANY)
def test_a_string_arrives_as_it_was_written_or_is_refused(parser: DiracParser, text: str) -> None:
    try:
        encoded = encode_jdl_string(text)
    except Unrepresentable:
        return
    assert decode_jdl_string(encoded) == text
    found = read_string(parser, encoded)
    assert (found.errors, found.jobs[0]["OutputPath"], found.jobs[0]["JobName"]) == ([], text, "behind")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(ANY, min_size=1, max_size=5))
def test_a_list_arrives_as_it_was_written_or_is_refused(parser: DiracParser, texts: list[str]) -> None:
    try:
        encoded = encode_jdl_list(texts)
    except Unrepresentable:
        return
    assert decode_jdl_list(encoded) == tuple(texts)
    found = parser.read(f'[\n  Executable = "worker.sh";\n  OutputSandbox = {encoded};\n{BEHIND}]')
    assert (found.errors, found.jobs[0]["OutputSandbox"], found.jobs[0]["JobName"]) == ([], texts, "behind")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.lists(st.text(st.sampled_from('abc019._+@=-%[;", '), min_size=1, max_size=8), min_size=1, max_size=4))
def test_a_logical_file_name_arrives_as_it_was_written_or_is_refused(parser: DiracParser, tail: list[str]) -> None:
    lfn = "LFN:/glast.org/" + "/".join(tail)
    try:
        encoded = encode_lfn(lfn)
    except Unrepresentable:
        return
    found = parser.read(
        '[\n  Executable = "worker.sh";\n  InputData = {%(lfns)s};\n  Parameters = {"a", "b"};\n'
        f'  Parameters.lfns = {{{{{encoded}, "LFN:/glast.org/other"}}, {{{encoded}}}}};\n]'
    )
    assert found.errors == []
    assert [job["InputData"] for job in found.jobs] == [[lfn, "LFN:/glast.org/other"], [lfn]]


@pytest.mark.parametrize("text", ["007", "1e5", "1.0", "nan", "inf", "1_000", "+5", "0x10", "True"])
def test_what_looks_like_a_number_stays_a_text(parser: DiracParser, text: str) -> None:
    try:
        encoded = encode_jdl_string(text)
    except Unrepresentable:
        return
    assert read_string(parser, encoded).jobs[0]["OutputPath"] == text


@pytest.mark.parametrize(
    "text",
    ["a[b", "a]b", "a;b", 'a"b', 'a\\"b', "a,b", "a%sb", "a%nb", "a%jb", "%(row)s", "a\nb", "a\rb", "a\tb", "a\0b", "{a}", "é", "", " a", "a ",
     "a#b", "a'b", "$(fg_env)", "$HOME", "`id`", "a&b", "a>b", "(a)", "~a", "LFN:\ud800"],
)  # fmt: skip
def test_what_dirac_cannot_carry_is_refused_with_the_character(text: str) -> None:
    for encode in (encode_jdl_string, lambda text: encode_jdl_list([text]), encode_lfn, encode_entry):
        with pytest.raises(Unrepresentable, match="cannot be used"):
            encode(text)


def test_the_parser_hangs_indeed(parser: DiracParser) -> None:
    """What the encoder is for; and the next one is answered again."""
    with pytest.raises(Hung):
        parser.read('[\n  Executable = "worker.sh";\n  OutputPath = "a[b";\n  JobName = "x";\n]', limit_s=3)
    assert read_string(parser, '"good"').jobs[0]["OutputPath"] == "good"


@pytest.mark.parametrize("batch", ["", "x" * 32, BATCH.upper(), BATCH + "0", BATCH[:-1], f"{BATCH}\n"])
def test_a_group_is_of_32_hexadecimal_digits(batch: str, tmp_path: Path) -> None:
    with pytest.raises(Unrepresentable, match="32 hexadecimal digits"):
        check_group(batch)
    with pytest.raises(Unrepresentable):
        list(documents(replace(batch_of(tmp_path), batch_id=batch)))


@pytest.mark.parametrize("batch", ["1" * 32, "1e" + "9" * 30, "0" * 32, "00000000000000000000000000000e10"])
def test_a_group_that_looks_like_a_number_stays_a_text(parser: DiracParser, tmp_path: Path, batch: str) -> None:
    assert {job["JobGroup"] for job in read_all(parser, replace(batch_of(tmp_path), batch_id=batch))} == {batch}


# --- the documents


def test_every_job_is_there_once_in_order_with_its_row(parser: DiracParser, tmp_path: Path) -> None:
    batch = batch_of(tmp_path, SMALL.replace("count: 2", "count: 45"))
    some = list(documents(batch))
    assert [(each.first_index, each.jobs) for each in some] == [(0, 20), (20, 20), (40, 5)]
    assert [name for each in some for name in each.names] == names_of(batch) == [f"go.{n:04d}" for n in range(45)]
    jobs = read_all(parser, batch)
    items = [line.split() for line in (batch.plan_dir / "items.txt").read_text().splitlines()]
    assert [(job["JobName"], job["Arguments"]) for job in jobs] == [
        (name, f"run {name} {shard} {row} {BATCH} {digest(batch)}") for name, shard, row in items
    ]
    assert {(job["JobGroup"], job["Executable"], job["StdOutput"], job["StdError"]) for job in jobs} == {
        (BATCH, "worker.sh", "std.out", "std.err")
    }


def digest(batch: RenderedBatch) -> str:
    return hashlib.sha256((batch.plan_dir / "job.env").read_bytes()).hexdigest()


def test_one_job_is_a_parametric_job_too(parser: DiracParser, tmp_path: Path) -> None:
    batch = batch_of(tmp_path, SMALL.replace("count: 2", "count: 1"))
    (document,) = documents(batch)
    assert "Parameters = {" in document.text
    assert [job["JobName"] for job in read_all(parser, batch)] == names_of(batch)


def test_a_document_has_jobs_of_one_shard_only(tmp_path: Path) -> None:
    """Shards have 64 kB; each document brings one, and all that the batch's jobs have in common."""
    table = "run,events,padding\n" + "".join(f"r{n:010d},10,{'x' * 3000}\n" for n in range(50))
    text = SMALL.replace("{count: 2}", "{table: runs.csv}").replace('"{run}"]', '"{padding}"]')
    batch = batch_of(tmp_path, text, table)
    some = list(documents(batch))
    shards = [line.split()[1] for line in (batch.plan_dir / "items.txt").read_text().splitlines()]
    assert len(set(shards)) > 2 and sum(each.jobs for each in some) == 50
    for each in some:
        (shard,) = set(shards[each.first_index : each.first_index + each.jobs])
        assert each.own == (batch.plan_dir / "shards" / shard,) and f" {shard} " in each.text
        assert each.shared == (batch.plan_dir / "worker.sh", batch.plan_dir / "job.env")


def test_chunks_are_as_large_as_the_site_says(tmp_path: Path) -> None:
    batch = batch_of(tmp_path, SMALL.replace("count: 2", "count: 45"))
    assert [each.jobs for each in documents(replace(batch, options={"chunk": 7}))] == [7, 7, 7, 7, 7, 7, 3]
    assert [each.jobs for each in documents(replace(batch, options={}))] == [20, 20, 5]


def test_local_paths_and_references_of_sandboxes(parser: DiracParser, tmp_path: Path) -> None:
    (document,) = documents(batch_of(tmp_path))
    assert parser.read(document.text).jobs[0]["InputSandbox"] == [str(path) for path in document.files]
    other = with_sandbox(document, [SANDBOX, "/a/b"])
    assert parser.read(other).jobs[0]["InputSandbox"] == [SANDBOX, "/a/b"]
    for bad in ("relative", "/a/../b", "/a b", "SB:x|/S3/a;b", '/a"b', "LFN:/a", "https://x/y"):
        with pytest.raises(Unrepresentable, match="input sandbox"):
            with_sandbox(document, [bad])


def test_what_is_asked_of_the_site(parser: DiracParser, tmp_path: Path) -> None:
    text = (
        SMALL.replace("    command:", "    resources: {cpus: 4, memory: 3000 MiB, walltime: 2 h}\n    command:")
        + "accounting: {priority: 7}\n"
    )
    dirac = "sites: [LCG.IN2P3-CC.fr, LCG.CNAF.it], banned_sites: [LCG.PISA.it], tags: [EL9, '007'], cpu_time_factor: 12.5, job_type: Test"
    job = read_all(parser, batch_of(tmp_path, text, dirac=dirac))[0]
    asked = {
        name: job[name]
        for name in (
            "Site",
            "BannedSites",
            "Tags",
            "JobType",
            "Priority",
            "CPUTime",
            "MinRAM",
            "NumberOfProcessors",
            "MaxNumberOfProcessors",
        )
    }
    assert asked == {
        "Site": ["LCG.IN2P3-CC.fr", "LCG.CNAF.it"], "BannedSites": ["LCG.PISA.it"], "Tags": ["EL9", "007"], "JobType": "Test", "Priority": "7",
        "CPUTime": "90000", "MinRAM": "3000", "NumberOfProcessors": "4", "MaxNumberOfProcessors": "4",
    }  # fmt: skip


def test_nothing_is_asked_that_nobody_said(parser: DiracParser, tmp_path: Path) -> None:
    text = SMALL.replace("    command:", "    resources: {walltime: 5 s}\n    command:")
    job = read_all(parser, batch_of(tmp_path, text, dirac="memory: none"))[0]
    assert not {
        "Site",
        "BannedSites",
        "Tags",
        "Platform",
        "MinRAM",
        "RAM",
        "NumberOfProcessors",
        "InputData",
        "OutputData",
        "OutputSE",
    } & {*job}
    assert job["CPUTime"] == "100"  # DIRAC takes no less


def test_memory_in_whole_units(parser: DiracParser, tmp_path: Path) -> None:
    text = SMALL.replace("    command:", "    resources: {memory: 2049 MiB}\n    command:")
    assert read_all(parser, batch_of(tmp_path, text, dirac="memory: RAM"))[0]["RAM"] == "3"


def test_outputs_come_back_in_the_sandbox_or_go_to_a_storage_element(parser: DiracParser, tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
    job = read_all(parser, batch_of(tmp_path / "a"))[0]
    assert job["OutputSandbox"] == ["std.out", "std.err", "out/*"] and "OutputData" not in job
    legacy = "url: , transport: commands, platform: EL9"
    job = read_all(
        parser, _other(tmp_path / "b", f"{legacy}, output_se: [IN2P3-CC-disk, CNAF-disk], output_path: mc/2026")
    )[0]
    assert (job["OutputData"], job["OutputSE"], job["OutputPath"]) == (
        ["out/*"],
        ["IN2P3-CC-disk", "CNAF-disk"],
        "mc/2026",
    )
    assert job["OutputSandbox"] == ["std.out", "std.err"] and job["Platform"] == "EL9"
    job = read_all(parser, batch_of(tmp_path / "c", more="output: {kind: xrootd, root: 'root://x.example.org//a'}\n"))[
        0
    ]
    assert job["OutputSandbox"] == ["std.out", "std.err"] and "OutputData" not in job


def _other(folder: Path, dirac: str) -> RenderedBatch:
    own = folder / "own"
    own.mkdir()
    (own / "grid.yaml").write_text(f"site: grid\nextends: dirac-like\ndirac: {{{dirac}}}\n")
    plan = plans(assemble(folder / "source", SMALL, site="grid", own=[own]), "grid")[0]
    write_plan(plan, folder / "plan")
    return RenderedBatch(BATCH, plan.header.name, folder / "plan", folder / "work", folder / "log", plan.header.jobs)


LFNS = SMALL.replace(
    "    command:",
    '    inputs: {a.fit: ["LFN:/glast.org/{run}/a.fit", "root://x.example.org//a/{run}"], b.fit: "LFN:/glast.org/{run}/b.fit"}\n    command:',
)


def test_inputs_of_the_file_catalogue_are_input_data(parser: DiracParser, tmp_path: Path) -> None:
    batch = batch_of(tmp_path, LFNS)
    jobs = read_all(parser, batch)
    assert {job["InputDataPolicy"] for job in jobs} == {"DIRAC.WorkloadManagementSystem.Client.DownloadInputData"}
    runs = [name.partition(".")[2] for name in names_of(batch)]
    assert [job["InputData"] for job in jobs] == [[f"LFN:/glast.org/{run}/{x}.fit" for x in "ab"] for run in runs]


def test_other_sites_do_not_see_names_of_the_file_catalogue(tmp_path: Path) -> None:
    both = LFNS.replace(', b.fit: "LFN:/glast.org/{run}/b.fit"', "")
    rows = [line for rows in plans(assemble(tmp_path, both, site="local"))[0].rows() for line in rows.lines]
    assert rows and all("LFN:" not in row and "root://x.example.org//a/" in row for row in rows)
    assert [text for text in complaints(tmp_path, LFNS) if "cannot ask: add another place for it" in text]


def test_a_job_that_is_given_files_is_alone_in_its_document(tmp_path: Path) -> None:
    text = TWO_STEPS.replace(
        "    after: [clump]\n", "    after: [clump]\n    gather: {all: {step: clump, output: out.fit}}\n"
    )
    table = "run,events\n" + "".join(f"r{n:010d},25\n" for n in range(3))
    batch = batch_of(tmp_path, text.replace("block: 2\n", ""), table, step=1)
    some = list(documents(batch))
    assert [(each.first_index, each.jobs) for each in some] == [(0, 1), (1, 1), (2, 1)]
    for each in some:
        shard, folder = each.own
        assert folder == batch.work_dir / shard.name / "in" / each.names[0] / "gathered"


def test_gathered_files_that_lie_on_a_server_leave_documents_as_they_are(tmp_path: Path) -> None:
    text = TWO_STEPS.replace(
        "    after: [clump]\n", "    after: [clump]\n    gather: {all: {step: clump, output: out.fit}}\n"
    )
    table = "run,events\n" + "".join(f"r{n:010d},25\n" for n in range(3))
    more = "output: {kind: xrootd, root: 'root://x.example.org//a'}\n"
    (document,) = documents(batch_of(tmp_path, text.replace("block: 2\n", ""), table, more=more, step=1))
    assert document.jobs == 3 and len(document.own) == 1


def test_a_damaged_plan_is_told(tmp_path: Path) -> None:
    batch = batch_of(tmp_path)
    items = batch.plan_dir / "items.txt"
    items.write_text(items.read_text().replace(" 2\n", " two\n"))
    with pytest.raises(RunFolderError, match=r"line 2 of items\.txt is damaged"):
        list(documents(batch))
    for text, what in (
        ("a;b SHARD 1\n", "job: 'a;b'"),
        ("a s;b 1\n", "shard: 's;b'"),
        ("a s 1\n", "shards/s: "),
        (f"{'a' * 129} SHARD 1\n", "128 characters"),
    ):
        shard = next((batch.plan_dir / "shards").iterdir()).name
        items.write_text(text.replace("SHARD", shard))
        with pytest.raises((Unrepresentable, RunFolderError), match=what):
            list(documents(batch))


def test_the_text_of_a_plan_knows_no_batch(tmp_path: Path) -> None:
    batch = batch_of(tmp_path)
    text = (batch.plan_dir / "job.jdl").read_text()
    assert BATCH not in text and str(tmp_path) not in text
    assert {*re.findall(r"\$\((fg_[a-z]+)\)", text)} == {
        "fg_batch",
        "fg_env",
        "fg_shard",
        "fg_sandbox",
        "fg_jobs",
        "fg_rows",
    }
    (document,) = documents(batch)
    assert "$(" not in document.text and all(line.endswith(";") for line in document.text.splitlines()[1:-1])


# --- what check refuses, with its lines


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "    command:",
            "    resources: {walltime: 15 h}\n    command:",
            "6: steps.go.resources.walltime: 54000 s x 10 (cpu_time_factor) = 540000",
        ),
        (
            "image: light\n",
            "image: light\naccounting: {priority: 11}\n",
            "3: accounting.priority: 11 is no priority of DIRAC",
        ),
        ("image: light\n", "image: light\naccounting: {priority: -1}\n", "1 to 10, or none"),
        ("    command:", "    inputs: {a: 'LFN:/other.org/{run}'}\n    command:", "it must begin with LFN:/glast.org/"),
        ("    command:", "    inputs: {a: 'LFN:/glast.org//{run}'}\n    command:", "no // or /../"),
        (
            "    command:",
            "    inputs: {a: 'LFN:/glast.org/a[b'}\n    command:",
            "cannot be used: use LFN:/vo/folder/name",
        ),
        (
            "    command:",
            "    inputs: {a: 'LFN:/glast.org/a;{run}'}\n    command:",
            "cannot be used: use LFN:/vo/folder/name",
        ),
        (
            "    command:",
            "    inputs: {a: 'LFN:/glast.org/%s'}\n    command:",
            "cannot be used: use LFN:/vo/folder/name",
        ),
        (
            "    command:",
            "    inputs: {a: 'LFN:/glast.org/{run}/x', b: 'LFN:/glast.org/b/x'}\n    command:",
            "would both be brought as x",
        ),
        ("    command:", "    inputs: {a: 'LFN:/glast.org/job.env'}\n    command:", "which is a name of the job's own"),
        (
            "    command:",
            "    inputs: {a: ['LFN:/glast.org/x', 'LFN:/glast.org/y']}\n    command:",
            "takes them for two files",
        ),
    ],
)
def test_a_campaign_that_dirac_cannot_take_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    found = complaints(tmp_path, SMALL.replace(old, new), site="grid", own=[site(tmp_path)])
    assert len(found) == 1 and said in found[0] and found[0].startswith("campaign.yaml:"), found


@pytest.mark.parametrize(("name", "refused"), [("job.env", True), ("out/x.txt", True), ("mine/job.env", False)])
def test_code_that_dirac_would_unpack_over_the_jobs_files_is_refused(tmp_path: Path, name: str, refused: bool) -> None:
    """Its JobWrapper unpacks an archive that a command handed in; what DiracX keeps as a sandbox it does not."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("words\n")
    text = SMALL.replace("image: light\n", f"image: light\ncode: [{name.partition('/')[0]}]\n")
    for transport, problem in (("commands", refused), ("diracx", False)):
        own = tmp_path / transport
        own.mkdir()
        (own / "grid.yaml").write_text(
            "site: grid\ntitle: t\ncontact: c\nmanual: m\nbackend: dirac\ncontainer: {launch: worker}\noutput: {kind: transfer}\n"
            f"dirac: {{transport: {transport}, vo: glast.org, group: glast_user"
            + (", url: 'https://diracx.example.org'}\n" if transport == "diracx" else "}\n")
        )
        found = complaints(tmp_path, text, site="grid", own=[own])
        assert bool(found) == problem, found
        if problem:
            assert f"code: {name.partition('/')[0]} is a name of the job's own" in found[0]


def test_a_name_that_dirac_would_cut_is_refused(tmp_path: Path) -> None:
    step, run = "s" * 60, "r" * 60
    text = (
        TWO_STEPS.replace("clump:", f"{step}:")
        .replace("[clump]", f"[{step}]")
        .replace("foreach: clump", "foreach: crumb")
    )
    found = complaints(tmp_path, text, f"run,events\n{run},5000\n", site="grid", own=[site(tmp_path)])
    assert [one for one in found if "characters, and DIRAC keeps 128" in one], found


@pytest.mark.parametrize(
    ("dirac", "more", "said"),
    [
        ("platform: EL9", "", "DiracX 0.7.0 refuses every job with a platform"),
        ("output_se: [X-disk]", "", "nothing of DiracX brings output data back"),
        ("chunk: 21", "", "a DiracX server takes 20 jobs at a time"),
        ("sites: [LCG.CNAF.it], banned_sites: [LCG.CNAF.it]", "", "LCG.CNAF.it is in both"),
        ("sites: ['a;b']", "", "is no site of DIRAC"),
        ("sites: ['a[b']", "", "is no site of DIRAC"),
        ("tags: ['a,b']", "", "is no name that DIRAC carries unchanged"),
        ("tags: ['%n']", "", "is no name that DIRAC carries unchanged"),
        ("vo: 'a b'", "", "is no name that DIRAC carries unchanged"),
        ("output_path: a/../b", "", "is no folder below your own"),
        ("transport: commands", "", "has no url"),
        ("", "container: {launch: site, dialect: plain}\n", "nothing in DIRAC's JDL asks for a container"),
        ("", "staging: {cores: 1 MiB}\n", "core files do not come back from DIRAC"),
        ("", "htcondor: {grid: {kind: slurm}}\n", "is for backend: htcondor; this site is backend: dirac"),
        ("", "backend: local\n", "is for backend: dirac; this site is backend: local"),
        ("", "secrets: {key: {kind: transfer, from: /tmp/key, point: {KEY: .}}, proxy: }\n", ""),
    ],
)  # fmt: skip
def test_a_site_that_dirac_cannot_be_is_refused(tmp_path: Path, dirac: str, more: str, said: str) -> None:
    found = complaints(tmp_path, SMALL, site="grid", own=[site(tmp_path, dirac, more)])
    if said:
        assert any(said in one and "grid.yaml:" in one for one in found), found
    else:
        assert found == []  # it is offered, and nobody asks for it


ASKS = SMALL.replace("    command:", "    secrets: [key]\n    command:")


def test_secrets_that_reach_the_nodes_of_dirac_and_those_that_do_not(tmp_path: Path) -> None:
    def said(secret: str) -> list[str]:
        return complaints(
            tmp_path,
            ASKS,
            site="grid",
            own=[site(tmp_path, more=f"secrets: {{key: {{{secret}, point: {{KEY: .}}}}, proxy: }}\n")],
        )

    assert said("kind: path, from: /grid/key") == [] and said("kind: proxy") == []
    (text,) = said("kind: transfer, from: /tmp/key")
    assert (
        "kind: transfer does not go by DIRAC: a sandbox is stored as it is" in text
        and "Use kind: sealed or path" in text
    )
    (text,) = said("kind: token, service: scitokens")
    assert "kind: token does not go by DIRAC" in text
    (text,) = said("kind: proxy, from: /tmp/x509up")
    assert "DIRAC gives each job a proxy of its own" in text


def test_shipped_answers_are_of_the_shape(tmp_path: Path) -> None:
    assert complaints(tmp_path, SMALL, site="dirac-like", own=[ANSWERS]) == []
