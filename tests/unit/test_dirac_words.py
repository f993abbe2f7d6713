"""DIRAC's commands and what they print. The outputs are those of DIRAC's own documentation and source
(https://github.com/DIRACGrid/DIRAC, src/DIRAC/Interfaces/scripts, docs/source/UserGuide), versions 6 to 9."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fermigrid.backends import dirac_words as words

FILES = [Path("/tmp/x/0000000.jdl"), Path("/tmp/x/0000020.jdl"), Path("/tmp/x/0000040.jdl")]

NOISE = "2026-11-23 04:05:06 UTC dirac-wms-job-submit/Framework WARN: Found a lock\n"


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("JobID = 11\n", {FILES[0]: (11,)}),
        (
            "JobID = [1047, 1048]\nJobID = 1049\nJobID = [1050]\n",
            {FILES[0]: (1047, 1048), FILES[1]: (1049,), FILES[2]: (1050,)},
        ),
        (f"{NOISE}JobID = [1047, 1048]\n", {FILES[0]: (1047, 1048)}),
        (
            f"JobID = [1, 2]\nJobID = [5]\nERROR {FILES[1]}: JDL syntax error ( 1404 : Invalid job JDL)\n",
            {FILES[0]: (1, 2), FILES[1]: "JDL syntax error ( 1404 : Invalid job JDL)", FILES[2]: (5,)},
        ),
        ("", {}),
        ("Traceback (most recent call last):\n  ...\n", {}),
    ],
)
def test_what_was_handed_in(output: str, told: dict[Path, object]) -> None:
    assert words.parse_submit(output, FILES) == told


STATUS = """\
JobID=2 Status=Done; MinorStatus=Execution Complete; Site=EELA.UTFSM.cl;
JobID=1 ApplicationStatus=Exited With Status 7; MinorStatus=Application Finished With Errors; Status=Failed; Site=LCG.CPPM.fr;
"""


def test_states() -> None:
    first, second = words.parse_status(STATUS)
    assert (first.id, first.status, first.minor, first.application, first.site) == (
        1,
        "Failed",
        "Application Finished With Errors",
        "Exited With Status 7",
        "LCG.CPPM.fr",
    )
    assert (second.id, second.status, second.minor, second.site) == (2, "Done", "Execution Complete", "EELA.UTFSM.cl")


def test_an_empty_group_is_no_error() -> None:
    assert words.is_empty_group("Error: No jobs selected for conditions: {'JobGroup': 'x'}\n")
    assert not words.is_empty_group("Error: Failed to connect to WorkloadManagement/JobMonitoring\n")
    assert words.parse_status("Error: No jobs selected\n") == []


ATTRIBUTES = """\
{'AccountedFlag': 'False',
 'ApplicationStatus': 'Unknown',
 'EndExecTime': '2011-02-14 11:28:01',
 'JobGroup': 'NoGroup',
 'JobID': '1',
 'JobName': 'DIRAC_vhamar_602138',
 'LastUpdateTime': '2011-02-14 11:28:11',
 'MinorStatus': 'Execution Complete',
 'OwnerDN': '/O=GRID-FR/C=FR/O=CNRS/OU=CPPM/CN=Vanessa Hamar',
 'RescheduleCounter': '2',
 'RescheduleTime': 'None',
 'Site': 'EELA.UTFSM.cl',
 'StartExecTime': '2011-02-14 11:27:48',
 'Status': 'Done'}
{'JobID': '7',
 'JobName': 'clump.r0239557414.c003',
 'StartExecTime': 'None',
 'Status': 'Waiting'}
ERROR 9: Unknown job
"""


def test_attributes() -> None:
    one, seven = words.parse_attributes(ATTRIBUTES)
    assert (one.id, one.name, one.status, one.reschedules) == (1, "DIRAC_vhamar_602138", "Done", 2)
    assert one.started == datetime(2011, 2, 14, 11, 27, 48, tzinfo=UTC)
    assert one.updated == datetime(2011, 2, 14, 11, 28, 11, tzinfo=UTC)
    assert (seven.id, seven.name, seven.started, seven.updated) == (7, "clump.r0239557414.c003", None, None)


def test_attributes_are_data_and_never_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    assert words.parse_attributes(f"{{'JobID': __import__('os').mkdir('{target}')}}\n") == []
    assert not target.exists()


def test_kills() -> None:
    assert words.parse_kill("Killed job 1918\n") == {1918}
    assert words.parse_kill("Killed jobs 11,12\n") == {11, 12}
    assert words.parse_kill("ERROR Operation not permitted ( 1 : )\n") == set()


def test_sandboxes() -> None:
    output = (
        "Job output sandbox retrieved in /tmp/y/1/\nJob output sandbox retrieved in /tmp/y/23/\n"
        "ERROR 24: No Output sandbox registered for job 24\nERROR 25: Cannot connect\n"
    )
    there, failed = words.parse_output(output)
    assert there == {1, 23}
    assert failed == {24: "No Output sandbox registered for job 24", 25: "Cannot connect"}


PROXY = """\
subject      : /O=GRID-FR/C=FR/O=CNRS/OU=CPPM/CN=Vanessa Hamar/CN=proxy/CN=proxy
issuer       : /O=GRID-FR/C=FR/O=CNRS/OU=CPPM/CN=Vanessa Hamar/CN=proxy
identity     : /O=GRID-FR/C=FR/O=CNRS/OU=CPPM/CN=Vanessa Hamar
timeleft     : 23:53:55
DIRAC group  : dirac_user
path         : /tmp/x509up_u40885
username     : vhamar
VOMS         : True
VOMS fqan    : ['/formation']
"""


def test_the_proxy() -> None:
    told = words.parse_proxy(PROXY)
    assert (told["timeleft"], told["DIRAC group"], told["path"]) == ("23:53:55", "dirac_user", "/tmp/x509up_u40885")
    assert told["subject"].endswith("/CN=proxy/CN=proxy")


def test_words_of_a_command_that_failed() -> None:
    assert words.error_of("a\nb\n") == "b"
    assert words.error_of("x\nERROR y: no\nbye\n") == "ERROR y: no"
    assert words.error_of("") == "it said nothing"


def test_command_lines() -> None:
    assert words.submit_command(FILES[:1]) == ["dirac-wms-job-submit", "/tmp/x/0000000.jdl"]
    assert words.group_command("f" * 32) == ["dirac-wms-job-status", "-g", "f" * 32]
    assert words.output_command([1, 2], Path("/tmp/y")) == ["dirac-wms-job-get-output", "-D", "/tmp/y", "1", "2"]
    assert words.kill_command([1, 2]) == ["dirac-wms-job-kill", "1", "2"]
