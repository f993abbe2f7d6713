"""Values that look like a secret where many can read them: in a campaign, a site file, the image catalogue. Pure.

What is written there goes into plans, ledgers, the run folder, command lines and logs. A secret is known by itself (a
key, a signed token, a URL with a password) or by the name that it is given to. Messages never have the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fermigrid.config import Key, Source
    from fermigrid.errors import Problem
    from fermigrid.plan import Assembled
    from fermigrid.site import Site

_NAME = re.compile(
    r"(?:\A|_)(?:PASS|\w*PASSW(?:OR)?D|\w*PASSPHRASE|SSHPASS|PWD|SECRETS?|TOKENS?|CREDENTIALS?|CREDS?|COOKIES?"
    r"|AUTHORIZATION|BEARER|API_?KEY|(?:PRIVATE|SECRET|ACCESS)_?KEY)(?:\Z|_)",
    re.IGNORECASE,
)
_SIGNED = "a URL with a token or a signature"
_TOLD = {  # what it is -> how it is known, anywhere
    "a private key or certificate": re.compile(r"-----BEGIN [A-Z0-9 ]+-----"),
    "a signed token": re.compile(r"\beyJ[\w-]{4,}\.[\w-]{4,}\."),
    "a URL with a password": re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*:[^\s/@]+@"),
    _SIGNED: re.compile(
        r"://[^\s?]*\?(?:[^\s#]*&)?(?:authz|access_token|token|bearer|passw(?:or)?d|sig|signature|apikey|api_key"
        r"|x-(?:amz|goog)-(?:signature|security-token))=[^\s&{]",
        re.IGNORECASE,
    ),
    "a service's token": re.compile(r"\b(?:gh[pousr]_|glpat-|AKIA|xox[abp]-)\w{10,}"),
}
_LOGIN = re.compile(r"\A\w+[/:][^\s/@]+@(?!sha256:)[\w.:/-]+\Z")  # user/password@database, user:password@host
_WORDS = r"\b(?i:password|passwd|passphrase|secret|token|authorization|api_?key)[\"']?\s*[=:]\s*"
_SAID = re.compile(_WORDS + r"\S")
_SAID_IN_FULL = re.compile(_WORDS + r"[^\s/.~{\d]")  # neither a path nor a placeholder nor a number
_OPTION = re.compile(r"--?([A-Za-z][\w-]*)(?:=(.*))?\Z", re.DOTALL)
_PLAIN = re.compile(r"\s*|[./~].*|file:.*|\{\w+\}|-?[0-9.]{1,12}|true|false|yes|no|on|off|none|null", re.I | re.DOTALL)
_ABOUT = re.compile(  # names of what is said about a secret
    r"_(?:FILE|FILES|DIR|PATH|FOLDER|NAME|TYPE|KIND|URL|URI|HOST|PORT|ISSUER|AUDIENCE|SCOPE|TTL|LIFETIME|TIMEOUT|LENGTH"
    r"|LIMIT|COUNT|ID|USER|ALGORITHM|POLICY)\Z",
    re.IGNORECASE,
)
_FILES = re.compile(
    r"(?:\A|/)(?:cwallet\.sso|ewallet\.p12|\.netrc|\.pgpass|\.my\.cnf|id_(?:rsa|dsa|ecdsa|ed25519)|userkey\.pem"
    r"|x509up_u\d+|[^/]*\.(?:keytab|kdbx|p12|pfx))\Z"
)
_TO_FETCH = (
    "whoever reads it can fetch the file, and it is copied into plans, the run folder, logs and reports. With root://, "
    "name the file without it and let the step ask for a secret that opens it (secrets: [name]). Else put the line "
    "`url = ...` into a file of its own, name that under secrets: in the site file (point: {CURL_URLS: file}), and let "
    'the step ask for it and begin with `curl -K "$CURL_URLS"`'
)
_WAY_OUT = (
    "what is written here is copied into plans, the run folder and command lines. Put it into a file of its own, "
    "name that file under secrets: in the site file, and let the step ask for it (secrets: [name])"
)


def what_is_told(text: str) -> str | None:
    """What a text has in it that is certainly a secret, in words; None when there is nothing of the kind."""
    return next((what for what, pattern in _TOLD.items() if pattern.search(text)), None)


def has_secret_name(name: str) -> bool:
    """Does a name say that its value is secret?"""
    return _NAME.search(name) is not None


def looks_secret(value: str) -> bool:
    """Does a value tell by itself that it is secret? The strict question, for what comes from an environment."""
    return bool(what_is_told(value) or _LOGIN.search(value) or _SAID.search(value))


def what_is_written(name: str, value: str) -> str | None:
    """Why a variable of a file that a person wrote looks like a secret, in words; None when it does not."""
    if what := what_is_told(value):
        return f"its value has {what}"
    if _LOGIN.search(value) or _SAID_IN_FULL.search(value):
        return "its value has a password or a token"
    if has_secret_name(name) and not _ABOUT.search(name) and not _PLAIN.fullmatch(value):
        return "by its name its value is a secret"
    return None


def what_is_said(words: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(index, why) of each word of a command that looks like a secret: by itself, or behind a telling option."""
    named = ""
    for index, word in enumerate(words):
        option = _OPTION.match(word)
        name, value = (option[1].replace("-", "_"), option[2]) if option else (named, word)
        if what := what_is_told(word):
            yield index, f"it has {what}"
        elif name and value is not None and has_secret_name(name) and not _PLAIN.fullmatch(value):
            yield index, f"it is the value of --{name.replace('_', '-')}"
        named = name if option and value is None and not _ABOUT.search(name) else ""


def hidden(text: str) -> str:
    """A text for a message: itself, or in place of a secret what it is."""
    what = what_is_told(text)
    return f"(not shown: {what})" if what else text


def find_credentials(a: Assembled) -> Iterator[Problem]:
    """Every secret that stands in the campaign, its run table, its code's names, its sites and its images."""
    c, source = a.campaign, a.source
    yield from _variables(source, ("environment",), c.environment)
    yield from _variables(source, ("parameters",), c.parameters)
    for name, step in c.steps.items():
        here: Key = ("steps", name)
        yield from _variables(source, (*here, "environment"), step.environment)
        for index, why in what_is_said(step.command):
            yield source.problem((*here, "command", index), f"looks like a secret: {why}; {_WAY_OUT}")
        places = {local: " ".join(urls) for local, urls in step.inputs.items()}
        yield from _texts(source, (*here, "inputs"), places, _TO_FETCH)
        yield from _texts(source, (*here, "outputs"), step.outputs)
    for run in a.runs:
        for column, text in (run.columns or {}).items():
            if ("://" in text or "-----" in text or "eyJ" in text) and (what := what_is_told(text)):
                way = _TO_FETCH if what == _SIGNED else _WAY_OUT
                yield source.problem(("runs",), f"column {column!r} of run {run.name} has {what}: {way}")
                return
    for name in sorted(a.bundle.names if a.bundle else ()):
        if _FILES.search(name):
            text = f"{name!r} is by its name a file of secrets, and code is sent and kept as it is: {_WAY_OUT}"
            yield source.problem(("code",), text)
    if (image := a.catalogue.images.get(c.image)) is not None:
        urls = (image.registry or "", *(url for copy in (image.http, image.tar) if copy for url in copy.urls))
        yield from _text(a.catalogue_sources["images", c.image], ("images", c.image), " ".join(urls))


def site_credentials(site: Site, source: Source) -> Iterator[Problem]:
    """Every secret that stands in a site file."""
    yield from _variables(source, ("environment",), site.environment)
    for name, secret in site.secrets.items():
        yield from _variables(source, ("secrets", name, "environment"), secret.environment)
    yield from _texts(source, (), {"proxy": site.proxy or ""})
    yield from _variables(source, ("htcondor", "attributes"), site.htcondor.attributes)
    yield from _texts(source, ("htcondor", "expressions"), site.htcondor.expressions)
    numbered = {"preamble": site.container.preamble, "options": site.container.options}
    for key, lines in numbered.items():
        for index, line in enumerate(lines):
            yield from _text(source, ("container", key, index), line)
    for index, route in enumerate(site.messages.via):
        yield from _text(source, ("messages", "via", index), route)


def _variables(source: Source, key: Key, values: Mapping[str, str]) -> Iterator[Problem]:
    for name, value in values.items():
        if why := what_is_written(name, value):
            yield source.problem((*key, name), f"looks like a secret: {why}; {_WAY_OUT}")


def _texts(source: Source, key: Key, texts: Mapping[str, str], to_fetch: str = _WAY_OUT) -> Iterator[Problem]:
    for name, text in texts.items():
        yield from _text(source, (*key, name), text, to_fetch)


def _text(source: Source, key: Key, text: str, to_fetch: str = _WAY_OUT) -> Iterator[Problem]:
    if what := what_is_told(text):
        yield source.problem(key, f"has {what} in it: {to_fetch if what == _SIGNED else _WAY_OUT}")
