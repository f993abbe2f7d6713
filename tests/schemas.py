"""The shipped JSON Schemas, from the models and the tables of the reference pages: `python -m tests.schemas --write`."""

from __future__ import annotations

import json
import re
import sys

from fermigrid.json_schema import MODELS, make_schema
from tests.campaigns import ROOT
from tests.docs.test_reference import sections_of

SCHEMAS = ROOT / "schemas"
_LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")


def descriptions(file: str) -> dict[tuple[str, str], str]:
    """(section, key) -> what its page says of it, and its default."""
    found = {}
    for page in dict.fromkeys(("campaign", file)):  # a site's binds are on the campaign's page
        for heading, section in sections_of(page).items():
            for key, (_, default, says) in section.rows.items():
                given = f"Default: {default}." if default not in ("*required*", "*none*", "see there") else ""
                text = " ".join(part for part in (_LINK.sub(r"\1", says), given) if part)
                found[heading, key.strip("`")] = text.strip()
    return found


def text_of(file: str) -> str:
    """The schema as it is shipped."""
    return json.dumps(make_schema(file, descriptions(file)), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    SCHEMAS.mkdir(exist_ok=True)
    for name in MODELS:
        (SCHEMAS / f"{name}.schema.json").write_text(text_of(name), encoding="utf-8")
