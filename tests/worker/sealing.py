"""Sealed secrets as `openssl cms` makes them, right ones and wrong ones, for the worker to open."""

from __future__ import annotations

import io
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.worker.worker_job import Job, Pairs, sha256


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


@dataclass(frozen=True)
class Identity:
    """A self-signed certificate and its key."""

    certificate: Path
    key: Path


def identity(folder: Path, name: str, kind: str = "rsa:2048") -> Identity:
    """A new certificate, good for a day."""
    made = Identity(folder / f"{name}.pem", folder / f"{name}.key")
    new = ["req", "-x509", "-newkey", kind, "-nodes", "-days", "1", "-subj", f"/CN={name}"]
    if kind == "ec":
        new += ["-pkeyopt", "ec_paramgen_curve:prime256v1"]
    openssl(*new, "-keyout", made.key, "-out", made.certificate)
    made.key.chmod(0o644)  # a node's test user must read it
    return made


def seal_words(name: str = "oracle", begin_s: float = -60, end_s: float = 3600) -> bytes:
    """The seal's own file; dates in seconds from now."""
    now = time.time()
    return f"name={name}\nnot_before={int(now + begin_s)}\nnot_after={int(now + end_s)}\n".encode()


def archive(members: Sequence[tuple[str, bytes] | tarfile.TarInfo], seal: bytes | None = None) -> bytes:
    """A tar file: the seal (None: the usual one; empty: none), then members, plain files or whatever."""
    file = io.BytesIO()
    seal = seal_words() if seal is None else seal
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in [(".fermigrid-seal", seal)] * bool(seal) + list(members):
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member, io.BytesIO(bytes(member.size)))
                continue
            info = tarfile.TarInfo(member[0])
            info.size, info.mode = len(member[1]), 0o640
            tar.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def sign(folder: Path, content: bytes, *signers: Identity, options: Sequence[str] = ("-nodetach",)) -> bytes:
    """CMS SignedData around the content."""
    (folder / "plain").write_bytes(content)
    who = [word for one in signers for word in ("-signer", one.certificate, "-inkey", one.key)]
    openssl(
        "cms", "-sign", "-binary", "-outform", "DER", *options, *who, "-in", folder / "plain", "-out", folder / "signed"
    )
    return (folder / "signed").read_bytes()


def envelop(folder: Path, content: bytes, *recipients: Identity) -> bytes:
    """CMS EnvelopedData around the content."""
    (folder / "signed").write_bytes(content)
    to = [one.certificate for one in recipients]
    openssl(
        "cms",
        "-encrypt",
        "-binary",
        "-aes256",
        "-outform",
        "DER",
        "-in",
        folder / "signed",
        "-out",
        folder / "sealed",
        *to,
    )
    return (folder / "sealed").read_bytes()


@dataclass(frozen=True)
class Sealed:
    """A sealed secret as a job carries it: its settings, and the files that lie in the job's scratch folder."""

    settings: Pairs
    files: Mapping[str, bytes]

    def into(self, job: Job) -> Job:
        """The job, with the files in its scratch folder."""
        job.scratch.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (job.scratch / name).write_bytes(content)
        return job


@dataclass
class Office:
    """Where secrets are sealed: one signer, one site."""

    folder: Path
    signer: Identity
    site: Identity

    @classmethod
    def open(cls, folder: Path) -> Office:
        return cls(folder, identity(folder, "signer"), identity(folder, "site"))

    def seal(self, content: bytes) -> bytes:
        """The content, signed and enveloped as it should be."""
        return envelop(self.folder, sign(self.folder, content, self.signer), self.site)

    def secret(self, sealed: bytes, name: str = "oracle", **changed: str) -> Sealed:
        """The settings for sealed content; `changed`: other values of key, certificate, sha256, signer_sha256."""
        signer = self.signer.certificate.read_bytes()
        values = {
            "kind": "sealed",
            "from": f"{name}.cms",
            "sha256": sha256(sealed),
            "key": str(self.site.key),
            "certificate": str(self.site.certificate),
            "signer": f"{name}.signer.pem",
            "signer_sha256": sha256(signer),
            **changed,
        }
        settings = [(f"secret.{key.replace('_', '.')}", value) for key, value in values.items()]
        files = {f"{name}.cms": sealed, f"{name}.signer.pem": signer}
        return Sealed([("secret", name), *settings, ("secret.point", "TNS_ADMIN=.")], files)
