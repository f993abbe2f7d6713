"""The plan folder: how plans get onto the disk, whole or not at all, and are read again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from fermigrid.errors import RunFolderError
from fermigrid.plan import Plan
from fermigrid.render import render_job_env, render_manifest, render_shards, render_submit
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

    def write(name: str, data: bytes) -> None:
        (folder / name).write_bytes(data)
        files[name] = hashlib.sha256(data).hexdigest()

    items = hashlib.sha256()
    with (folder / "items.txt").open("wb") as out:
        for shard in render_shards(plan):
            write(f"shards/{shard.name}", shard.data)
            out.write(shard.items)
            items.update(shard.items)
    files["items.txt"] = items.hexdigest()
    write("worker.sh", assemble_worker(templates, plan.header.worker).encode())
    (folder / "worker.sh").chmod(0o755)
    write("job.env", render_job_env(plan.header).encode())
    if plan.assembled.bundle:
        write("bundle.tar.gz", plan.assembled.bundle.data)
    if plan.header.request.site.backend == "htcondor":
        write("job.sub", render_submit(plan.header, templates).encode())
    manifest = render_manifest(plan.header, files).encode()
    (folder / "plan.json").write_bytes(manifest)
    return hashlib.sha256(manifest).hexdigest()


def is_plan(folder: Path, digest: str) -> bool:
    """Is the plan on disk whole, with this digest? Reads every file."""
    try:
        manifest = (folder / "plan.json").read_bytes()
        if hashlib.sha256(manifest).hexdigest() != digest:
            return False
        files = json.loads(manifest)["files"]
        return all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == want for name, want in files.items())
    except (OSError, ValueError, KeyError):
        return False


def make_work(folder: Path, plan: Path) -> None:
    """The folders that a batch's logs and outputs come back to: one for each shard, made beforehand.

    Jobs may run under another user than the one who submits (a pool's slot users), but file transfer writes here as the
    submitter: the folders stay private.
    """
    for shard in (plan / "shards").iterdir():
        (folder / shard.name).mkdir(parents=True, exist_ok=True)
