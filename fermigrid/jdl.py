"""The documents by which DIRAC is given a batch: one JDL for some jobs of one shard, made from the plan at submission.

A plan has one text for all of them (`job.jdl`), so that a million jobs are no fifty thousand files more. What differs
between documents are tame words and digests; LFNs come from the rows.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fermigrid.backends import RenderedBatch
from fermigrid.errors import RunFolderError, Unrepresentable
from fermigrid.jdl_text import JOB_NAME, check_group, decode_jdl_list, encode_entry, encode_jdl_list, encode_lfn
from fermigrid.plan import Plan
from fermigrid.planfolder import open_of_plan, read_manifest
from fermigrid.quoting import tame

CHUNK = 20
_SANDBOX = "$(fg_sandbox)"
_PARAMETERS = "  Parameters = $(fg_jobs);\n"
_BANNED = re.compile(r"^  BannedSites = (\{.*\});\n", re.MULTILINE)
_COMES = "\tin.from=outputs:"  # in the rows of jobs that are given files of the run folder


@dataclass(frozen=True)
class JdlDocument:
    """One document: `jobs` jobs of the batch from index `first_index` on, `names` in that order.

    `shared` are the files of its input sandbox that all documents of the batch have, `own` its shard and, for a job
    that is given files of the run folder, the folder with them: absolute paths, which lie flat in the job's folder.
    `text` is the JDL with these paths as its InputSandbox.
    """

    first_index: int
    names: tuple[str, ...]
    form: str  # the JDL, `$(fg_sandbox)` for the entries of its input sandbox
    shared: tuple[Path, ...]
    own: tuple[Path, ...]

    @property
    def jobs(self) -> int:
        """How many jobs it makes."""
        return len(self.names)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of its input sandbox."""
        return self.shared + self.own

    @property
    def text(self) -> str:
        """The JDL as a command that uploads local files takes it."""
        return with_sandbox(self, [str(path) for path in self.files])


def with_sandbox(document: JdlDocument, entries: Sequence[str]) -> str:
    """The JDL with these entries of the input sandbox: local paths, or references of what is uploaded already.

    Raises Unrepresentable for anything else.
    """
    return document.form.replace(_SANDBOX, "{" + ", ".join(map(encode_entry, entries)) + "}")


def names_of(batch: RenderedBatch) -> list[str]:
    """The names of the batch's jobs, in the order of their indices. Raises RunFolderError."""
    return [name for name, _, _ in items_of(batch.plan_dir)]


def documents(batch: RenderedBatch) -> Iterator[JdlDocument]:
    """The documents of a batch, in the order of its jobs.

    Jobs of two shards are never in one, and a job that is given files of its own is alone in one.
    Raises RunFolderError for a plan that cannot be read, Unrepresentable for what DIRAC cannot carry.
    """
    plan = batch.plan_dir
    form = _read(plan, "job.jdl").replace("$(fg_batch)", check_group(batch.batch_id))
    form = _with_banned(form, batch.options.get("banned") or ())
    form = form.replace("$(fg_env)", hashlib.sha256(_read(plan, "job.env").encode()).hexdigest())
    most = int(str(batch.options.get("chunk") or CHUNK))
    shared = tuple(plan / name for name in _shared(plan))
    first = 0
    for shard, items in itertools.groupby(items_of(plan), key=lambda item: item[1]):
        tame(shard, "shard")
        of_shard, rows = form.replace("$(fg_shard)", shard), _read(plan, f"shards/{shard}")
        lfns = _lfns(rows) if "$(fg_lfns)" in form else None
        given = _COMES in rows
        chunk = 1 if given else most
        while some := list(itertools.islice(items, chunk)):
            names = tuple(name for name, _, _ in some)
            own = [plan / "shards" / shard]
            if given:
                own.append(batch.work_dir / shard / "in" / names[0] / "gathered")
            yield JdlDocument(first, names, _fill(of_shard, some, lfns), shared, tuple(own))
            first += len(names)


def _with_banned(form: str, banned: object) -> str:
    """The JDL with these sites of DIRAC among its BannedSites: those that were banned since the site file was read."""
    names = [str(name) for name in banned] if isinstance(banned, list | tuple) else []
    if not names:
        return form
    written = _BANNED.search(form)
    known = decode_jdl_list(written[1]) if written else ()
    line = f"  BannedSites = {encode_jdl_list(dict.fromkeys((*known, *names)))};\n"
    place = written[0] if written else _PARAMETERS
    if place not in form:
        raise Unrepresentable("BannedSites", ", ".join(names), f"the template has no line {_PARAMETERS.strip()}")
    return form.replace(place, line if written else line + place)


def write_documents(plan: Plan, folder: Path, to: Path) -> int:
    """Write the JDL of each document of the plan in `folder`, for people; how many there are.

    As they would be sent, but for what nobody knows before: the batch id (zeros), and where the files will be.
    """
    dirac = plan.header.request.site.dirac
    options = {"chunk": dirac.chunk if dirac else CHUNK}
    batch = RenderedBatch("0" * 32, plan.header.name, folder.absolute(), to.absolute(), to, plan.header.jobs, options)
    try:
        to.mkdir()
        count = 0
        for document in documents(batch):
            (to / f"{document.first_index:07d}.jdl").write_text(_for_people(document), encoding="utf-8")
            count += 1
    except OSError as error:
        raise RunFolderError(f"cannot write the documents {to}: {error}") from error
    return count


def _for_people(document: JdlDocument) -> str:
    names = ", ".join(f'"{path.name}"' for path in document.files)
    return document.form.replace(_SANDBOX, f"{{{names}}}")


def _fill(form: str, items: Sequence[tuple[str, str, int]], lfns: Sequence[str] | None) -> str:
    for name, _, _ in items:
        if len(tame(name, "job")) > JOB_NAME:
            raise Unrepresentable("job", name, f"DIRAC's column JobName has {JOB_NAME} characters")
    jobs = encode_jdl_list(name for name, _, _ in items)
    rows = "{" + ", ".join(f'"{row}"' for _, _, row in items) + "}"
    text = form.replace("$(fg_jobs)", jobs).replace("$(fg_rows)", rows)
    if lfns is not None:
        text = text.replace("$(fg_lfns)", "{" + ", ".join(lfns[row - 1] for _, _, row in items) + "}")
    return text


def items_of(plan: Path) -> Iterator[tuple[str, str, int]]:
    """(job, shard, row) of each job. Raises RunFolderError."""
    for number, line in enumerate(_read(plan, "items.txt").splitlines(), 1):
        try:
            name, shard, row = line.split(" ")
            yield name, shard, int(row)
        except ValueError as error:
            raise RunFolderError(f"the plan {plan} cannot be read: line {number} of items.txt is damaged") from error


def _lfns(rows: str) -> list[str]:
    """For each row of a shard its logical file names, as the JDL has them; empty for lines that are no job's."""
    found = []
    for line in rows.split("\n"):
        places = [field.removeprefix("in.from=") for field in line.split("\t") if field.startswith("in.from=LFN:")]
        found.append("{" + ", ".join(map(encode_lfn, places)) + "}")
    return found


def _shared(plan: Path) -> list[str]:
    """What all jobs of the batch need, by its name in the plan."""
    try:
        files = read_manifest(plan).files
    except (OSError, ValueError) as error:
        raise RunFolderError(f"the plan {plan} cannot be read: {error}") from error
    own = ("items.txt", "job.jdl")
    return ["worker.sh", "job.env", *sorted(name for name in files if name not in (*own, "worker.sh", "job.env") and
            not name.startswith("shards/"))]  # fmt: skip


def _read(plan: Path, name: str) -> str:
    try:
        with open_of_plan(plan, name) as file:
            return file.read().decode()
    except (OSError, ValueError) as error:
        raise RunFolderError(f"the plan {plan} cannot be read: {name}: {error}") from error
