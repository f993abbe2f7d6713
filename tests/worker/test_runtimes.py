"""Runtimes and binds on unlike nodes: what the site's configuration forbids, what the kernel lacks, which runtime it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.pool.conftest import job_folder, pool, running_pool
from tests.worker.test_container import (
    NO_NAMESPACES,
    ORDERS,
    OUTSIDE,
    Node,
    bind,
    node,
    of_site,
    sh,
    until_ready,
)
from tests.worker.worker_job import Done, finish

__all__ = ["job_folder", "node", "pool", "running_pool"]
pytestmark = pytest.mark.pool

FAKE = Path(__file__).with_name("singularity3")
MARKER = ("image.marker", "light-1")


def in_mounts(script: str) -> list[str]:
    """A command prefix for root: a mount namespace of its own in which `script` has been run."""
    return ["unshare", "--mount", "sh", "-c", f'{{ {script}; }} && exec "$@"', "sh"]


def configured(node: Node, *changes: tuple[str, str]) -> list[str]:
    """A command prefix for root: Apptainer with another configuration."""
    text = node.pool.run("fermi", "cat", "/etc/apptainer/apptainer.conf").stdout
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = node.folder / "apptainer.conf"
    path.write_text(text)
    return in_mounts(f"mount --bind {path} /etc/apptainer/apptainer.conf")


def image_file(node: Node) -> Path:
    """The light image as a SIF on a file system."""
    path = node.folder / "light.sif"
    if not path.exists():
        url = str(node.light["sif_url"])
        done = node.pool.run("fermi", "curl", "-sSf", "-o", str(path.with_name("got.sif")), url)
        assert done.returncode == 0, done.stderr
        path.with_name("got.sif").rename(path)
    return path


def runtime(done: Done) -> dict[str, Any]:
    return dict(done.data["runtime"])


# --- binds


@pytest.mark.fault(
    fault="the runtime ignores every bind (`user bind control = no`)",
    mode="worker",
    does="finds that its folder is not in the container, tries once more to be sure, and says so",
    code=84,
)
@ORDERS
def test_user_bind_control_is_off(node: Node, head: dict[str, str]) -> None:
    (node.folder / "d").mkdir()
    settings = bind(node.folder / "d", "/data") + node.path
    done = node.run(node.job(head=head, settings=settings, **sh("echo ran")), root=of_site(node, "c"))
    assert done.code == 84 and b"ran" not in done.out and "user bind control = no" in done.message, done.message
    assert done.data["started_payload"] is False and done.report.payload_exit is None


@pytest.mark.fault(
    fault="neither overlay nor underlay, and the image lacks a required mount point",
    mode="worker",
    does="names the bind, the image and the way out",
    code=84,
)
@ORDERS
def test_a_required_bind_without_mount_point(node: Node, head: dict[str, str]) -> None:
    (node.folder / "d").mkdir()
    settings = bind(node.folder / "d", "/data") + bind(node.folder / "d", "/not/in/image") + node.path
    done = node.run(node.job(head=head, settings=settings, **sh("echo ran")), root=of_site(node, "b"))
    assert done.code == 84 and b"ran" not in done.out
    for words in (
        f"{node.folder}/d:/not/in/image",
        "Image light has no /not/in/image",
        "neither overlay nor underlay",
        "make the folder",
    ):
        assert words in done.message
    assert [b["result"] for b in done.data["binds"]] == ["kept", "fatal"] and runtime(done)["overlay"] == "no"


@pytest.mark.fault(
    fault="neither overlay nor underlay, and the image lacks an optional mount point",
    mode="worker",
    does="drops that bind, starts again",
    code=0,
)
@ORDERS
def test_an_optional_bind_without_mount_point(node: Node, head: dict[str, str]) -> None:
    (node.folder / "d").mkdir()
    (node.folder / "d/x").write_text("x\n")
    settings = (
        bind(node.folder / "d", "/not/in/image", "no")
        + bind(node.folder / "d", "/data")
        + bind(node.folder / "d", "/nor/this", "no")
    )
    done = node.run(node.job(head=head, settings=settings + node.path, **sh("cat /data/x")), root=of_site(node, "b"))
    assert done.code == 0 and done.out.startswith(b"x\n"), done.err
    assert [b["result"] for b in done.data["binds"]] == ["dropped", "kept", "dropped"]
    assert runtime(done)["overlay"] == "no" and "has no /not/in/image" in done.err


def test_overlay_is_in_the_report(node: Node) -> None:
    (node.folder / "d").mkdir()
    settings = bind(node.folder / "d", "/not/in/image") + node.path
    assert runtime(node.run(node.job(settings=settings)))["overlay"] == "yes"
    underlay = configured(
        node, ("enable overlay = yes", "enable overlay = no"), ("enable underlay = yes", "enable underlay = preferred")
    )
    done = node.run(node.job(settings=settings), root=underlay)
    assert done.code == 0 and runtime(done)["overlay"] == "yes", done.err
    assert runtime(node.run(node.job(), root=of_site(node, "b")))["overlay"] == "no"


def test_binds_of_files_of_twins_and_of_what_has_an_odd_name(node: Node) -> None:
    """A file, one folder under both AFS spellings, a folder in a folder, blanks and quotes, another file system."""
    odd = node.folder / 'it\'s a "b" \\c'
    (node.folder / "afs/group").mkdir(parents=True)
    odd.mkdir()
    for folder in (odd, node.folder / "afs"):
        (folder / "x").write_text("x\n")
    settings = [
        *bind(node.folder / "afs/x", "/data/file"),
        *bind(node.folder / "afs", "/afs/slac/g"),
        *bind(node.folder / "afs", "/afs/slac.stanford.edu/g", "yes", "rw"),
        *bind(odd, '/sdf/it\'s "b" \\c'),
        *bind(odd, "/gpfs/a/b"),
        *bind(node.folder / "afs", "/gpfs"),
        *bind("/proc", "/u"),
    ]
    (node.folder / "afs/a/b").mkdir(parents=True)
    script = "cat /data/file /afs/slac/g/x /afs/slac.stanford.edu/g/x /sdf/*/x /gpfs/a/b/x /gpfs/x; ls /u/self/status"
    done = node.run(node.job(settings=settings + node.path, **sh(script)))
    assert done.code == 0 and done.out.startswith(b"x\n" * 6 + b"/u/self/status\n"), done.err
    assert {b["result"] for b in done.data["binds"]} == {"kept"}


LYING = """#!/bin/bash
# an Apptainer that does not do with binds what it was told
args=()
while [ $# -gt 0 ]; do
    case $1 in
        *:/data:r[ow]) {what} ;;
        *) args+=("$1") ;;
    esac
    shift
done
exec apptainer "${{args[@]}}"
"""


@pytest.mark.fault(
    fault="the runtime leaves out one required bind without a word",
    mode="worker",
    does="finds it out from inside",
    code=84,
)
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ('unset "args[${#args[@]}-1]"', "something else"),
        ("args+=(/usr:/data:ro)", "something else"),
        ('args+=("${1%:*}:rw")', "can be written to"),
    ],
    ids=["left out", "another source", "writable"],
)
@ORDERS
def test_a_bind_is_proven_from_inside(node: Node, head: dict[str, str], what: str, words: str) -> None:
    lying = node.folder / "apptainer"
    lying.write_text(LYING.format(what=what))
    lying.chmod(0o755)
    (node.folder / "d").mkdir()
    (node.folder / "d").chmod(0o777)
    job = node.job(
        head=head | {"runtime": str(lying)}, settings=bind(node.folder / "d", "/data") + node.path, **sh("echo ran")
    )
    done = node.run(job)
    assert done.code == 84 and words in done.message and "/data" in done.message and b"ran" not in done.out, (
        done.message
    )
    assert done.data["binds"][0]["result"] == "fatal"


@pytest.mark.fault(
    fault="the runtime leaves out one optional bind without a word",
    mode="worker",
    does="reports it as dropped, goes on",
    code=0,
)
def test_an_optional_bind_that_is_left_out(node: Node) -> None:
    lying = node.folder / "apptainer"
    lying.write_text(LYING.format(what='unset "args[${#args[@]}-1]"'))
    lying.chmod(0o755)
    job = node.job(
        head=OUTSIDE | {"runtime": str(lying)},
        settings=bind("/usr", "/data", "no") + node.path,
        **sh("ls /data; echo ran"),
    )
    done = node.run(job)
    assert done.code == 0 and done.data["binds"][0]["result"] == "dropped" and "/data" in done.err, done.err


def test_a_bind_is_proven_in_an_image_without_stat(node: Node) -> None:
    """Then by the table of mounts."""
    settings = [*bind("/usr", "/data"), *node.path, ("runtime.option", "--env=PATH=/nowhere")]
    done = node.run(node.job(settings=settings, **sh("stat / || exit 4")))
    assert done.code == 4, done.err
    lying = node.folder / "apptainer"
    lying.write_text(LYING.format(what='unset "args[${#args[@]}-1]"'))
    lying.chmod(0o755)
    done = node.run(node.job(head=OUTSIDE | {"runtime": str(lying)}, settings=settings))
    assert done.code == 84 and "not mounted" in done.message, done.message


# --- SIF and directory


NO_FUSE = [
    pytest.param("chmod 0600 /dev/fuse", marks=pytest.mark.fault(
        fault="/dev/fuse is not open to users", mode="worker", does="has the SIF unpacked, reports it", code=0)),
    pytest.param("mount -t tmpfs x /mnt; cp -a /dev /mnt 2>/dev/null; rm /mnt/dev/fuse; mount --rbind /mnt/dev /dev", marks=pytest.mark.fault(
        fault="there is no /dev/fuse", mode="worker", does="has the SIF unpacked, reports it", code=0)),
    pytest.param("mount --bind /bin/false /usr/bin/squashfuse_ll; mount --bind /bin/false /usr/bin/squashfuse", marks=pytest.mark.fault(
        fault="squashfuse does not work", mode="worker", does="has the SIF unpacked, reports it", code=0)),
]  # fmt: skip


@pytest.mark.parametrize("script", NO_FUSE)
def test_a_sif_without_fuse(node: Node, script: str) -> None:
    job = node.job(settings=[("image.path", str(image_file(node))), MARKER], **sh("cat /etc/fermigrid-image"))
    fuse = "cp -a /dev/fuse /run/fuse; mount --bind /run/fuse /dev/fuse; " if "chmod" in script else ""
    done = node.run(job, root=in_mounts(fuse + script))
    assert done.code == 0 and done.out.startswith(b"light-1\n"), done.err
    assert runtime(done)["unsquash"] == "yes" and done.report.rung == "path"
    assert not (job.scratch / ".image").exists()


NO_SIF = [("allow container sif = yes", "allow container sif = no")]
NO_FOLDER = [("allow container dir = yes", "allow container dir = no")]


@pytest.mark.fault(
    fault="the site forbids directory images", mode="worker", does="takes the same image as a SIF", code=0
)
@ORDERS
def test_a_folder_is_not_allowed(node: Node, head: dict[str, str]) -> None:
    folder, file = str(node.light["cvmfs"]), str(image_file(node))
    both = [MARKER, ("image.path", folder), ("image.path", file)]
    done = node.run(
        node.job(head=head, settings=both, **sh("cat /etc/fermigrid-image")), root=configured(node, *NO_FOLDER)
    )
    assert done.code == 0 and done.out.startswith(b"light-1\n"), done.err
    assert (done.report.rung, done.data["image"]["source"]) == ("path", file)
    done = node.run(node.job(settings=[*both[:2], *node.http()], **sh("echo ran")), root=configured(node, *NO_FOLDER))
    assert (done.code, done.report.rung) == (0, "http"), done.err


@pytest.mark.fault(
    fault="the site forbids SIF images", mode="worker", does="has the SIF unpacked, which the site allows", code=0
)
def test_a_sif_is_not_allowed(node: Node) -> None:
    both = [MARKER, ("image.path", str(image_file(node))), ("image.path", str(node.light["cvmfs"]))]
    done = node.run(node.job(settings=both), root=configured(node, *NO_SIF))
    assert done.code == 0 and runtime(done)["unsquash"] == "yes", done.err


@pytest.mark.fault(
    fault="the site forbids SIF images, and its runtime cannot unpack them",
    mode="worker",
    does="takes the directory image",
    code=0,
)
def test_a_sif_is_not_allowed_and_cannot_be_unpacked(node: Node) -> None:
    both = [MARKER, ("image.path", str(image_file(node))), ("image.path", str(node.light["cvmfs"]))]
    forbidden = configured(node, *NO_SIF)
    fake = node.folder / "singularity"
    fake.write_text(FAKE.read_text().replace('[ ! -f "$1" ] || options+=(--unsquash)\n', ""))
    fake.chmod(0o755)
    done = node.run(node.job(head=OUTSIDE | {"runtime": str(fake)}, settings=both, **sh("echo ran")), root=forbidden)
    assert done.code == 0 and runtime(done)["unsquash"] == "no", done.err
    assert done.data["image"]["source"] == node.light["cvmfs"]


@pytest.mark.fault(
    fault="the site forbids the only kind of image that there is",
    mode="worker",
    does="says what the runtime said",
    code=82,
)
def test_no_kind_of_image_is_allowed(node: Node) -> None:
    done = node.run(node.job(**sh("echo ran")), root=configured(node, *NO_FOLDER))
    assert done.code == 82 and "disallows" in done.message and b"ran" not in done.out, done.message


# --- which runtime


def fake_singularity(node: Node) -> dict[str, str]:
    path = node.folder / "singularity"
    shutil.copy(FAKE, path)
    return {"runtime": str(path)}


@pytest.mark.parametrize("form", ["folder", "sif"])
@ORDERS
def test_singularity_3(node: Node, head: dict[str, str], form: str) -> None:
    (node.folder / "d").mkdir()
    (node.folder / "d/x").write_text("x\n")
    image = node.light["cvmfs"] if form == "folder" else image_file(node)
    settings = [*bind(node.folder / "d", "/data"), ("image.path", str(image)), MARKER, ("runtime.option", "--userns")]
    script = "cat /data/x; id -un; touch o"
    job = node.job(
        head=head | fake_singularity(node), settings=settings, row=[("out", "o"), ("out.to", "o")], **sh(script)
    )
    done = node.run(job)
    assert done.code == 0 and done.out.startswith(b"x\nfermi\n"), done.err
    assert (
        runtime(done)["name"] == "singularity"
        and runtime(done)["version"].startswith("3.8.7")
        and runtime(done)["unsquash"] == "no"
    )


def test_the_options_of_the_site_reach_the_runtime(node: Node) -> None:
    done = node.run(node.job(settings=[("runtime.option", "--no-such-option"), *node.path], **sh("echo ran")))
    assert done.code == 82 and "unknown flag: --no-such-option;" in done.message and not done.data["started_payload"]
    settings = [("runtime.option", "--hostname=elsewhere"), *node.path]
    done = node.run(node.job(settings=settings, **sh("cat /proc/sys/kernel/hostname")))
    assert done.out.startswith(b"elsewhere\n"), done.err


@pytest.mark.fault(
    fault="the first runtime of the list cannot start anything here",
    mode="worker",
    does="takes the next of the list",
    code=0,
)
def test_the_next_runtime_of_the_list(node: Node) -> None:
    broken = node.folder / "apptainer"
    broken.write_text(
        '#!/bin/sh\n[ "$1" != --version ] || { echo 1.0; exit; }\necho "ERROR: Failed to create user namespace" >&2\nexit 255\n'
    )
    broken.chmod(0o755)
    job = node.job(
        head=OUTSIDE | {"runtime": str(broken)}, settings=[("runtime", "apptainer"), *node.path], **sh("exit 3")
    )
    done = node.run(job)
    assert (done.code, runtime(done)["version"]) == (3, "1.4.5"), done.err


def test_no_user_namespaces_for_any_runtime(node: Node) -> None:
    job = node.job(head=OUTSIDE, settings=[("runtime", "singularity"), *node.path], **sh("echo ran"))
    done = node.run(job, around=NO_NAMESPACES)
    assert done.code == 81 and b"ran" not in done.out


@pytest.mark.fault(fault="the program is not in the image", mode="worker", does="charges it to the payload", code=127)
def test_a_missing_program_is_the_payloads(node: Node) -> None:
    done = node.run(node.job(args=["no-such-program"]))
    assert (done.code, done.report.payload_exit, done.data["started_payload"]) == (127, 127, True)


@pytest.mark.fault(
    fault="the runtime fails with a status that a payload could have",
    mode="worker",
    does="charges it to the node, not to the payload",
    code=82,
)
@pytest.mark.parametrize("status", [1, 127, 137, 255])
def test_a_failure_of_the_runtime_is_not_the_payloads(node: Node, status: int) -> None:
    broken = node.folder / "apptainer"
    broken.write_text(f"#!/bin/sh\necho it is broken >&2\nexit {status}\n")
    broken.chmod(0o755)
    done = node.run(node.job(head=OUTSIDE | {"runtime": str(broken)}, **sh("echo ran")))
    assert done.code == 82 and "it is broken" in done.message and f"(status {status})" in done.message, done.message
    assert done.report.payload_exit is None and done.data["started_payload"] is False


@pytest.mark.fault(
    fault="the container starts, and nothing can be written to the working folder in it",
    mode="worker",
    does="charges it to the node",
    code=84,
)
def test_a_launcher_that_cannot_run(node: Node) -> None:
    lying = node.folder / "apptainer"
    lying.write_text(
        LYING.format(what="args+=(x)")
        .replace("*:/data:r[ow])", "*:/srv:rw)")
        .replace("args+=(x)", 'args+=("${1%:*}:ro")')
    )
    lying.chmod(0o755)
    done = node.run(node.job(head=OUTSIDE | {"runtime": str(lying)}, **sh("echo ran")))
    assert done.code == 84 and "Read-only file system" in done.message and b"ran" not in done.out, done.message
    assert done.data["started_payload"] is False


@pytest.mark.fault(
    fault="the container fails to start once, and starts the second time", mode="worker", does="starts it again", code=0
)
def test_a_start_that_fails_once(node: Node) -> None:
    flaky = node.folder / "apptainer"
    flaky.write_text(
        f'#!/bin/bash\ncase $* in *launch.sh) mkdir {node.folder}/once 2> /dev/null && exit 255 ;; esac\nexec apptainer "$@"\n'
    )
    flaky.chmod(0o755)
    node.folder.chmod(0o777)
    done = node.run(node.job(head=OUTSIDE | {"runtime": str(flaky)}, **sh("echo ran")))
    assert done.code == 0 and done.out.startswith(b"ran\n"), done.err


@ORDERS
def test_a_signal_to_a_payload_in_a_sif(node: Node, head: dict[str, str]) -> None:
    """What serves the SIF must not get it: the payload goes on reading its programs."""
    script = "trap 'cat /etc/fermigrid-image; ls -l /usr/bin > l; sync; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    job = node.job(head=head, settings=[("image.path", str(image_file(node))), MARKER], **sh(script))
    process = node.start(job)
    until_ready(process)
    node.kill(job, "TERM")
    done = finish(process)
    assert done.code == 9 and b"light-1\n" in done.out, done.err
