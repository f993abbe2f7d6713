"""Sites of a test's own at the pool, and one command sent there: what the tests of dialects and of CEs have in common."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.pool.product import Product

LIMIT_S = 150


def wait_until(what: str, holds: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Waits, within the limit, until it holds."""
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, f"not in {limit_s} s: {what}"
        threading.Event().wait(0.3)


def site_like(product: Product, base: str, name: str, *changes: tuple[str, str]) -> str:
    """A site of the person's own: one of the pool's with some of its text replaced. Returns its name."""
    text = (product.pool.directory / f"sites/{base}.yaml").read_text()
    for old, new in ((f"site: {base}\n", f"site: {name}\n"), *changes):
        assert old in text, old
        text = text.replace(old, new)
    product.write(f"sites/{name}.yaml", text)
    return name


def send(
    product: Product, name: str, site: str, *words: str, image: str = "light", options: tuple[str, ...] = ()
) -> None:
    """One command as a campaign of that name, not waited for."""
    (product.folder / "sites").mkdir(exist_ok=True)
    product.run(
        "submit", "--site", site, "--sites", "sites", "--image", image, "--name", name, "--run-dir", name, *options,
        "--", *words,
    )  # fmt: skip


def state(product: Product, name: str) -> str:
    """The state of a campaign's one job."""
    states: dict[str, int] = json.loads(product.run("status", name, "--json").stdout)["states"]
    return next(state for state, count in states.items() if count)


def wait_for(product: Product, name: str, wanted: str, limit_s: float = LIMIT_S) -> None:
    """Waits until a campaign's one job is in that state."""
    wait_until(f"{name} is {wanted}", lambda: state(product, name) == wanted, limit_s)


def why(product: Product, name: str) -> str:
    """What `fermigrid why` says of a campaign's one job."""
    return product.run("why", name, "command.0000").stdout


def wait_for_words(product: Product, name: str, words: str, limit_s: float = LIMIT_S) -> str:
    """What `why` says, as soon as it says these words."""
    told = [""]

    def says() -> bool:
        told.append(why(product, name))
        return words in told[-1]

    try:
        wait_until(f"why says {words!r}", says, limit_s)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{told[-1]}") from None
    return told[-1]


def finish(product: Product, name: str, code: int | None = 0) -> Any:
    """Follows a campaign to its end."""
    return product.run("watch", name, code=code)


def printed(product: Product, name: str) -> list[str]:
    """What the payload of a campaign's one job printed."""
    return product.log(name, "command.0000")


def report(product: Product, name: str) -> dict[str, Any]:
    """The newest report of a campaign's one job."""
    return product.reports(name, "command.0000")[-1]
