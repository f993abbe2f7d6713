"""DIRAC by its own commands, as they are set up on the submit machine: the transport `commands`."""

from __future__ import annotations

import itertools
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from fermigrid.backends import dirac_words as words
from fermigrid.backends.dirac_login import check_span, from_proxy_info
from fermigrid.backends.dirac_process import Ran, run
from fermigrid.backends.dirac_sandbox import plain_files
from fermigrid.backends.dirac_states import ServerJob
from fermigrid.backends.dirac_transport import Denied, Fetched, Sent, Unreachable
from fermigrid.errors import SecretRefused
from fermigrid.jdl import JdlDocument
from fermigrid.secret_files import read_proxy

T = TypeVar("T")
_DOCUMENTS = 5  # of one call: it takes seconds to start
_IDS = 50  # of one call
_STUCK = 3  # jobs whose files take too long: after so many the others are left for another look
# What DIRAC says of a JDL or of a person. All else may be said of a connection, and leaves it open what happened.
_REFUSED = re.compile(
    r"Invalid job description|validation error|Invalid job JDL|JDL syntax|Sandbox is (?:not valid|too big)|"
    r"[Uu]nauthorized|not authorized|limited proxy"
)


class Commands:
    """The transport `commands`. Its `dirac-wms-job-submit` confirms what it hands in, once it has its ids."""

    confirms = False
    groups_at_once = 1
    where = "DIRAC"

    def __init__(self, options: Mapping[str, object]) -> None:
        self._group = str(options.get("group") or "")
        self._limit = float(str(options.get("timeout_s", 60)))
        self._transfer = max(self._limit, float(str(options.get("transfer_s", 600))))
        self._chunk = int(str(options.get("chunk", 20)))
        self._has_data = bool(options.get("output_se"))

    def check(self, jobs: int) -> None:
        now = datetime.now(UTC)
        login = from_proxy_info(words.parse_proxy(self._run(words.proxy_command()).output), now)
        if login.path.is_file():
            read_proxy(login.path)  # refuses a limited one, and one that is broken
        if self._group and login.group != self._group:
            text = f"the proxy {login.path} is of group {login.group or '(none)'}; the site says {self._group}"
            raise SecretRefused(text, f"Make another: dirac-proxy-init -g {self._group}")
        check_span(f"the proxy {login.path}", login.ends, -(-jobs // self._chunk), now)

    def _run(self, command: Sequence[str], folder: Path | None = None) -> Ran:
        """A command that was heard to its end. Raises Unreachable."""
        ran = run(command, self._limit, folder)
        if ran.late:
            raise Unreachable(f"{command[0]} did not end within {self._limit:g} s")
        return ran

    def select(self, group: str, names: Mapping[int, str]) -> list[ServerJob]:
        if names:
            return [replace(job, name=names.get(job.id, "")) for job in self._known(sorted(names))]
        ran = self._run(words.group_command(group))
        jobs = words.parse_status(ran.output)
        if not jobs and ran.code and not words.is_empty_group(ran.output):
            raise Unreachable(words.error_of(ran.output))
        return self._named(jobs)

    def select_all(self, groups: Sequence[str]) -> Mapping[str, list[ServerJob]]:
        return {group: self.select(group, {}) for group in groups}

    def _known(self, ids: Sequence[int]) -> list[ServerJob]:
        with tempfile.TemporaryDirectory(prefix="fermigrid-dirac-") as folder:
            file = Path(folder) / "ids"
            file.write_text("".join(f"{job}\n" for job in ids))
            ran = self._run(words.status_command(file))
        jobs = words.parse_status(ran.output)
        if not jobs and ran.code:  # of jobs that it does not know it says nothing, and that all is well
            raise Unreachable(words.error_of(ran.output))
        return jobs

    def _named(self, jobs: Sequence[ServerJob]) -> list[ServerJob]:
        """The same jobs with their names, which cost a question for each."""
        found = {job.id: job for some in _batched(jobs, _IDS) for job in self._attributes([job.id for job in some])}
        if missing := [job.id for job in jobs if job.id not in found]:
            raise Unreachable(f"dirac-wms-job-attributes does not tell of job {missing[0]}")
        return [found[job.id] for job in jobs]

    def _attributes(self, ids: Sequence[int]) -> list[ServerJob]:
        return words.parse_attributes(self._run(words.attributes_command(ids)).output)

    def look(self, job: int) -> list[ServerJob]:
        return self._attributes([job])

    def send(self, documents: Iterable[JdlDocument]) -> Iterator[Sent]:
        waiting = iter(documents)
        while some := list(itertools.islice(waiting, _DOCUMENTS)):
            sent = self._send(some)
            yield from sent
            if any(one.doubt or one.refused for one in sent):
                return

    def _send(self, documents: Sequence[JdlDocument]) -> list[Sent]:
        with tempfile.TemporaryDirectory(prefix="fermigrid-dirac-") as folder:
            files = {Path(folder) / f"{document.first_index:07d}.jdl": document for document in documents}
            for file, document in files.items():
                file.write_text(document.text)
            ran = run(words.submit_command(list(files)), self._limit)
            told = words.parse_submit(ran.output, list(files))
        silent = f"no answer within {self._limit:g} s" if ran.late else words.error_of(ran.output)
        return [_sent(document, told.get(file), silent) for file, document in files.items()]

    def confirm(self, ids: Sequence[int], made: Mapping[int, datetime]) -> None:
        del made
        raise Denied(f"{len(ids)} jobs are not confirmed, and none of DIRAC's commands confirms them later")

    def kill(self, ids: Sequence[int]) -> None:
        for some in _batched(ids, _IDS):
            ran = self._run(words.kill_command(some))
            if ran.code and not words.parse_kill(ran.output):
                raise Denied(words.error_of(ran.output))

    def fetch(self, ids: Sequence[int], folder: Callable[[int], Path]) -> Fetched:
        """What came is kept, whatever becomes of the rest. After a call that took too long the next has fewer jobs."""
        there, empty, failed = set[int](), set[int](), list[str]()
        waiting, at_once, stuck = random.sample(ids, len(ids)), _IDS, 0  # what never comes is not always the first
        while waiting:
            some, waiting = waiting[:at_once], waiting[at_once:]
            came, said, late = self._fetch_some(some, folder)
            for job in came if self._has_data else ():
                if why := self._fetch_data(job, folder(job)):
                    said[job] = why
            there |= came - said.keys()
            empty |= {job for job, why in said.items() if any(word in why for word in words.NO_SANDBOX)}
            failed += [f"the output sandbox of job {job}: {why}" for job, why in said.items() if job not in empty]
            if late and at_once == 1:
                failed.append(f"the output sandbox of job {some[0]}: not here within {self._transfer:g} s")
                stuck += 1
                if stuck == _STUCK:
                    break
            elif late:
                at_once = max(1, at_once // 7)
                waiting = [job for job in some if job not in came and job not in said] + waiting
        return Fetched(frozenset(there), frozenset(empty), failed=tuple(failed))

    def _fetch_some(self, ids: Sequence[int], folder: Callable[[int], Path]) -> tuple[set[int], dict[int, str], bool]:
        """Those whose files came, why others cannot be had, and whether the command had to be ended."""
        with tempfile.TemporaryDirectory(prefix="fermigrid-dirac-", dir=folder(ids[0]).parent) as made:
            ran = run(words.output_command(ids, Path(made)), self._transfer)
            came, said = words.parse_output(ran.output)
            for job in came:
                for entry in plain_files(Path(made) / str(job)):
                    os.replace(entry.path, folder(job) / entry.name)  # noqa: PTH105  # an entry, not a path
        return came, said, ran.late

    def _fetch_data(self, job: int, folder: Path) -> str:
        """Bring what a job has put on storage elements; why it could not be had, if so."""
        ran = run(words.data_command(job, folder), self._transfer)
        if ran.late:
            return f"its output data are not here within {self._transfer:g} s (dirac.transfer)"
        return words.error_of(ran.output) if ran.code and not words.has_no_data(ran.output) else ""


def _batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _sent(document: JdlDocument, told: tuple[int, ...] | str | None, silent: str) -> Sent:
    match told:
        case str(why) if _REFUSED.search(why):
            return Sent(document, refused=why)
        case str(why):
            return Sent(document, doubt=why)
        case tuple(ids) if len(ids) == document.jobs:
            return Sent(document, ids)
        case tuple(ids):
            return Sent(document, doubt=f"DIRAC made {len(ids)} jobs of {document.jobs}")
    return Sent(document, doubt=silent)
