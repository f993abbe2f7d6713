"""The plan folder: how plans get onto the disk, whole or not at all, and are read again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from fermigrid.errors import RunFolderError
from fermigrid.plainfile import open_plain, read_plain, real_folder, write_new
from fermigrid.plan import Plan, secret_files
from fermigrid.render import render_jdl, render_job_env, render_manifest, render_shards, render_submit
from fermigrid.resources import shipped
from fermigrid.worker import assemble_worker


def write_plan(plan: Plan, folder: Path) -> str:
    """Write a plan's files into `folder`, all or nothing, and return the plan's digest (sha256 of plan.json).

    The files are written under another name, then renamed: a folder with this name is a whole plan. Nothing is synced:
    after a power cut `is_plan` tells a damaged plan by its digest. Raises RunFolderError when it cannot be written
    (disk full, no permission); nothing half-written is left behind.
    """
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
    try:
        for left in folder.parent.glob(f".{folder.name}.*.draft"):  # by a fermigrid that was killed
            shutil.rmtree(left, ignore_errors=True)
        (draft / "shards").mkdir(parents=True)
        digest = _write_files(plan, draft)
        draft.rename(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise RunFolderError(f"cannot write the plan {folder}: {error}") from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return digest


def _write_files(plan: Plan, folder: Path) -> str:
    templates = shipped("submit_templates")
    files: dict[str, str] = {}

    def write(name: str, data: bytes, mode: int = 0o666) -> None:
        write_new(folder / name, data, mode)
        files[name] = hashlib.sha256(data).hexdigest()

    items = hashlib.sha256()
    with (folder / "items.txt").open("wb") as out:
        for shard in render_shards(plan):
            write(f"shards/{shard.name}", shard.data)
            out.write(shard.items)
            items.update(shard.items)
    files["items.txt"] = items.hexdigest()
    write("worker.sh", assemble_worker(templates, plan.header.worker).encode(), 0o777)
    write("job.env", render_job_env(plan.header).encode())
    if plan.assembled.bundle:
        write("bundle.tar.gz", plan.assembled.bundle.data)
    for name, data in secret_files(plan):
        (folder / "secrets").mkdir(exist_ok=True)
        write(f"secrets/{name}", data)
    if plan.header.request.site.backend == "htcondor":
        write("job.sub", render_submit(plan.header, templates).encode())
    if plan.header.request.site.backend == "dirac":
        write("job.jdl", render_jdl(plan.header, templates).encode())
    manifest = render_manifest(plan.header, files).encode()
    write_new(folder / "plan.json", manifest)
    return hashlib.sha256(manifest).hexdigest()


def is_plan(folder: Path, digest: str) -> bool:
    """Is the plan on disk whole, with this digest? Reads every file."""
    return not plan_faults(folder, digest)


def plan_faults(folder: Path, digest: str) -> list[str]:
    """What of the plan on disk is not as it was written, in words, by file; none: it is whole. Reads every file."""
    try:
        manifest = read_manifest(folder)
    except (OSError, ValueError) as error:
        return [f"plan.json: {getattr(error, 'strerror', None) or error}"]
    if hashlib.sha256(manifest.text).hexdigest() != digest:
        return ["plan.json: it is not the one that was written"]
    looked = ((name, _file_fault(folder, name, want)) for name, want in manifest.files.items())
    changed = [f"{name}: {fault}" for name, fault in looked if fault]
    known = {"plan.json", *manifest.files}
    return [*changed, *(f"{name}: it does not belong to the plan" for name in names_in(folder) if name not in known)]


@dataclass(frozen=True)
class Manifest:
    """A plan.json: its bytes, its fields, and the sha256 of the plan's other files by name."""

    text: bytes
    fields: Mapping[str, Any]
    files: Mapping[str, str]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a plan folder. Raises OSError and ValueError: it is none."""
    with real_folder(folder) as top:
        text = read_plain("plan.json", top)
    fields = json.loads(text)
    files = fields.get("files") if isinstance(fields, dict) else None
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise ValueError("it is no manifest of a plan")
    for name in files:
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
            raise ValueError(f"it names {name!r}, which is not in the plan")
    return Manifest(text, fields, files)


def open_of_plan(folder: Path, name: str) -> BufferedReader:
    """A file of a plan, open for reading. Raises OSError, also for a link on the way."""
    *above, last = name.split("/")
    with real_folder(folder, above) as inside:
        return open_plain(last, inside)


def _file_fault(folder: Path, name: str, digest: str) -> str:
    try:
        with open_of_plan(folder, name) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return str(error.strerror)
    return "" if found == digest else f"its sha256 is {found[:12]}..., that of the plan's {digest[:12]}..."


def names_in(folder: Path) -> Iterator[str]:
    """The names of all that is in a plan folder but folders, as its manifest writes them; links are not followed."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in sorted([*files, *links]):
            if not name.startswith(".nfs"):  # what an NFS client keeps of a file that was removed while it was open
                yield Path(parent, name).relative_to(folder).as_posix()


def make_work(folder: Path, plan: Path, event_log: Path | None = None) -> None:
    """The folders that a batch's logs and outputs come back to, made beforehand: one for each shard, with its `out`;
    and the event log, which the batch system would make readable for all.

    Jobs may run under another user than the one who submits (a pool's slot users), but file transfer writes here as the
    submitter: the folders stay private. Raises RunFolderError, also where there is a link.
    """
    try:
        with real_folder(plan, ("shards",)) as shards, os.scandir(shards) as found:
            names = [each.name for each in found]
        with real_folder(folder.parent, (folder.name,), make=True):
            pass
        for name in names:
            with real_folder(folder, (name, "out"), make=True):
                pass
        if event_log is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(event_log, flags, 0o666))
    except OSError as error:
        raise RunFolderError(f"cannot use {error.filename or folder} in {folder.parent}: {error.strerror}") from error
