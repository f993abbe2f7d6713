"""The main job on the real pool: campaigns and commands from the file to the accepted output, at unlike sites."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.pool.l1 import audit, copy_example, submit_example
from tests.pool.product import Product

pytestmark = pytest.mark.pool

RUNS = 200
HOSTILE = (
    "", "a b", "tab\there", "'", '"', "\"'", "''", '""', "a'b\"c", "$HOME", "$(HOME)", "$ENV(HOME)", "$$(Cpus)",
    "$$([1+1])", "$(DOLLAR)", "$RANDOM_CHOICE(a,b)", "a;b", "a=b", "a,b", "\\", "\\\\", "end\\", "\\n", "[x]", "{run}",
    "{{x}}", "%s", "%n", "#no comment", "//", "*", "?", "~", "`id`", "$(id)", "|", "&", "<", ">", "!", " lead", "trail ",
    "ünïcödé", "日本語", "🛰", "e\u0301", "\u202ertl", "-n", "--", "queue", "@@FERMIGRID 1 2 {}",
)  # fmt: skip
PRINT = "import sys, json; print(json.dumps(sys.argv[1:]))"


def test_l1_campaign_on_the_pool_audits_clean(product: Product) -> None:
    """Runs of real LAT events: filtered in the container with Python software from CVMFS, audited by EVENT_ID."""
    l1 = copy_example(product, RUNS)
    assert f"{RUNS} jobs, {RUNS} done" in submit_example(product, "pool")
    result = audit(product)
    assert result.returncode == 0, result.stdout + result.stderr
    name, events = (l1 / "runs.csv").read_text().splitlines()[1].split(",")[:2]
    (report,) = [r for r in product.reports("run", f"filter.{name}") if r["exit"] == 0]
    assert report["where"] in ("image", "host", "other")
    assert not report["rehearsal"]
    assert int(report["summary"]["events_read"]) == int(events)
    # and the audit is one that can fail
    next(path for path in (product.folder / "run/outputs").rglob("*.fit")).unlink()
    assert audit(product).returncode == 1
    assert "is not there" in product.run("audit", "run", code=1).stdout


@pytest.mark.parametrize(("site", "container"), [("pool-a", "site"), ("pool-b", "site"), ("pool-f", "worker")])
def test_hostile_arguments_arrive_unchanged(product: Product, site: str, container: str) -> None:
    """TRAPS 1-8 through the whole product: what the person typed is what the payload gets."""
    product.command(site, "light", ["python3", "-c", PRINT, *HOSTILE])
    assert json.loads(product.log("one", "command.0000")[0]) == list(HOSTILE)
    assert product.reports("one", "command.0000")[0]["container"] == container


def test_hostile_environment_arrives_unchanged(product: Product) -> None:
    values = {f"V{number}": text for number, text in enumerate(HOSTILE)}
    written = {
        "campaign": "env",
        "image": "light",
        "runs": {"count": 1},
        "steps": {
            "show": {
                "command": ["python3", "-c", "import os, json; print(json.dumps(dict(os.environ)))".replace("{", "{{")],
                "environment": {name: text.replace("{", "{{").replace("}", "}}") for name, text in values.items()},
            }
        },
    }
    product.write("env.yaml", json.dumps(written, ensure_ascii=False).replace("\\u202e", "\u202e"))
    product.run("submit", "env.yaml", "--site", "pool-a", "--wait")
    seen = json.loads(product.log("env", "show.0000")[0])
    assert {name: seen.get(name) for name in values} == values
    assert seen["FERMIGRID_JOB"] == "show.0000"
    assert "CONDOR_CONFIG" not in seen
    assert not [name for name in seen if name.startswith("_CONDOR")]


def test_a_broken_image_on_cvmfs_heals_itself(product: Product) -> None:
    """Native pool: the first start fails in the site's hands, the second goes without, and the ladder serves it."""
    product.command("pool-a", "light-broken", ["cat", "/etc/fermigrid-image"])
    assert product.log("one", "command.0000") == ["light-1"]
    (report,) = product.reports("one", "command.0000")
    assert report["container"] == "worker"
    assert report["image"]["rung"] in ("http", "cache")
    assert {step["rung"] for step in report["image"]["tried"]} >= {"path"}
    assert report["start"] == 2


def test_an_image_that_is_nowhere_is_exit_82(product: Product) -> None:
    images = product.folder / "sites"
    gone = product.pool.facts["http_url"] + "/images/gone.sif"
    product.write(
        "sites/images.yaml",
        f"""images:
  gone:
    flavour: light
    path: {product.pool.facts["absent_image"]}
    http: {{urls: ["{gone}"], sha256: "{"0" * 64}", size: 1 MB}}
""",
    )
    product.run(
        "submit", "--site", "pool-f", "--sites", str(images), "--image", "gone", "--wait", "--name", "one",
        "--retries", "0", "--", "true",
        code=1, timeout=400,
    )  # fmt: skip
    listed = json.loads(product.run("status", "one", "--failed", "--json").stdout)
    assert listed["failed"][0]["code"] == "82"
    assert "no image" in product.run("why", "one", "command.0000").stdout


def site_file(product: Product, name: str, where: str) -> None:
    """A native pool's site file for one unlike site: it believes that the site starts the container."""
    product.write(
        f"sites/{name}.yaml",
        f"""site: {name}
title: a test's view of {where}
contact: nobody
manual: https://example.org/
backend: htcondor
htcondor: {{requirements: 'GLIDEIN_Site == "{where}"'}}
container: {{launch: site, dialect: self-healing}}
output: {{kind: transfer}}
""",
    )


def test_a_site_that_ignores_the_request_never_runs_the_payload_bare(product: Product) -> None:
    site_file(product, "ignores", "SITEF")
    product.command("ignores", "light", ["cat", "/etc/fermigrid-image"], "--sites", "sites")
    assert product.log("one", "command.0000") == ["light-1"]
    assert product.reports("one", "command.0000")[0]["container"] == "worker"


def test_a_site_with_an_image_of_its_own_never_runs_the_payload_in_it(product: Product) -> None:
    """SITEE gives its default image to a job that asks for none, as the healed job does at its second start."""
    site_file(product, "default", "SITEE")
    done = product.command(
        "default", "light-broken", ["cat", "/etc/fermigrid-image"], "--sites", "sites", "--retries", "0", code=None
    )
    reports = product.reports("one", "command.0000")
    if done.returncode == 0:
        assert product.log("one", "command.0000") == ["light-1"]
        assert reports[-1]["container"] == "nested"
    else:
        assert reports[-1]["exit"] == 82
        assert "site-default" not in product.log("one", "command.0000")


def test_code_secrets_and_configuration_arrive(product: Product) -> None:
    """A bundle with a folder, an Oracle wallet as a folder, an XRootD client configuration; the secret goes with the job."""
    wallet = product.pool.directory / "sps/wallet"
    (wallet / "sub").mkdir(parents=True, exist_ok=True)
    (wallet / "cwallet.sso").write_text("CANARY-7f3a\n")
    (wallet / "sub/tnsnames.ora").write_text("x\n")
    xrootd = product.pool.directory / "sps/xrootd"
    (xrootd / "client.plugins.d").mkdir(parents=True, exist_ok=True)
    (xrootd / "client.conf").write_text("StreamTimeout = 10\n")
    for path in (wallet, wallet / "sub", xrootd, xrootd / "client.plugins.d"):
        path.chmod(0o755)
    product.write(
        "sites/secret.yaml",
        """site: secret
title: a site that holds secrets
contact: nobody
manual: https://example.org/
backend: htcondor
htcondor: {requirements: 'GLIDEIN_Site == "SITEF"'}
container: {launch: worker}
secrets:
  oracle: {kind: path, from: /sps/wallet, point: {TNS_ADMIN: .}}
  xrootd:
    kind: path
    from: /sps/xrootd
    point: {XRD_CLCONFFILE: client.conf, XRD_PLUGINCONFDIR: client.plugins.d}
    environment: {XRD_REQUESTTIMEOUT: "60"}
output: {kind: transfer}
""",
    )
    product.write("lib/words.txt", "from the bundle\n")
    product.write(
        "show.sh",
        """#!/bin/sh
cat lib/words.txt
cut -c1-6 < "$TNS_ADMIN/cwallet.sso"; ls "$TNS_ADMIN/sub"
cat "$XRD_CLCONFFILE"; ls -d "$XRD_PLUGINCONFDIR" > /dev/null && echo plugins; echo "$XRD_REQUESTTIMEOUT"
stat -c %a "$TNS_ADMIN/cwallet.sso"
""",
    )
    product.write(
        "c.yaml",
        """campaign: staged
image: light
code: [show.sh, lib]
runs: {count: 1}
steps: {show: {command: [./show.sh], secrets: [oracle, xrootd]}}
""",
    )
    product.run("submit", "c.yaml", "--site", "secret", "--sites", "sites", "--wait")
    printed = product.log("staged", "show.0000")
    expected = ["from the bundle", "CANARY", "tnsnames.ora", "StreamTimeout = 10", "plugins", "60", "600"]
    assert printed == expected
    run = product.folder / "fermigrid-runs/staged"
    kept = [path for path in run.rglob("*") if path.is_file() and b"CANARY-7f3a" in path.read_bytes()]
    assert kept == []


def test_clumps_then_merge_with_failures_told_apart(product: Product) -> None:
    """A step after another: the run with a bad piece is not merged, the others are; the exit code says so."""
    product.write("runs.csv", "run,events\nr0000000001,5\nr0000000002,4\n")
    product.write("part.sh", '#!/bin/sh\n[ "$1.$2" = r0000000002.c001 ] && exit 7\necho "$1 $3 $4" > part.txt\n')
    product.write(
        "c.yaml",
        """campaign: two
image: light
code: [part.sh]
runs: {table: runs.csv}
steps:
  clump:
    foreach: clump
    split: {events: 2}
    command: [part.sh, "{run}", "{piece}", "{first_event}", "{event_count}"]
    outputs: {part.txt: "{run}/{piece}.txt"}
  merge:
    after: [clump]
    command: [sh, -c, "echo merged {run}"]
""",
    )
    done = product.run("submit", "c.yaml", "--site", "pool-a", "--wait", code=1)
    assert "5 done, 1 failed" in done.stdout
    assert product.log("two", "merge.r0000000001") == ["merged r0000000001"]
    assert product.run("logs", "two", "merge.r0000000002", code=19).stdout == ""
    outputs = product.folder / "fermigrid-runs/two/outputs"
    texts = {str(path.relative_to(outputs)): path.read_text() for path in outputs.rglob("*.txt")}
    assert texts["r0000000001/c002.txt"] == "r0000000001 4 1\n"
    assert len(texts) == 4
    why = product.run("why", "two", "clump.r0000000002.c001").stdout
    assert "exit code 7" in why


def test_hold_release_remove_and_why(product: Product) -> None:
    product.write(
        "sites/nowhere.yaml",
        """site: nowhere
title: no slot matches
contact: nobody
manual: https://example.org/
backend: htcondor
htcondor: {requirements: 'GLIDEIN_Site == "SITEX"'}
container: {launch: worker}
output: {kind: transfer}
""",
    )
    product.run(
        "submit",
        "--site",
        "nowhere",
        "--sites",
        "sites",
        "--image",
        "light",
        "--name",
        "one",
        "--jobs",
        "3",
        "--",
        "true",
    )
    why = product.run("why", "one", "command.0001").stdout
    assert "waiting" in why
    assert "SITEX" in why, why
    product.run("hold", "one", "--job", "command.0001")
    assert json.loads(product.run("status", "one", "--json").stdout)["states"]["held"] == 1
    product.run("release", "one", "--job", "command.0001")
    assert json.loads(product.run("status", "one", "--json").stdout)["states"]["held"] == 0
    assert "removed: 3 jobs" in product.run("remove", "one").stdout
    assert json.loads(product.run("status", "one", "--json").stdout)["states"]["removed"] == 3
    product.run("status", "one", "--check", code=1)
    told = product.run("watch", "one", code=1).stdout
    assert told == "one: 3 jobs, 3 removed\n"


def test_the_same_plan_whoever_renders_it(product: Product) -> None:
    """`render` gives the very bytes that `submit` sends."""
    product.write("c.yaml", "campaign: same\nimage: light\nruns: {count: 3}\nsteps: {s: {command: ['true']}}\n")
    product.run("render", "c.yaml", "--site", "pool-a", "--output", "plan")
    product.run("submit", "c.yaml", "--site", "pool-a")
    sent = product.folder / "fermigrid-runs/same/blocks/b0000/s.g0/plan/plan.json"
    rendered = product.folder / "plan/b0000/s.g0/plan.json"
    assert hashlib.sha256(sent.read_bytes()).digest() == hashlib.sha256(rendered.read_bytes()).digest()
    product.run("remove", "same")
