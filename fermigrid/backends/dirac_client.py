"""A client of DiracX, and how it is asked: one request, its time limit, and what an answer or none means.

Every request has its time limit. None is repeated by the client itself: it would send jobs twice. What an answer does
not say for certain is in doubt, and `dirac_landing.py` settles it. `diracx` is an extra: it is imported here and in
`dirac_flights.py` only, and only when it is needed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from fermigrid.backends.dirac_login import Login, as_file
from fermigrid.backends.dirac_transport import Denied, Unreachable
from fermigrid.errors import BackendUnavailable

if TYPE_CHECKING:
    from diracx.client.aio import AsyncDiracClient

T = TypeVar("T")
SUPPORTED = "0.7.0"
_MOST_PATIENCE_S = 600.0  # for a server that asks to wait


def check_client() -> None:
    """That the one supported client of DiracX is here. Raises BackendUnavailable."""
    try:
        found = metadata.version("diracx-client")
    except metadata.PackageNotFoundError:
        text = "transport: diracx needs DiracX's Python client, which is not installed"
        raise BackendUnavailable(text, "pip install 'fermigrid[dirac]' (it is under the GPL, and optional)") from None
    if found != SUPPORTED:
        text = f"this fermigrid speaks with DiracX {SUPPORTED}; the client that is installed is of {found}"
        raise BackendUnavailable(text, f"pip install 'diracx-client=={SUPPORTED}' 'diracx-core=={SUPPORTED}'")


@dataclass
class Session:
    """A client that is open, on an event loop of its own; `limit`: what a request may take (s)."""

    runner: asyncio.Runner
    client: AsyncDiracClient
    limit: float

    def run(self, work: Awaitable[T]) -> T:
        """What comes of it."""

        async def waited() -> T:
            return await work

        return self.runner.run(waited())


@contextmanager
def open_session(url: str, login: Login, limit: float) -> Iterator[Session]:
    """A session with the server at `url`. Raises BackendUnavailable (no client, or another), Unreachable."""
    check_client()
    with as_file(login) as credentials, asyncio.Runner() as runner:
        session = Session(runner, _made(url, credentials, limit), limit)
        session.run(session.client.__aenter__())
        try:
            yield session
        finally:
            session.run(session.client.__aexit__(None, None, None))


def _made(url: str, credentials: Path, limit: float) -> AsyncDiracClient:
    """A client. It asks the server where its services are as soon as it is made, with no limit that holds; so another
    thread makes it, and is left behind when it takes too long."""
    made: list[AsyncDiracClient] = []
    failed: list[Exception] = []

    def make() -> None:
        try:
            from diracx.client.aio import AsyncDiracClient
            from diracx.core.preferences import DiracxPreferences

            preferences = DiracxPreferences.model_validate({"url": url, "credentials_path": credentials})
            options: dict[str, Any] = {"retry_total": 0, "connection_timeout": limit, "read_timeout": limit}
            made.append(AsyncDiracClient(diracx_preferences=preferences, **options))
        except Exception as error:  # noqa: BLE001  # of any kind: it is told where it was asked for
            failed.append(error)

    thread = threading.Thread(target=make, name="diracx", daemon=True)
    thread.start()
    thread.join(limit)
    if made:
        return made[0]
    if failed:
        raise Unreachable(f"{urlsplit(url).netloc} does not answer as a DiracX server: {words_of(failed[0])}")
    raise Unreachable(f"{urlsplit(url).netloc} does not answer within {limit:g} s")


def words_of(error: BaseException) -> str:
    """What went wrong, in one line. Addresses with keys in them (those of the sandbox store) are not in it."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text and "Signature=" not in text else type(error).__name__


async def ask(session: Session, make: Callable[[], Awaitable[T]], more: float = 0.0) -> T:
    """The answer to one request, within the limit and `more` seconds. Raises Denied, Unreachable."""
    for wait in (*_waits(), None):
        try:
            return await _ask_once(make, session.limit + more)
        except _Busy as busy:
            if wait is None:
                raise Unreachable("the server asks to wait, and has done so for too long (429)") from None
            await asyncio.sleep(busy.seconds if busy.seconds is not None else wait)
    raise AssertionError


class _Busy(Exception):
    """The server did not do what it was asked, and wants to be asked later; `seconds`: when it says when."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__("429")
        self.seconds = seconds


def _waits() -> Iterator[float]:
    waited = 0.0
    for wait in itertools.chain((1.0, 2.0, 4.0, 8.0, 16.0), itertools.repeat(30.0)):
        if waited > _MOST_PATIENCE_S:
            return
        waited += wait
        yield wait


async def _ask_once(make: Callable[[], Awaitable[T]], limit: float) -> T:
    import httpx2
    import jwt
    from aiohttp import ClientError
    from azure.core.exceptions import AzureError, HttpResponseError

    try:
        async with asyncio.timeout(limit):
            return await make()
    except TimeoutError:
        raise Unreachable(f"no answer within {limit:g} s") from None
    except HttpResponseError as error:
        raise _refusal(error) from None
    except (AzureError, ClientError, httpx2.HTTPError, jwt.PyJWTError, OSError, ValueError, KeyError) as error:
        raise Unreachable(words_of(error)) from None
    except RuntimeError as error:  # the client's word for tokens that the server does not renew
        raise Denied(words_of(error), credentials=True) from None


def _refusal(error: Any) -> Exception:
    """What an answer that is no good one means."""
    status, said = error.status_code or 0, _detail(error)
    if status == 429:
        return _Busy(_retry_after(error))
    if status in (401, 403):
        return Denied(f"{said} ({status})", credentials=True)
    if 400 <= status < 500:
        return Denied(f"{said} ({status})")
    return Unreachable(f"{said} ({status})")


def _detail(error: Any) -> str:
    try:
        told = json.loads(error.response.text())["detail"]
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        told = error.reason or type(error).__name__
    return " ".join(str(told).split())[:300]


def _retry_after(error: Any) -> float | None:
    text = error.response.headers.get("Retry-After", "") if error.response is not None else ""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.1), _MOST_PATIENCE_S / 4)
