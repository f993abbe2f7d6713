"""Nobody reads a secret on its way to the node: shown by listening, at a pool that encrypts and at one that does not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool.conftest import Pool, describe, start_pool, watchdog
from tests.pool.planted import campaign, own
from tests.pool.product import AS_FERMI, UID, Product
from tests.pool.sniffer import sniffing

pytestmark = pytest.mark.pool

SITE = """\
site: wire
title: t
contact: c
manual: https://example.org/
backend: htcondor
htcondor: {{requirements: 'GLIDEIN_Site == "SITEA"'}}
container: {{launch: site, dialect: self-healing}}
secrets: {{calibration: {{kind: transfer, from: {wallet}, point: {{MYSQL_CNF: deep/my.cnf}}}}}}
output: {{kind: transfer}}
"""
READ = '#!/bin/sh\nsha256sum < "$MYSQL_CNF"; echo went-ahead\n'
CLEAR = "SEC_DEFAULT_CRYPTO_METHODS = 3DES\nSEC_DEFAULT_ENCRYPTION = OPTIONAL\nSEC_DEFAULT_INTEGRITY = OPTIONAL\n"


@pytest.fixture
def clear_pool(private_folder: Path) -> Iterator[Pool]:
    """A pool with a method from before AES, which encrypts nothing that nobody asked for."""
    settings = private_folder / "etc/config.d/clear"
    settings.parent.mkdir(parents=True)
    settings.write_text(CLEAR)
    start_pool(private_folder)
    private = describe(private_folder)
    with watchdog(private):
        yield private


def product_at(pool: Pool) -> Product:
    """fermigrid in a folder of its own at this pool."""
    folder = pool.work / f"wire-{uuid.uuid4().hex[:8]}"
    tokens = folder / "tokens"
    tokens.mkdir(parents=True)
    for token in Path(pool.env["_CONDOR_SEC_TOKEN_DIRECTORY"]).iterdir():
        (tokens / token.name).write_bytes(token.read_bytes())
    own(folder)
    return Product(pool, folder, tokens)


def plant_one(product: Product) -> str:
    """A wallet with a value deep inside, and a campaign that reads it; the value."""
    value = f"secret-{uuid.uuid4().hex}"
    wallet = product.folder / "private/wallet"
    (wallet / "deep").mkdir(parents=True)
    (wallet / "deep/my.cnf").write_text(f"{value}\n")
    own(product.folder / "private")
    product.write("sites/wire.yaml", SITE.format(wallet=wallet))
    product.write("look.sh", READ).chmod(0o755)
    product.write("wire.yaml", campaign("wire", ["calibration"], "./look.sh"))
    return value


def submit_by_hand(product: Product, more: str) -> None:
    """The wallet with a job that fermigrid did not make; waits for its end."""
    folder = product.folder / f"by-hand-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    os.chown(folder, UID, UID)
    lines = ["executable = /usr/bin/sha256sum", "transfer_executable = false", "arguments = wallet/deep/my.cnf", "log = job.log",
             f"initialdir = {folder}", "output = job.out", "should_transfer_files = yes", "request_memory = 64M",
             "request_disk = 1M", f"transfer_input_files = {product.folder}/private/wallet", more, "queue"]  # fmt: skip
    (folder / "job.sub").write_text("\n".join(lines) + "\n")
    command = [*AS_FERMI, "condor_submit", str(folder / "job.sub")]
    subprocess.run(command, env=product.environment, capture_output=True, timeout=60, check=True)
    limit = time.monotonic() + 60
    while "\n005 (" not in (log.read_text() if (log := folder / "job.log").exists() else ""):
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.1)
    wanted = hashlib.sha256((product.folder / "private/wallet/deep/my.cnf").read_bytes()).hexdigest()
    assert (folder / "job.out").read_text().split()[0] == wanted


def test_a_secret_on_its_way_cannot_be_read(pool: Pool) -> None:
    product = product_at(pool)
    value = plant_one(product)
    with sniffing(pool.facts["port"], value) as heard:
        product.run("submit", "wire.yaml", "--site", "wire", "--sites", "sites", "--wait")
    assert "went-ahead" in product.log("wire", "look.0000")
    assert heard.packets > 100 and heard.lost == 0
    assert heard.found == set()
    run = product.folder / "fermigrid-runs/wire"
    assert not [path for path in run.rglob("*") if path.is_file() and value.encode() in path.read_bytes()], "came back"


def test_a_pool_that_sends_in_clear_gets_no_secret(clear_pool: Pool) -> None:
    product = product_at(clear_pool)
    value = plant_one(product)
    with sniffing(clear_pool.facts["port"], value) as heard:
        done = product.run("submit", "wire.yaml", "--site", "wire", "--sites", "sites", code=17)
    assert "others can read them on the way: its encryption is OPTIONAL and its first method 3DES" in done.stderr
    assert "SEC_DEFAULT_ENCRYPTION = REQUIRED" in done.stderr
    assert heard.packets > 10 and heard.found == set()
    with sniffing(clear_pool.facts["port"], value) as heard:  # the check passed by: the listener can hear it
        submit_by_hand(product, f"encrypt_input_files = {product.folder}/private/wallet")
    assert heard.found == {value.encode()}, "HTCondor encrypts the files in a folder that is named: see job.sub.j2"
    with sniffing(clear_pool.facts["port"], value) as heard:  # what job.sub says would hold even so
        submit_by_hand(product, "encrypt_input_files = *")
    assert heard.found == set()
