"""Sealed secrets as files: what anybody may read of one, and what a plan carries. Pure; `seal.py` makes them.

A sealed file is text: lines of a header for people and for `secret check`, then the envelope as PEM, then the signature
of both, by who sealed it. The worker goes by the name and the dates that are signed inside, which a site's key shows.
Docs: docs/how-to/secrets-and-xrootd.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

FORMAT = "fermigrid sealed secret, format 1"
SEAL = ".fermigrid-seal"  # the first member of the tar file that is sealed
MOST_BYTES = 16 * 2**20  # of content: the worker refuses more
_BLOCK = r"-----BEGIN {0}-----\n([A-Za-z0-9+/=\n]+)-----END {0}-----\n"
_TEXT = re.compile(
    rf"{re.escape(FORMAT)}\n((?:[a-z ]+: [^\n]*\n)+)\n{_BLOCK.format('CMS')}{_BLOCK.format('SIGNATURE')}"
)
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Sealed:
    """A sealed secret: its envelope (DER), what its header says, and the signature of both. Times are UTC."""

    name: str
    since: datetime
    until: datetime
    recipients: tuple[str, ...]
    signer: str
    envelope: bytes
    signature: bytes = b""

    @property
    def signed(self) -> bytes:
        """What the signature is of: the header, and the digest of the envelope."""
        return f"{_header(self)}{self.sha256}\n".encode()

    @property
    def sha256(self) -> str:
        """Of the envelope, as the worker gets it."""
        return hashlib.sha256(self.envelope).hexdigest()


@dataclass(frozen=True)
class SealedFiles:
    """What a plan carries of a sealed secret: the envelope, and the certificate of who signed it (PEM)."""

    sealed: Sealed
    signer: bytes

    @property
    def signer_sha256(self) -> str:
        """Of the certificate's file."""
        return hashlib.sha256(self.signer).hexdigest()


def write_text(sealed: Sealed) -> str:
    """The file of a sealed secret."""
    return f"{_header(sealed)}\n{_block('CMS', sealed.envelope)}{_block('SIGNATURE', sealed.signature)}"


def _header(sealed: Sealed) -> str:
    lines = [FORMAT, f"name: {sealed.name}"]
    lines += [f"from: {sealed.since.strftime(_TIME)}", f"until: {sealed.until.strftime(_TIME)}"]
    lines += [f"for: {recipient}" for recipient in sealed.recipients]
    return "".join(f"{line}\n" for line in (*lines, f"signed by: {sealed.signer}"))


def _block(what: str, data: bytes) -> str:
    lines = textwrap.wrap(base64.b64encode(data).decode(), 64)
    return "\n".join([f"-----BEGIN {what}-----", *lines, f"-----END {what}-----"]) + "\n"


def parse_text(text: str) -> Sealed:
    """Read what `write_text` wrote. Raises ValueError with what is wrong."""
    match = _TEXT.fullmatch(text)
    if not match:
        raise ValueError("it was not made by `fermigrid secret seal`, or is damaged")
    fields = [line.split(": ", 1) for line in match[1].splitlines()]
    try:
        envelope, signature = base64.b64decode(match[2]), base64.b64decode(match[3])
        since, until = (_time(_only(fields, key)) for key in ("from", "until"))
        recipients = tuple(value for key, value in fields if key == "for")
        name, signer = _only(fields, "name"), _only(fields, "signed by")
        return Sealed(name, since, until, recipients, signer, envelope, signature)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"its header or content is damaged: {error}") from error


def _only(fields: Sequence[Sequence[str]], key: str) -> str:
    values = [value for name, value in fields if name == key]
    if len(values) != 1:
        raise ValueError(f"`{key}` is written {len(values)} times")
    return values[0]


def _time(text: str) -> datetime:
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)


def seal_lines(name: str, since: datetime, until: datetime) -> bytes:
    """The content of the member SEAL: what is signed together with the files. Seconds since 1970, UTC."""
    return f"name={name}\nnot_before={int(since.timestamp())}\nnot_after={int(until.timestamp())}\n".encode()


def file_names(name: str) -> tuple[str, str]:
    """What envelope and signer's certificate are called in a job's scratch folder, and in `secrets/` of a plan."""
    return f"{name}.cms", f"{name}.signer.pem"
