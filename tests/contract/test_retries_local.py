"""The rules of retries on this machine, with real jobs: what the runner does, what `watch` does, what they used."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path

import pytest

from fermigrid import backends
from fermigrid.ledger import open_ledger
from fermigrid.retry_book import RetryBook
from fermigrid.runfolder import RunFolder
from fermigrid.submit import handle_of
from tests.campaigns import fermigrid

CAMPAIGN = """\
campaign: rules
image: light
code: [go.sh]
runs: {list: [again, killed, bad, fine]}
steps:
  go:
    command: [go.sh, "{run}"]
    outputs: {out.txt: "{run}.txt"}
    resources: {memory: 64 MiB, disk: 64 MiB}
retries:
  max: 2
  rules:
    - {when: {exit: 42}, do: other-node}
"""
GO = """#!/bin/bash
case $1.$FERMIGRID_ATTEMPT in
again.g0.s1.* | again.g0.s2.*) exit 42 ;;
killed.g0.*) kill -KILL $$ ;;
bad.*) exit 3 ;;
esac
echo good > out.txt
"""


def test_what_the_runner_and_watch_make_of_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERMIGRID_POLL_S", "0.1")
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN)
    (tmp_path / "go.sh").write_text(GO)
    (tmp_path / "go.sh").chmod(0o755)
    run = tmp_path / "run"
    done = fermigrid("submit", "campaign.yaml", "--site", "local", "--run-dir", run, "--wait", cwd=tmp_path)
    assert done[0] == 1, done
    found = json.loads(fermigrid("status", run, "--json", cwd=tmp_path)[1])
    assert (found["states"]["done"], found["states"]["failed"]) == (3, 1)
    assert [batch["name"] for batch in found["batches"]] == ["rules.b0000.go.g0", "rules.b0000.go.g1"]
    with closing(open_ledger(run / "ledger.sqlite")) as ledger:
        assert RetryBook(ledger).tries(["go.again", "go.killed", "go.bad", "go.fine"]) == {
            "go.again": 2,
            "go.killed": 1,
        }
        assert [batch.options["memory"] for batch in ledger.batches()] == [64 * 2**20, 128 * 2**20]


SPIN = """#!/bin/bash
case $1 in spin) end=$((SECONDS + 30)); while [ $SECONDS -lt $end ]; do :; done ;; idle) sleep 30 ;; esac
"""


def test_what_running_jobs_used_so_far(tmp_path: Path) -> None:
    text = CAMPAIGN.replace("[again, killed, bad, fine]", "[spin, idle]").replace(
        '    outputs: {out.txt: "{run}.txt"}\n', ""
    )
    (tmp_path / "campaign.yaml").write_text(text)
    (tmp_path / "go.sh").write_text(SPIN)
    (tmp_path / "go.sh").chmod(0o755)
    run = tmp_path / "run"
    done = fermigrid("submit", "campaign.yaml", "--site", "local", "--run-dir", run, cwd=tmp_path)
    assert done[0] == 0, done
    try:
        with closing(open_ledger(run / "ledger.sqlite")) as ledger:
            (batch,) = ledger.batches()
            handle, used, until = handle_of(RunFolder(run), batch), {}, time.monotonic() + 25
            while used.get(0, 0.0) < 1.5 and time.monotonic() < until:
                time.sleep(0.2)
                used = dict(backends.load("local").used(handle, (0, 1)))
        assert used[0] >= 1.5
        assert used.get(1, 0.0) < used[0]
    finally:
        fermigrid("remove", run, cwd=tmp_path)
