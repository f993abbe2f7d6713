"""What can be seen of a secret on this machine: that it is there, its owner's alone, what it is, and when it ends."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fermigrid.access import Trust, fault_of, owner_name
from fermigrid.errors import SecretRefused
from fermigrid.plainfile import kind_of
from fermigrid.sealed import Sealed, SealedFiles, parse_text
from fermigrid.secret import Secret

if TYPE_CHECKING:
    from cryptography import x509

_PROXY_INFO = "1.3.6.1.5.5.7.1.14"  # RFC 3820
_OLD_PROXY_INFO = "1.3.6.1.4.1.3536.1.222"
_LIMITED = bytes.fromhex("2b060104019b5001010109")  # 1.3.6.1.4.1.3536.1.1.1.9, as it is written in the extension
_MOST = 64 * 2**20


@dataclass(frozen=True)
class Span:
    """What ends, and from when until when it is valid (UTC)."""

    what: str
    since: datetime
    until: datetime


def find_openings(path: Path, trust: Trust) -> Iterator[str]:
    """What makes a secret file or folder one that others can read, change or exchange. Raises SecretRefused: it is not
    there."""
    try:
        if fault := fault_of(path, trust):
            yield f"{fault.words}. {fault.fix}"
        top = path.stat()
        closed = _is_closed_above(path, trust.me)
        yield from _fault(path, top, trust, closed)
        if stat.S_ISDIR(top.st_mode):
            yield from _below(path, trust, closed or not top.st_mode & 0o077)
    except OSError as error:
        raise SecretRefused(f"{error.filename or path}: {error.strerror}") from error


def _is_closed_above(path: Path, me: int) -> bool:
    """Is a folder on the way the owner's alone?"""
    for folder in Path(os.path.realpath(path)).parents:
        found = folder.stat()
        if found.st_uid == me and not found.st_mode & 0o077:
            return True
    return False


def _below(folder: Path, trust: Trust, closed: bool) -> Iterator[str]:
    inside = folder.resolve()
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in sorted((*folders, *files)):
            path = Path(parent, name)
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode):
                target = path.resolve()
                if path.is_dir():
                    yield f"{path} is a link to a folder: HTCondor sends no such link. Put the folder there itself"
                elif not target.is_relative_to(inside):
                    yield f"{path} is a link to {target}, outside of {folder}. Put the file there itself"
            else:
                yield from _fault(path, found, trust, closed)


def _raise(error: OSError) -> None:
    raise error


def _fault(path: Path, found: os.stat_result, trust: Trust, closed: bool) -> Iterator[str]:
    mode = stat.S_IMODE(found.st_mode)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        yield f"{path} is {kind_of(found)}, no file and no folder"
    elif not trust.is_owner(found.st_uid):
        yield f"{path} belongs to {owner_name(found.st_uid)}"
    elif mode & 0o077 and not closed:
        wanted = "0700" if stat.S_ISDIR(found.st_mode) else "0600"
        yield f"{path} can be read by others (mode {mode:04o}): chmod {wanted} {path}"
    elif not os.access(path, os.R_OK):
        yield f"{path} cannot be read by you (mode {mode:04o})"


def read_sealed(name: str, secret: Secret) -> SealedFiles:
    """A sealed secret and its signer's certificate, as a plan carries them. Raises SecretRefused.

    What the file says is as the signer signed it. That the site's key opens it only the node can tell.
    """
    path, signer = Path(secret.source or ""), Path(secret.signer or "")
    try:
        sealed, certificate = parse_text(_bounded(path).decode("ascii")), _bounded(signer)
    except OSError as error:
        raise SecretRefused(f"{error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise SecretRefused(f"{path}: {error}") from error
    if certificate.count(b"-----BEGIN ") != 1 or b"-----BEGIN CERTIFICATE-----" not in certificate:
        raise SecretRefused(f"{signer} is not one certificate (PEM)")
    _check_signer(sealed, path, signer)
    if sealed.name != name:
        raise SecretRefused(f"{path} is sealed as {sealed.name!r}; the site offers it as {name!r}, which no node opens")
    return SealedFiles(sealed, certificate)


def _check_signer(sealed: Sealed, path: Path, signer: Path) -> None:
    from fermigrid.seal import is_signed, read_certificate, subject_of

    certificate = read_certificate(signer)
    if (found := subject_of(certificate)) != sealed.signer:
        raise SecretRefused(f"{path} is signed by {sealed.signer}; {signer} is the certificate of {found}")
    if not is_signed(sealed, certificate):
        raise SecretRefused(
            f"{path} was changed after {found} signed it, or somebody else signed it under that name: seal it anew"
        )


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MOST + 1)
    if len(data) > _MOST:
        raise ValueError("it is too large")
    return data


def check_recipient(sealed: Sealed, certificate: Path) -> None:
    """Is it sealed for the one whose certificate this is? Raises SecretRefused."""
    from fermigrid.seal import read_certificate, subject_of

    if (site := subject_of(read_certificate(certificate))) not in sealed.recipients:
        whom = "; ".join(sealed.recipients)
        raise SecretRefused(
            f"it is sealed for {whom}; the site's certificate {certificate} is of {site}, whose key cannot open it: "
            f"seal it anew with --to {certificate}"
        )


def sealed_span(sealed: Sealed) -> Span:
    """When the seal is valid."""
    return Span("the seal", sealed.since, sealed.until)


def read_proxy(path: Path) -> Span:
    """An X.509 proxy: it is valid while all its certificates are. Raises SecretRefused with what is wrong."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        data = _bounded(path)
        chain = x509.load_pem_x509_certificates(data)
    except OSError as error:
        raise SecretRefused(f"{path}: {error.strerror}. Make a proxy first (voms-proxy-init)") from error
    except ValueError as error:
        raise SecretRefused(f"{path} is no proxy: it has no certificate (PEM) in it") from error
    own = chain[0]
    if b"PRIVATE KEY-----" not in data:
        raise SecretRefused(f"{path} is no proxy: it has no private key in it")
    try:
        key = load_pem_private_key(data, None)
    except (TypeError, ValueError) as error:
        raise SecretRefused(f"{path}: its private key cannot be used without a passphrase, or is damaged") from error
    if key.public_key() != own.public_key():
        raise SecretRefused(f"{path}: its certificate and its private key do not belong together")
    if not (kinds := _proxy_kinds(own)):
        raise SecretRefused(f"{path} is a certificate of its own, no proxy of one: make a proxy (voms-proxy-init)")
    if "limited" in kinds:
        raise SecretRefused(
            f"{path} is a limited proxy, which many services refuse: make one without -limited (voms-proxy-init)"
        )
    since = max(one.not_valid_before_utc for one in chain)
    return Span("the proxy", since, min(one.not_valid_after_utc for one in chain))


def _proxy_kinds(own: x509.Certificate) -> set[str]:
    """What kind of proxy a certificate is: nothing for one that is none."""
    from cryptography.x509.oid import NameOID

    kinds = set()
    for extension in own.extensions:
        if extension.oid.dotted_string in (_PROXY_INFO, _OLD_PROXY_INFO):
            limited = _LIMITED in getattr(extension.value, "value", b"")
            kinds.add("limited" if limited else "full")
    names = own.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    last = names[-1].value if names else ""
    return kinds | {"full"} if last == "proxy" else kinds | {"limited"} if last == "limited proxy" else kinds
