"""DIRAC's commands and what they print: outputs of the scripts of DIRAC 9.1.22 themselves (DIRAC/Interfaces/scripts, run with
the answers of its services put in; a traceback of Python's), and those of its documentation since version 6."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fermigrid.backends import dirac_words as words

FILES = [Path("/tmp/x/0000000.jdl"), Path("/tmp/x/0000020.jdl"), Path("/tmp/x/0000040.jdl")]

NO_SANDBOX = "Invalid job description ( 1501 : Input Sandbox is not valid)"
UNCONFIRMED = "Job submission error ( 1503 : Job submission failed to confirm bulk transaction)"
INVALID = """\
1 validation error for JobDescriptionModel
cpuTime
  Value error, cpuTime out of bounds (must be between 100 and 500000) [type=value_error, input_value=1, input_type=int]
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""
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
            "JobID = [1, 2]\ninputSandbox file/directory /nowhere not found. Keep looking for the others\n"
            f"Job submission failure {NO_SANDBOX}\nJobID = [5]\nERROR {FILES[1]}: {NO_SANDBOX}\n",
            {FILES[0]: (1, 2), FILES[1]: NO_SANDBOX, FILES[2]: (5,)},
        ),
        (
            f"Job submission failure {UNCONFIRMED}\n{INVALID}JobID = [5]\n"
            f"ERROR {FILES[0]}: {UNCONFIRMED}\nERROR {FILES[1]}: {INVALID}",
            {FILES[0]: UNCONFIRMED, FILES[1]: " ".join(INVALID.split()), FILES[2]: (5,)},
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


# a program may put anything into its ApplicationStatus
STATUS_9 = """\
JobID=1047 Status=Waiting; MinorStatus=Pilot Agent Submission; ApplicationStatus=Unknown; Site=ANY;\x20
JobID=1048 Status=Failed; MinorStatus=Application Finished With Errors; ApplicationStatus=Exited With Status 7; and = more; Site=LCG.IN2P3-CC.fr;\x20
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


def test_states_of_version_9() -> None:
    one, two = words.parse_status(STATUS_9)
    assert (one.id, one.status, one.minor, one.site) == (1047, "Waiting", "Pilot Agent Submission", "ANY")
    assert (two.id, two.status, two.site) == (1048, "Failed", "LCG.IN2P3-CC.fr")
    assert two.application.startswith("Exited With Status 7")


def test_an_empty_group_is_no_error() -> None:
    condition = "No jobs selected with date '2026-10-24' for conditions: {'JobGroup': '1123456789abcdef'}\n"
    assert words.is_empty_group(f"{condition}Error: No jobs selected\n")
    assert words.parse_status(f"{condition}Error: No jobs selected\n") == []
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


ATTRIBUTES_9 = """\
=================
 1047
{'AccountedFlag': 'False',
 'ApplicationStatus': 'Unknown',
 'EndExecTime': None,
 'HeartBeatTime': None,
 'JobGroup': '0123456789abcdef0123456789abcdef',
 'JobID': 1047,
 'JobName': 'clump.r0239557414.c000',
 'JobType': 'User',
 'LastUpdateTime': datetime.datetime(2026, 11, 23, 4, 15, 6),
 'MinorStatus': 'Pilot Agent Submission',
 'Owner': 'fermi',
 'OwnerGroup': 'glast_user',
 'RescheduleCounter': 0,
 'RescheduleTime': None,
 'Site': 'ANY',
 'StartExecTime': None,
 'Status': 'Waiting',
 'SubmissionTime': datetime.datetime(2026, 11, 23, 4, 5, 6),
 'UserPriority': 1,
 'VO': 'glast.org',
 'VerifiedFlag': 'True'}
=================
 9
{}
=================
 1048
{'ApplicationStatus': 'Exited With Status 7; and = more',
 'EndExecTime': datetime.datetime(2026, 11, 23, 4, 15, 6),
 'HeartBeatTime': datetime.datetime(2026, 11, 23, 4, 12),
 'JobID': 1048,
 'JobName': 'clump.r0239557414.c001',
 'LastUpdateTime': datetime.datetime(2026, 11, 23, 4, 15, 6),
 'MinorStatus': 'Application Finished With Errors',
 'RescheduleCounter': 2,
 'Site': 'LCG.IN2P3-CC.fr',
 'StartExecTime': datetime.datetime(2026, 11, 23, 4, 7),
 'Status': 'Failed'}
"""


def test_attributes_of_version_9() -> None:
    """Its services send times as times, and the command prints them as Python does."""
    one, two = words.parse_attributes(ATTRIBUTES_9)
    assert (one.id, one.name, one.status, one.started) == (1047, "clump.r0239557414.c000", "Waiting", None)
    assert one.updated == datetime(2026, 11, 23, 4, 15, 6, tzinfo=UTC)
    assert (two.id, two.reschedules, two.site) == (1048, 2, "LCG.IN2P3-CC.fr")
    assert two.started == datetime(2026, 11, 23, 4, 7, tzinfo=UTC)


def test_attributes_are_data_and_never_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    assert words.parse_attributes(f"{{'JobID': __import__('os').mkdir('{target}')}}\n") == []
    assert not target.exists()


def test_kills() -> None:
    assert words.parse_kill("Killed job 1918\n") == {1918}
    assert words.parse_kill("Killed jobs 11,12\n") == {11, 12}
    assert words.parse_kill("ERROR Operation not permitted ( 1 : )\n") == set()


def test_sandboxes() -> None:
    none = (
        "No Output sandbox found for job 24. Possible causes are: the job does not exist, no sandbox was registered or "
        "you do not have permission to access it."
    )
    output = (
        "Files retrieved and extracted in /tmp/y/1\nJob output sandbox retrieved in /tmp/y/1/\n"
        f"Job output sandbox retrieved in /tmp/y/23/\n{none}\nERROR 24: {none}\nERROR 25: Cannot connect\n"
    )
    there, failed = words.parse_output(output)
    assert there == {1, 23}
    assert failed == {24: none, 25: "Cannot connect"}
    assert any(word in none for word in words.NO_SANDBOX)


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


PROXY_9 = """\
subject      : /DC=org/DC=example/CN=Enrico Fermi 123/CN=4711
issuer       : /DC=org/DC=example/CN=Enrico Fermi 123
identity     : /DC=org/DC=example/CN=Enrico Fermi 123
timeleft     : 23:53:55
DIRAC group  : glast_user
DiracX       : True
rfc          : True
path         : /tmp/x509up_u20001
username     : fermi
properties   : NormalUser, PrivateLimitedDelegation
VOMS         : True
VOMS fqan    : ['/glast.org/Role=NULL/Capability=NULL']
"""


def test_the_proxy_of_version_9() -> None:
    told = words.parse_proxy(PROXY_9)
    assert (told["timeleft"], told["DIRAC group"], told["path"]) == ("23:53:55", "glast_user", "/tmp/x509up_u20001")
    assert told["subject"].endswith("/CN=4711")


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
