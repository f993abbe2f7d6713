"""Mounts that misbehave, the real ones: autofs of the kernel, and a FUSE file system that hangs, fails or dies."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.worker.faulty_http import serve
from tests.worker.node import IMAGES, Node, built, running_node, wait_for
from tests.worker.test_binds import bind
from tests.worker.worker_job import NO_RUNTIME, Done, Job, Pairs, read_log, sha256

pytestmark = pytest.mark.pool

HEAD = {"launch": "worker", "order": "wrapper-outside", "runtime": "apptainer"}
BARE = {"launch": "worker", "order": "wrapper-outside", "runtime": NO_RUNTIME, "rehearsal": "yes"}
INSIDE = HEAD | {"order": "wrapper-inside"}
SITE = HEAD | {"launch": "site"}
REPOSITORY = "/cvmfs/fermi.test"
LIGHT = IMAGES / "cvmfs/fermi.test/images/light-1"
LIMIT_S = 2
SLACK_S = 5  # for all that is no waiting, on a busy machine


@dataclass(frozen=True)
class Sick:
    """A node with a sick CVMFS on REPOSITORY, and the same on /mnt/bad; both serve `source`."""

    node: Node
    source: Path

    def run(self, *settings: Pairs, image: str | Path = LIGHT, head: dict[str, str] = HEAD, **what: object) -> Done:
        """A job with limit.path=LIMIT_S that ends in time and leaves nothing but processes that cannot be killed."""
        job = self.job(*settings, image=image, head=head, **what)
        began = time.monotonic()
        done = self.node.run_job(job)
        wait_for(lambda: all(line.split()[1] in "DZ" for line in self.left()), f"it has left {self.left()}")
        assert done.data["phases"]["total"] < time.monotonic() - began
        return done

    def job(self, *settings: Pairs, image: str | Path = LIGHT, head: dict[str, str] = HEAD, **what: object) -> Job:
        common = [
            ("image.path", str(image)),
            ("image.marker", "light-1"),
            ("limit.path", str(LIMIT_S)),
            ("backoff", "1"),
        ]
        if head["launch"] == "site":
            del common[1]
        what.setdefault("args", ["/bin/echo", "payload ran"])
        return self.node.job(settings=[*common, *(pair for pairs in settings for pair in pairs)], head=head, **what)

    def left(self) -> list[str]:
        """What is in the node besides the daemons of its mounts."""
        daemons = ("badfs.py", "automount", "auto.", "sleep 1000")
        return [line for line in self.node.processes() if not any(word in line for word in daemons)]


@pytest.fixture
def empty(node: Node) -> Sick:
    """A node of which nothing is mounted yet. `source` has an image, a folder `data` and a SIF under names of all kinds."""
    source = node.folder / "source"
    for name in ("data", "images", "a"):  # what hangs, in a, holds up the other look-ups in there
        (source / name).mkdir(parents=True)
    (source / "data/f").write_text("content\n")
    (source / "images/readhang.sif").write_bytes(b"x" * 1000)
    (source / "images/readeio.sif").write_bytes(b"x" * 1000)
    (source / "readhang").write_text("never\n")
    (source / "loop").symlink_to("loop")
    (source / "fickle").mkdir()
    (source / "fickle/f").write_text("content\n")
    return Sick(node, source)


@pytest.fixture
def sick(empty: Sick) -> Sick:
    for where in (REPOSITORY, "/mnt/bad"):
        empty.node.mount_bad(where, empty.source)
    return empty


def fault(what: str, does: str, code: object, mode: str = "worker") -> pytest.MarkDecorator:
    return pytest.mark.fault(fault=what, mode=mode, does=does, code=code)


def taken(done: Done) -> float:
    return float(done.data["phases"]["total"])


def test_the_node_itself(node: Node) -> None:
    """What the other tests stand on: it is another machine, and it ends though a process cannot be killed."""
    assert node.run("id", "-u").stdout == "20001\n" and node.run("id", "-u", user="root").stdout == "0\n"
    node.mount_bad("/mnt/bad")
    hanging = node.start("stat", "/mnt/bad/hang")
    wait_for(lambda: any("stat" in line for line in node.processes()), "stat runs")
    time.sleep(0.2)
    node.kill(hanging)
    time.sleep(0.2)
    assert [line.split()[1] for line in node.processes() if " stat " in line] == ["D"]
    began = time.monotonic()
    node.end()
    assert time.monotonic() - began < 5 and node.processes() == []


def test_a_node_whose_test_takes_too_long_ends_itself() -> None:
    with running_node(life_s=1) as node:
        node.mount_bad("/mnt/bad")
        node.start("stat", "/mnt/bad/hang")
        node.process.wait(timeout=10)


# --- the image


@pytest.mark.parametrize(
    ("image", "words", "code", "least"),
    [
        pytest.param(
            f"{REPOSITORY}/a/hang/light",
            "hanging",
            91,
            LIMIT_S,
            id="hangs",
            marks=fault("CVMFS hangs, unkillably, at the image's path", "leaves the child behind after its time limit", 91),
        ),
        pytest.param(
            "/mnt/bad/a/hang/light",
            "no source has the image",
            82,
            LIMIT_S,
            id="hangs elsewhere",
            marks=fault("a file system other than CVMFS hangs at the image's path", "leaves the child behind, takes the next rung; there is none", 82),
        ),
        pytest.param(
            f"{REPOSITORY}/images/readhang.sif",
            "hanging",
            91,
            LIMIT_S,
            id="read hangs",
            marks=fault("a SIF on CVMFS opens, and reading it hangs", "leaves the child behind after its time limit", 91),
        ),
        pytest.param(
            f"{REPOSITORY}/images/readeio.sif",
            "Input/output error",
            91,
            0,
            id="read fails",
            marks=fault("a SIF on CVMFS opens, and reading it gives EIO", "tries again within its time limit; does not call it damaged", 91),
        ),
        pytest.param(
            f"{REPOSITORY}/eio/light",
            "Input/output error",
            91,
            1,
            id="eio",
            marks=fault("CVMFS answers EIO at the image's path", "tries again within its time limit", 91),
        ),
        pytest.param(
            f"{REPOSITORY}/estale/light",
            "Stale file handle",
            91,
            0,
            id="stale",
            marks=fault("CVMFS answers ESTALE at the image's path", "passes the rung over; there is no other", 91),
        ),
        pytest.param(
            "/mnt/bad/enotconn/light",
            "Transport endpoint is not connected",
            91,
            0,
            id="not connected",
            marks=fault("'Transport endpoint is not connected' at the image's path", "passes the rung over; there is no other", 91),
        ),
    ],
)  # fmt: skip
def test_an_image_on_a_sick_mount(sick: Sick, image: str, words: str, code: int, least: int) -> None:
    done = sick.run(image=image)
    assert done.code == code and words in done.message, done.err
    assert b"payload ran" not in done.out and "waiting" in done.err
    assert least <= taken(done) < LIMIT_S + SLACK_S


@fault(
    "CVMFS hangs at the image's path, and HTTP has the image",
    "leaves the child behind after its time limit, takes the next rung",
    0,
)
def test_the_next_rung_after_one_that_hangs(sick: Sick) -> None:
    content = (built()["images"] / "http/images/light-1.sif").read_bytes()
    with serve(content) as server:
        urls = [
            ("image.url", f"{server.url}/good/i.sif"),
            ("image.sha256", sha256(content)),
            ("image.size", str(len(content))),
        ]
        done = sick.run(urls, image=f"{REPOSITORY}/a/hang/light", args=["/bin/cat", "/etc/fermigrid-image"])
    assert done.code == 0 and done.out.startswith(b"light-1\n") and done.report.rung == "http"
    assert [tried["result"] for tried in done.data["image"]["tried"]] == ["timeout", "ok"]


@fault(
    "the CVMFS daemon dies; the kernel's cache says for a moment that all is there",
    "opens the path, so that the dead daemon is asked",
    91,
)
def test_a_daemon_that_has_died(empty: Sick) -> None:
    node = empty.node
    daemon = node.mount_bad(REPOSITORY, Path("/build/cvmfs/fermi.test"))
    image = f"{REPOSITORY}/images/light-1"
    node.sh('ls "$1" > /dev/null', image)
    node.kill(daemon)
    done = empty.run(image=image)
    assert done.code == 91 and "Transport endpoint is not connected" in done.message


@fault("a moment's EIO of the image's mount", "asks again after 1, 2, 4 s", 0)
def test_an_error_that_passes(empty: Sick) -> None:
    link = empty.source / "fickle/light"
    link.symlink_to(LIGHT)
    empty.node.mount_bad("/mnt/bad", empty.source, FICKLE="1")
    done = empty.run([("limit.path", "10")], image="/mnt/bad/fickle/light")
    assert done.code == 0 and b"payload ran" in done.out and 1 <= taken(done) < 10


# --- automounts


def automounts(sick: Sick) -> str:
    """The text of a program map: keys that answer at once, slowly, at the second time, or never."""
    data = f"-fstype=bind :{sick.source}/data"
    state = sick.node.folder / "asked"
    return f"""case $1 in
        fermi.test) echo "-fstype=bind :/build/cvmfs/fermi.test" ;;
        quick) echo "{data}" ;;
        slow) sleep 1; echo "{data}" ;;
        second) if [ -e {state} ]; then echo "{data}"; else touch {state}; exit 1; fi ;;
        never) sleep 1000 ;;
        *) exit 1 ;;
    esac"""


@pytest.fixture
def auto(empty: Sick) -> Sick:
    """A node with autofs on /cvmfs and /mnt/auto: nothing is there until it is touched."""
    text = automounts(empty)
    empty.node.mount_auto({"/cvmfs": text, "/mnt/auto": text})
    assert empty.node.run("ls", "/cvmfs", "/mnt/auto").stdout == "/cvmfs:\n\n/mnt/auto:\n"
    return empty


@fault("the image's CVMFS is an automount, absent until it is touched", "wakes it", 0)
def test_an_image_under_an_automount(auto: Sick) -> None:
    done = auto.run(image=f"{REPOSITORY}/images/light-1")
    assert done.code == 0 and b"payload ran" in done.out and taken(done) < 2


@fault("the automount never answers, at the image's path", "leaves it after its time limit; CVMFS is broken", 91)
def test_an_automount_that_never_answers(auto: Sick) -> None:
    done = auto.run(image="/cvmfs/never/light")
    assert done.code == 91 and "hanging" in done.message and taken(done) < LIMIT_S + SLACK_S
    wait_for(lambda: not auto.left(), "the child, which can be killed, has ended")


@fault("TERM while the worker waits for a mount", "kills the child and ends at once", 143)
def test_a_signal_while_a_mount_is_asked(auto: Sick) -> None:
    process = auto.node.start_job(auto.job([("limit.path", "60")], image="/cvmfs/never/light"))
    wait_for(lambda: any(line.split()[1] == "D" for line in auto.left()), "a child hangs")
    auto.node.kill(process, signal.SIGTERM)
    out, err = auto.node.ended(process, 10)
    assert read_log(process.returncode, out, err.decode()).code == 143
    wait_for(lambda: not auto.left(), "nothing is left")


@pytest.mark.parametrize(
    ("key", "code", "least"),
    [
        pytest.param("quick", 0, 0, marks=fault("the source of a required bind is an automount, absent until it is touched", "wakes it", 0)),
        pytest.param("slow", 0, 1, marks=fault("the source of a required bind is a slow automount", "waits for it within its time limit", 0)),
        pytest.param("second", 0, 1, marks=fault("an automount fails at first", "asks again after 1, 2, 4, 8 s", 0)),
        pytest.param("never", 84, LIMIT_S, marks=fault("the automount of a required bind never answers", "leaves it after its time limit", 84)),
        pytest.param("none", 84, 1, marks=fault("the automount of a required bind has no such key", "asks again within its time limit", 84)),
    ],
)  # fmt: skip
def test_a_bind_of_an_automount(auto: Sick, key: str, code: int, least: int) -> None:
    done = auto.run(bind(f"/mnt/auto/{key}", "/srv/data"), [("limit.path", "4")], args=["/bin/cat", "/srv/data/f"])
    assert done.code == code, done.err
    assert (b"content" in done.out) == (code == 0)
    assert least <= taken(done) < 4 + SLACK_S


@fault(
    "a bound folder holds automounts, and an argument names one that sleeps",
    "wakes what arguments, variables, inputs and outputs name below it",
    0,
)
def test_an_automount_below_a_bind(auto: Sick) -> None:
    args = ["/bin/sh", "-c", 'cat "${1#--in=}" "$IN2"', "sh", "--in=/mnt/auto/quick/f"]
    job = auto.job(bind("/mnt/auto", "/mnt/auto"), args=args, row=[("env", "IN2=/mnt/auto/slow/f")])
    done = auto.node.run_job(job)
    assert done.code == 0 and done.out.startswith(b"content\ncontent\n"), done.err


@fault("an optional bind is missing, and under no automount", "drops it at once, without asking again", 0)
def test_what_is_missing_costs_no_time(sick: Sick) -> None:
    done = sick.run(bind("/mnt/bad/absent", "/srv/a", "no"), [("limit.path", "30")])
    assert done.code == 0 and taken(done) < 2 and done.data["binds"][0]["result"] == "dropped"


# --- binds, software, secrets


@pytest.mark.parametrize(
    ("source", "required", "code", "words"),
    [
        pytest.param("/mnt/bad/a/hang/d", "yes", 84, "hanging", id="hangs", marks=fault("the source of a required bind hangs", "leaves the child behind after its time limit", 84)),
        pytest.param("/mnt/bad/a/hang/d", "no", 0, "hanging", id="optional hangs", marks=fault("the source of an optional bind hangs", "leaves the child behind, drops the bind", 0)),
        pytest.param(f"{REPOSITORY}/a/hang/d", "yes", 91, "hanging", id="cvmfs hangs", marks=fault("the source of a required bind is on CVMFS, which hangs", "leaves the child behind; CVMFS is broken", 91)),
        pytest.param(f"{REPOSITORY}/eio/d", "yes", 91, "Input/output error", id="cvmfs eio", marks=fault("the source of a required bind is on CVMFS, which answers EIO", "asks again within its time limit; CVMFS is broken", 91)),
        pytest.param("/mnt/bad/loop", "yes", 84, "Too many levels of symbolic links", id="loop", marks=fault("'Too many levels of symbolic links' at the source of a required bind", "asks again within its time limit", 84)),
        pytest.param("/mnt/bad/eio/d", "yes", 84, "Input/output error", id="eio", marks=fault("the source of a required bind answers EIO", "asks again within its time limit", 84)),
        pytest.param("/mnt/bad/enotconn/d", "yes", 91, "not connected", id="not connected", marks=fault("'Transport endpoint is not connected' at the source of a required bind", "ends; another node may have it in order", 91)),
        pytest.param("/mnt/bad/enotconn/d", "no", 0, "not connected", id="optional not connected", marks=fault("'Transport endpoint is not connected' at the source of an optional bind", "drops the bind", 0)),
    ],
)  # fmt: skip
def test_a_bind_from_a_sick_mount(sick: Sick, source: str, required: str, code: int, words: str) -> None:
    done = sick.run(bind(source, "/srv/d", required))
    assert done.code == code and words in done.err, done.err
    assert (b"payload ran" in done.out) == (code == 0)
    assert done.data["binds"][0]["result"] == ("fatal" if code else "dropped")
    assert taken(done) < LIMIT_S + SLACK_S


@fault(
    "a runtime with an absolute path is on CVMFS, which hangs", "leaves the child behind, looks for the next runtime", 0
)
def test_a_runtime_on_a_sick_mount(sick: Sick) -> None:
    done = sick.run([("runtime", "apptainer")], head=HEAD | {"runtime": f"{REPOSITORY}/a/hang/apptainer"})
    assert done.code == 0 and b"payload ran" in done.out and LIMIT_S <= taken(done) < LIMIT_S + SLACK_S


@fault("two binds hang", "each costs its time limit", 84)
def test_more_binds_than_one(sick: Sick) -> None:
    settings = [
        bind("/mnt/bad/a/hang/1", "/srv/1", "no"),
        bind("/mnt/bad/data", "/srv/2"),
        bind(f"{REPOSITORY}/slow1/3", "/srv/3", "no"),
    ]
    done = sick.run(*settings, bind("/mnt/bad/a/hang/4", "/srv/4"))
    assert done.code == 84 and "/mnt/bad/a/hang/4" in done.message
    assert [entry["result"] for entry in done.data["binds"]] == ["dropped", "kept", "dropped", "fatal"]
    assert 2 * LIMIT_S <= taken(done) < 2 * LIMIT_S + SLACK_S


@pytest.mark.parametrize(
    ("source", "code"),
    [
        pytest.param("/mnt/bad/a/hang/lat", 84, id="hangs", marks=fault("the mount of a software hangs", "leaves the child behind after its time limit", 84)),
        pytest.param(f"{REPOSITORY}/enotconn/lat", 91, id="not connected", marks=fault("'Transport endpoint is not connected' at a software's folder", "ends; CVMFS is broken", 91)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["worker", "site"])
def test_software_on_a_sick_mount(sick: Sick, source: str, code: int, where: str) -> None:
    """Bound by the worker, or looked for where the site has started the container."""
    software = [("software", "lat"), ("software.from", source), ("software.to", "/srv/lat")]
    if where == "worker":
        done = sick.run(software)
    else:
        job = sick.job(software, head=SITE)
        done = sick.node.run_job(job, env={"APPTAINER_CONTAINER": str(LIGHT)})
    assert done.code == code and source in done.message and b"payload ran" not in done.out
    assert taken(done) < LIMIT_S + SLACK_S


@fault(
    "the site has started the container, and a required bind's target hangs in it",
    "leaves the child behind after its time limit",
    84,
    "site",
)
def test_a_target_that_hangs(sick: Sick) -> None:
    job = sick.job(bind("/x", "/mnt/bad/a/hang/d"), head=SITE)
    done = sick.node.run_job(job, env={"APPTAINER_CONTAINER": str(LIGHT)})
    assert done.code == 84 and "hanging" in done.message and taken(done) < LIMIT_S + SLACK_S


@pytest.mark.parametrize(
    ("source", "words"),
    [
        pytest.param("/mnt/bad/a/hang/key", "is not there", marks=fault("a secret's folder hangs", "leaves the child behind; no copy and no guard stay", 85)),
        pytest.param("/mnt/bad/readhang", "cannot be copied", marks=fault("a secret opens, and reading it hangs", "leaves the child behind; no copy and no guard stay", 85)),
    ],
)  # fmt: skip
def test_a_secret_on_a_sick_mount(sick: Sick, source: str, words: str) -> None:
    done = sick.run([("secret", "key"), ("secret.from", source)])
    assert done.code == 85 and words in done.message and taken(done) < LIMIT_S + SLACK_S
    assert sick.node.sh("find /dev/shm -name 'fermigrid.*'") == ""


# --- inputs, outputs, the node's cache


@pytest.mark.parametrize(
    ("first", "least"),
    [
        pytest.param("/mnt/bad/a/hang/in", LIMIT_S, id="hangs", marks=fault("an input's file system hangs", "leaves the child behind, takes the next replica", 0, "any")),
        pytest.param("/mnt/bad/eio/in", 0, id="eio", marks=fault("an input's file system answers EIO", "takes the next replica", 0, "any")),
        pytest.param("/mnt/bad/enotconn/in", 0, id="not connected", marks=fault("'Transport endpoint is not connected' at an input", "takes the next replica", 0, "any")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("head", [BARE, INSIDE], ids=["outside", "inside"])
def test_an_input_on_a_sick_mount(sick: Sick, first: str, least: int, head: dict[str, str]) -> None:
    sources = [("in", "f"), ("in.from", first), ("in.from", "/cvmfs/fermi.test/data/f")]
    done = sick.run(bind("/mnt", "/mnt"), bind("/cvmfs", "/cvmfs"), head=head, args=["/bin/cat", "f"], row=sources)
    assert done.code == 0 and done.out.startswith(b"content\n"), done.err
    assert done.data["inputs"][0]["source"] == "/cvmfs/fermi.test/data/f"
    assert least <= taken(done) < LIMIT_S + SLACK_S


@fault("the node cache's file system hangs", "leaves the child behind, fetches for this job alone", 0)
def test_a_cache_on_a_sick_mount(sick: Sick) -> None:
    content = (built()["images"] / "http/images/light-1.sif").read_bytes()
    with serve(content) as server:
        urls = [
            ("image.url", f"{server.url}/good/i.sif"),
            ("image.sha256", sha256(content)),
            ("image.size", str(len(content))),
        ]
        done = sick.run(urls, [("node_cache", "/mnt/bad/a/hang/cache")], image="/nonexistent")
    assert done.code == 0 and done.report.rung == "http" and "node cache" in done.err and b"payload ran" in done.out
    assert taken(done) < LIMIT_S + SLACK_S


@fault("an input opens, and reading it hangs", "leaves the child behind after limit.stage_in", 86, "any")
def test_an_input_whose_content_never_comes(sick: Sick) -> None:
    row = [("in", "f"), ("in.from", "/mnt/bad/readhang")]
    done = sick.run([("limit.stage_in", "2"), ("stage.tries", "1")], head=BARE, args=["/bin/cat", "f"], row=row)
    assert done.code == 86 and "/mnt/bad/readhang" in done.message and taken(done) < 2 + 5 + SLACK_S


@pytest.mark.parametrize(
    ("root", "to", "words", "head"),
    [
        pytest.param("/mnt/bad/a/hang", "o", "/mnt/bad/a/hang", INSIDE, id="hangs", marks=fault("the outputs' file system hangs", "leaves the child behind after its time limit", 88, "any")),
        pytest.param("/mnt/bad/data", "hang/o", "/mnt/bad/data/hang", BARE, id="folder hangs", marks=fault("an output's folder hangs", "leaves the child behind after limit.stage_out", 88, "any")),
        pytest.param("/mnt/bad/data", "writehang", "cannot be written", INSIDE, id="write hangs", marks=fault("writing an output hangs", "leaves the child behind after limit.stage_out", 88, "any")),
        pytest.param("/mnt/bad/enotconn", "o", "/mnt/bad/enotconn", BARE, id="not connected", marks=fault("'Transport endpoint is not connected' at the outputs' folder", "ends, leaves nothing half done", 88, "any")),
        pytest.param("/mnt/bad/eio", "o", "/mnt/bad/eio", INSIDE, id="eio", marks=fault("the outputs' file system answers EIO", "ends, leaves nothing half done", 88, "any")),
    ],
)  # fmt: skip
def test_an_output_to_a_sick_mount(sick: Sick, root: str, to: str, words: str, head: dict[str, str]) -> None:
    """In order wrapper-inside the worker in the container does it; its own words come out all the same."""
    (sick.source / "data").chmod(0o777)
    row = [("out", "o"), ("out.to", to)]
    limits = [("output.root", root), ("limit.stage_out", "2"), ("stage.tries", "1")]
    binds = bind("/mnt", "/mnt", "yes", "rw")
    done = sick.run(limits, binds, head=head, args=["/bin/sh", "-c", "echo made > o"], row=row, kind="posix")
    assert done.code == 88 and words in done.message, done.err
    assert done.data["payload_exit"] == 0 and taken(done) < 2 * LIMIT_S + 10 + SLACK_S
    assert not (sick.source / "data" / to).exists()


# --- what breaks while the payload runs


@pytest.mark.parametrize("head", [HEAD, INSIDE], ids=["outside", "inside"])
@fault(
    "a bind's daemon dies while the payload runs, and the payload fails",
    "sees that the mount is broken now: not the payload's fault",
    91,
)
def test_a_mount_that_dies_under_the_payload(empty: Sick, head: dict[str, str]) -> None:
    daemon = empty.node.mount_bad("/mnt/bad", empty.source)
    args = ["/bin/sh", "-c", "touch begun; while cat /data/f > /dev/null 2>&1; do sleep 0.1; done; exit 5"]
    job = empty.job(bind("/mnt/bad/data", "/data"), head=head, args=args)
    process = empty.node.start_job(job)
    wait_for((job.scratch / "work/begun").exists, "the payload runs", 20)
    empty.node.kill(daemon)
    out, err = empty.node.ended(process, 30)
    done = read_log(process.returncode, out, err.decode())
    assert done.code == 91 and done.data["payload_exit"] == 5, done.err
    assert "exit code 5" in done.message and "Transport endpoint is not connected" in done.message


@fault(
    "the image's daemon dies while the payload runs", "sees that the image is broken now: not the payload's fault", 91
)
def test_an_image_that_dies_under_the_payload(empty: Sick) -> None:
    daemon = empty.node.mount_bad(REPOSITORY, Path("/build/cvmfs/fermi.test"))
    args = ["/bin/sh", "-c", "touch begun; while /usr/bin/true; do /bin/sleep 0.1; done; exit 5"]
    job = empty.job(image=f"{REPOSITORY}/images/light-1", args=args)
    process = empty.node.start_job(job)
    wait_for((job.scratch / "work/begun").exists, "the payload runs", 20)
    empty.node.kill(daemon)
    out, err = empty.node.ended(process, 30)
    done = read_log(process.returncode, out, err.decode())
    assert done.code == 91 and "Transport endpoint is not connected" in done.message, done.err


def test_a_payload_that_fails_by_itself(sick: Sick) -> None:
    """Its code stays, though an optional bind was broken from the beginning."""
    done = sick.run(
        bind("/mnt/bad/data", "/d"), bind("/mnt/bad/enotconn/e", "/e", "no"), args=["/bin/sh", "-c", "exit 5"]
    )
    assert done.code == 5 and done.message == "the payload ended with exit code 5"


# --- CVMFS's own words


@pytest.mark.parametrize("head", [HEAD, INSIDE], ids=["outside", "inside"])
def test_the_health_of_cvmfs_is_in_the_report(empty: Sick, head: dict[str, str]) -> None:
    """Once, however many of its folders the job uses; with its proxy, because there were errors."""
    empty.node.mount_bad(REPOSITORY, Path("/build/cvmfs/fermi.test"), NIOERR="3")
    done = empty.run(bind(f"{REPOSITORY}/images", "/srv/i"), head=head, image=f"{REPOSITORY}/images/light-1")
    health = {"path": REPOSITORY, "revision": "4711", "nioerr": "3", "proxy": "http://127.0.0.1:3128"}
    assert done.code == 0 and done.data["cvmfs"] == [health]


def test_a_healthy_cvmfs_costs_two_processes(empty: Sick) -> None:
    """Where the site has started the container; a folder that is not on CVMFS is asked nothing."""
    empty.node.mount_bad(REPOSITORY, empty.source, ONE_THREAD="yes")  # its threads would count as processes
    counts = []
    for number, folder in enumerate((empty.source / "data", f"{REPOSITORY}/data")):
        software = [("software", "lat"), ("software.from", str(folder)), ("software.to", "/nonexistent")]
        job = empty.job(software, name=f"job{number}", head=SITE)
        before = int(empty.node.sh("echo $$"))
        done = empty.node.run_job(job, env={"APPTAINER_CONTAINER": str(LIGHT)})
        counts.append(int(empty.node.sh("echo $$")) - before)
        expected = [{"path": REPOSITORY, "revision": "4711", "nioerr": "0"}] if number else []
        assert done.code == 0 and done.data["cvmfs"] == expected
    assert counts[1] - counts[0] <= 2 and counts[0] < 30, counts


@fault("CVMFS answers, but its extended attributes hang", "leaves the child behind after its time limit", 91)
def test_attributes_that_hang(empty: Sick) -> None:
    empty.node.mount_bad(REPOSITORY, Path("/build/cvmfs/fermi.test"), HANGING_ATTRIBUTES="yes")
    done = empty.run(image=f"{REPOSITORY}/images/light-1")
    assert done.code == 91 and "hanging" in done.message and taken(done) < LIMIT_S + SLACK_S


def test_a_file_system_without_the_attributes(empty: Sick) -> None:
    empty.node.mount_bad(REPOSITORY, Path("/build/cvmfs/fermi.test"), NO_ATTRIBUTES="yes")
    done = empty.run(image=f"{REPOSITORY}/images/light-1")
    assert done.code == 0 and done.data["cvmfs"] == []
