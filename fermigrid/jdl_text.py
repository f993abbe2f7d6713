"""DIRAC's JDL: an encoder for its strings, and what it has room for. Pure.

DIRAC reads a JDL with two parsers that know no escapes (DIRACCommon 9.1.22, ClassAdLight and loadJDLAsCFG): a `[` in a
string makes the one wait for ever, `;` ends the value and loses the next attribute, commas make lists, line breaks go
away, `%s`, `%n` and `%j` are replaced, and on the node a shell reads the arguments. So no text of a person is ever in
it but names, which are encoded here: what both parsers give back, or nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from fermigrid.campaign import Resources
from fermigrid.dirac_site import Dirac
from fermigrid.errors import Unrepresentable

JOB_NAME = 128  # characters of DIRAC's column JobName
PRIORITIES = range(1, 11)
LEAST_CPU_TIME = 100  # DIRAC takes no job that asks for less
_STRING = re.compile(r"[A-Za-z0-9/*][A-Za-z0-9 ._+@=:/|*-]*(?<! )")
_LFN = re.compile(r"LFN:(?:/[A-Za-z0-9._+@=-]+)+")
_ENTRY = re.compile(r"SB:[A-Za-z0-9-]+\|/S3/[A-Za-z0-9._:/-]+|(?:/[A-Za-z0-9._+@=-]+)+")
_BATCH = re.compile(r"[0-9a-f]{32}")
_SAFE = "letters, digits and . _ + @ = : / -"


def encode_jdl_string(text: str, what: str = "string of a JDL") -> str:
    """Write a string of a JDL. Refused is all that one of DIRAC's parsers would change, split or hang on."""
    if not _STRING.fullmatch(text):
        bad = next((char for char in text if not _STRING.fullmatch(f"a{char}a")), None)
        why = f"DIRAC's JDL does not carry {bad!r}" if bad else "it is empty, or begins or ends with such a character"
        raise Unrepresentable(what, text, f"{why}: use {_SAFE}")
    return f'"{text}"'


def decode_jdl_string(text: str) -> str:
    """Read what `encode_jdl_string` wrote."""
    if not (text.startswith('"') and text.endswith('"') and len(text) > 1):
        raise Unrepresentable("string of a JDL", text, "it is not in double quotes")
    encode_jdl_string(text[1:-1])
    return text[1:-1]


def encode_jdl_list(texts: Iterable[str], what: str = "list of a JDL") -> str:
    """Write a list of strings. DIRAC takes blanks out of them, so there may be none."""
    encoded = [encode_jdl_string(text, what) for text in texts]
    for text in encoded:
        if " " in text:
            raise Unrepresentable(what, decode_jdl_string(text), "DIRAC takes away the blanks in a list")
    return "{" + ", ".join(encoded) + "}"


def decode_jdl_list(text: str) -> tuple[str, ...]:
    """Read what `encode_jdl_list` wrote."""
    if not (text.startswith("{") and text.endswith("}")):
        raise Unrepresentable("list of a JDL", text, "it is not in braces")
    return tuple(decode_jdl_string(each) for each in text[1:-1].split(", ")) if text != "{}" else ()


def encode_lfn(text: str, what: str = "logical file name") -> str:
    """Write a logical file name (`LFN:/vo/folder/name`) of DIRAC's file catalogue."""
    if not _LFN.fullmatch(text) or {".", ".."} & {*text.split("/")}:
        raise Unrepresentable(what, text, "use LFN:/vo/folder/name, of letters, digits and . _ + @ = -, no // or /../")
    return f'"{text}"'


def encode_entry(text: str, what: str = "entry of the input sandbox") -> str:
    """Write an absolute local path, or the reference of a sandbox that is on a server already (`SB:NAME|/S3/...`)."""
    if not _ENTRY.fullmatch(text) or {".", ".."} & {*text.split("/")}:
        raise Unrepresentable(what, text, "it is neither an absolute path of tame characters nor SB:NAME|/S3/...")
    return f'"{text}"'


def check_group(batch_id: str) -> str:
    """The batch id, which is DIRAC's JobGroup: 32 hexadecimal digits, as many as the column has room for."""
    if not _BATCH.fullmatch(batch_id):
        raise Unrepresentable("JobGroup", batch_id, "it is not of 32 hexadecimal digits, and DIRAC cuts longer ones")
    return batch_id


def cpu_time_of(resources: Resources, dirac: Dirac) -> int:
    """CPUTime in DIRAC's units: what the job's walltime is on a core of the site."""
    return max(LEAST_CPU_TIME, math.ceil(resources.walltime * dirac.cpu_time_factor))


def memory_of(resources: Resources, dirac: Dirac) -> int | None:
    """The number for the site's memory attribute, rounded up; None where memory is not asked for."""
    units = {"MinRAM": 2**20, "RAM": 2**30}
    return -(-resources.memory // units[dirac.memory]) if dirac.memory in units else None
