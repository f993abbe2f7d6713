"""Whether what HTCondor sends to a node can be read on its way: what the schedd's settings say. Pure.

The session between shadow and starter, in which files travel, is made by the schedd's side with its settings for the
permission WRITE; the node has no say. Shown with HTCondor 25.14 by tests/pool/test_secret_wire.py, which listens:
AES encrypts always, whatever is said of encryption; with the older methods the files travel in clear unless
encryption is REQUIRED or PREFERRED.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

SETTINGS = (
    "SEC_WRITE_ENCRYPTION",
    "SEC_DEFAULT_ENCRYPTION",
    "SEC_WRITE_CRYPTO_METHODS",
    "SEC_DEFAULT_CRYPTO_METHODS",
)
_AES_SINCE = 9  # HTCondor's first version that has AES, which then is the first of its own choice
_SET = (
    "Ask the administrator of the schedd for SEC_DEFAULT_ENCRYPTION = REQUIRED (`use security:recommended`), "
    "or use kind: sealed or path"
)


def find_clear_wire(settings: Mapping[str, str], version: str) -> str:
    """Why a secret would travel so that others can read it, and what to do; empty when it would not.

    `settings`: those of SETTINGS that the schedd has; `version`: its `CondorVersion`.
    """
    encryption = settings.get("SEC_WRITE_ENCRYPTION") or settings.get("SEC_DEFAULT_ENCRYPTION") or "OPTIONAL"
    if encryption.strip().upper() in ("REQUIRED", "PREFERRED"):
        return ""
    methods = settings.get("SEC_WRITE_CRYPTO_METHODS") or settings.get("SEC_DEFAULT_CRYPTO_METHODS")
    if methods is None:
        methods = "AES" if _major(version) >= _AES_SINCE else "BLOWFISH, 3DES"
    first = re.split(r"[\s,]+", methods.strip())[0].upper()
    if first == "AES":
        return ""
    said = f"its encryption is {encryption.strip().upper()} and its first method {first or 'none'}"
    return f"the schedd would send secrets of kind transfer so that others can read them on the way: {said}. {_SET}"


def _major(version: str) -> int:
    found = re.search(r"(\d+)\.\d+\.\d+", version)
    return int(found[1]) if found else 0
