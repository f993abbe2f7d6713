"""Sealed secrets: opened with the site's key, believed only by the signature inside, refused in words when anything is wrong."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fermigrid.seal import read_certificate, read_signer, seal
from fermigrid.sealed import MOST_BYTES
from tests.worker.node import Node
from tests.worker.sealing import Identity, Office, Sealed, archive, envelop, identity, openssl, seal_words, sign
from tests.worker.worker_job import Done, Job, sha256

MakeJob = Callable[..., Job]
CANARY = b"canary-3d1c62f0a9be4e1f"
WALLET = [("tnsnames.ora", CANARY), ("wallet/cwallet.sso", CANARY + b"\0\xff"), (".hidden", b"")]
LOOK = 'find "$TNS_ADMIN" -printf "%y %m %P\\n" | sort; cat "$TNS_ADMIN/tnsnames.ora" | tr a-z A-Z'


@pytest.fixture
def run(make_job: MakeJob, tmp_path: Path) -> Callable[..., Done]:
    """Runs a job with a sealed secret; whatever happens, nothing of it is left, and no word of it is in log or report."""

    def run_it(sealed: Sealed, env: dict[str, str] | None = None) -> Done:
        private = tmp_path / "private"
        private.mkdir(mode=0o700, exist_ok=True)
        job = sealed.into(make_job(args=["/bin/sh", "-c", LOOK], settings=sealed.settings))
        done = job.run(env={"FERMIGRID_SECRETS": str(private), **(env or {})})
        assert list(private.iterdir()) == [] and not (job.scratch / "oracle.cms").exists()
        assert CANARY not in done.out and CANARY.decode() not in done.err
        return done

    return run_it


def refused(done: Done, *words: str) -> None:
    assert done.code == 85 and not done.data["started_payload"], done.err
    assert done.message.startswith("secret oracle: ") and all(word in done.message for word in words), done.message


def test_a_sealed_secret_is_opened(office: Office, run: Callable[..., Done]) -> None:
    done = run(office.secret(office.seal(archive(WALLET))))
    assert done.code == 0, done.err
    listing = ["d 700 ", "d 700 wallet", "f 600 .hidden", "f 600 tnsnames.ora", "f 600 wallet/cwallet.sso"]
    assert done.out.decode().splitlines()[:6] == [*listing, CANARY.decode().upper()]


def test_what_the_product_seals_is_opened(office: Office, run: Callable[..., Done], tmp_path: Path) -> None:
    """`fermigrid secret seal` and the worker know the same format."""
    for name, content in WALLET:
        (tmp_path / "wallet" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "wallet" / name).write_bytes(content)
    now = datetime.now(UTC)
    signer = read_signer(office.signer.key, office.signer.certificate, None)
    to = [(office.site.certificate, read_certificate(office.site.certificate))]
    until = now + timedelta(hours=1)
    sealed = seal("oracle", tmp_path / "wallet", to, signer, since=now, until=until)
    done = run(office.secret(sealed.envelope, sha256=sealed.sha256))
    assert done.code == 0, done.err
    listing = ["d 700 ", "d 700 wallet", "f 600 .hidden", "f 600 tnsnames.ora", "f 600 wallet/cwallet.sso"]
    assert done.out.decode().splitlines()[:6] == [*listing, CANARY.decode().upper()]


def test_a_secret_as_large_as_can_be_sealed(office: Office, run: Callable[..., Done]) -> None:
    content = bytes(MOST_BYTES - len(CANARY))
    assert run(office.secret(office.seal(archive([("tnsnames.ora", CANARY), ("x", content)])))).code == 0
    refused(run(office.secret(office.seal(archive([("x", content + bytes(4096))])))), "too many")


def test_each_of_several_recipients_opens_it(office: Office, run: Callable[..., Done]) -> None:
    other, third = identity(office.folder, "other"), identity(office.folder, "third", "ec")
    sealed = envelop(office.folder, sign(office.folder, archive(WALLET), office.signer), other, office.site, third)
    for one in (office.site, other, third):
        done = run(office.secret(sealed, key=str(one.key), certificate=str(one.certificate)))
        assert done.code == 0, done.err


@pytest.mark.fault(
    fault="a sealed secret, or its signer's certificate, is damaged on its way, or absent",
    mode="host",
    does="names the file; opens nothing",
    code=85,
)
@pytest.mark.parametrize("name", ["oracle.cms", "oracle.signer.pem"])
def test_what_did_not_come_as_it_was_sent(office: Office, run: Callable[..., Done], name: str) -> None:
    good = office.secret(office.seal(archive(WALLET)))
    for content in (good.files[name][:-1], good.files[name] + b"\n", b""):
        refused(run(Sealed(good.settings, {**good.files, name: content})), name, "altered on its way")
    refused(
        run(Sealed(good.settings, {other: good.files[other] for other in good.files if other != name})),
        name,
        "did not come",
    )


def positions(size: int, count: int) -> list[int]:
    """Places in a file: its ends, where lengths and keys stand, and some by chance. Seeded."""
    chance = random.Random(size)
    return sorted(
        {*range(0, 40, 4), *(size - 1 - k for k in range(0, 48, 6)), *(chance.randrange(size) for _ in range(count))}
    )


@pytest.mark.fault(
    fault="a sealed secret's content is altered, or cut short, before its digest was taken",
    mode="host",
    does="the signature inside tells; nothing is given to the payload",
    code=85,
)
def test_an_altered_byte_anywhere(office: Office, run: Callable[..., Done]) -> None:
    """The digest in job.env is that of the altered file: the seal alone has to notice."""
    sealed = office.seal(archive(WALLET))
    for position in positions(len(sealed), 24):
        altered = bytearray(sealed)
        altered[position] ^= 1 << (position % 8)
        done = run(office.secret(bytes(altered)))
        if done.code == 0:  # what openssl does not read, such as the name of a recipient's issuer, may be anything
            assert CANARY.decode().upper().encode() in done.out, position
        else:
            refused(done)


@pytest.mark.fault(
    fault="a sealed secret's content is altered, or cut short, before its digest was taken",
    mode="host",
    does="the signature inside tells; nothing is given to the payload",
    code=85,
)
def test_an_altered_byte_of_what_is_signed(office: Office, run: Callable[..., Done]) -> None:
    """By somebody who can seal for the site, and has not the signer's key. Each byte of the content counts."""
    content = archive(WALLET)
    signed = sign(office.folder, content, office.signer)
    start = signed.index(content)
    for position in [start, start + 600, start + len(content) - 1, len(signed) - 1, len(signed) - 200]:
        altered = bytearray(signed)
        altered[position] ^= 0x20
        refused(
            run(office.secret(envelop(office.folder, bytes(altered), office.site))),
            "altered, or not signed by oracle.signer.pem",
        )


@pytest.mark.fault(
    fault="a sealed secret's content is altered, or cut short, before its digest was taken",
    mode="host",
    does="the signature inside tells; nothing is given to the payload",
    code=85,
)
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_one_that_is_cut_short(office: Office, run: Callable[..., Done], part: float) -> None:
    sealed = office.seal(archive(WALLET))
    refused(run(office.secret(sealed[: int(len(sealed) * part)])))


@pytest.mark.fault(
    fault="a sealed secret and the site's key do not belong together, or it was signed by somebody else",
    mode="host",
    does="says which of them",
    code=85,
)
def test_wrong_keys(office: Office, run: Callable[..., Done]) -> None:
    sealed, other = office.seal(archive(WALLET)), identity(office.folder, "other")
    refused(
        run(office.secret(sealed, key=str(other.key), certificate=str(other.certificate))),
        str(other.key),
        "not sealed for",
    )
    for _ in range(10):  # openssl goes on with a random key, and what comes out differs each time
        refused(run(office.secret(sealed, key=str(other.key))), str(other.key))


def by_another(office: Office, content: bytes, other: Identity) -> bytes:
    return sign(office.folder, content, other)


def by_both(office: Office, content: bytes, other: Identity) -> bytes:
    return sign(office.folder, content, office.signer, other)


def with_his_certificate(office: Office, content: bytes, other: Identity) -> bytes:
    """Signed by another, who brings along the right certificate as if it were his."""
    return sign(office.folder, content, other, options=["-nodetach", "-certfile", str(office.signer.certificate)])


def with_his_name(office: Office, content: bytes, other: Identity) -> bytes:
    """By another who calls himself what the signer is called, with the same number."""
    folder = office.folder / "twin"
    folder.mkdir(exist_ok=True)
    serial = "0x" + serial_of(office.signer.certificate)
    twin = Identity(folder / "signer.pem", folder / "signer.key")
    new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=signer", "-set_serial", serial]
    openssl(*new, "-keyout", twin.key, "-out", twin.certificate)
    return sign(office.folder, content, twin)


def detached(office: Office, content: bytes, _: Identity) -> bytes:
    return sign(office.folder, content, office.signer, options=[])


def unsigned(_: Office, content: bytes, __: Identity) -> bytes:
    return content


def serial_of(certificate: Path) -> str:
    openssl("x509", "-in", certificate, "-noout", "-serial", "-out", certificate.with_suffix(".serial"))
    return certificate.with_suffix(".serial").read_text().strip().partition("=")[2]


@pytest.mark.fault(
    fault="a sealed secret and the site's key do not belong together, or it was signed by somebody else",
    mode="host",
    does="says which of them",
    code=85,
)
@pytest.mark.parametrize("how", [by_another, by_both, with_his_certificate, with_his_name, detached, unsigned])
def test_wrong_signatures(office: Office, run: Callable[..., Done], how: Callable[..., bytes]) -> None:
    other = identity(office.folder, "other")
    sealed = envelop(office.folder, how(office, archive(WALLET), other), office.site)
    refused(run(office.secret(sealed)), "altered, or not signed by oracle.signer.pem")


def test_a_second_certificate_beside_the_signers_is_not_believed(office: Office, run: Callable[..., Done]) -> None:
    other = identity(office.folder, "other")
    sealed = envelop(office.folder, sign(office.folder, archive(WALLET), other), office.site)
    both = office.signer.certificate.read_bytes() + other.certificate.read_bytes()
    good = office.secret(sealed, signer_sha256=sha256(both))
    refused(run(Sealed(good.settings, {**good.files, "oracle.signer.pem": both})), "is not one certificate")


@pytest.mark.fault(
    fault="a sealed secret has expired, or is not good yet by the node's clock",
    mode="host",
    does="says both times, and that a clock may be wrong",
    code=85,
)
def test_dates(office: Office, run: Callable[..., Done]) -> None:
    def dated(begin_s: float, end_s: float) -> Done:
        return run(office.secret(office.seal(archive(WALLET, seal_words("oracle", begin_s, end_s)))))

    refused(dated(-7200, -1), "its seal ended at 20", "by the clock of", "Seal it anew")
    refused(dated(3600, 7200), "its seal is good from 20", "by the clock of", "Is one of the clocks wrong?")
    assert dated(240, 7200).code == 0  # clocks differ by minutes


BAD_SEALS = {
    "another secret's": seal_words("catalogue"),
    "without dates": b"name=oracle\n",
    "dates of letters": b"name=oracle\nnot_before=a[$(touch /tmp/secretsin-evil)]\nnot_after=b\n",
    "octal": b"name=oracle\nnot_before=010\nnot_after=09\n",
    "endless": b"name=oracle\nnot_before=0\nnot_after=99999999999999999999999\n",
    "none": b"",
}


@pytest.mark.parametrize("seal", BAD_SEALS.values(), ids=list(BAD_SEALS))
def test_bad_seals(office: Office, run: Callable[..., Done], seal: bytes) -> None:
    refused(run(office.secret(office.seal(archive(WALLET, seal)))))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, size
    return made


def compressed(content: bytes) -> bytes:
    return gzip.compress(content)


EVIL: dict[str, bytes] = {
    "parent": archive([("../evil", b"x")]),
    "parent inside": archive([("a/../../../evil", b"x")]),
    "absolute": archive([("/tmp/fermigrid-evil", b"x")]),
    "link": archive([member("wallet", tarfile.SYMTYPE, "/tmp"), ("wallet/fermigrid-evil", b"x")]),
    "dangling link": archive([member("x", tarfile.SYMTYPE, "/nonexistent")]),
    "hard link": archive([member("x", tarfile.LNKTYPE, "/etc/passwd")]),
    "pipe": archive([member("x", tarfile.FIFOTYPE)]),
    "device": archive([member("x", tarfile.CHRTYPE)]),
    "twice": archive([("x", b"1"), ("x", b"2")]),
    "file as folder": archive([("x", b"1"), ("x/y", b"2")]),
    "line break": archive([("x\n/evil", b"1"), ("../y", b"")]),
    "large": archive([("x", bytes(17 << 20))]),
    "many": archive([(f"f{k}", bytes(20)) for k in range(100)] + [("big", bytes(16 << 20))]),
    "compressed": compressed(archive(WALLET)),
    "compressed bomb": compressed(bytes(64 << 20)),
    "no archive": b"hello" * 1000,
    "empty": b"",
}


@pytest.mark.fault(
    fault="a sealed secret holds links, devices, names that lead elsewhere, or too much",
    mode="host",
    does="refuses it; nothing is written outside its private folder",
    code=85,
)
@pytest.mark.parametrize("content", EVIL.values(), ids=list(EVIL))
def test_content_that_is_refused(office: Office, run: Callable[..., Done], tmp_path: Path, content: bytes) -> None:
    """Signed by the right signer: even he can do nothing to the node."""
    before = set(tmp_path.rglob("*evil*"))
    refused(run(office.secret(office.seal(content))))
    assert set(tmp_path.rglob("*evil*")) == before and not Path("/tmp/fermigrid-evil").exists()


def test_names_of_all_kinds(office: Office, run: Callable[..., Done]) -> None:
    names = [
        "a b",
        "-rf",
        "back\\slash",
        "tab\there",
        "ümlaut",
        "'quoted'",
        "..x",
        "x..",
        "long/" + "n" * 200,
        "a/b/c/d",
    ]
    done = run(
        office.secret(
            office.seal(archive([*WALLET, *((name, b"") for name in names), member("folder", tarfile.DIRTYPE)]))
        )
    )
    assert done.code == 0, done.err
    assert b"f 600 a/b/c/d\n" in done.out and b"d 700 folder\n" in done.out and b"f 600 -rf\n" in done.out


@pytest.mark.fault(
    fault="a node has no openssl, and a secret is sealed",
    mode="host",
    does="says so: another node may have it",
    code=86,
)
def test_a_node_without_openssl(office: Office, make_job: MakeJob, tmp_path: Path) -> None:
    sealed = office.secret(office.seal(archive(WALLET)))
    job = sealed.into(make_job(settings=sealed.settings))
    done = job.run(env={"PATH": "/usr/bin"}, prefix=[*own_mounts(), "sh", "-c", HIDE, str(tmp_path)])
    assert done.code == 86 and "there is no openssl on" in done.message
    assert not (job.scratch / "oracle.cms").exists()


HIDE = """mkdir $0/real $0/tools && mount --bind /usr/bin $0/real && ln -s $0/real/* $0/tools && rm $0/tools/openssl &&
mount --bind $0/tools /usr/bin && exec "$@" """


def own_mounts() -> list[str]:
    """A command prefix: mounts of its own."""
    return ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--mount"]


@pytest.mark.pool
@pytest.mark.fault(
    fault="a user may not read the site's key",
    mode="host",
    does="says so",
    code=85,
)
def test_the_sites_key(office: Office, node: Node) -> None:
    """Read by the job's user, who is not root."""
    site = Identity(node.folder / "site.pem", node.folder / "site.key")
    for source, target in ((office.site.certificate, site.certificate), (office.site.key, site.key)):
        shutil.copy(source, target)
        target.chmod(0o644)
    sealed = office.secret(office.seal(archive(WALLET)), key=str(site.key), certificate=str(site.certificate))
    assert node.run_job(sealed.into(node.job("good", settings=sealed.settings))).code == 0
    site.key.chmod(0o600)
    done = node.run_job(sealed.into(node.job("unreadable", settings=sealed.settings)))
    refused(done, f"{site.key} cannot be read by this user on")
    site.key.unlink()
    done = node.run_job(sealed.into(node.job("absent", settings=sealed.settings)))
    refused(done, f"the site's key {site.key} is missing on")
    site.key.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nx\n-----END ENCRYPTED PRIVATE KEY-----\n")
    site.key.chmod(0o644)
    refused(node.run_job(sealed.into(node.job("damaged", settings=sealed.settings))), str(site.key))
