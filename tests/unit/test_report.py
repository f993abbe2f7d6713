"""The worker's report in the tail of a log: found, or refused with a reason, and never a fault of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermigrid.report import INFRASTRUCTURE, TAIL_BYTES, WORDS, NoReport, outputs_of, parse_report, verdict

JOB, BATCH = "go.r1", "b" * 32


def data(**changes: Any) -> dict[str, Any]:
    output = {
        "name": "o",
        "to": "d/r1.fit",
        "file": "go.r1.0.a",
        "bytes": 3,
        "sha256": "0" * 64,
        "seconds": 0,
        "result": "ours",
    }
    whole: dict[str, Any] = {
        "format": 1,
        "job": JOB,
        "batch": BATCH,
        "attempt": "g0.s1.0000aaaa",
        "start": 1,
        "site": "local",
        "host": "n1",
        "where": "image",
        "rehearsal": False,
        "image": {"name": "light", "rung": "path"},
        "exit": 0,
        "payload_exit": 0,
        "message": "",
        "outputs": [output],
        "summary": {"events_read": "12"},
        "begin": 10,
        "end": 13,
    }
    return {**whole, **changes}


def frame(content: Any) -> bytes:
    text = (content if isinstance(content, str) else json.dumps(content)).encode()
    return b"@@FERMIGRID 1 %d %s\n" % (len(text), text)


def refusal(log: bytes) -> str:
    with pytest.raises(NoReport) as refused:
        parse_report(log, JOB, BATCH)
    return str(refused.value)


@pytest.mark.parametrize("before", [b"", b"hello\n", b"\n", b"\xff\xfe\0\n", b"no end of line here\n"])
def test_a_report_is_found(before: bytes) -> None:
    report = parse_report(before + frame(data()), JOB, BATCH)
    assert (report.attempt, report.exit, report.host, report.summary) == (
        "g0.s1.0000aaaa",
        0,
        "n1",
        {"events_read": "12"},
    )
    assert report.outputs[0].came_back
    assert outputs_of(report.data) == report.outputs
    assert verdict(report) == ""


def test_without_the_last_line_break_too() -> None:
    assert parse_report(frame(data())[:-1], JOB, BATCH).exit == 0


def test_what_is_printed_behind_it_does_no_harm() -> None:
    assert parse_report(frame(data()) + b"slurmstepd: bye\n", JOB, BATCH).exit == 0


def test_the_last_of_several_counts() -> None:
    forged, true = data(exit=0), data(exit=7, payload_exit=7)
    for before in (b"", b"hello\n"):
        assert parse_report(before + frame(forged) + frame(true), JOB, BATCH).exit == 7


@pytest.mark.parametrize(
    "last",
    [
        b"@@FERMIGRID 1 5 {}\n",
        b"@@FERMIGRID 1\n",
        b"@@FERMIGRID ",
        b"@@FERMIGRID 2 2 {}\n",
        b"@@FERMIGRID 1 99999999999",
    ],
)
def test_a_broken_last_one_does_not_bring_an_earlier_one_back(last: bytes) -> None:
    assert refusal(frame(data()) + last)


def test_the_mark_in_the_middle_of_a_line_is_text() -> None:
    assert parse_report(frame(data()) + b"echo @@FERMIGRID 1 2 {}\n", JOB, BATCH).exit == 0
    assert "has no report" in refusal(b"x" + frame(data()))


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (b"", "has no report: it was killed, or its log did not come back whole"),
        (b"only words\n", "has no report"),
        (frame(data())[:-20], "cut short"),
        (frame(data())[:-2], "cut short"),
        (b"@@FERMIGRID 7 2 {}\n", "has format 7, which this fermigrid does not know"),
        (b"@@FERMIGRID 1 x {}\n", "cannot be read"),
        (b"@@FERMIGRID 1 -2 {}\n", "cut short"),
        (frame("{}"), "cannot be read: KeyError"),
        (frame("[]"), "cannot be read"),
        (frame("null"), "cannot be read"),
        (frame("{" * 20), "cannot be read"),
        (frame("[" * 100_000), "cannot be read"),
        (frame(data(job="go.r2")), "the report in its log is of go.r2 in batch bbb"),
        (frame(data(batch="c" * 32)), "in batch ccc"),
    ],
)
def test_what_is_no_report(log: bytes, said: str) -> None:
    assert said in refusal(log)


@pytest.mark.parametrize(
    "changes",
    [
        {"exit": None},
        {"exit": "0"},
        {"exit": 0.0},
        {"exit": False},
        {"exit": 256},
        {"exit": -1},
        {"exit": 10**30},
        {"exit": float("inf")},
        {"start": float("inf")},
        {"start": "x"},
        {"image": None},
        {"image": []},
        {"summary": []},
        {"summary": None},
        {"outputs": None},
        {"outputs": [{}]},
        {"outputs": ["x"]},
        {"begin": None},
        {"message": "\ud800"},
        {"host": "\udfff"},
        {"payload_exit": "no"},
        {"summary": {"\ud800": "x"}},
    ],
)
def test_whatever_stands_in_a_field_it_is_no_fault_of_ours(changes: dict[str, Any]) -> None:
    assert "cannot be read" in refusal(frame(data(**changes)))


@pytest.mark.parametrize("to", ["/etc/x", "../x", "a/../../x", "", ".", "a//b", "a/", "./a", "a\0b"])
def test_an_output_may_not_leave_its_folder(to: str) -> None:
    output = {**data()["outputs"][0], "to": to}
    assert "leaves the folder of the outputs" in refusal(frame(data(outputs=[output])))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_report_or_none(log: bytes) -> None:
    assert refusal(log)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda c: st.lists(c, max_size=3) | st.dictionaries(st.sampled_from(sorted(data())), c, max_size=8),
    )
)
def test_any_json_is_a_report_or_none(content: Any) -> None:
    whole = {**data(), **content} if isinstance(content, dict) else content
    try:
        report = parse_report(frame(whole), JOB, BATCH)
    except NoReport:
        return
    assert (report.job, report.batch) == (JOB, BATCH)
    assert 0 <= report.exit <= 255


def test_bytes_that_are_not_utf8_do_not_hide_a_report() -> None:
    text = json.dumps(data(message="caf?"), ensure_ascii=False).encode().replace(b"?", b"\xe9")
    report = parse_report(b"@@FERMIGRID 1 %d %s\n" % (len(text), text), JOB, BATCH)
    assert report.message == "caf\ufffd"


def test_an_output_with_its_final_path_did_not_come_back() -> None:
    output = {**data()["outputs"][0], "file": "/sps/out/r1.fit"}
    assert not parse_report(frame(data(outputs=[output])), JOB, BATCH).outputs[0].came_back


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exit": 82, "payload_exit": None, "message": "nothing at /cvmfs/x"}, "no image: nothing at /cvmfs/x"),
        ({"exit": 84, "payload_exit": None}, "required bind missing"),
        ({"exit": 3, "payload_exit": 3}, "the payload ended with exit code 3"),
        ({"exit": 137, "payload_exit": 137}, "the payload was killed by signal 9"),
        ({"exit": 128, "payload_exit": 128}, "the payload ended with exit code 128"),
        ({"exit": 79, "payload_exit": 82}, "the payload ended with a code that is the worker's own"),
    ],
)
def test_verdicts_in_words(changes: dict[str, Any], words: str) -> None:
    assert verdict(parse_report(frame(data(**changes)), JOB, BATCH)).startswith(words)


def test_every_code_of_the_worker_has_words() -> None:
    assert set(WORDS) >= INFRASTRUCTURE
    assert all(79 <= code <= 99 for code in WORDS)


def test_a_report_is_always_within_the_tail_that_is_read() -> None:
    assert TAIL_BYTES >= 2**20
