"""Certificates for tests: an authority, a person, and X.509 proxies of that person (RFC 3820)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

PROXY_INFO = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
FULL = bytes.fromhex("300c300a06082b06010505071501")  # ProxyCertInfo: a policy, inherit all
LIMITED = bytes.fromhex("300f300d060b2b060104019b5001010109")  # Globus: a limited proxy


@dataclass(frozen=True)
class Holder:
    """A key and its certificate, and the certificates that it comes from (its own first)."""

    key: rsa.RSAPrivateKey
    chain: tuple[x509.Certificate, ...]

    @property
    def certificate(self) -> x509.Certificate:
        """Its own."""
        return self.chain[0]

    def pem(self) -> bytes:
        """As Globus and VOMS write it: certificate, key, the chain above."""
        own, *above = (one.public_bytes(serialization.Encoding.PEM) for one in self.chain)
        return own + key_pem(self.key) + b"".join(above)


def key_pem(key: rsa.RSAPrivateKey) -> bytes:
    """The key as PEM, without a passphrase."""
    style = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(serialization.Encoding.PEM, style, serialization.NoEncryption())


def _issue(
    subject: x509.Name, issuer: x509.Name, public: rsa.RSAPublicKey, until: datetime, since: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(since).not_valid_after(until)


def make_person(name: str = "Enrico Fermi", days: float = 365) -> Holder:
    """An authority and a person's certificate from it."""
    now = datetime.now(UTC)
    since, until = now - timedelta(days=1), now + timedelta(days=days)
    ca_key = rsa.generate_private_key(65537, 2048)
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "fermigrid test")
    ca_name = x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    ca = _issue(ca_name, ca_name, ca_key.public_key(), until, since)
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, name)])
    own = _issue(subject, ca_name, key.public_key(), until, since).sign(ca_key, hashes.SHA256())
    return Holder(key, (own, ca.sign(ca_key, hashes.SHA256())))


def make_proxy(person: Holder, until: datetime, *, limited: bool = False, since: datetime | None = None) -> Holder:
    """A proxy of the person (or of another proxy), valid until then."""
    key = rsa.generate_private_key(65537, 2048)
    number = x509.random_serial_number() % 10**9
    subject = x509.Name([*person.certificate.subject, x509.NameAttribute(NameOID.COMMON_NAME, str(number))])
    since = since or datetime.now(UTC) - timedelta(minutes=5)
    info = x509.UnrecognizedExtension(PROXY_INFO, LIMITED if limited else FULL)
    usage = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
    builder = _issue(subject, person.certificate.subject, key.public_key(), until, since)
    proxy = builder.add_extension(info, critical=True).add_extension(usage, critical=True)
    return Holder(key, (proxy.sign(person.key, hashes.SHA256()), *person.chain))


def write_proxy(path: Path, proxy: Holder) -> Path:
    """The proxy's file, replaced at once as `voms-proxy-init` does, mode 0600."""
    draft = path.with_name(f".{path.name}.new")
    draft.touch(mode=0o600)
    draft.write_bytes(proxy.pem())
    draft.rename(path)
    return path
