"""Every error that fermigrid shows to a person: its class, exit code and hint.

Exit codes: 0 good, 1 jobs failed (`submit --wait`, `status --check`), 2 usage (click), 10 and above one for each class.
They are documented in docs/reference/exit-codes.md; tests compare the page with this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST_SHOWN = 100  # problems of a file, to a person; whoever has more has another kind of file


class FermigridError(Exception):
    """Something a person can understand and act on; `str()` is the message, `hint` the next thing to do."""

    exit_code = 10

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, order=True)
class Problem:
    """One fault of a file that a person wrote."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


class ConfigError(FermigridError):
    """A campaign, site, image or run file is wrong. Carries every problem found, in the order of the file."""

    exit_code = 11

    def __init__(self, problems: Sequence[Problem], hint: str = "") -> None:
        self.problems = tuple(sorted(problems))
        more = len(self.problems) - MOST_SHOWN
        lines = [*map(str, self.problems[:MOST_SHOWN]), *([f"... and {more} more"] if more > 0 else [])]
        super().__init__("\n".join(lines), hint)


class Unrepresentable(FermigridError):
    """A text that the batch system or the shell cannot be given unchanged."""

    exit_code = 12

    def __init__(self, what: str, value: str, why: str) -> None:
        self.what, self.value, self.why = what, value, why
        super().__init__(f"{what}: {value!r} cannot be used: {why}")


class PipelineRefused(FermigridError):
    """The environment of a job of the pipeline lacks a variable, or has one that cannot be understood."""

    exit_code = 13


class RunFolderError(FermigridError):
    """The run folder exists with something else in it, is damaged, or its path cannot be given to the batch system."""

    exit_code = 14


class LedgerError(FermigridError):
    """The ledger is locked by another fermigrid, of a newer version, or on a file system where it is not safe."""

    exit_code = 15


class LedgerBusy(LedgerError):
    """Another fermigrid is at work on the campaign."""


class BackendUnavailable(FermigridError):
    """The batch system cannot be reached, or did not answer in time. Nothing is known to be lost."""

    exit_code = 16


class SubmissionRefused(FermigridError):
    """The batch system answered and said no: permission, limits, a file it cannot read."""

    exit_code = 17


class SubmissionDoubt(FermigridError):
    """A submission was sent and no answer came; `submit` or `watch` will settle it. Do not submit by hand."""

    exit_code = 18


class NotFound(FermigridError):
    """No such campaign, job, site or image, or folder of site files."""

    exit_code = 19


class AccessRefused(FermigridError):
    """A folder that others can write, that belongs to somebody else, or a link where a folder must be."""

    exit_code = 20


class SecretRefused(FermigridError):
    """A secret is not there, can be read by others, ends before a job may, or does not fit its key or certificate."""

    exit_code = 21


class PassphraseNeeded(SecretRefused):
    """A key has a passphrase that was not given, or another one."""


class RedoRefused(FermigridError):
    """What was asked to be done again has a result, is at work, or its new outputs would have the names of old ones."""

    exit_code = 22


class InternalError(FermigridError):
    """A fault of fermigrid itself; the traceback was written to a file that the message names."""

    exit_code = 70
