"""Secrets of all five kinds, planted at the pool with values that can be looked for: files, a site file, credentials.

The values are in the files named by `Planted.files`, and nowhere else until a job asks for them.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.certificates import Holder, make_person, make_proxy, write_proxy
from tests.pool.product import UID, Product

# Each secret of SITE: its kind, the variable that points to it, and the file in it that has the value.
KINDS: Mapping[str, tuple[str, str, str]] = {
    "xrootd": ("path", "XRD_CLCONFFILE", "client.conf"),
    "calibration": ("transfer", "MYSQL_CNF", "my.cnf"),
    "oracle": ("sealed", "TNS_ADMIN", "cwallet.sso"),
    "grid": ("proxy", "X509_USER_PROXY", ""),
    "storage": ("token", "BEARER_TOKEN_FILE", ""),
}
SITE = """\
site: {name}
title: A site with secrets of every kind
contact: nobody
manual: https://example.org/
backend: htcondor
htcondor: {htcondor}
container: {container}
secrets:
  xrootd:
    kind: path
    from: {node}/xrootd
    point: {{XRD_CLCONFFILE: client.conf, XRD_PLUGINCONFDIR: client.plugins.d}}
    environment: {{XRD_REQUESTTIMEOUT: "60"}}
  calibration:
    kind: transfer
    from: {here}/calibration
    point: {{MYSQL_CNF: my.cnf}}
    home: {{.my.cnf: my.cnf}}
  oracle:
    kind: sealed
    from: {here}/oracle.sealed
    signer: {here}/signer/certificate.pem
    key: {node}/key/key.pem
    certificate: {node}/key/certificate.pem
    point: {{TNS_ADMIN: .}}
  grid: {{kind: proxy, from: {here}/x509up, point: {{X509_USER_PROXY: x509up}}}}
  storage: {{kind: token, service: scitokens, point: {{BEARER_TOKEN_FILE: scitokens.use}}}}
output: {{kind: transfer}}
"""
IN_THE_IMAGE = ("calibration", "grid", "storage")  # where the site starts the container: no /sps, no openssl in it
# Where jobs can be sent: what a site's file says of the way there, and of containers.
WAYS = {
    "SITEA": ("{requirements: 'GLIDEIN_Site == \"SITEA\"'}", "{launch: site, dialect: self-healing}"),
    "SITEF": ("{requirements: 'GLIDEIN_Site == \"SITEF\"'}", "{launch: worker}"),
    "slurm": (
        "{grid: {kind: slurm, queue: milano, project: 'fermi:L1', options: ['-L sps:1']}}",
        "{launch: worker, scratch: /lscratch}",
    ),
    "ce": (
        "{grid: {kind: condor, ce: ce@fermigrid.test, pool: COLLECTOR}, requirements: 'GLIDEIN_Site == \"SITEF\"'}",
        "{launch: worker}",
    ),
}


@dataclass(frozen=True)
class Planted:
    """What was planted: `marks`, each value by the name of its secret; `files`, the files that have it."""

    product: Product
    here: Path  # the person's own folder, on the submit machine
    node: Path  # where the nodes keep theirs, as this machine sees it
    marks: Mapping[str, str]
    person: Holder

    @property
    def files(self) -> tuple[Path, ...]:
        """Where values are."""
        return (self.node / "xrootd/client.conf", self.here / "calibration/my.cnf", self.here / "wallet/cwallet.sso")

    def renew(self, hours: float = 48) -> Holder:
        """A new proxy in the place of the old one, as `voms-proxy-init` makes it."""
        proxy = make_proxy(self.person, datetime.now(UTC) + timedelta(hours=hours))
        os.chown(write_proxy(self.here / "x509up", proxy), UID, UID)
        return proxy

    def seal(self, *options: str, name: str = "oracle", code: int = 0) -> str:
        """Seal the wallet anew; what was said."""
        where = ("--to", str(self.node / "key/certificate.pem"), "--sign-with", str(self.here / "signer"))
        out = ("-o", str(self.here / "oracle.sealed"))
        command = ("secret", "seal", str(self.here / "wallet"), "--name", name, *where, *out, *options)
        return self.product.run(*command, code=code).stderr


def plant(product: Product, way: str = "SITEF", name: str = "kinds") -> Planted:
    """Secrets of every kind, for the user of `product`, and the site `sites/<name>.yaml` that offers them."""
    here, folder = product.folder / "private", f"secrets-{uuid.uuid4().hex[:12]}"
    node = product.pool.directory / "sps" / folder
    marks = {secret: f"mark-{secret}-{uuid.uuid4().hex}" for secret in KINDS}
    texts = {
        node / "xrootd/client.conf": f"# {marks['xrootd']}\nStreamTimeout = 10\n",
        node / "xrootd/client.plugins.d/none.conf": "enable = false\n",
        here / "calibration/my.cnf": f"[client]\npassword={marks['calibration']}\n",
        here / "wallet/cwallet.sso": f"{marks['oracle']}\n",
        here / "wallet/sqlnet.ora": "WALLET_LOCATION=(SOURCE=(METHOD=FILE)(METHOD_DATA=(DIRECTORY=/old/place)))\n",
    }
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    own(here, node)
    planted = Planted(product, here, node, marks, make_person())
    key = product.folder / "site-key"
    product.run("secret", "seal", "--new-key", str(key), "--holder", f"key of {name}")
    product.run("secret", "seal", "--new-key", str(here / "signer"), "--holder", "who seals")
    shutil.move(key, node / "key")
    planted.seal()
    planted.renew()
    htcondor, container = WAYS[way]
    if way == "ce":
        htcondor = htcondor.replace("COLLECTOR", collector_of(product))
    text = SITE.format(name=name, htcondor=htcondor, container=container, here=here, node=f"/sps/{folder}")
    product.write(f"sites/{name}.yaml", text)
    return planted


def collector_of(product: Product) -> str:
    """The address of the pool's collector, as the pool's own site of a CE has it."""
    match = re.search(r' pool: ("[^"]+")', (product.pool.directory / "sites/pool-ce.yaml").read_text())
    assert match, "the pool has no CE: ci/pool start grid"
    return match[1]


def own(*folders: Path) -> None:
    """Give these to the pool's user, for nobody else."""
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, UID, UID)
            path.chmod(0o700 if path.is_dir() else 0o600)


def campaign(name: str, secrets: Sequence[str], script: str, code: str = "look.sh", more: str = "") -> str:
    """A campaign of one job that runs `script` with these secrets."""
    return (
        f"campaign: {name}\nimage: light\ncode: [{code}]\nruns: {{count: 1}}\n{more}"
        f"steps: {{look: {{command: [{script}], secrets: [{', '.join(secrets)}]}}}}\n"
    )
