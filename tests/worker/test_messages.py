"""The pipeline's start and end messages: their text to the byte, each way off the node, each way that it can fail."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.message_servers import https, smtp
from tests.worker.test_signals import wait_for
from tests.worker.worker_job import Done, Job, Pairs, finish

MakeJob = Callable[..., Job]

WHO = [
    ("message.to", "pipeline@example.org"),
    ("message.from", "l1@example.org"),
    ("message.instance", "12345678"),
    ("message.log", "/nfs/logs/l1 run.txt"),
    ("message.timeout", "2"),
]
HEAD = """\
From: l1@example.org
To: pipeline@example.org
Subject: 12345678
Date: <date>
Message-ID: <12345678.{attempt}.{kind}@fermigrid>
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

ProcessInstance: 12345678
Host: <host>
StartTime: <time>
WorkDir: {folder}
LogFile: /nfs/logs/l1 run.txt
"""
START = HEAD + "Status: Started\n"
END = (
    HEAD
    + "{lines}Elapsed: <s>\nUser: <s>\nSystem: <s>\nExitCode: {code}\nEndTime: <time>\nSignals: {signals}\nStatus: Ended\n"
)
TIME = r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} [ 123]\d \d\d:\d\d:\d\d P[DS]T \d{4}"
DATE = r"[MTWFS][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d -0[78]00"


def masked(text: bytes) -> str:
    """The message without what differs from run to run; each is checked to have its form."""
    found = text.decode().replace("\r\n", "\n")
    for pattern, word in (
        (rf"(?m)^(StartTime|EndTime): {TIME}$", r"\1: <time>"),
        (rf"(?m)^Date: {DATE}$", "Date: <date>"),
        (r"(?m)^Host: [^\s]+$", "Host: <host>"),
        (r"(?m)^(Elapsed|User|System): \d+\.\d{3}$", r"\1: <s>"),
    ):
        found = re.sub(pattern, word, found)
    return found


def expected(job: Job, done: Done, lines: str = "", *, code: int = 0, signals: str = "") -> list[str]:
    """Both messages of a job as they must be."""
    attempt, folder = done.report.attempt, str(job.scratch)
    end = END.format(kind="end", attempt=attempt, folder=folder, lines=lines, code=code, signals=signals)
    return [START.format(kind="start", attempt=attempt, folder=folder), end]


def spooled(folder: Path) -> list[str]:
    """The messages in a spool folder, start before end."""
    return [masked(path.read_bytes()) for path in sorted(folder.iterdir(), reverse=True)]


def results(done: Done) -> list[tuple[str, str]]:
    return [(message["kind"], message["result"]) for message in done.data["messages"]]


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
def pipeline(make_job: MakeJob) -> Callable[..., Job]:
    """Makes jobs of the pipeline: (payload's script, routes, more)."""

    def make(script: str = "exit 0", *via: str, settings: Pairs | None = None, shell: str = "bash", **what: Any) -> Job:
        routes = [("message.via", route) for route in via]
        code = {"payload": f"#!/bin/{shell}\n{script}\n"}
        return make_job(args=["./payload"], code=code, settings=[*WHO, *routes, *(settings or [])], **what)

    return make


ENV = {"TZ": "PST8PDT,M3.2.0,M11.1.0"}
Pipeline = Callable[..., Job]

# --- the text


SETS = r"""
pipelineSet first 'a b;c=d "q" '\'' \ $HOME é	tab'
pipelineSet twice 1
pipelineCreateStream doChunk -1 'a=1,b=2'
pipelineCreateStream doChunk -1 'a=1,b=2'
pipelineCreateStream doChunk/sub 7
pipelineSet twice 2
pipelineSet empty ''
"""
LINES = """\
Pipeline.first: a b;c=d "q" ' \\ $HOME é	tab
Pipeline.twice: 2
PipelineCreateStream.doChunk.-1: a=1,b=2
PipelineCreateStream.doChunk.-1: a=1,b=2
PipelineCreateStream.doChunk/sub.7:\x20
Pipeline.empty:\x20
"""


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_both_messages_to_the_byte(pipeline: Pipeline, spool: Path, shell: str) -> None:
    job = pipeline(SETS, f"spool:{spool}", shell=shell)
    done = job.run(env=ENV)
    assert (done.code, results(done)) == (0, [("start", "sent"), ("end", "sent")])
    assert spooled(spool) == expected(job, done, LINES)
    assert done.data["summary"]["Pipeline.twice"] == "2"
    assert not any("CreateStream" in name for name in done.data["summary"])
    assert [message["route"] for message in done.data["messages"]] == [f"spool:{spool}"] * 2
    assert all(message["text"] for message in done.data["messages"])  # `pipeline status` makes the summary file of it


def test_the_exit_code_is_the_payloads_own(pipeline: Pipeline, spool: Path) -> None:
    job = pipeline("exit 83", f"spool:{spool}")
    done = job.run(env=ENV)
    assert done.code == 79
    assert spooled(spool) == expected(job, done, code=83)


@pytest.mark.fault(
    fault="messages: the payload ended well, its output is missing",
    mode="host",
    does="the end message has the worker's exit code, not the payload's 0",
    code=87,
)
def test_a_job_that_failed_is_no_success_for_the_pipeline(pipeline: Pipeline, spool: Path) -> None:
    job = pipeline("exit 0", f"spool:{spool}", row=[("out", "a"), ("out.to", "a")])
    done = job.run(env=ENV)
    assert (done.code, done.report.payload_exit) == (87, 0)
    assert spooled(spool) == expected(job, done, code=87)


@pytest.mark.fault(
    fault="messages: the batch system starts the job again",
    mode="any",
    does="says so in an `# Attempt` line of its start message, which has an id of its own",
    code=0,
)
def test_a_second_start_says_so(pipeline: Pipeline, spool: Path) -> None:
    job = pipeline("exit 0", f"spool:{spool}")
    first, second = job.run(env=ENV), job.run(env=ENV | {"FERMIGRID_START": "2"})
    start, end = expected(job, second)
    start = start.replace("Status:", "# Attempt: 2, the batch system has started this job again\nStatus:")
    assert sorted(spooled(spool)) == sorted([*expected(job, first), start, end])


def test_user_and_system_seconds(pipeline: Pipeline, spool: Path) -> None:
    burn = "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done; (i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done)"
    done = pipeline(burn, f"spool:{spool}").run()
    user, elapsed = done.data["user"], done.data["phases"]["payload"]
    assert 0.1 < user <= elapsed + 0.1 and 0 <= done.data["system"] < elapsed
    end = spooled(spool)[1]
    assert "User: <s>" in end
    raw = next(path for path in spool.iterdir() if path.name.endswith("end")).read_text()
    assert re.search(rf"^Elapsed: {elapsed:.3f}\nUser: {user:.3f}\nSystem: {done.data['system']:.3f}$", raw, re.M)


def test_the_seconds_are_not_those_of_the_stage_in(make_job: MakeJob, tmp_path: Path) -> None:
    with (tmp_path / "large").open("w") as file:
        file.truncate(400_000_000)
    done = make_job(row=[("in", "x"), ("in.from", str(tmp_path / "large"))]).run()
    assert done.data["phases"]["stage_in"] > 0.4
    assert done.data["user"] + done.data["system"] < 0.2


def test_a_job_without_messages_has_seconds_and_no_programs(make_job: MakeJob) -> None:
    done = make_job(args=["/bin/sh", "-c", "type pipelineSet; echo $PIPELINE_SUMMARY"]).run()
    assert b"/pipelineSet" not in done.out and b".fermigrid/summary" not in done.out
    assert done.data["user"] >= 0 and done.data["system"] >= 0 and "messages" not in done.data


# --- what the payload calls


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("pipelineSet a $'x\\ny'", "a value is one line"),
        ("pipelineSet a $'x\\ry'", "a value is one line"),
        ("pipelineSet 'a b' 1", "bad name a b"),
        ("pipelineSet '' 1", "bad name"),
        ("pipelineSet a", "usage:"),
        ("pipelineCreateStream t", "usage:"),
        ("pipelineCreateStream t x a=1", "bad number x"),
        ("pipelineCreateStream t -2 a=1", "bad number -2"),
        ("pipelineSet a \"$(printf '%990s' x)\"", "longer than 990 bytes"),
    ],
)
def test_what_cannot_be_a_line_is_refused_aloud(pipeline: Pipeline, spool: Path, call: str, says: str) -> None:
    job = pipeline(f"{call}; [ $? = 2 ] && pipelineSet refused yes", f"spool:{spool}")
    done = job.run(env=ENV)
    assert says in done.err
    assert spooled(spool) == expected(job, done, "Pipeline.refused: yes\n")


def test_a_script_that_makes_itself_a_path_has_the_functions(pipeline: Pipeline, spool: Path) -> None:
    job = pipeline(
        "export PATH=/usr/bin:/bin; bash -c 'pipelineSet by function; type -t pipelineSet'", f"spool:{spool}"
    )
    done = job.run(env=ENV)
    assert b"function" in done.out
    assert spooled(spool) == expected(job, done, "Pipeline.by: function\n")


def test_both_spellings_of_exported_functions(pipeline: Pipeline, spool: Path) -> None:
    names = [b"BASH_FUNC_pipelineSet%%=() {", b"BASH_FUNC_pipelineCreateStream()=() {"]
    code = {
        "payload": "#!/usr/bin/env python3\nimport os\nos.write(1, b'\\n'.join(k+b'='+v for k, v in os.environb.items()))"
    }
    job = pipeline("", f"spool:{spool}")
    job.code = code
    done = job.run()
    assert all(name in done.out for name in names)
    assert b"PIPELINE_SUMMARY=%s/work/.fermigrid/summary" % str(job.scratch).encode() in done.out


def test_other_languages_have_the_programs(pipeline: Pipeline, spool: Path) -> None:
    job = pipeline("", f"spool:{spool}")
    job.code = {
        "payload": "#!/usr/bin/env python3\nimport subprocess\n"
        "subprocess.run(['pipelineSet', 'events', '12'], check=True, env={'PATH': __import__('os').environ['PATH']})"
    }
    done = job.run(env=ENV)
    assert spooled(spool) == expected(job, done, "Pipeline.events: 12\n")


@pytest.mark.parametrize("name", ["a=b", "it's a name"])
def test_a_command_with_an_odd_name(make_job: MakeJob, spool: Path, name: str) -> None:
    settings = [*WHO, ("message.via", f"spool:{spool}")]
    done = make_job(args=[f"./{name}", "x=y"], code={name: '#!/bin/sh\necho "ran $1"'}, settings=settings).run()
    assert done.code == 0 and b"ran x=y" in done.out


def test_lines_that_a_payload_writes_itself(pipeline: Pipeline, spool: Path) -> None:
    script = r"""
    {
        echo "Status: Started"; echo "Pipeline.: no name"; echo "Pipeline.bad name: 1"; echo "# Pipeline.x: 1"; echo .
        printf 'Pipeline.cr: a\rb\n'; printf 'Pipeline.long: %2000s\n' x; printf 'Pipeline.raw: \377\nPipeline.last: no newline'
    } >> "$PIPELINE_SUMMARY"
    """
    job = pipeline(script, f"spool:{spool}")
    done = job.run()
    raw = next(path for path in spool.iterdir() if path.name.endswith("end")).read_bytes()
    lines = raw.partition(b"LogFile: /nfs/logs/l1 run.txt\n")[2].partition(b"Elapsed:")[0].splitlines()
    assert lines == [
        b"Pipeline.cr: a?b", b"# left out, too long: Pipeline.long", b"Pipeline.raw: \xff", b"Pipeline.last: no newline",
    ]  # fmt: skip
    assert done.code == 0


def test_a_message_has_an_end(pipeline: Pipeline) -> None:
    script = "for i in {1..900}; do printf 'PipelineCreateStream.t.-1: %d%500s\\n' $i x; done >> $PIPELINE_SUMMARY"
    done = pipeline(script).run()
    text = done.data["messages"][1]["text"]
    assert "# left out: all after 30000 bytes\nElapsed:" in text and len(text) < 32_000


# --- ways off the node


SENDMAIL = """#!/bin/sh
printf '%s\\n' "$*" >> {folder}/args
n=$(ls {folder} | wc -l)
cat > "{folder}/mail$n"
{then}
"""


def program(folder: Path, then: str = "") -> Path:
    """A sendmail-compatible program; what it gets is in the folder `got` beside it."""
    (folder / "got").mkdir()
    path = folder / "sendmail"
    path.write_text(SENDMAIL.format(folder=folder / "got", then=then))
    path.chmod(0o755)
    return path


def mails(folder: Path) -> list[str]:
    return [masked(path.read_bytes()) for path in sorted((folder / "got").glob("mail*"))]


def test_sendmail(pipeline: Pipeline, tmp_path: Path) -> None:
    job = pipeline(SETS, f"sendmail:{program(tmp_path)}")
    done = job.run(env=ENV)
    assert mails(tmp_path) == expected(job, done, LINES)
    assert (tmp_path / "got/args").read_text() == "-t -i -f l1@example.org\n" * 2
    assert results(done) == [("start", "sent"), ("end", "sent")]


@pytest.mark.parametrize("of", ["node", "job"])
def test_p2_sendmail_comes_first(pipeline: Pipeline, tmp_path: Path, spool: Path, of: str) -> None:
    path = str(program(tmp_path))
    job = pipeline("exit 0", f"spool:{spool}", settings=[("env", f"P2_SENDMAIL={path}")] if of == "job" else [])
    done = job.run(env=ENV | ({"P2_SENDMAIL": path} if of == "node" else {}))
    assert mails(tmp_path) == expected(job, done)
    assert (tmp_path / "got/args").read_text() == "\n\n"
    assert list(spool.iterdir()) == []
    assert [message["route"] for message in done.data["messages"]] == [f"program:{path}"] * 2


@pytest.mark.fault(fault="messages: P2_SENDMAIL of the node fails", mode="any", does="takes the next route", code=0)
@pytest.mark.parametrize("what", ["fails", "absent"])
def test_a_program_that_fails_gives_way(pipeline: Pipeline, tmp_path: Path, spool: Path, what: str) -> None:
    path = program(tmp_path, "exit 75") if what == "fails" else tmp_path / "nowhere"
    job = pipeline("exit 0", f"spool:{spool}")
    done = job.run(env=ENV | {"P2_SENDMAIL": str(path)})
    assert spooled(spool) == expected(job, done) and done.code == 0


@pytest.mark.fault(
    fault="messages: the mail program never ends",
    mode="any",
    does="kills it after its time limit; the report carries the message, in doubt",
    code=0,
)
def test_a_program_that_hangs_is_in_doubt(pipeline: Pipeline, tmp_path: Path, spool: Path) -> None:
    job = pipeline("exit 0", f"program:{program(tmp_path, 'sleep 61')}", f"spool:{spool}")
    began = time.monotonic()
    done = job.run(env=ENV)
    assert time.monotonic() - began < 9
    assert results(done) == [("start", "doubt"), ("end", "doubt")] and done.code == 0
    assert [masked(message["text"].encode()) for message in done.data["messages"]] == expected(job, done)
    assert list(spool.iterdir()) == []  # never blindly by another route
    assert "sleep 61" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_smtp(pipeline: Pipeline, host: str) -> None:
    with smtp("lines", host) as box:
        job = pipeline(SETS, box.address)
        done = job.run(env=ENV)
    assert [masked(post.text) for post in box.got] == expected(job, done, LINES)
    assert {(post.source, post.to) for post in box.got} == {("l1@example.org", ("pipeline@example.org",))}
    assert all(b"\n" not in post.text.replace(b"\r\n", b"") for post in box.got)
    assert results(done) == [("start", "sent"), ("end", "sent")]


def fault(way: str, does: str, result: str) -> Any:
    marks = pytest.mark.fault(fault=f"messages: {way}", mode="any", does=does, code=0)
    return pytest.param(way, result, marks=marks)


NEXT, CARRIED = "takes the next route, or the report carries it", "the report carries it, in doubt; no other route"
SMTP_WAYS = {
    "nobody listens at the mail server": "closed",
    "the mail server says nothing": "mute",
    "the mail server refuses for now (4xx)": "450",
    "the mail server refuses (5xx)": "554",
    "the mail server hangs up before the text": "hangup-before",
    "the mail server hangs up after the text": "hangup",
    "the mail server is silent after the text": "silent",
}


@pytest.mark.parametrize(
    ("way", "result"),
    [
        fault(way, CARRIED if "after the text" in way else NEXT, "doubt" if "after the text" in way else "unsent")
        for way in SMTP_WAYS
    ],
)
def test_an_smtp_server_that_misbehaves(pipeline: Pipeline, spool: Path, way: str, result: str) -> None:
    with smtp(SMTP_WAYS[way]) as box:
        alone, then = pipeline("exit 0", box.address), pipeline("exit 0", box.address, f"spool:{spool}")
        done, other = alone.run(env=ENV), then.run(env=ENV)
    assert (done.code, other.code) == (0, 0)
    assert results(done) == [("start", result), ("end", result)]
    assert [masked(message["text"].encode()) for message in done.data["messages"]] == expected(alone, done)
    after = "sent" if result == "unsent" else "doubt"
    assert results(other) == [("start", after), ("end", after)]
    assert spooled(spool) == (expected(then, other) if after == "sent" else [])


def test_an_unreachable_server_does_not_keep_the_payload_waiting(pipeline: Pipeline) -> None:
    with smtp("mute") as box:
        process = pipeline("echo running; exec sleep 60", box.address).start()
        began = time.monotonic()
        assert process.stdout is not None and process.stdout.readline() == b"running\n"
        assert time.monotonic() - began < 1.5
        process.terminate()
        assert finish(process, 15).code == 143


HTTPS_WAYS = {"500": "unsent", "redirect": "unsent", "hangup": "doubt", "silent": "doubt"}
CLIENT = pytest.mark.parametrize("client", ["curl", "wget"])


def without_curl(folder: Path) -> dict[str, str]:
    """A PATH with everything but curl."""
    tools = folder / "tools"
    tools.mkdir()
    for place in ("/bin", "/usr/bin"):
        for path in Path(place).iterdir():
            if path.name != "curl" and not (tools / path.name).exists():
                (tools / path.name).symlink_to(path)
    return {"PATH": str(tools)}


@CLIENT
def test_https_to_the_byte(pipeline: Pipeline, tmp_path: Path, client: str) -> None:
    script = "pipelineSet blanks '  two  '\npipelineSet tab '\t'"
    with https("good", tmp_path) as (box, ca, _):
        job = pipeline(script, box.address, settings=[("message.ca", str(ca))])
        done = run_with(client, job, tmp_path)
    assert [masked(post.text) for post in box.got] == expected(
        job, done, "Pipeline.blanks:   two  \nPipeline.tab: \t\n"
    )
    assert all(
        b"\r" not in post.text and post.text.endswith(b"Status: %s\n" % word)
        for post, word in zip(box.got, (b"Started", b"Ended"), strict=True)
    )
    assert {post.headers["Content-Type"] for post in box.got} == {"message/rfc822"}
    assert results(done) == [("start", "sent"), ("end", "sent")]


def run_with(client: str, job: Job, folder: Path) -> Done:
    """`PATH` of the tests has the tools of this machine first: a folder without curl has to be the whole of it."""
    if client == "curl":
        return job.run(env=ENV)
    command = job.write()
    text = (job.scratch / "worker.sh").read_text()
    (job.scratch / "worker.sh").write_text(re.sub(r"(?m)^export PATH=.*$", "export PATH=$host_path", text))
    process = subprocess.Popen(
        command,
        cwd=job.scratch,
        env={"USER": "fermi", **ENV, **without_curl(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    return finish(process, 40)


@CLIENT
@pytest.mark.parametrize("way", HTTPS_WAYS)
def test_an_https_server_that_misbehaves(
    pipeline: Pipeline, tmp_path: Path, spool: Path, way: str, client: str
) -> None:
    with https(way, tmp_path) as (box, ca, _):
        job = pipeline("exit 0", box.address, f"spool:{spool}", settings=[("message.ca", str(ca))])
        done = run_with(client, job, tmp_path)
    result = "sent" if HTTPS_WAYS[way] == "unsent" else "doubt"
    assert results(done) == [("start", result), ("end", result)]
    assert {"method": "GET"} not in [post.headers for post in box.got]
    assert spooled(spool) == (expected(job, done) if result == "sent" else [])


@CLIENT
@pytest.mark.fault(
    fault="messages: an HTTPS server that is not the right one",
    mode="any",
    does="sends it nothing, takes the next route",
    code=0,
)
def test_an_https_server_with_a_wrong_certificate_gets_nothing(
    pipeline: Pipeline, tmp_path: Path, spool: Path, client: str
) -> None:
    with https("good", tmp_path) as (box, _, wrong):
        job = pipeline("exit 0", box.address, f"spool:{spool}", settings=[("message.ca", str(wrong))])
        done = run_with(client, job, tmp_path)
    assert box.got == [] and spooled(spool) == expected(job, done)


def test_nobody_at_the_https_address(pipeline: Pipeline) -> None:
    with smtp("closed") as box:
        done = pipeline("exit 0", box.address.replace("smtp", "https")).run()
    assert results(done) == [("start", "unsent"), ("end", "unsent")]


def test_a_spool_folder_has_private_files_under_names_that_tell_them_apart(pipeline: Pipeline, spool: Path) -> None:
    done = pipeline("exit 0", f"spool:{spool}").run()
    names = [f"12345678.{done.report.attempt}.{kind}" for kind in ("end", "start")]
    assert sorted(path.name for path in spool.iterdir()) == names
    assert {stat.S_IMODE(path.stat().st_mode) for path in spool.iterdir()} == {0o600}


@pytest.mark.fault(
    fault="messages: the spool folder is full", mode="any", does="leaves nothing there; the report carries it", code=0
)
def test_a_full_spool(pipeline: Pipeline, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    mount = f'mount -t tmpfs -o size=4k,nr_inodes=10 full {full} && {{ head -c 9000 /dev/zero > {full}/x || :; }} 2> /dev/null; "$@"; c=$?; ls -A {full} >&2; exit $c'
    job = pipeline("exit 0", f"spool:{full}")
    done = job.run(env=ENV, prefix=["unshare", "--mount", "sh", "-c", mount, "sh"])
    assert results(done) == [("start", "unsent"), ("end", "unsent")]
    assert [masked(message["text"].encode()) for message in done.data["messages"]] == expected(job, done)
    assert [line for line in done.err.splitlines() if not line.startswith("fermigrid| ")][-1:] == ["x"]
    assert "\n.12345678" not in done.err


def test_no_route_and_no_folder(pipeline: Pipeline, tmp_path: Path) -> None:
    none, missing = pipeline().run(), pipeline("exit 0", f"spool:{tmp_path}/nowhere").run()
    assert results(none) == results(missing) == [("start", "unsent"), ("end", "unsent")]
    assert [message["route"] for message in none.data["messages"]] == ["", ""]


# --- the end message goes out whatever happened


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_payload_that_is_ended(pipeline: Pipeline, spool: Path, number: signal.Signals) -> None:
    job = pipeline("echo ready; exec sleep 60", f"spool:{spool}", shell="sh")
    process = job.start(env=ENV)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    done = finish(process, 8)
    assert spooled(spool) == expected(job, done, code=128 + number, signals=number.name.removeprefix("SIG"))


def test_signals_that_warn_are_told_too(pipeline: Pipeline, spool: Path) -> None:
    script = (
        "trap 'echo warned' XCPU; trap 'pipelineSet saved yes; exit 4' TERM; echo ready; while :; do sleep 0.05; done"
    )
    job = pipeline(script, f"spool:{spool}")
    process = job.start(env=ENV)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGXCPU)
    assert process.stdout.readline() == b"warned\n"
    process.send_signal(signal.SIGTERM)
    done = finish(process, 8)
    assert spooled(spool) == expected(job, done, "Pipeline.saved: yes\n", code=4, signals="XCPU TERM")


@pytest.mark.fault(
    fault="messages: the batch system ends the job, and the mail server is silent",
    mode="any",
    does="one short try; the report carries the message",
    code=143,
)
def test_a_job_that_is_ended_does_not_wait_for_its_messages(pipeline: Pipeline) -> None:
    settings = [("message.timeout", "60")]
    with smtp("silent") as box:
        process = pipeline("echo ready; exec sleep 60", box.address, settings=settings).start(env=ENV)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert box.arrived.wait(10)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        done = finish(process, 15)
        assert time.monotonic() - began < 9
    assert results(done) == [("start", "doubt"), ("end", "doubt")] and done.code == 143


def test_a_signal_while_the_end_message_goes_out_changes_nothing(pipeline: Pipeline) -> None:
    with smtp("silent") as box:
        process = pipeline("exit 0", box.address).start(env=ENV)
        wait_for(lambda: len(box.got) == 2)
        process.send_signal(signal.SIGTERM)
        done = finish(process, 15)
    assert (done.code, results(done)) == (0, [("start", "doubt"), ("end", "doubt")])


FAILURES = {
    "no runtime": (81, {"head": {"launch": "worker", "runtime": "/nonexistent/apptainer"}}),
    "no input": (86, {"row": [("in", "x"), ("in.from", "/nonexistent/x")]}),
    "no secret": (85, {"settings": [("secret", "wallet"), ("secret.from", "/nonexistent/wallet")]}),
    "a bind that is required": (84, {"settings": [("bind", "/nonexistent/sps")]}),
    "an unknown key": (80, {"settings": [("from.the.future", "1")]}),
}


@pytest.mark.parametrize("what", FAILURES)
def test_each_failure_of_the_worker_is_told(pipeline: Pipeline, spool: Path, what: str) -> None:
    code, how = FAILURES[what]
    job = pipeline("exit 0", f"spool:{spool}", **how)
    done = job.run(env=ENV)
    start, end = expected(job, done, code=code)
    assert done.code == code
    assert spooled(spool) == ([end] if code == 80 else [start, end])


@pytest.mark.fault(
    fault="messages: job.env is damaged", mode="any", does="sends the end message for what is left of it", code=80
)
def test_a_damaged_job_env(pipeline: Pipeline, spool: Path) -> None:
    job = pipeline("exit 0", f"spool:{spool}")
    command = job.write()
    text = (job.scratch / "job.env").read_text()
    (job.scratch / "job.env").write_text("rubbish\n" + text)
    process = subprocess.Popen(
        command, cwd=job.scratch, env={"PATH": "/usr/bin:/bin", **ENV}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    done = finish(process)
    assert spooled(spool) == [expected(job, done, code=80)[1]]


@pytest.mark.fault(
    fault="messages: scratch is full, the summary could not be written",
    mode="any",
    does="the end message goes out without it",
    code=89,
)
def test_a_full_disk(pipeline: Pipeline, spool: Path, small_disk: list[str]) -> None:
    script = "head -c 4000000 /dev/zero > big; pipelineSet a 1 || exit 5"
    job = pipeline(script, f"spool:{spool}")
    done = job.run(env=ENV, prefix=small_disk)
    assert done.code == 89 and results(done) == [("start", "sent"), ("end", "sent")]
    end = spooled(spool)[1]
    assert "ExitCode: 5\n" in end and "Pipeline." not in end and end.endswith("Status: Ended\n")


def test_no_secret_in_a_message(pipeline: Pipeline, spool: Path, tmp_path: Path) -> None:
    wallet = tmp_path / "wallet"
    wallet.mkdir()
    (wallet / "cwallet.sso").write_text("CANARY-7f3a")
    secrets = [("secret", "oracle"), ("secret.from", str(wallet)), ("secret.point", "TNS_ADMIN=.")]
    done = pipeline('cat "$TNS_ADMIN/cwallet.sso"; exit 3', f"spool:{spool}", settings=secrets).run()
    assert b"CANARY" in done.out.splitlines()[0]  # the payload had it
    assert not any("CANARY" in text for text in spooled(spool))
    assert "CANARY" not in json.dumps(done.data) + done.err


def test_nothing_is_left_behind(pipeline: Pipeline, spool: Path) -> None:
    job = pipeline("exit 3", f"spool:{spool}")
    job.run()
    left = {path.name for path in job.scratch.iterdir()}
    assert left - {"worker.sh", "job.env", "bundle.tar.gz", "out"} == {next(iter(job.scratch.glob("s0000-*"))).name}
