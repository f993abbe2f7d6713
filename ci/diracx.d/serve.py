"""The real DiracX server on SQLite, for tests: serve.py FOLDER [options]. FOLDER/ports has its port, that of S3, and
that of the identity provider. FOLDER/api.ready appears once it answers. Its databases stay in FOLDER."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # python -I leaves it out
from ports import HERE, wait_until_free

VO, GROUP, OTHER_GROUP, USER = "glast.org", "glast_user", "glast_prod", "fermiuser"
SUBJECT, CLIENT = "b2f1f6a1-0c1d-4a4e-9a55-6f1d20d1e001", "fermigrid-test"
DATABASES = ["Auth", "Job", "JobLogging", "PilotAgents", "ResourceStatus", "SandboxMetadata", "TaskQueue"]
DATABASES += ["Transformation"]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--max-jobs", type=int, default=20, help="jobs that one request may bring")
    parser.add_argument("--token-minutes", type=int, default=60, help="how long an access token lasts")
    parser.add_argument("--platforms", action="store_true", help="take JDL with a Platform, which this version refuses")
    return parser.parse_args()


def write_configuration(folder: Path, provider: str) -> None:
    """What DIRAC calls its configuration service: one file in a git repository."""
    import git
    import yaml

    if (folder / ".git").exists():
        return
    folder.mkdir(exist_ok=True)
    groups = {
        GROUP: {"Properties": ["NormalUser"], "Users": [SUBJECT]},
        OTHER_GROUP: {"Properties": ["NormalUser", "ProductionManagement"], "Users": [SUBJECT]},
    }
    registry = {
        "DefaultGroup": GROUP,
        "IdP": {"URL": provider, "ClientID": CLIENT},
        "Users": {SUBJECT: {"PreferedUsername": USER}},
        "Groups": groups,
    }
    content = {
        "DIRAC": {},
        "Registry": {VO: registry},
        "Operations": {"Defaults": {"JobDescription": {"MaxInputData": 500}}},
        "Resources": {"Computing": {"OSCompatibility": {"x86_64-el9": ["x86_64-el9"]}}},
    }
    (folder / "default.yml").write_text(yaml.safe_dump(content))
    repository = git.Repo.init(folder, initial_branch="master")
    repository.index.add(["default.yml"])
    who = git.Actor("ci", "ci@invalid")
    repository.index.commit("the configuration of the tests", author=who, committer=who)


def settings(folder: Path, url: str, storage: str, token_minutes: int) -> dict[str, str]:
    """The server's environment."""

    def database(name: str) -> str:
        return f"sqlite+aiosqlite:///{folder}/{name.lower()}db.sqlite"

    s3 = {"endpoint_url": storage, "aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    return {
        **{f"DIRACX_DB_URL_{name.upper()}DB": database(name) for name in DATABASES},
        "DIRACX_OS_DB_JOBPARAMETERSDB": json.dumps({"sqlalchemy_dsn": database("jobparameters")}),
        "DIRACX_CONFIG_BACKEND_URL": f"git+file://{folder}/configuration",
        "DIRACX_SERVICE_AUTH_TOKEN_KEYSTORE": f"file://{folder}/keys.json",
        "DIRACX_SERVICE_AUTH_STATE_KEY": base64.urlsafe_b64encode(hashlib.sha256(b"test").digest()).decode(),
        "DIRACX_SERVICE_AUTH_TOKEN_ISSUER": url,
        "DIRACX_SERVICE_AUTH_ALLOWED_REDIRECTS": json.dumps([f"{url}/api/docs/oauth2-redirect"]),
        "DIRACX_SERVICE_AUTH_ACCESS_TOKEN_EXPIRE_MINUTES": str(token_minutes),
        "DIRACX_SERVICE_AUTH_REFRESH_TOKEN_EXPIRE_MINUTES": str(24 * 60),
        "DIRACX_SANDBOX_STORE_BUCKET_NAME": "sandboxes",
        "DIRACX_SANDBOX_STORE_AUTO_CREATE_BUCKET": "true",
        "DIRACX_SANDBOX_STORE_S3_CLIENT_KWARGS": json.dumps(s3),
        "DIRACX_LEGACY_EXCHANGE_HASHED_API_KEY": hashlib.sha256(b"not used").hexdigest(),
        "DIRACX_OTEL_ENABLED": "false",
    }


def make_keys(file: Path) -> None:
    """The key by which the server signs its tokens."""
    if file.exists():
        return
    from diracx.logic.__main__ import new_key, save_jwks
    from joserfc.jwk import KeySet

    save_jwks(file, KeySet([new_key()]))


def change_server(arguments: argparse.Namespace) -> None:
    """What the tests need another way than this version of the server has it."""
    import diracx.logic.jobs.submission as submission

    submission.MAX_PARAMETRIC_JOBS = arguments.max_jobs
    if arguments.platforms:  # it hands a plain list to a function of DIRAC that takes lists in an envelope
        import diracx.logic.jobs.utils as utils
        from DIRACCommon.Core.Utilities.ReturnValues import S_OK

        find = utils.find_compatible_platforms
        utils.find_compatible_platforms = lambda *given: S_OK(find(*given))


def say_when_ready(folder: Path, url: str) -> None:
    while True:
        try:
            urllib.request.urlopen(f"{url}/.well-known/dirac-metadata", timeout=2).read()
            break
        except (OSError, urllib.error.URLError):
            time.sleep(0.05)
    facts = {"url": url, "vo": VO, "groups": [GROUP, OTHER_GROUP], "user": USER, "subject": SUBJECT}
    (folder / "api.facts").write_text(json.dumps(facts))
    (folder / "api.facts").rename(folder / "api.ready")


def main() -> None:
    arguments = read_arguments()
    folder = arguments.folder.resolve()
    port, s3_port, provider_port = map(int, (folder / "ports").read_text().split())
    url = f"http://{HERE}:{port}"
    os.umask(0o077)
    make_keys(folder / "keys.json")
    write_configuration(folder / "configuration", f"http://{HERE}:{provider_port}")
    os.environ.update(settings(folder, url, f"http://{HERE}:{s3_port}", arguments.token_minutes))
    change_server(arguments)

    import uvicorn
    from diracx.testing.routers import create_app

    threading.Thread(target=say_when_ready, args=(folder, url), daemon=True).start()
    app = create_app()
    wait_until_free(port)
    uvicorn.run(app, host=HERE, port=port, log_level=os.environ.get("DIRACX_LOG_LEVEL", "warning"))


if __name__ == "__main__":
    main()
