"""Sealed secrets: what openssl makes of them, who can open them, and what is refused."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermigrid.errors import PassphraseNeeded, SecretRefused
from fermigrid.seal import (
    Recipients,
    Signer,
    make_key,
    read_certificate,
    read_passphrase,
    read_signer,
    replace_file,
    seal,
)
from fermigrid.sealed import FORMAT, MOST_BYTES, SEAL, Sealed, parse_text, write_text

NOW = datetime.now(UTC).replace(microsecond=0)
LATER = NOW + timedelta(days=30)
VALUE = b"canary-3f1c\0\r\n\xff"


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders slac, lyon, me, other, each with key.pem and certificate.pem."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("slac", "lyon", "me", "other"):
        make_key(folder / name, name, 365, None, NOW)
    return folder


@pytest.fixture
def wallet(tmp_path: Path) -> Path:
    folder = tmp_path / "wallet"
    (folder / "sub").mkdir(parents=True)
    (folder / "cwallet.sso").write_bytes(VALUE)
    (folder / "sub/été ora").write_bytes(b"x")
    return folder


def to(keys: Path, *names: str) -> Recipients:
    return [(keys / name, read_certificate(keys / name / "certificate.pem")) for name in names]


def signer(keys: Path, name: str = "me") -> Signer:
    return read_signer(keys / name / "key.pem", keys / name / "certificate.pem", None)


def openssl(*arguments: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["openssl", "cms", *arguments], input=data, capture_output=True, timeout=30, check=False)


def opened(keys: Path, sealed: Sealed, site: str, by: str = "me") -> tarfile.TarFile | None:
    """What a site gets out of it with openssl, when it trusts the signer `by`."""
    pair = ("-recip", str(keys / site / "certificate.pem"), "-inkey", str(keys / site / "key.pem"))
    signed = openssl("-decrypt", "-binary", "-inform", "DER", *pair, data=sealed.envelope)
    trusted = ("-nointern", "-noverify", "-certfile", str(keys / by / "certificate.pem"))
    content = openssl("-verify", "-binary", "-inform", "DER", *trusted, data=signed.stdout)
    return tarfile.open(fileobj=io.BytesIO(content.stdout)) if content.returncode == 0 else None


def test_every_recipient_opens_it_with_openssl(keys: Path, wallet: Path) -> None:
    sealed = seal("oracle", wallet, to(keys, "slac", "lyon"), signer(keys), since=NOW, until=LATER)
    for site in ("slac", "lyon"):
        tar = opened(keys, sealed, site)
        assert tar is not None
        assert tar.getnames() == [SEAL, "cwallet.sso", "sub", "sub/été ora"]
        first = tar.extractfile(SEAL)
        inside = tar.extractfile("cwallet.sso")
        assert first is not None and inside is not None and inside.read() == VALUE
        dates = f"not_before={int(NOW.timestamp())}\nnot_after={int(LATER.timestamp())}\n"
        assert first.read().decode() == f"name=oracle\n{dates}"
        assert {member.mode for member in tar} == {0o600, 0o700}
    assert VALUE not in sealed.envelope and VALUE not in write_text(sealed).encode()


def test_nobody_else_opens_it_and_no_other_signer_is_believed(keys: Path, wallet: Path) -> None:
    sealed = seal("oracle", wallet, to(keys, "slac"), signer(keys), since=NOW, until=LATER)
    assert opened(keys, sealed, "lyon") is None
    assert opened(keys, sealed, "slac", by="other") is None


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_an_altered_byte_is_noticed(keys: Path, wallet: Path, part: float) -> None:
    sealed = seal("oracle", wallet, to(keys, "slac"), signer(keys), since=NOW, until=LATER)
    data = bytearray(sealed.envelope)
    data[int(len(data) * part)] ^= 1
    changed = Sealed("oracle", NOW, LATER, (), "", bytes(data))
    assert opened(keys, changed, "slac") is None


def test_the_file_is_read_as_it_was_written(keys: Path, wallet: Path) -> None:
    sealed = seal("oracle", wallet / "cwallet.sso", to(keys, "slac", "lyon"), signer(keys), since=NOW, until=LATER)
    text = write_text(sealed)
    assert text.startswith(f"{FORMAT}\nname: oracle\n") and parse_text(text) == sealed
    assert [who.split(" ")[0] for who in sealed.recipients] == ["CN=slac", "CN=lyon"]


@given(st.text(max_size=300))
def test_what_is_no_sealed_file_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not made by|damaged"):
        parse_text(text)


@pytest.mark.parametrize("damage", ["name: oracle\n", "until: ", "-----END CMS-----\n", "signed by"])
def test_a_damaged_header_is_refused(keys: Path, wallet: Path, damage: str) -> None:
    text = write_text(seal("oracle", wallet, to(keys, "slac"), signer(keys), since=NOW, until=LATER))
    with pytest.raises(ValueError, match=r"not made by|damaged"):
        parse_text(text.replace(damage, "", 1))


def test_what_cannot_be_sealed(keys: Path, wallet: Path, tmp_path: Path) -> None:
    def refused(source: Path, until: datetime = LATER, since: datetime = NOW) -> str:
        with pytest.raises(SecretRefused) as error:
            seal("oracle", source, to(keys, "slac"), signer(keys), since=since, until=until)
        return str(error.value)

    assert "No such file" in refused(tmp_path / "absent")
    assert "before it begins" in refused(wallet, until=NOW)
    assert "ends at" in refused(wallet, until=NOW + timedelta(days=9999))
    (tmp_path / "empty").mkdir()
    assert "has no file in it" in refused(tmp_path / "empty")
    (wallet / "link").symlink_to("/etc/passwd")
    assert "outside of" in refused(wallet)
    (wallet / "link").unlink()
    (wallet / "link").symlink_to("/etc")
    assert "is a link to a folder" in refused(wallet)
    (wallet / "link").unlink()
    os.mkfifo(wallet / "pipe")
    assert "pipe" in refused(wallet)
    (wallet / "pipe").unlink()
    with (wallet / "large").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    assert str(MOST_BYTES) in refused(wallet)


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    key, certificate = make_key(tmp_path / "k", "slac", 30, None, NOW)
    assert [path.stat().st_mode & 0o777 for path in (key, certificate)] == [0o600, 0o644]
    before = key.read_bytes()
    with pytest.raises(SecretRefused, match="never overwritten"):
        make_key(tmp_path / "k", "slac", 30, None, NOW)
    assert key.read_bytes() == before
    assert read_certificate(certificate).not_valid_after_utc == NOW + timedelta(days=30)


def test_a_passphrase(tmp_path: Path) -> None:
    key, certificate = make_key(tmp_path / "k", "me", 30, b"open sesame", NOW)
    with pytest.raises(PassphraseNeeded, match="has a passphrase"):
        read_signer(key, certificate, None)
    with pytest.raises(PassphraseNeeded, match="does not open"):
        read_signer(key, certificate, b"open barley")
    assert read_signer(key, certificate, b"open sesame")
    words = tmp_path / "words"
    words.write_text("open sesame\n")
    words.chmod(0o644)
    with pytest.raises(SecretRefused, match="read by others"):
        read_passphrase(words)
    words.chmod(0o600)
    assert read_passphrase(words) == b"open sesame"


def test_a_wrong_pair_and_what_is_no_key(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(SecretRefused, match="do not belong together"):
        read_signer(keys / "me/key.pem", keys / "other/certificate.pem", None)
    with pytest.raises(SecretRefused, match="no private key"):
        read_signer(keys / "me/certificate.pem", keys / "me/certificate.pem", None)
    with pytest.raises(SecretRefused, match="no certificate"):
        read_certificate(keys / "me/key.pem")
    with pytest.raises(SecretRefused, match="No such file"):
        read_certificate(tmp_path / "absent")


def test_only_a_sealed_file_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "oracle.sealed"
    replace_file(path, f"{FORMAT}\none\n")
    replace_file(path, f"{FORMAT}\ntwo\n")
    assert path.read_text().endswith("two\n") and [each.name for each in tmp_path.iterdir()] == ["oracle.sealed"]
    path.write_text("mine\n")
    with pytest.raises(SecretRefused, match="not overwritten"):
        replace_file(path, f"{FORMAT}\nthree\n")
    assert path.read_text() == "mine\n"
