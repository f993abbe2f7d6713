"""The secrets of a step that is about to be sent: seen on this machine, refused in words, and what the plan says of them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fermigrid.access import Trust
from fermigrid.backends.htcondor_wire import find_clear_wire
from fermigrid.errors import ConfigError, SecretRefused
from fermigrid.planfolder import is_plan, write_plan
from fermigrid.quoting import decode_lines
from fermigrid.seal import is_signed, make_key, read_certificate, read_signer, seal
from fermigrid.sealed import parse_text, write_text
from fermigrid.secret_check import all_pairs, find_unfit, refuse_unfit
from fermigrid.secret_files import find_openings, read_proxy
from tests.campaigns import assemble, fermigrid, finish, plans, python
from tests.certificates import Holder, make_person, make_proxy, write_proxy

NOW = datetime.now(UTC).replace(microsecond=0)
SITE = """\
site: own
title: t
contact: c
manual: https://example.org/
backend: {backend}
container: {{launch: worker, rehearsal: true, runtimes: [none]}}
secrets:
  wallet: {{kind: transfer, from: {f}/wallet, point: {{TNS_ADMIN: .}}, home: {{.my.cnf: my.cnf}}}}
  oracle:
    {{kind: sealed, from: {f}/oracle.sealed, signer: {f}/me/certificate.pem, key: /k, certificate: {c}, point: {{ORA: .}}}}
  grid: {{kind: proxy, from: {f}/x509up, point: {{X509_USER_PROXY: x509up}}}}
  storage: {{kind: token, service: scitokens, permissions: "read:/", point: {{BEARER_TOKEN_FILE: scitokens.use}}}}
  shared: {{kind: path, from: /absent, point: {{SHARED: .}}}}
output: {{kind: transfer}}
"""
CAMPAIGN = "campaign: c\nimage: light\nruns: {{count: 1}}\nsteps: {{go: {{command: [x], secrets: [{}]}}}}\n"


@pytest.fixture(scope="module")
def person() -> Holder:
    return make_person()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders me and site with a key each."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("me", "site"):
        make_key(folder / name, name, 365, None, NOW)
    return folder


@pytest.fixture
def folder(tmp_path: Path, person: Holder, keys: Path) -> Path:
    """A folder of one's own with a wallet, a sealed file and a proxy, and the site `own` that offers them."""
    (tmp_path / "wallet").mkdir(mode=0o700)
    (tmp_path / "wallet/my.cnf").write_text("x")
    shutil.copytree(keys, tmp_path, dirs_exist_ok=True)
    tmp_path.chmod(0o700)
    put_seal(tmp_path)
    write_proxy(tmp_path / "x509up", make_proxy(person, NOW + timedelta(hours=5)))
    put_site(tmp_path)
    return tmp_path


def put_seal(folder: Path, name: str = "oracle", site: str = "site", **dates: datetime) -> None:
    to = [(folder, read_certificate(folder / site / "certificate.pem"))]
    me = read_signer(folder / "me/key.pem", folder / "me/certificate.pem", None)
    sealed = seal(name, folder / "wallet", to, me, **{"since": NOW, "until": NOW + timedelta(days=9), **dates})
    (folder / "oracle.sealed").write_text(write_text(sealed))


def put_site(
    folder: Path, backend: str = "htcondor", change: tuple[str, str] = ("", ""), certificate: str = "/c"
) -> None:
    (folder / "sites").mkdir(exist_ok=True)
    text = SITE.format(f=folder, backend=backend, c=certificate)
    (folder / "sites/own.yaml").write_text(text.replace(*change))


def unfit(folder: Path, *secrets: str, now: datetime = NOW) -> list[str]:
    assembled = assemble(folder, CAMPAIGN.format(", ".join(secrets)), site="own", own=[folder / "sites"])
    return find_unfit(assembled, all_pairs(assembled), now)


def test_all_is_good(folder: Path) -> None:
    assert unfit(folder, "wallet", "oracle", "grid", "storage", "shared") == []


def test_everything_that_is_wrong_is_said_at_once(folder: Path) -> None:
    (folder / "x509up").unlink()
    (folder / "wallet/my.cnf").unlink()
    (folder / "wallet").rmdir()
    text = CAMPAIGN.format("wallet, grid, oracle")
    assembled = assemble(folder, text, site="own", own=[folder / "sites"])
    with pytest.raises(SecretRefused) as error:
        refuse_unfit(assembled, all_pairs(assembled), NOW + timedelta(days=8, hours=23), "What goes on.")
    assert error.value.hint.endswith("What goes on.")
    wallet, grid, oracle = str(error.value).splitlines()
    for line, number, name in ((wallet, 8, "wallet"), (grid, 11, "grid"), (oracle, 9, "oracle")):
        assert line.startswith(f"{folder}/sites/own.yaml:{number}: secrets.{name}: "), line
    assert f"a job of step go ({folder}/campaign.yaml:4) may take" in oracle
    assert wallet.endswith("wallet: No such file or directory") and "voms-proxy-init" in grid
    assert "the seal of secret oracle at site own" in oracle and "4 h of walltime + 15 min" in oracle


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("expired", "ended at"),
        ("short", "= 4 h 15 min: renew it"),
        ("limited", "is a limited proxy"),
        ("certificate", "is a certificate of its own, no proxy"),
        ("pair", "do not belong together"),
        ("no key", "has no private key"),
        ("garbage", "has no certificate"),
        ("short authority", "ended at"),
    ],
)
def test_a_proxy_that_will_not_do(folder: Path, person: Holder, what: str, words: str) -> None:
    good, path = make_proxy(person, NOW + timedelta(hours=5)), folder / "x509up"
    ends = {"expired": NOW - timedelta(minutes=1), "short": NOW + timedelta(hours=4)}
    if what in ends:
        write_proxy(path, make_proxy(person, ends[what]))
    elif what == "limited":
        write_proxy(path, make_proxy(person, NOW + timedelta(hours=5), limited=True))
    elif what == "certificate":
        write_proxy(path, person)
    elif what == "pair":
        write_proxy(path, Holder(person.key, good.chain))
    elif what == "no key":
        text = good.pem()
        path.write_bytes(
            text[: text.index(b"-----BEGIN RSA")] + text[text.index(b"-----END RSA PRIVATE KEY-----") + 30 :]
        )
    elif what == "short authority":
        old = make_person(days=-0.5)
        write_proxy(path, make_proxy(old, NOW + timedelta(hours=5)))
    else:
        path.write_text("garbage")
    (said,) = unfit(folder, "grid")
    assert words in said, said


def test_a_proxy_of_a_proxy_lasts_as_long_as_the_shorter_one(person: Holder, tmp_path: Path) -> None:
    short = make_proxy(person, NOW + timedelta(hours=1))
    path = write_proxy(tmp_path / "p", make_proxy(short, NOW + timedelta(hours=9)))
    assert read_proxy(path).until == NOW + timedelta(hours=1)


def test_a_proxy_that_something_renews_needs_only_to_be_there(folder: Path, person: Holder) -> None:
    write_proxy(folder / "x509up", make_proxy(person, NOW + timedelta(minutes=20)))
    assert len(unfit(folder, "grid")) == 1
    put_site(folder, change=("kind: proxy", "kind: proxy, renewed: yes"))
    assert unfit(folder, "grid") == []
    assert "15 min to be renewed" in unfit(folder, "grid", now=NOW + timedelta(minutes=10))[0]


def test_the_wait_in_the_queue_counts_where_it_is_known(folder: Path) -> None:
    put_site(folder, change=("output:", "queue_wait: 1 h\noutput:"))
    assert "1 h in the queue + 4 h of walltime + 15 min to spare = 5 h 15 min" in unfit(folder, "grid")[0]


def test_a_seal_with_another_name(folder: Path) -> None:
    put_seal(folder, "wallet")
    assert "is sealed as 'wallet'; the site offers it as 'oracle'" in unfit(folder, "oracle")[0]


def test_a_seal_that_is_not_valid_yet(folder: Path) -> None:
    put_seal(folder, since=NOW + timedelta(hours=1))
    assert "is valid only from" in unfit(folder, "oracle")[0]


def test_a_signer_that_did_not_sign_it(folder: Path) -> None:
    put_site(folder, change=("me/certificate.pem", "site/certificate.pem"))
    assert "is signed by CN=me" in unfit(folder, "oracle")[0]


@pytest.mark.parametrize("part", ["name", "until", "for", "signed by", "content"])
def test_a_sealed_file_that_was_changed(folder: Path, part: str) -> None:
    """Whatever of it is altered, its signature does not fit; a plan is not made of it either."""
    path = folder / "oracle.sealed"
    text = path.read_text()
    line = next(line for line in text.splitlines() if line.startswith(f"{part}: " if part != "content" else "MII"))
    changed = {
        "name": "name: wallet",
        "until": f"until: {NOW + timedelta(days=99):%Y-%m-%dT%H:%M:%SZ}",
        "for": "for: CN=somebody (serial 5f3c)",
        "signed by": line.replace("CN=me", "CN=me "),
        "content": line[:-1] + ("A" if line[-1] != "A" else "B"),
    }[part]
    path.write_text(text.replace(line, changed))
    (said,) = unfit(folder, "oracle")
    words = "is signed by CN=me " if part == "signed by" else "was changed after CN=me"
    assert words in said and said.startswith(f"{folder}/sites/own.yaml:9: secrets.oracle: "), said
    with pytest.raises(SecretRefused, match=words) as error:
        plans(assemble(folder, CAMPAIGN.format("oracle"), site="own", own=[folder / "sites"]), "own")
    assert str(error.value).startswith(f"{folder}/sites/own.yaml:9: secrets.oracle: ")


def test_a_seal_of_somebody_with_the_signers_name(folder: Path) -> None:
    """The certificate's subject and number are anybody's to write; the key is not."""
    put_seal(folder)
    genuine = (folder / "oracle.sealed").read_text()
    me, other = (
        read_signer(folder / who / "key.pem", folder / who / "certificate.pem", None) for who in ("me", "site")
    )
    assert is_signed(parse_text(genuine), me.certificate) and not is_signed(parse_text(genuine), other.certificate)
    put_seal(folder, until=NOW + timedelta(days=1))
    signature = genuine[genuine.index("-----BEGIN SIGNATURE") :]
    other_text = (folder / "oracle.sealed").read_text()
    (folder / "oracle.sealed").write_text(other_text[: other_text.index("-----BEGIN SIGNATURE")] + signature)
    assert "was changed after CN=me" in unfit(folder, "oracle")[0]


def test_a_seal_for_another_site(folder: Path) -> None:
    """Where the site's certificate is at its place on this machine, too; else only the node can tell."""
    put_seal(folder, site="me")
    assert unfit(folder, "oracle") == []
    _, _, err = fermigrid("secret", "check", "--site", "own", "--sites", folder / "sites", "--json", cwd=folder)
    assert "own: secret oracle is sealed for CN=me (serial" in err and "only they can see" in err
    certificate = folder / "site/certificate.pem"
    put_site(folder, certificate=str(certificate))
    (said,) = unfit(folder, "oracle")
    assert "it is sealed for CN=me (serial" in said and f"seal it anew with --to {certificate}" in said
    put_seal(folder)
    assert unfit(folder, "oracle") == []
    certificate.unlink()
    put_site(folder, backend="local", certificate=str(certificate))
    assert f"{certificate} cannot be read: No such file" in unfit(folder, "oracle")[0]


def test_a_sealed_file_that_is_none(folder: Path) -> None:
    (folder / "oracle.sealed").write_text("x")
    assert "not made by `fermigrid secret seal`" in unfit(folder, "oracle")[0]


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that others may enter; those above it, too."""
    folder = Path(tempfile.mkdtemp(prefix="fermigrid-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("change", ["file", "folder", "link", "pipe", "above"])
def test_a_wallet_that_others_can_get_at(public: Path, change: str) -> None:
    folder, wallet = public, public / "wallet"
    wallet.mkdir(mode=0o700)
    (wallet / "my.cnf").write_text("x")
    assert list(find_openings(wallet, Trust(os.geteuid()))) == []
    if change == "file":
        wallet.chmod(0o755)
        (wallet / "my.cnf").chmod(0o644)
        words = "my.cnf can be read by others (mode 0644): chmod 0600"
    elif change == "folder":
        wallet.chmod(0o750)
        words = "wallet can be read by others (mode 0750): chmod 0700"
    elif change == "link":
        (wallet / "out").symlink_to("/etc/passwd")
        words = "is a link to /etc/passwd, outside of"
    elif change == "pipe":
        os.mkfifo(wallet / "pipe", 0o600)
        words = "pipe"
    else:
        folder.chmod(0o777)
        words = "everybody can write"
    said = list(find_openings(wallet, Trust(os.geteuid())))
    assert any(words in each for each in said), said


def test_the_plan_has_names_and_ciphertext_only(folder: Path) -> None:
    (folder / "wallet/my.cnf").write_text("canary-51")
    put_seal(folder)
    text = CAMPAIGN.format("wallet, oracle, grid, storage, shared")
    digests = []
    for number in "12":
        (plan,) = plans(assemble(folder, text, site="own", own=[folder / "sites"]), "own")
        digests.append(write_plan(plan, folder / number))
    assert digests[0] == digests[1] and is_plan(folder / "1", digests[0]), "the same input gives the same bytes"
    files = json.loads((folder / "1/plan.json").read_text())["files"]
    assert {"secrets/oracle.cms", "secrets/oracle.signer.pem"} <= set(files)
    assert not [path for path in (folder / "1").rglob("*") if path.is_file() and b"canary-51" in path.read_bytes()]
    fields = decode_lines((folder / "1/job.env").read_text())
    said = [f"{key}={value}" for key, value in fields if key.startswith("secret")]
    assert [each for each in said if not each.startswith(("secret.sha256", "secret.signer.sha256"))] == [
        "secret=wallet", "secret.kind=transfer", "secret.from=wallet", "secret.point=TNS_ADMIN=.",
        "secret.home=.my.cnf=my.cnf",
        "secret=oracle", "secret.kind=sealed", "secret.from=oracle.cms", "secret.key=/k", "secret.certificate=/c",
        "secret.signer=oracle.signer.pem", "secret.point=ORA=.",
        "secret=grid", "secret.kind=proxy", "secret.from=x509up", "secret.point=X509_USER_PROXY=x509up",
        "secret=storage", "secret.kind=token", "secret.from=scitokens.use",
        "secret.point=BEARER_TOKEN_FILE=scitokens.use",
        "secret=shared", "secret.from=/absent", "secret.point=SHARED=.",
    ]  # fmt: skip
    values = dict(field for field in fields if field[0] in ("secret.sha256", "secret.signer.sha256"))
    assert values["secret.sha256"] == files["secrets/oracle.cms"]
    assert values["secret.signer.sha256"] == files["secrets/oracle.signer.pem"]
    submit = (folder / "1/job.sub").read_text()
    sent = "$(fg_plan)/secrets/oracle.cms, $(fg_plan)/secrets/oracle.signer.pem"
    assert f", {sent}, {folder}/wallet\n" in submit
    for line in (
        "encrypt_input_files     = *", f"x509userproxy     = {folder}/x509up", "use_oauth_services = scitokens",
        "scitokens_oauth_permissions = read:/", "delegate_job_GSI_credentials_lifetime = 0",
    ):  # fmt: skip
        assert f"\n{line}\n" in submit, line


def test_a_step_without_secrets_asks_for_nothing(folder: Path) -> None:
    (plan,) = plans(assemble(folder, CAMPAIGN.format(""), site="own", own=[folder / "sites"]), "own")
    write_plan(plan, folder / "p")
    submit = (folder / "p/job.sub").read_text()
    assert not [word for word in ("encrypt_input", "x509", "oauth", "secrets/") if word in submit]
    assert not (folder / "p/secrets").exists()


def test_on_this_machine_what_is_sent_is_a_path(folder: Path) -> None:
    put_site(folder, backend="local")
    assembled = assemble(folder, CAMPAIGN.format("wallet, grid"), site="own", own=[folder / "sites"])
    (plan,) = plans(assembled, "own")
    assert ("secret.from", f"{folder}/wallet") in plan.header.worker
    assert "secret.kind" not in dict(plan.header.worker)


@pytest.mark.parametrize(
    ("settings", "version", "clear"),
    [
        ({}, "$CondorVersion: 25.14.1 2026-10-16 $", False),
        ({}, "$CondorVersion: 8.8.17 2022-03-15 $", True),
        ({}, "", True),
        ({"SEC_DEFAULT_ENCRYPTION": "required"}, "$CondorVersion: 8.8.17 2022-03-15 $", False),
        ({"SEC_DEFAULT_ENCRYPTION": "NEVER", "SEC_DEFAULT_CRYPTO_METHODS": "AES,BLOWFISH"}, "25.14.1", False),
        ({"SEC_DEFAULT_ENCRYPTION": "OPTIONAL", "SEC_DEFAULT_CRYPTO_METHODS": "3DES, AES"}, "25.14.1", True),
        ({"SEC_DEFAULT_ENCRYPTION": "REQUIRED", "SEC_WRITE_ENCRYPTION": "OPTIONAL"}, "8.8.1", True),
        ({"SEC_WRITE_ENCRYPTION": "PREFERRED", "SEC_DEFAULT_CRYPTO_METHODS": "3DES"}, "25.14.1", False),
    ],
)
def test_what_a_schedd_says_of_its_wire(settings: dict[str, str], version: str, clear: bool) -> None:
    assert bool(find_clear_wire(settings, version)) is clear


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{kind: token, service: x, from: /a}", "kind: token has no from"),
        ("{kind: sealed, from: /a, key: /k, certificate: /c}", "kind: sealed needs signer"),
        ("{kind: path, from: /a, renewed: yes}", "kind: path has no renewed"),
        ("{kind: proxy, from: /a, permissions: 'read:/'}", "kind: proxy has no permissions"),
        ("{kind: token, service: 'a b'}", "is no name of a token service"),
        ("{kind: token, service: a, permissions: 'a b'}", "without blanks"),
    ],
)
def test_keys_that_do_not_go_with_a_kind(folder: Path, written: str, words: str) -> None:
    put_site(folder, change=("{kind: path, from: /absent, point: {SHARED: .}}", written))
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        assemble(folder, CAMPAIGN.format("shared"), site="own", own=[folder / "sites"])


# --- the command line


def test_the_commands(folder: Path) -> None:
    put_site(folder, "local", ("  shared: ", "  unused: "), certificate=f"{folder}/site/certificate.pem")
    (folder / "c.yaml").write_text(CAMPAIGN.format("wallet, oracle, grid"))
    own = ("--sites", folder / "sites")
    code, out, err = fermigrid("secret", "list", "--site", "own", *own, cwd=folder)
    assert code == 0 and out.splitlines()[1].split()[1:3] == ["wallet", "transfer"], err
    code, out, err = fermigrid("secret", "check", "c.yaml", "--site", "own", *own, cwd=folder)
    assert (code, err) == (0, "") and out.count("good") == 3
    (folder / "wallet/link").symlink_to("/etc/passwd")
    code, out, err = fermigrid("secret", "check", "c.yaml", "--site", "own", *own, "--json", cwd=folder)
    assert code == 21 and "Put the file there itself" in err
    assert [bool(row["state"]) for row in json.loads(out)] == [True, False, False]
    for verb in ("check", "submit"):
        code, _, err = fermigrid(
            verb, "c.yaml", "--site", "own", *own, cwd=folder, env={"FERMIGRID_STATE": str(folder)}
        )
        assert code == 21 and "Put the file there itself" in err
        *_, told = err.partition("To look again: ")
        again = fermigrid(*shlex.split(told)[1:], cwd=folder)
        assert again[0] == 21 and "Put the file there itself" in again[2], told
    assert not (folder / "fermigrid-runs").exists()


def test_a_command_names_its_secrets(folder: Path) -> None:
    put_site(folder, backend="local")
    (folder / "wallet/my.cnf").write_text("known\n")
    env = {"FERMIGRID_STATE": str(folder / "state")}
    submit = ("submit", "--site", "own", "--sites", folder / "sites", "--image", "light", "--wait", "--run-dir", "r")
    script = 'grep -q known "$TNS_ADMIN/my.cnf" && echo 1 > seen'
    code, _, err = fermigrid(
        *submit, "--secret", "wallet", "--output", "seen", "--", "sh", "-c", script, cwd=folder, env=env
    )
    assert code == 0, err
    assert (folder / "r/outputs/seen").read_text() == "1\n"
    code, _, err = fermigrid(*submit[:-1], "r2", "--secret", "walet", "--", "sh", "-c", script, cwd=folder, env=env)
    assert code == 11 and "offers no secret 'walet'; did you mean 'wallet'?" in err


def test_a_passphrase_is_never_asked_for_without_a_terminal(folder: Path) -> None:
    make_key(folder / "locked", "me", 365, b"secret words", NOW)
    arguments = ["seal", "wallet", "--name", "o", "--to", "site/certificate.pem", "--sign-with", "locked", "-o", "o"]
    code, _, err = fermigrid("secret", *arguments, cwd=folder)
    assert code == 21 and "--passphrase-file" in err and not (folder / "o").exists()
    (folder / "words").write_text("secret words\n")
    (folder / "words").chmod(0o600)
    code, out, err = fermigrid("secret", *arguments, "--passphrase-file", "words", cwd=folder)
    assert code == 0 and "secret words" not in out + err, err


def test_help_does_not_read_the_cryptography_package() -> None:
    script = (
        "import sys; from fermigrid.cli import run; run(['secret', '--help']); print('cryptography' in sys.modules)"
    )
    code, out, err = finish(python(script))
    assert code == 0 and out.splitlines()[-1] == "False", err
