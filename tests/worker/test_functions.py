"""The worker's functions one by one, through its sourced guard."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fermigrid.quoting import encode_row
from tests.worker.conftest import bash
from tests.worker.worker_job import WORKER

Bash = Callable[..., bytes]
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
no_nul = st.binary(max_size=60).map(lambda raw: raw.replace(b"\0", b""))
texts = st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"]), max_size=40)
HOSTILE = "é \\ \\\\t \t ' \" $HOME `id` $(id) %s & ; | # ~ {a,b} * \U0001f6f0 \x01\x7f"


@quick
@given(st.lists(no_nul, min_size=1, max_size=30))
@example([bytes(range(1, 256)), b'"\\', b"\xff\xfe", "é\U0001f6f0".encode(), b"\xed\xa0\x80", b"\xc3"])
def test_json_is_right_for_any_bytes(worker_bash: Bash, raw: list[bytes]) -> None:
    out = worker_bash('for x; do _json "$x"; printf "%s\\n" "$json"; done', *raw)
    got = [json.loads(line) for line in out.decode().splitlines()]
    want = [value.decode(errors="replace") for value in raw]
    for have, expected, value in zip(got, want, raw, strict=True):
        assert re.sub("\ufffd+", "\ufffd", have) == re.sub("\ufffd+", "\ufffd", expected), value


@quick
@given(st.lists(texts, min_size=1, max_size=8))
@example([HOSTILE, "", "\\", "\\t", "a\\0101", "\\c"])
def test_fields_of_a_row_are_read_as_they_were_written(worker_bash: Bash, values: list[str]) -> None:
    row = encode_row([("arg", value) for value in values])
    script = (
        'rest=$1; rest+=$(printf "\\t"); while [ -n "$rest" ]; do _split_field "${rest%%$(printf "\\t")*}" _take_field'
    )
    script += '; rest=${rest#*$(printf "\\t")}; done; printf "%s\\0" "${args[@]}"'
    assert worker_bash(script, row).decode().split("\0")[:-1] == values


@quick
@given(st.lists(no_nul, min_size=1, max_size=20))
@example([HOSTILE.encode(), b"", b"'", b"''", b"\\'", bytes(range(1, 256))])
def test_a_quoted_word_is_the_same_word_for_sh(worker_bash: Bash, words: list[bytes]) -> None:
    script = worker_bash("""for x; do _quote "$x"; printf '%s' "printf '%s\\0' $quoted;"; done""", *words)
    for shell in ("dash", "bash"):
        out = subprocess.run([shell], input=script, capture_output=True, check=True).stdout
        assert out.split(b"\0")[:-1] == words, shell


@quick
@given(st.integers(0, 2**33))
def test_utc(worker_bash: Bash, seconds: int) -> None:
    expected = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
    assert worker_bash('_utc "$1"; printf %s "$utc"', str(seconds)).decode() == expected


def sif(data: bytes = b"x" * 5000, *, magic: bytes = b"SIF_MAGIC\0", size: int | None = None) -> bytes:
    """A file with a SIF's header (sylabs/sif, header layout version 01) and data after it."""
    head = b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + magic + b"01\0" + b"02\0" + b"u" * 16
    head += struct.pack("<8q", 0, 0, 48, 48, 4096, 0, 4096, len(data) if size is None else size)
    return head.ljust(4096, b"\0") + data


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (sif(), "ok"),
        (sif(size=6000), "damaged truncated"),
        (sif()[:3000], "damaged truncated"),
        (sif(magic=b"NOT_MAGIC\0"), "damaged no SIF"),
        (b"<html>\n<p>Not found</p>", "damaged no SIF"),
        (b"", "damaged no SIF"),
    ],
)
def test_a_sif_at_a_path(worker_bash: Bash, tmp_path: Path, content: bytes, answer: str) -> None:
    (tmp_path / "i.sif").write_bytes(content)
    said = worker_bash('_probe_image "$1" ""', str(tmp_path / "i.sif")).decode()
    assert " ".join(said.split()).startswith(answer)


def test_a_folder_image(worker_bash: Bash, tmp_path: Path) -> None:
    (tmp_path / "good/bin").mkdir(parents=True)
    (tmp_path / "good/etc").mkdir()
    (tmp_path / "good/bin/sh").symlink_to("/bin/not/here")
    (tmp_path / "good/etc/fermigrid-image").write_text("light-1\n")
    (tmp_path / "empty").mkdir()

    def probe(name: str, marker: str) -> str:
        return worker_bash('_probe_image "$1" "$2"', str(tmp_path / name), marker).decode()

    assert probe("good", "light-1") == "ok\n"
    assert probe("good", "") == "ok\n"
    assert probe("good", "light-2").startswith("damaged\nits marker is 'light-1'")
    assert probe("empty", "").startswith("damaged\n")
    assert probe("absent", "") == "missing\n"


def test_the_headers_of_the_last_response_count(worker_bash: Bash, tmp_path: Path) -> None:
    (tmp_path / "h").write_bytes(
        b'HTTP/1.1 302 Found\r\nETag: "old"\r\nRetry-After: 9\r\n\r\nHTTP/1.1 503 Busy\r\netag: "new"\r\nretry-after: 12\r\n\r\n'
    )
    out = worker_bash('_read_head "$1"; printf "%s " "$code" "$etag" "$retry_after"', str(tmp_path / "h"))
    assert out == b'503 "new" 12 '


def test_a_child_that_hangs_is_left_behind(worker_bash: Bash) -> None:
    began = datetime.now(UTC)
    out = worker_bash('if _ask 1 sleep 30; then echo answered; else echo "no answer ${#answer[@]}"; fi')
    assert out == b"no answer 0\n"
    assert (datetime.now(UTC) - began).total_seconds() < 5


def test_a_line_that_comes_in_two_halves(worker_bash: Bash) -> None:
    """As a busy machine may read it; a digest without its first digit would be another digest."""
    script = 'halves() { printf 12; sleep 1.4; printf "34\\n56"; sleep 1.4; echo 78; }; _ask 9 halves; printf "%s " "${answer[@]}"'
    assert worker_bash(script) == b"1234 5678 "


def test_without_the_clock_of_new_bash(worker_bash: Bash) -> None:
    out = worker_bash("unset EPOCHREALTIME; _now; a=$now_ms; sleep 0.2; _now; echo $((now_ms - a))")
    assert 150 <= int(out) < 2000


def test_forbidden_constructs_of_newer_bash() -> None:
    """The nodes have bash 4.1 (EL6) and later."""
    forbidden = [
        r"\[\[ -v ",
        r"%\(.*\)T",
        r"lastpipe",
        r"\$\{\w+\[-\d",
        r"declare -g",
        r"local -n",
        r"declare -n",
        r"\$\{\w+@[A-Z]\}",
    ]
    forbidden += [
        r"\bwait -n\b",
        r"\$\{\w+:\d+:-",
        r"\$\{\w+: ?-\d+: ?-",
        r"&>>",
        r"\|&",
        r"readarray -d",
        r"mapfile -d",
        r"\$\{\w+(\^|,)",
    ]
    forbidden += [
        r"(?<!\+)\"\$\{(env_list|row_env|secret_set|signals|pending|linked|limit|resume|proxy)\[@\]\}\"(?!\})",
        r"\beval\b",
    ]
    text = "\n".join(part.read_text() for part in WORKER.parent.glob("*.sh"))
    found = [
        (pattern, line)
        for pattern in forbidden
        for line in text.splitlines()
        if re.search(pattern, line.split(" # ")[0])
    ]
    assert found == []


DEAF = """
exec {pipe_fd}<> <(:)
trap 'trap - TERM; _run 0 sh -c "sleep 0.2; exit 7" || echo "run $?"
    _ask 0 sh -c "kill -9 \\$PPID" || echo "ask $?"; exit 0' EXIT
trap 'exit 3' TERM
( sleep 0.2; kill -TERM "$$" ) &
read -r -t 10 -u "$pipe_fd" _
"""


def test_a_bash_that_is_deaf_to_its_children(worker_bash: Bash) -> None:
    """A trap that leaves a `read` leaves SIGCHLD blocked in bash 5.2; it also happens, rarely, without any trap."""
    assert worker_bash(DEAF).decode().splitlines() == ["run 7", "ask 1"]


EXECUTES_ITSELF = """import os, sys, threading, time
if time.time() > float(sys.argv[2]): sys.exit()
again = ["python3", "-S", "-c", sys.argv[1], *sys.argv[1:]]
threading.Thread(target=os.execvp, args=("python3", again)).start()
time.sleep(9)"""


def test_a_program_whose_thread_becomes_another_program_lives() -> None:
    """As Apptainer's do: for a moment the first thread is a zombie, and another takes its place. 4 s, some hundred times."""
    script = """
    python3 -S -c "$1" "$1" "$2" & pid=$!
    while _lives "$pid"; do looks=$((looks + 1)); done
    printf '%s %s\\n' "$EPOCHREALTIME" "$looks" """
    until = time.time() + 4
    end, looks = bash(f"set +m; looks=0; {script}", EXECUTES_ITSELF, str(until)).split()
    assert float(end) >= until and int(looks) > 1000
