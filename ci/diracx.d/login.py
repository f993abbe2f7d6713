"""Log in at the server of serve.py as a person does, browser included: login.py FOLDER CREDENTIALS [GROUP]."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

CLIENT = "myDIRACClientID"
GRANT = "urn:ietf:params:oauth:grant-type:device_code"


def post(url: str, **fields: str) -> dict[str, str]:
    with urllib.request.urlopen(url, urllib.parse.urlencode(fields).encode(), timeout=20) as answer:
        return json.load(answer)


def log_in(url: str, scope: str) -> dict[str, str]:
    asked = urllib.parse.urlencode({"client_id": CLIENT, "scope": scope})
    with urllib.request.urlopen(f"{url}/api/auth/device?{asked}", b"", timeout=20) as answer:
        begun = json.load(answer)
    urllib.request.urlopen(begun["verification_uri_complete"], timeout=20).read()
    return post(f"{url}/api/auth/token", grant_type=GRANT, device_code=begun["device_code"], client_id=CLIENT)


def main() -> None:
    folder, file = Path(sys.argv[1]), Path(sys.argv[2])
    facts = json.loads((folder / "api.ready").read_text())
    group = sys.argv[3] if len(sys.argv) > 3 else facts["groups"][0]
    token = log_in(facts["url"], f"vo:{facts['vo']} group:{group}")
    content = {
        "access_token": token["access_token"],
        "refresh_token": token["refresh_token"],
        "expires_on": int(time.time()) + int(token["expires_in"]) - 15,
    }
    part = file.with_name(f".{file.name}.part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        json.dump(content, out)
    part.rename(file)


if __name__ == "__main__":
    main()
