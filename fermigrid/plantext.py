"""Plans on disk, read for a comparison: a plan folder, what `render` wrote, a run folder."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import cast

from fermigrid.difference import Job, PlanText
from fermigrid.errors import NotFound, RunFolderError
from fermigrid.gather import lines_of_row
from fermigrid.planfolder import Manifest, open_of_plan, plan_faults, read_manifest
from fermigrid.quoting import decode_lines

_OURS = frozenset({"job.env", "job.sub", "job.jdl", "items.txt", "worker.sh", "bundle.tar.gz"})
_BACKENDS = {"job.sub": "htcondor", "job.jdl": "dirac"}  # by what a plan has
_CODE_LIMIT = 4 * 2**30  # bytes of unpacked code; a plan of somebody else's may unpack to anything


def find_plans(path: Path) -> dict[str, Path]:
    """The plan folders below `path` by `block/step.generation`; a plan folder itself has the name "".

    Raises NotFound when there is none.
    """
    if (path / "plan.json").is_file():
        return {"": path}
    places = [*path.glob("*/*/plan.json"), *path.glob("blocks/*/*/plan/plan.json")]
    found = {"/".join(p.parent.relative_to(path).as_posix().removesuffix("/plan").split("/")[-2:]): p.parent
             for p in places}  # fmt: skip
    if not found:
        raise NotFound(f"{path} is no plan, and there is none in it", "`fermigrid render` writes plans.")
    return dict(sorted(found.items()))


def pair_plans(before: Mapping[str, Path], after: Mapping[str, Path]) -> Iterator[tuple[str, Path | None, Path | None]]:
    """Which plans belong together: by name; two single ones whatever they are called."""
    if len(before) == len(after) == 1:
        (old, was), (new, now) = *before.items(), *after.items()
        yield new or old, was, now
        return
    for name in sorted({*before, *after}):
        yield name, before.get(name), after.get(name)


def read_plan(folder: Path) -> PlanText:
    """What a plan says but for its jobs. Raises RunFolderError."""
    try:
        manifest = read_manifest(folder)
        header = {name: value for name, value in manifest.fields.items() if name not in ("files", "format")}
        others = {name: digest[:12] for name, digest in manifest.files.items()
                  if name not in _OURS and not name.startswith("shards/")}  # fmt: skip
        settings = decode_lines(_read(folder, "job.env"))
        backend = next((name for file, name in _BACKENDS.items() if file in manifest.files), "local")
        lines = _lines(folder, backend)
        code, worker = _code(folder, manifest), _digest(folder, "worker.sh")
        return PlanText(header, settings, lines, code, others, worker, backend)
    except OSError as error:
        raise RunFolderError(f"the plan {folder} cannot be read: {error.filename}: {error.strerror}") from error
    except (ValueError, EOFError, tarfile.TarError) as error:
        raise RunFolderError(f"the plan {folder} cannot be read: {error}") from error


def faults_of(folder: Path) -> list[str]:
    """What of a plan is not as its own manifest says."""
    try:
        return plan_faults(folder, hashlib.sha256(read_manifest(folder).text).hexdigest())
    except (OSError, ValueError) as error:
        return [f"plan.json: {error}"]


def _read(folder: Path, name: str) -> str:
    with open_of_plan(folder, name) as file:
        return file.read().decode()


def _digest(folder: Path, name: str) -> str:
    with open_of_plan(folder, name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _lines(folder: Path, backend: str) -> list[str]:
    if backend == "htcondor":
        return _acting(_read(folder, "job.sub"))
    if backend == "dirac":
        lines = (line.strip().removesuffix(";") for line in _read(folder, "job.jdl").splitlines())
        return [line for line in lines if line not in ("[", "]")]
    return []


def _acting(text: str) -> list[str]:
    """The lines of a submit file that say something, those that go on in the next one joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _code(folder: Path, manifest: Manifest) -> dict[str, str]:
    """What each file of the bundle is, by name. Nothing is unpacked on disk."""
    if "bundle.tar.gz" not in manifest.files:
        return {}
    found: dict[str, str] = {}
    left = _CODE_LIMIT
    with open_of_plan(folder, "bundle.tar.gz") as file, tarfile.open(fileobj=file, mode="r|gz") as archive:
        for member in archive:
            left -= member.size
            if left < 0:
                raise ValueError(f"bundle.tar.gz unpacks to more than {_CODE_LIMIT} bytes")
            inner = archive.extractfile(member) if member.isreg() else None
            if inner is None:
                found[member.name] = f"no plain file, link to {member.linkname!r}"
                continue
            digest = hashlib.file_digest(cast(BufferedReader, inner), "sha256").hexdigest()[:12]
            found[member.name] = f"{digest}{', executable' if member.mode & 0o100 else ''}"
    return found


def jobs_in(folder: Path) -> Iterator[Job]:
    """The jobs of a plan with their rows, in order, a shard at a time. Raises RunFolderError."""
    shard, rows = "", list[str]()
    try:
        with open_of_plan(folder, "items.txt") as items:
            for line in items:
                name, where, row = line.decode("ascii").split()
                if where != shard:
                    shard, rows = where, _rows(folder, where)
                yield Job(name, "\t".join((rows[int(row) - 1], *lines_of_row(rows, int(row)))))
    except OSError as error:
        raise RunFolderError(f"the plan {folder} cannot be read: {error.filename}: {error.strerror}") from error
    except (ValueError, IndexError) as error:
        raise RunFolderError(f"the plan {folder} cannot be read: items.txt: {error}") from error


def _rows(folder: Path, shard: str) -> list[str]:
    if "/" in shard or shard in (".", ".."):
        raise ValueError(f"{shard!r} is no shard")
    return _read(folder, f"shards/{shard}").split("\n")
