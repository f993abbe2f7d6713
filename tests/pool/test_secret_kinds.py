"""Secrets of all five kinds on the real pool: in containers, read by the payload, for the steps that name them only."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509

from tests.certificates import make_proxy
from tests.pool.conftest import Pool, call_pool
from tests.pool.planted import IN_THE_IMAGE, KINDS, Planted, campaign, plant
from tests.pool.product import AS_FERMI, Product

pytestmark = pytest.mark.pool

LOOK = """#!/bin/sh
for name in XRD_CLCONFFILE MYSQL_CNF TNS_ADMIN X509_USER_PROXY BEARER_TOKEN_FILE; do
    eval value=\\${$name:-}
    [ "$name" = TNS_ADMIN ] && [ -n "$value" ] && value=$value/cwallet.sso
    if [ -n "$value" ]; then echo "$name $(stat -c %a "$value") $(sha256sum < "$value" | cut -c1-64)"; fi
done
echo "timeout ${XRD_REQUESTTIMEOUT:-none}"
[ ! -e "$HOME/.my.cnf" ] || echo "home $(sha256sum < "$HOME/.my.cnf" | cut -c1-64)"
[ -z "${TNS_ADMIN:-}" ] || { grep -c "DIRECTORY=$TNS_ADMIN" "$TNS_ADMIN/sqlnet.ora"; ls "$TNS_ADMIN"; }
[ -z "${BEARER_TOKEN_FILE:-}" ] || python3 - <<'END'
import base64, json, os
token = open(os.environ["BEARER_TOKEN_FILE"]).read().strip().split(".")[1]
print("token", json.dumps(json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))))
END
[ -z "${X509_USER_PROXY:-}" ] || sed -n '1,/END CERT/p' "$X509_USER_PROXY"
find / -xdev \\( -name 'my.cnf' -o -name '*.cms' -o -name 'x509up*' -o -name 'scitokens*' \\) 2> /dev/null | sed 's/^/left /'
"""


@pytest.fixture
def secrets_pool(pool: Pool) -> Pool:
    """The pool with its credential daemon."""
    done = call_pool(pool.directory, "start", "secrets", timeout=120)
    assert done.returncode == 0, done.stderr
    return pool


@pytest.fixture
def planted(secrets_pool: Pool, product: Product) -> Planted:
    """Secrets of every kind, at a site where the worker starts the containers."""
    return plant(product)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(planted: Planted, name: str, secrets: list[str], script: str = LOOK) -> list[str]:
    """What the payload printed, of a job with these secrets."""
    product = planted.product
    product.write("look.sh", script).chmod(0o755)
    product.write(f"{name}.yaml", campaign(name, secrets, "./look.sh"))
    product.run("submit", f"{name}.yaml", "--site", "kinds", "--sites", "sites", "--wait")
    return product.log(name, "look.0000")


def test_a_payload_reads_all_five_kinds(planted: Planted) -> None:
    printed = run(planted, "five", list(KINDS))
    pairs = check_printed(planted, printed)
    assert pairs["XRD_CLCONFFILE"] == ["600", digest(planted.node / "xrootd/client.conf")]
    assert pairs["TNS_ADMIN"] == ["600", digest(planted.here / "wallet/cwallet.sso")]
    assert "timeout 60" in printed
    assert "1" in printed and "sqlnet.ora" in printed, "the wallet's own place is not in its sqlnet.ora"
    everything = b"".join(path.read_bytes() for path in planted.product.folder.rglob("*.log"))
    assert not [mark for mark in planted.marks.values() if mark.encode() in everything]


def test_a_payload_in_a_container_of_the_site_reads_what_is_sent(secrets_pool: Pool, product: Product) -> None:
    planted = plant(product, "SITEA")
    check_printed(planted, run(planted, "sent", list(IN_THE_IMAGE)))


def check_printed(planted: Planted, printed: list[str]) -> dict[str, list[str]]:
    """That what was sent was read; (mode, sha256) of each secret by its variable."""
    text = "\n".join(printed)
    pairs = {
        line.split()[0]: line.split()[1:] for line in printed if line.count(" ") == 2 and line.split()[0].isupper()
    }
    assert pairs["MYSQL_CNF"] == ["600", digest(planted.here / "calibration/my.cnf")], text
    assert pairs["X509_USER_PROXY"][0] == "600" and pairs["BEARER_TOKEN_FILE"][0] == "600"
    assert f"home {pairs['MYSQL_CNF'][1]}" in printed
    claims = json.loads(next(line for line in printed if line.startswith("token ")).removeprefix("token "))
    assert (claims["sub"], claims["iss"]) == ("fermi", "https://issuer.fermigrid.test")
    proxy = x509.load_pem_x509_certificate(text[text.index("-----BEGIN") :].encode())
    assert "CN=Enrico Fermi" in proxy.subject.rfc4514_string()
    return pairs


def test_a_step_gets_only_what_it_names(planted: Planted) -> None:
    printed = run(planted, "one", ["calibration"])
    names = [line.split()[0] for line in printed]
    assert names.count("MYSQL_CNF") == 1 and names.count("home") == 1 and "timeout none" in printed
    assert not {"XRD_CLCONFFILE", "TNS_ADMIN", "X509_USER_PROXY", "BEARER_TOKEN_FILE", "token"} & set(names)
    assert not [line for line in printed if line.startswith("left ") and "my.cnf" not in line]
    nothing = run(planted, "nothing", [])
    assert nothing == ["timeout none"], "a job without secrets has none, and no file of them"


RENEWED = """#!/bin/sh
end=$(($(date +%s) + 90))
first=$(sha256sum < "$X509_USER_PROXY")
sed -n '1,/END CERT/p' "$X509_USER_PROXY"
while [ "$(sha256sum < "$X509_USER_PROXY")" = "$first" ] && [ "$(date +%s)" -lt "$end" ]; do sleep 0.5; done
sed -n '1,/END CERT/p' "$X509_USER_PROXY"
"""


def test_a_proxy_that_is_renewed_reaches_the_running_job(planted: Planted) -> None:
    """And it lasts as long as the proxy here, not the day that HTCondor would give it."""
    product = planted.product
    product.write("look.sh", RENEWED).chmod(0o755)
    product.write("renew.yaml", campaign("renew", ["grid"], "./look.sh"))
    waiting = product.start("submit", "renew.yaml", "--site", "kinds", "--sites", "sites", "--wait")
    try:
        log = product.folder / "fermigrid-runs/renew/blocks/b0000/events.log"
        limit = time.monotonic() + 60
        while not (log.is_file() and "\n001 (" in log.read_text()):
            assert time.monotonic() < limit and waiting.poll() is None
            time.sleep(0.1)
        time.sleep(2.5)  # HTCondor tells proxies apart by the second of their making
        renewed = planted.renew(hours=72)
        out, err = waiting.communicate(timeout=150)
    finally:
        waiting.kill()
    assert waiting.returncode == 0, out + err + product.failures()
    text = "\n".join(line for line in product.log("renew", "look.0000"))
    before, after = x509.load_pem_x509_certificates(text.encode())
    assert before.not_valid_after_utc < after.not_valid_after_utc
    assert after.not_valid_after_utc == renewed.certificate.not_valid_after_utc


def test_a_sealed_secret_that_was_sealed_anew_is_the_one_that_is_sent(planted: Planted) -> None:
    (planted.here / "wallet/cwallet.sso").write_text("another\n")
    planted.seal("--days", "1")
    assert f"TNS_ADMIN 600 {digest(planted.here / 'wallet/cwallet.sso')}" in run(planted, "anew", ["oracle"])


def test_an_envelope_for_another_site_ends_the_job_with_85(planted: Planted) -> None:
    """Nobody can see here that the site's key is another one: the node does."""
    product = planted.product
    product.run("secret", "seal", "--new-key", str(product.folder / "other"), "--holder", "another site")
    planted.seal("--to", str(product.folder / "other/certificate.pem"))
    (planted.node / "key/key.pem").write_bytes((product.folder / "other/key.pem").read_bytes())
    product.write("look.sh", LOOK).chmod(0o755)
    product.write("wrong.yaml", campaign("wrong", ["oracle"], "./look.sh"))
    product.run("submit", "wrong.yaml", "--site", "kinds", "--sites", "sites", "--wait", code=1)
    (report,) = product.reports("wrong", "look.0000")
    assert report["exit"] == 85 and "oracle" in report["message"], report


def test_sealed_secrets_go_where_no_other_can(planted: Planted) -> None:
    """To a real Slurm the job's files go over a shared file system: what only the site can open, goes too."""
    product = planted.product
    done = call_pool(product.pool.directory, "start", "grid", timeout=120)
    assert done.returncode == 0, done.stderr
    kinds = product.folder / "sites/kinds.yaml"
    slurm = "htcondor: {grid: {kind: slurm, queue: milano, project: 'fermi:L1'}}"
    kinds.write_text(re.sub(r"^htcondor: .*$", slurm, kinds.read_text(), flags=re.M))
    printed = run(planted, "farm", ["xrootd", "oracle"])
    assert f"TNS_ADMIN 600 {digest(planted.here / 'wallet/cwallet.sso')}" in printed
    assert f"XRD_CLCONFFILE 600 {digest(planted.node / 'xrootd/client.conf')}" in printed
    product.write("sent.yaml", campaign("sent", ["calibration", "storage", "grid"], "./look.sh"))
    refused = product.run("check", "sent.yaml", "--site", "kinds", "--sites", "sites", code=11).stderr
    assert all(f"kind: {kind} does not go by" in refused for kind in ("transfer", "token", "proxy"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("short", ["ends at", "in 3 h", "step look (bad.yaml:", " 4 h of walltime + 15 min to spare = 4 h 15 min"]),
        ("gone", ["x509up: No such file or directory", "voms-proxy-init"]),
        ("limited", ["is a limited proxy"]),
        ("open", ["can be read by others (mode 0644): chmod 0600"]),
    ],
)
def test_a_proxy_that_will_not_do_is_refused_before_anything_is_made(
    planted: Planted, spoil: str, words: list[str]
) -> None:
    product, proxy = planted.product, planted.here / "x509up"
    if spoil == "short":
        planted.renew(hours=3.01)
    elif spoil == "gone":
        proxy.unlink()
    elif spoil == "limited":
        proxy.write_bytes(
            make_proxy(planted.person, planted.renew().certificate.not_valid_after_utc, limited=True).pem()
        )
    else:
        planted.here.chmod(0o755)
        proxy.chmod(0o644)
    product.write("look.sh", LOOK).chmod(0o755)
    product.write("bad.yaml", campaign("bad", ["grid"], "./look.sh"))
    for verb in (["check"], ["submit"], ["secret", "check"]):
        done = product.run(*verb, "bad.yaml", "--site", "kinds", "--sites", "sites", code=21)
        assert all(word in done.stderr for word in words), done.stderr
    assert not (product.folder / "fermigrid-runs").exists()


def test_a_token_that_the_credential_daemon_cannot_give(planted: Planted) -> None:
    product = planted.product
    site = product.folder / "sites/kinds.yaml"
    site.write_text(site.read_text().replace("service: scitokens", "service: unheard"))
    product.write("look.sh", LOOK).chmod(0o755)
    product.write("refused-token.yaml", campaign("refused-token", ["storage"], "./look.sh"))
    done = product.run("submit", "refused-token.yaml", "--site", "kinds", "--sites", "sites", code=17)
    assert "condor_credd" in done.stderr and "unheard" in done.stderr
    assert queued(product) == ""


def queued(product: Product) -> str:
    """What fermi has in the queue that is held or waits."""
    command = [*AS_FERMI, "condor_q", "-constraint", 'FermigridCampaign == "refused-token"', "-af", "ClusterId"]
    return subprocess.run(command, env=product.environment, capture_output=True, text=True, timeout=60).stdout.strip()


def test_secret_check_says_that_all_is_good(planted: Planted) -> None:
    done = planted.product.run("secret", "check", "--site", "kinds", "--sites", "sites")
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert {row[1]: row[-1] for row in rows} == dict.fromkeys(KINDS, "good")
    assert not [mark for mark in planted.marks.values() if mark in done.stdout + done.stderr]
