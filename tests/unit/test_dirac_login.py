"""Tokens and proxies: found, of the right group, for long enough, never told."""

from __future__ import annotations

import base64
import json
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fermigrid.backends.dirac_login import as_file, check_login, find_login, from_proxy_info, read_login
from fermigrid.errors import SecretRefused
from tests.certificates import make_person, make_proxy, write_proxy

NOW = datetime.now(UTC).replace(microsecond=0)


def token(minutes: float, **claims: object) -> str:
    """An unsigned token that ends in so many minutes."""
    content = {
        "exp": (NOW + timedelta(minutes=minutes)).timestamp(),
        "dirac_group": "glast_user",
        "vo": "glast.org",
        **claims,
    }
    return f"e30.{base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip('=')}.sig-SECRET"


def tokens(access: float = 20, renewable: float | None = 600, **claims: object) -> str:
    refresh = None if renewable is None else token(renewable)
    ends = int((NOW + timedelta(minutes=access)).timestamp())
    return json.dumps({"access_token": token(access, **claims), "refresh_token": refresh, "expires_on": ends})


def write(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "credentials.json"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_tokens_of_dirac_login(tmp_path: Path) -> None:
    path = write(tmp_path, tokens())
    login = find_login(None, {"DIRACX_CREDENTIALS_PATH": str(path)})
    assert (login.kind, login.group, login.vo) == ("token", "glast_user", "glast.org")
    assert login.ends == NOW + timedelta(minutes=20)
    assert login.last == NOW + timedelta(minutes=600)
    assert "SECRET" not in repr(login)
    with as_file(login) as file:
        assert file == path


def test_what_the_site_names_comes_first(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    path = write(other, tokens(dirac_group="glast_prod"))
    assert find_login(str(path), {"DIRACX_CREDENTIALS_PATH": str(write(tmp_path, tokens()))}).group == "glast_prod"


def test_a_place_that_cannot_be_looked_into(tmp_path: Path) -> None:
    with pytest.raises(SecretRefused, match="cannot be looked for: File name too long"):
        find_login(f"{tmp_path}/{'x' * 300}", {})


def test_nobody_is_logged_in(tmp_path: Path) -> None:
    places = {"DIRACX_CREDENTIALS_PATH": f"{tmp_path}/none", "X509_USER_PROXY": f"{tmp_path}/neither"}
    with pytest.raises(SecretRefused, match="nobody is logged in at DIRAC") as caught:
        find_login(None, places)
    assert "dirac login" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"access_token": "a.b.c"}', '{"access_token": "abc"}', '{"access_token": 7}', "\x00\x01"],
)
def test_what_is_no_token(tmp_path: Path, text: str) -> None:
    with pytest.raises(SecretRefused, match="holds no tokens of DiracX"):
        read_login(write(tmp_path, text))


def test_tokens_that_others_can_read() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # those of pytest are closed
        Path(folder).chmod(0o755)
        with pytest.raises(SecretRefused, match="can be read by others"):
            read_login(write(Path(folder), tokens(), 0o644))


def proxy_with(folder: Path, block: str, **how: bool) -> Path:
    path = write_proxy(folder / "x509up", make_proxy(make_person(), NOW + timedelta(hours=5), **how))
    with path.open("a") as file:
        file.write(block)
    return path


def block_of(text: str) -> str:
    return f"-----BEGIN DIRACX-----\n{base64.encodebytes(text.encode()).decode()}-----END DIRACX-----\n"


def test_tokens_in_a_proxy_are_used_and_the_proxy_is_left_whole(tmp_path: Path) -> None:
    path = proxy_with(tmp_path, block_of(tokens()))
    before = path.read_bytes()
    login = find_login(None, {"DIRACX_CREDENTIALS_PATH": f"{tmp_path}/none", "X509_USER_PROXY": str(path)})
    assert (login.kind, login.group, login.path) == ("proxy", "glast_user", path)
    with as_file(login) as file:
        assert json.loads(file.read_text()) == json.loads(tokens())
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        file.write_text("renewed")
    assert not file.exists()
    assert path.read_bytes() == before


def test_a_proxy_without_tokens_is_none(tmp_path: Path) -> None:
    assert read_login(proxy_with(tmp_path, "")) is None


@pytest.mark.parametrize("block", [block_of("no tokens"), "-----BEGIN DIRACX-----\n!!!\n-----END DIRACX-----\n"])
def test_a_damaged_block(tmp_path: Path, block: str) -> None:
    with pytest.raises(SecretRefused, match="damaged"):
        read_login(proxy_with(tmp_path, block))


def test_a_limited_proxy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SecretRefused, match="is a limited proxy"):
        read_login(proxy_with(tmp_path, block_of(tokens()), limited=True))


@pytest.mark.parametrize(
    ("access", "renewable", "documents", "words"),
    [
        (20, 600, 500, ""),
        (20, None, 500, ""),
        (10, None, 500, "500 documents at 1 s each + 5 min to spare = 13 min 20 s"),
        (1, 3, 1, "renewed as often as it can be, in 3 min; handing in may take 1 document at 1 s each + 5 min"),
        (-1, None, 1, "ended at"),
        (-1, 600, 1, ""),
    ],
)
def test_whether_it_lasts(tmp_path: Path, access: float, renewable: float | None, documents: int, words: str) -> None:
    login = read_login(write(tmp_path, tokens(access, renewable)))
    assert login is not None
    try:
        check_login(login, "glast.org", "glast_user", documents, NOW)
        said = ""
    except SecretRefused as error:
        said = str(error)
    assert (words in said) if words else (said == "")


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"dirac_group": "glast_prod"}, "is of group glast_prod; the site says glast_user"),
        ({"vo": "cta"}, "is of VO cta; the site says glast.org"),
        ({"dirac_group": ""}, "is of group (none)"),
    ],
)
def test_whose_it_is(tmp_path: Path, claims: dict[str, str], words: str) -> None:
    login = read_login(write(tmp_path, tokens(**claims)))
    assert login is not None
    with pytest.raises(SecretRefused) as caught:
        check_login(login, "glast.org", "glast_user", 1, NOW)
    assert words in str(caught.value)
    assert caught.value.hint == "Log in for it: dirac login glast.org --group glast_user"


def test_what_dirac_proxy_info_says() -> None:
    told = {"timeleft": "23:53:55", "DIRAC group": "glast_user", "path": "/tmp/x", "subject": "/O=x/CN=me/CN=proxy"}
    login = from_proxy_info(told, NOW)
    assert (login.ends - NOW, login.group, login.renewable) == (
        timedelta(hours=23, minutes=53, seconds=55),
        "glast_user",
        None,
    )
    with pytest.raises(SecretRefused, match="limited proxy"):
        from_proxy_info(told | {"subject": "/O=x/CN=me/CN=limited proxy"}, NOW)
    with pytest.raises(SecretRefused, match="tells of no proxy"):
        from_proxy_info({}, NOW)
