"""Plans: the rows say to the worker exactly what the person wrote, job by job; shards, items and headers."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tempfile
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fermigrid.advance import Work
from fermigrid.errors import Unrepresentable
from fermigrid.plan import plan_batch
from fermigrid.quoting import decode_lines, decode_row
from fermigrid.render import SHARD_BYTES, image_request, render_job_env, render_manifest, render_shards, render_submit
from fermigrid.resources import shipped
from tests.campaigns import ANSWERS, SMALL, TWO_STEPS, argv, assemble, plans, rows, values

HOSTILE = [
    "",
    " ",
    "  a  b ",
    "\t",
    "'",
    '"',
    "''",
    '""',
    "\\",
    "\\\\",
    "\\n",
    "\\t",
    "%s",
    "%%",
    "$HOME",
    "$(HOME)",
    "$ENV(HOME)",
    "$$(Cpus)",
    "$(DOLLAR)",
    "`id`",
    "$((1))",
    "a,b",
    "a;b",
    "a|b",
    "a&b",
    "a>b",
    "*",
    "?",
    "[a]",
    "{run}",
    "{{run}}",
    "#",
    "#!",
    "~",
    "-rf",
    "--",
    "=",
    "a=b",
    "\x01",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "\u2028",
    "\u202e",
    "é",
    "\u0065\u0301",
    "\u4f60\u597d",
    "\U0001f600",
    "\ufeff",
    "x" * 5000,
]
SITE = "site: mine\ntitle: T\ncontact: c\nmanual: m\noutput: {kind: transfer}\n"
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), max_size=30)


def literal(word: str) -> str:
    return word.replace("{", "{{").replace("}", "}}")


def dump(data: object) -> str:
    return yaml.safe_dump(data, allow_unicode=False, sort_keys=False, width=10**9)


def one_step(command: list[str], **step: object) -> str:
    step = {"command": command, **step}
    return dump({"campaign": "c", "image": "light", "runs": {"table": "runs.csv"}, "steps": {"go": step}})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(text, st.sampled_from(HOSTILE)), max_size=6), st.one_of(text, st.sampled_from(HOSTILE)))
def test_the_payload_gets_every_word_exactly_as_written(words: list[str], value: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written = one_step(["prog", *map(literal, words)], environment={"A": literal(value)})
        (plan,) = plans(assemble(Path(folder), written, "run\nr1\n"))
        (row,) = rows(plan)
    assert argv(row) == ["prog", *words]
    assert values(row, "env") == [f"A={value}"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(text, st.sampled_from(HOSTILE)), min_size=1, max_size=4))
def test_columns_of_the_table_arrive_exactly(cells: list[str]) -> None:
    cells = [
        cell
        for cell in (cell.strip() for cell in cells)
        if all((ord(c) > 31 and ord(c) != 127) or c == "\t" for c in cell)
    ]
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["run", "x"], *([f"r{i}", cell] for i, cell in enumerate(cells)), ["last", "z"]])
    with tempfile.TemporaryDirectory() as folder:
        written = one_step(
            ["prog", "<{x}>", "{x}{x}", "{{x}}"], inputs={"in": "http://h/{x}"}, outputs={"o": "{run}/{x}."}
        )
        found = [argv(row) for row in rows(plans(assemble(Path(folder), written, file.getvalue()))[0])]
    assert found == [["prog", f"<{cell}>", cell + cell, "{x}"] for cell in [*cells, "z"]]


@pytest.mark.parametrize("value", HOSTILE)
def test_parameters_arrive_exactly_and_are_no_placeholders_themselves(tmp_path: Path, value: str) -> None:
    written = one_step(["prog", "{p}", "-{p}-"]) + dump({"parameters": {"p": "default"}})
    (plan,) = plans(assemble(tmp_path, written, "run\nr1\n", parameters={"p": value}))
    assert argv(rows(plan)[0]) == ["prog", value, f"-{value}-"]


@pytest.mark.parametrize("value", HOSTILE)
def test_what_all_jobs_share_arrives_exactly(tmp_path: Path, value: str) -> None:
    (plan,) = plans(assemble(tmp_path, SMALL + dump({"environment": {"SHARED": literal(value)}})))
    assert ("env", f"SHARED={value}") in decode_lines(render_job_env(plan.header))


def test_each_job_of_each_step(tmp_path: Path) -> None:
    clump, merge = plans(assemble(tmp_path, TWO_STEPS, "run,events\nr1,25\nr2,0\n"))
    assert [argv(row) for row in rows(clump)] == [
        ["/bin/true", "r1", "c000", "0", "10"],
        ["/bin/true", "r1", "c001", "10", "10"],
        ["/bin/true", "r1", "c002", "20", "5"],
    ]
    assert [dict(row)["job"] for row in rows(clump)] == ["clump.r1.c000", "clump.r1.c001", "clump.r1.c002"]
    assert [(dict(row)["job"], dict(row)["piece"]) for row in rows(merge)] == [("merge.r1", ""), ("merge.r2", "")]
    assert (clump.header.jobs, merge.header.jobs) == (3, 2)
    assert clump.header.name == "two.b0000.clump.g0"


def test_rows_start_anew_each_time(tmp_path: Path) -> None:
    (plan,) = plans(assemble(tmp_path))
    assert list(plan.rows()) == list(plan.rows())
    assert next(iter(plan.rows())).jobs[0] == "go.0000"


def test_all_placeholders(tmp_path: Path) -> None:
    names = [
        "campaign",
        "version",
        "step",
        "site",
        "run",
        "job",
        "piece",
        "events",
        "first_event",
        "event_count",
        "season",
        "p",
    ]
    command = ["prog", *(f"{{{name}}}" for name in names)]
    written = one_step(command, foreach="clump", split={"events": "10"}) + 'version: "400"\nparameters: {p: P}\n'
    (plan,) = plans(assemble(tmp_path, written, "run,events,season\nr1,15,winter\n"))
    assert argv(rows(plan)[1])[1:] == [
        "c",
        "400",
        "go",
        "local",
        "r1",
        "go.r1.c001",
        "c001",
        "15",
        "10",
        "5",
        "winter",
        "P",
    ]


def test_a_program_of_the_code_starts_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    for name in ("go.py", "lib/run.sh"):
        (tmp_path / name).write_text("x")
    for program, first in (
        ("go.py", "./go.py"),
        ("./go.py", "./go.py"),
        ("lib/run.sh", "./lib/run.sh"),
        ("python3", "python3"),
        ("/bin/ls", "/bin/ls"),
    ):
        (plan,) = plans(assemble(tmp_path, one_step([program, "go.py"]) + "code: [go.py, lib]\n", "run\nr1\n"))
        assert argv(rows(plan)[0]) == [first, "go.py"]


def test_inputs_name_every_place_and_relative_ones_start_at_the_campaign(tmp_path: Path) -> None:
    folder = tmp_path / "odd {name}\\here"
    places = {
        "a": ["data/{run}.fit", "/abs/{run}", "http://h/{run}", "root://h//x", "xroot://h//x", "file:///x"],
        "b": "{run}.fit",
        "c": "{url}",
    }
    (plan,) = plans(assemble(folder, one_step(["p"], inputs=places), "run,url\nr1,http://h/x\nr2,https://h/y\n"))
    first, second = rows(plan)
    absolute = ["/abs/r1", "http://h/r1", "root://h//x", "xroot://h//x", "file:///x"]
    assert values(first, "in.from") == [f"{folder}/data/r1.fit", *absolute, f"{folder}/r1.fit", "http://h/x"]
    assert values(second, "in.from")[-1] == "https://h/y"
    assert values(first, "in") == ["a", "b", "c"]


def test_a_column_of_relative_places(tmp_path: Path) -> None:
    (plan,) = plans(assemble(tmp_path, one_step(["p"], inputs={"a": "{file}"}), "run,file\nr1,d/x.fit\nr2,d/y.fit\n"))
    assert [values(row, "in.from") for row in rows(plan)] == [[f"{tmp_path}/d/x.fit"], [f"{tmp_path}/d/y.fit"]]


def test_local_names_may_have_placeholders_too(tmp_path: Path) -> None:
    step = {"inputs": ["/data/{run}_digi.root"], "outputs": {"{run}.fit": "{run}_v1.fit", "{{x}}": "{run}.x"}}
    (plan,) = plans(assemble(tmp_path, one_step(["p"], **step), "run\nr1\n"))
    assert values(rows(plan)[0], "in") == ["r1_digi.root"]
    assert values(rows(plan)[0], "out") == ["r1.fit", "{x}"]


def test_order_of_settings_is_site_then_campaign_then_step(tmp_path: Path) -> None:
    site = SITE + "backend: local\ncontainer: {launch: worker}\n"
    (tmp_path / "mine.yaml").write_text(site + "environment: {A: site, B: site, C: site}\n")
    written = (
        SMALL.replace("    outputs", "    environment: {C: step}\n    outputs")
        + "environment: {B: '{campaign}', C: campaign}\n"
    )
    (plan,) = plans(assemble(tmp_path, written, site="mine", own=[tmp_path]), "mine")
    shared = [value for key, value in decode_lines(render_job_env(plan.header)) if key == "env"]
    assert shared == ["A=site", "B=small"]
    assert values(rows(plan)[0], "env") == ["C=step"]


def test_half_a_character_from_the_command_line_is_refused_by_name(tmp_path: Path) -> None:
    assembled = assemble(
        tmp_path, one_step(["p", "{p}"]) + "parameters: {p: x}\n", "run\nr1\n", parameters={"p": "\udce9"}
    )
    with pytest.raises(Unrepresentable, match="lone surrogate"):
        list(plans(assembled)[0].rows())


# --- shards and items


def many(tmp_path: Path, count: int, size: int) -> list[bytes]:
    table = "run,x\n" + "".join(f"r{i:05d},{'x' * size}\n" for i in range(count))
    (plan,) = plans(assemble(tmp_path, one_step(["p", "{x}"]) + "block: 100000\n", table))
    shards = list(render_shards(plan))
    jobs = list(plan.jobs())
    lines = [line.split() for shard in shards for line in shard.items.decode("ascii").splitlines()]
    assert [job for job, _, _ in lines] == jobs
    by_name = {shard.name: shard.data.decode().split("\n") for shard in shards}
    for job, shard, row in lines:
        assert dict(decode_row(by_name[shard][int(row) - 1]))["job"] == job
    for number, shard in enumerate(shards):
        assert shard.name == f"s{number:04d}-{hashlib.sha256(shard.data).hexdigest()[:32]}.rows"
    return [shard.data for shard in shards]


def test_item_i_is_job_i_and_points_to_its_row(tmp_path: Path) -> None:
    shards = many(tmp_path, 5000, 20)
    assert len(shards) > 3
    assert max(map(len, shards)) <= SHARD_BYTES


@pytest.mark.parametrize("size", [SHARD_BYTES // 2 - 60, SHARD_BYTES - 60, SHARD_BYTES + 1])
def test_long_rows_fill_shards_of_their_own(tmp_path: Path, size: int) -> None:
    shards = many(tmp_path, 5, size)
    assert all(len(data) <= SHARD_BYTES or data.count(b"\n") == 1 for data in shards)
    assert sum(data.count(b"\n") for data in shards) == 5


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_shard_is_full_at_exactly_its_limit(tmp_path: Path, over: int) -> None:
    one = len(many(tmp_path / "a", 1, 100)[0])
    rest = SHARD_BYTES - one
    (plan,) = plans(
        assemble(
            tmp_path / "b",
            one_step(["p", "{x}"]),
            f"run,x\nr00000,{'x' * 100}\nr00001,{'x' * (rest - one + 100 + over)}\n",
        )
    )
    assert len(list(render_shards(plan))) == (2 if over > 0 else 1)


def test_only_one_shard_is_in_memory(tmp_path: Path) -> None:
    assembled = assemble(
        tmp_path, one_step(["p", "{run}"], foreach="clump", split={"events": "1"}), "run,events\nr1,60000\n"
    )
    plan = plan_batch(assembled, Work("b0000", "go", "local", 0, assembled.runs))
    tracemalloc.start()
    sizes = [len(shard.data) for shard in render_shards(plan)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.header.jobs == 60_000
    assert peak < 1.5 * 2**20 < sum(sizes) / 1.5


# --- the submit file


def submit_file(
    tmp_path: Path, extra: str = "", htcondor: str = "{}", container: str = "{launch: worker}", name: str = "a"
) -> str:
    folder = tmp_path / name
    folder.mkdir()
    site = f"{SITE}backend: htcondor\nhtcondor: {htcondor}\ncontainer: {container}\n"
    (folder / "mine.yaml").write_text(site)
    (plan,) = plans(assemble(folder, SMALL + extra, site="mine", own=[folder]), "mine")
    return render_submit(plan.header, shipped("submit_templates"))


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_nothing_of_a_person_or_a_job_is_in_the_submit_file(tmp_path: Path) -> None:
    canary = "CANARY"
    extra = f"title: {canary}\nenvironment: {{A: {canary}}}\nparameters: {{p: {canary}}}\n"
    submitted = submit_file(tmp_path, extra)
    assert canary not in submitted
    assert "/bin/true" not in submitted
    assert "go.0000" not in submitted


def test_late_materialization_begins_above_the_sites_number_of_jobs(tmp_path: Path) -> None:
    assert lines_of(submit_file(tmp_path, htcondor="{late_above: 2}", name="a"), "max_materialize") == []
    late = submit_file(tmp_path, htcondor="{late_above: 1, max_materialize: 7, max_idle: 3}", name="b")
    assert lines_of(late, "max_") == ["max_materialize = 7", "max_idle = 3"]
    limited = submit_file(tmp_path, "limits: {running: 1}\n", name="c")
    assert lines_of(limited, "max_materialize") == ["max_materialize = 1"]


def test_resources_are_rounded_up_to_what_the_site_counts_in(tmp_path: Path) -> None:
    text = submit_file(tmp_path, "").replace(" ", "")
    assert "fg_memory=2048\n" in text
    step = SMALL.replace(
        "    outputs", "    resources: {memory: 1 B, disk: 1025 B, walltime: 90 s, cpus: 3}\n    outputs"
    )
    (plan,) = plans(assemble(tmp_path / "x", step))
    odd = render_submit(plan.header, shipped("submit_templates")).replace(" ", "")
    assert "request_memory=1M" in odd
    assert "request_disk=2K" in odd
    assert "request_cpus=3" in odd
    assert "allowed_execute_duration=390" in odd


def test_attributes_of_a_site_are_strings_whatever_they_hold(tmp_path: Path) -> None:
    text = submit_file(tmp_path, htcondor="""{attributes: {Project: 'a "b" $(HOME) \\c d'}}""")
    assert lines_of(text, "+Project") == ['+Project = "a \\"b\\" $(DOLLAR)(HOME) \\c d"']
    with pytest.raises(Unrepresentable, match=r"Project: .*ends with a backslash"):
        submit_file(tmp_path, htcondor="""{attributes: {Project: 'a\\'}}""", name="b")


def test_a_control_character_in_a_site_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Unrepresentable, match="it has a control character"):
        submit_file(tmp_path, htcondor='{attributes: {Project: "a\\x01b"}}')


@pytest.mark.parametrize("output", ["transfer", "posix, root: /x"])
def test_what_comes_back_with_a_job(tmp_path: Path, output: str) -> None:
    """Outputs, unless they go elsewhere, and the core files of a failed job."""
    site = f"{SITE}backend: htcondor\ncontainer: {{launch: worker}}\n".replace("transfer", output)
    (tmp_path / "mine.yaml").write_text(site)
    (plan,) = plans(assemble(tmp_path, SMALL, site="mine", own=[tmp_path]), "mine")
    submitted = render_submit(plan.header, shipped("submit_templates"))
    assert lines_of(submitted, "transfer_output_files") == ["transfer_output_files   = out"]


def test_the_image_is_asked_for_in_the_sites_dialect(tmp_path: Path) -> None:
    path = "/cvmfs/fermi.test/images/light-1"
    native = submit_file(tmp_path, container="{launch: site, dialect: self-healing}", name="a")
    pilot = submit_file(tmp_path, container="{launch: site, dialect: plain}", name="b")
    worker = submit_file(tmp_path, name="c")
    healing = (
        f'+SingularityImage = ifThenElse((NumVacatesByReason.SingularityTestFailed ?: 0) >= 1, undefined, "{path}")'
    )
    assert lines_of(native, "+SingularityImage") == [healing]
    assert lines_of(pilot, "+SingularityImage") == [f'+SingularityImage = "{path}"']
    assert lines_of(worker, "+SingularityImage") == []


def test_an_image_of_the_site_hides_the_catalogues_path(tmp_path: Path) -> None:
    text = SMALL.replace("light", "fermi-rhel6")
    (plan,) = plans(assemble(tmp_path, text, site="slac", own=[ANSWERS]), "slac")
    assert plan.header.request.image_path == "/sdf/group/fermi/sw/containers/fermi-rhel6.sif"
    assert image_request(plan.header.request) is None


def test_the_manifest_has_every_file(tmp_path: Path) -> None:
    (plan,) = plans(assemble(tmp_path))
    manifest = json.loads(render_manifest(plan.header, {"b": "2", "a": "1"}))
    assert list(manifest["files"].items()) == [("a", "1"), ("b", "2")]
    assert (manifest["format"], manifest["jobs"], manifest["step"]) == (1, 2, "go")
