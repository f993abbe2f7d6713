"""Sealing: files signed by a person, then enveloped for the certificates of sites. Keys for both.

CMS (RFC 5652), DER: EnvelopedData (AES-256-CBC, a recipient each site) around SignedData around a tar file.
`openssl cms` opens it. Everything happens in memory: no file ever holds what is sealed.
"""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from fermigrid.errors import PassphraseNeeded, SecretRefused
from fermigrid.lifetime import show_time
from fermigrid.plainfile import open_plain, write_new
from fermigrid.sealed import FORMAT, MOST_BYTES, SEAL, Sealed, seal_lines

KEY_BITS = 3072
Files = tuple[tuple[str, bytes], ...]
Recipients = Sequence[tuple[Path, x509.Certificate]]  # each with the file that it was read from


@dataclass(frozen=True)
class Signer:
    """Who seals: a private key and its certificate."""

    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def read_certificate(path: Path) -> x509.Certificate:
    """The one certificate of a PEM file. Raises SecretRefused."""
    found = _certificates(path)
    if len(found) != 1:
        raise SecretRefused(f"{path} has {len(found)} certificates; one is needed")
    return found[0]


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise SecretRefused(f"{path} has no certificate (PEM) in it") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SecretRefused(f"{path} cannot be read: {error.strerror}") from error


def read_signer(key: Path, certificate: Path, passphrase: bytes | None) -> Signer:
    """A key with its certificate. Raises SecretRefused: also when the two do not belong together.

    A key with a passphrase and none given, or the wrong one: PassphraseNeeded.
    """
    found = read_certificate(certificate)
    try:
        secret = serialization.load_pem_private_key(_read(key), passphrase)
    except TypeError as error:  # a passphrase where none is, or none where one is
        if passphrase is not None:
            return read_signer(key, certificate, None)
        raise PassphraseNeeded(f"the key {key} has a passphrase") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if passphrase is not None:
            raise PassphraseNeeded(f"the passphrase does not open the key {key}") from error
        raise SecretRefused(f"{key} has no private key (PEM) in it") from error
    if not isinstance(secret, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise SecretRefused(f"the key {key} is neither RSA nor an elliptic curve")
    if secret.public_key() != found.public_key():
        raise SecretRefused(
            f"the key {key} and the certificate {certificate} do not belong together", "Give the pair of one --new-key."
        )
    return Signer(secret, found)


def subject_of(certificate: x509.Certificate) -> str:
    """Whose certificate it is, and its number: `CN=slac secrets (serial 5f3c...)`."""
    return f"{certificate.subject.rfc4514_string()} (serial {certificate.serial_number:x})"


def seal(name: str, source: Path, to: Recipients, signer: Signer, *, since: datetime, until: datetime) -> Sealed:
    """Seal a file, or all that is in a folder, for the holders of these certificates' keys. Raises SecretRefused."""
    _check_people(to, signer, since, until)
    content = _pack(_collect(source), seal_lines(name, since, until), since)
    binary = [pkcs7.PKCS7Options.Binary]
    build = pkcs7.PKCS7SignatureBuilder().set_data(content)
    build = build.add_signer(signer.certificate, signer.key, hashes.SHA256())
    bare = [*binary, pkcs7.PKCS7Options.NoCapabilities, pkcs7.PKCS7Options.NoCerts]  # the site names the certificate
    signed = build.sign(serialization.Encoding.DER, bare)
    wrap = pkcs7.PKCS7EnvelopeBuilder().set_data(signed).set_content_encryption_algorithm(algorithms.AES256)
    for _, certificate in to:
        wrap = wrap.add_recipient(certificate)
    recipients = tuple(subject_of(certificate) for _, certificate in to)
    envelope = wrap.encrypt(serialization.Encoding.DER, binary)
    bare_file = Sealed(name, since, until, recipients, subject_of(signer.certificate), envelope)
    return replace(bare_file, signature=_sign(signer.key, bare_file.signed))


def _sign(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def is_signed(sealed: Sealed, certificate: x509.Certificate) -> bool:
    """Are header and envelope of a sealed file as the holder of this certificate's key signed them?"""
    key = certificate.public_key()
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(sealed.signature, sealed.signed, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(sealed.signature, sealed.signed, ec.ECDSA(hashes.SHA256()))
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _check_people(to: Recipients, signer: Signer, since: datetime, until: datetime) -> None:
    if not to:
        raise SecretRefused("a sealed secret needs at least one certificate of a site", "Give it with --to.")
    if until <= since:
        raise SecretRefused(f"the seal would end at {show_time(until)}, before it begins", "Give a later --until.")
    for path, certificate in to:
        if not isinstance(certificate.public_key(), rsa.RSAPublicKey):
            raise SecretRefused(f"the certificate {path} has no RSA key: nothing can be sealed for it")
        _check_dates(f"the certificate {path}", certificate, since, until)
    _check_dates("the signer's certificate", signer.certificate, since, until)


def _check_dates(what: str, certificate: x509.Certificate, since: datetime, until: datetime) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if since + timedelta(minutes=5) < begins:
        raise SecretRefused(f"{what} is valid only from {show_time(begins)} on")
    if until > ends:
        raise SecretRefused(
            f"{what} ends at {show_time(ends)}, before the seal would ({show_time(until)})",
            "Give an earlier --until, or use a newer certificate.",
        )


def _collect(source: Path) -> Files:
    """(name, content) of a file, or of all files below a folder, in the order of their names."""
    try:
        found = tuple(_files(source)) if source.is_dir() else ((source.name, source.read_bytes()),)
    except OSError as error:
        raise SecretRefused(f"{error.filename or source} cannot be read: {error.strerror}") from error
    if not found:
        raise SecretRefused(f"{source} has no file in it")
    if (size := sum(len(data) for _, data in found)) > MOST_BYTES:
        raise SecretRefused(f"{source} has {size} bytes; a sealed secret may have {MOST_BYTES}")
    return found


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    names = sorted(Path(parent, name) for parent, _, files in os.walk(folder, onerror=_raise) for name in files)
    folders = (Path(parent, name) for parent, below, _ in os.walk(folder) for name in below)
    if link := next((path for path in folders if path.is_symlink()), None):
        raise SecretRefused(f"{link} is a link to a folder: put the folder there, or seal without it")
    for path in names:
        target = path.resolve(strict=True)
        if not target.is_relative_to(folder.resolve()):
            raise SecretRefused(f"{path} is a link to {target}, outside of {folder}: put the file there itself")
        with open_plain(target) as file:
            name = path.relative_to(folder).as_posix()
            if name == SEAL or any(ord(char) < 32 or ord(char) == 127 for char in name):
                raise SecretRefused(f"{path} cannot be sealed under this name")
            yield name, file.read()


def _raise(error: OSError) -> None:
    raise error


def _pack(files: Files, seal_text: bytes, since: datetime) -> bytes:
    """The tar file: the seal first, then the files, their folders before them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        made: set[str] = set()
        for name, data in ((SEAL, seal_text), *files):
            for depth in range(1, name.count("/") + 1):
                folder = "/".join(name.split("/")[:depth])
                if folder not in made:
                    made.add(folder)
                    tar.addfile(_member(folder, since, tarfile.DIRTYPE, 0o700))
            member = _member(name, since, tarfile.REGTYPE, 0o600)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _member(name: str, since: datetime, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = kind, mode, int(since.timestamp())
    return member


def make_key(folder: Path, holder: str, days: int, passphrase: bytes | None, now: datetime) -> tuple[Path, Path]:
    """A new key (`key.pem`, 0600) and its own certificate (`certificate.pem`) in `folder`. Raises SecretRefused.

    Nothing is ever overwritten. A site's key has no passphrase, because jobs use it; a signer's may have one.
    """
    key_file, certificate_file = folder / "key.pem", folder / "certificate.pem"
    for path in (key_file, certificate_file):
        if os.path.lexists(path):
            raise SecretRefused(f"{path} is there already; a key is never overwritten", "Name another folder.")
    key = rsa.generate_private_key(65537, KEY_BITS)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, holder)])
    build = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    build = build.serial_number(x509.random_serial_number())
    build = build.not_valid_before(now - timedelta(minutes=5)).not_valid_after(now + timedelta(days=days))
    usage = x509.KeyUsage(True, True, True, False, False, False, False, False, False)
    certificate = build.add_extension(usage, critical=True).sign(key, hashes.SHA256())
    locked: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        locked = serialization.BestAvailableEncryption(passphrase)
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_new(key_file, secret, 0o600)
        write_new(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))
        certificate_file.chmod(0o644)  # it is for everybody
    except OSError as error:
        raise SecretRefused(f"{error.filename or folder} cannot be written: {error.strerror}") from error
    if stat.S_IMODE(key_file.stat().st_mode) & 0o077:
        key_file.unlink()
        raise SecretRefused(f"{folder} keeps no private files: its file system has no modes", "Name another folder.")
    return key_file, certificate_file


def check_name(name: str) -> None:
    """Refuse what no site file can offer."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}", name):
        raise SecretRefused(f"{name!r} is no name of a secret: at most 60 letters, digits and . _ -")


def read_passphrase(path: Path) -> bytes:
    """A passphrase from the first line of a file of its owner's alone. Raises SecretRefused."""
    text = _read(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise SecretRefused(f"{path} can be read by others", f"chmod 0600 {path}")
    return text.split(b"\n", 1)[0].rstrip(b"\r")


def replace_file(path: Path, text: str) -> None:
    """Write a sealed file, whole or not at all, in the place of an older one. Raises SecretRefused."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        if path.exists() and FORMAT not in path.read_text(errors="replace")[:100]:
            raise SecretRefused(f"{path} is there already, and no sealed file: it is not overwritten", "Name another.")
        write_new(draft, text.encode())
        draft.replace(path)
    except OSError as error:
        raise SecretRefused(f"{error.filename or path} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
