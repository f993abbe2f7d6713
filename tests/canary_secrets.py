"""One secret of each kind with canaries in it, as files; and a person's environment full of them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.canary import Canaries

PERSON = (
    "MY_PASSWORD", "BEARER_TOKEN", "ORACLE_PASSWD", "X509_USER_KEY_PASSPHRASE", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD",
    "SOME_VARIABLE", "http_proxy_credentials", "APPTAINERENV_MY_TOKEN", "SINGULARITYENV_MY_TOKEN", "XrdSecSSSKT",
)  # fmt: skip


def person_environment(canaries: Canaries) -> dict[str, str]:
    """What a careless person has in the shell, or a pilot in its environment."""
    return {name: canaries.value(f"environment {name}") for name in PERSON}


@dataclass(frozen=True)
class Kit:
    """Secrets below `folder`, each with a canary that has the name of its kind."""

    folder: Path
    canaries: Canaries

    @cached_property
    def wallet(self) -> Path:
        """`path`: an Oracle wallet and an XRootD key."""
        return self._folder("path")

    @cached_property
    def transferred(self) -> Path:
        """`transfer`: a folder that travels with the job."""
        return self._folder("transfer")

    @cached_property
    def token(self) -> Path:
        """`token`: a bearer token as its issuer would make it, good for an hour."""
        claims = {"exp": int(time.time()) + 3600, "jti": self.canaries.core("token"), "iss": "https://issuer.test"}
        parts = [{"alg": "none"}, claims, {"signature": self.canaries.core("token")}]
        path = self.folder / "creds/scitokens.use"
        path.parent.mkdir()
        path.parent.chmod(0o700)
        path.write_text(".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts))
        path.chmod(0o600)
        return path

    @cached_property
    def proxy(self) -> Path:
        """`proxy`: a certificate and its key; the canary is in its subject and beside it."""
        certificate, key = self.certificate("proxy", self.canaries.core("proxy"))
        path = self.folder / "x509up"
        path.write_text(f"# {self.canaries.value('proxy')}\n{certificate.read_text()}{key.read_text()}")
        path.chmod(0o600)
        return path

    def certificate(self, name: str, subject: str = "test") -> tuple[Path, Path]:
        """A self-signed certificate, good for a day, and its key."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        if not key.exists():
            new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={subject}")
            self._openssl(*new, "-keyout", key, "-out", certificate)
            key.chmod(0o600)
        return certificate, key

    @cached_property
    def sealed(self) -> Path:
        """`sealed`: the content of a folder, signed by `signer` for the certificate `site`."""
        (signer, signing), (site, _) = self.certificate("signer"), self.certificate("site")
        plain, signed, sealed = (self.folder / name for name in ("sealing.tar", "sealing.cms", "oracle.cms"))
        plain.write_bytes(self._tar(self._folder("sealed")))
        sign = ("cms", "-sign", "-binary", "-nodetach", "-outform", "DER", "-signer", signer, "-inkey", signing)
        self._openssl(*sign, "-in", plain, "-out", signed)
        seal = ("cms", "-encrypt", "-binary", "-aes256", "-outform", "DER")
        self._openssl(*seal, "-in", signed, "-out", sealed, site)
        plain.unlink()
        signed.unlink()
        return sealed

    def _tar(self, folder: Path) -> bytes:
        now = int(time.time())
        seal = f"name=sealed\nnot_before={now - 60}\nnot_after={now + 3600}\n".encode()
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            member = tarfile.TarInfo(".fermigrid-seal")
            member.size = len(seal)
            archive.addfile(member, io.BytesIO(seal))
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name)
        return plain.getvalue()

    def _folder(self, kind: str) -> Path:
        folder = self.folder / f"{kind}.d"
        (folder / "wallet").mkdir(parents=True)
        (folder / "my.cnf").write_text(f"[client]\npassword={self.canaries.value(kind)}\n")
        (folder / "wallet/cwallet.sso").write_bytes(b"\xa1\xf8\x4e6" + self.canaries.value(kind).encode() + b"\0\xff")
        (folder / ".hidden").write_text(self.canaries.value(kind))
        for path in folder.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        folder.chmod(0o700)
        return folder

    def _openssl(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


def digest(path: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
