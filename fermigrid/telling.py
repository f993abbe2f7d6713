"""The ways by which a person is told: mail, webhook, a metrics file. None of them can fail a watch.

What was told by which way is in the ledger, so that each thing is told once. A webhook's URL is a secret: it is read
when it is used, from a file or the environment, and no message of ours has it.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from fermigrid.alerts import Concern, find_due, find_over, write_subject, write_text
from fermigrid.campaign import Alerts, Campaign, Webhook
from fermigrid.config import load
from fermigrid.errors import ConfigError
from fermigrid.ledger import Ledger
from fermigrid.plainfile import open_plain
from fermigrid.records import Told
from fermigrid.routes import Fate, Mail, deliver, post

LIMIT_S = 30  # for each way
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def alerts_of(campaign: Campaign, environment: Mapping[str, str]) -> Alerts:
    """How a campaign's people are told: key by key what the campaign says, else what the person's own file says.

    Raises ConfigError for a file that is wrong.
    """
    path = own_file(environment)
    if path is None:
        return campaign.alerts
    said = {name: getattr(campaign.alerts, name) for name in campaign.alerts.model_fields_set}
    return load(Alerts, path)[0].model_copy(update=said)


def own_file(environment: Mapping[str, str]) -> Path | None:
    """The person's alerts file: FERMIGRID_ALERTS, else ~/.config/fermigrid/alerts.yaml where there is one."""
    named = environment.get("FERMIGRID_ALERTS")
    if named is not None:
        return Path(named) if named else None
    home = environment.get("HOME")
    config = environment.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    path = Path(config, "fermigrid", "alerts.yaml")
    return path if config and path.is_file() else None


def tell(
    ledger: Ledger, name: str, folder: Path, headline: str, concerns: Sequence[Concern], alerts: Alerts, now: datetime,
    environment: Mapping[str, str],
) -> list[str]:  # fmt: skip
    """Tell what is due by each way. Returns what could not be told, in words."""
    told, problems, news = ledger.told(), list[str](), list[Told]()
    stamp, host = int(now.timestamp()), socket.gethostname()
    for route in _routes(alerts):
        due = find_due(concerns, told, route, stamp, alerts.repeat)
        if not due:
            continue
        text = write_text(name, headline, str(folder), host, due)
        kind, _, address = route.partition(" ")
        if kind == "mail":
            fate, why = _mail(alerts, address, write_subject(name, due), text, now)
        else:
            assert alerts.webhook is not None
            body = _body(name, str(folder), host, text, due, now)
            fate, why = _webhook(alerts.webhook, body, environment)
        if fate is Fate.UNSENT:
            problems.append(f"nobody was told by {route}: {why}; it is tried again")
        news += [Told(one.kind, one.about, route, stamp, fate is not Fate.UNSENT) for one in due]
    over = find_over(concerns, told, stamp, alerts.repeat)
    if news or over:
        ledger.tell(news, over)
    return problems


def _routes(alerts: Alerts) -> list[str]:
    mail = [f"mail {address}" for address in alerts.mail.to] if alerts.mail else []
    return [*mail, *(["webhook"] if alerts.webhook else [])]


def _mail(alerts: Alerts, address: str, subject: str, text: str, now: datetime) -> tuple[Fate, str]:
    assert alerts.mail is not None
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = alerts.mail.source, address, subject
    message["Date"], message["Auto-Submitted"] = format_datetime(now), "auto-generated"
    number = f"{sha256(f'{now.isoformat()}{address}{text}'.encode()).hexdigest()[:24]}.alert@fermigrid"
    message["Message-ID"] = f"<{number}>"
    message.set_content(text, cte="8bit" if text.isascii() else "quoted-printable")
    mail = Mail(alerts.mail.source, address, number, message.as_bytes())
    answer = deliver(alerts.mail.via, mail, LIMIT_S, None)
    return answer.fate, answer.reason


def _body(name: str, folder: str, host: str, text: str, due: Sequence[Concern], now: datetime) -> bytes:
    """What a webhook gets. Chat programs show `text`; programs read the rest."""
    rest = [{"kind": one.kind, "about": one.about, "text": one.text} for one in due]
    said = {"text": text, "campaign": name, "folder": folder, "host": host, "time": now.isoformat(), "alerts": rest}
    return json.dumps(said, ensure_ascii=False).encode()


def _webhook(webhook: Webhook, body: bytes, environment: Mapping[str, str]) -> tuple[Fate, str]:
    try:
        url = read_url(webhook, environment)
    except (OSError, ValueError) as error:
        return Fate.UNSENT, str(error)
    try:
        return post(url, body, "application/json", LIMIT_S, webhook.ca)
    except ValueError:  # its words have the URL in them
        return Fate.UNSENT, "what is given is no URL that can be used"


def read_url(webhook: Webhook, environment: Mapping[str, str]) -> str:
    """The secret URL. Raises ValueError and OSError, without it."""
    if webhook.variable:
        text = environment.get(webhook.variable, "")
        if not text:
            raise ValueError(f"the variable {webhook.variable} is not set")
    else:
        with open_plain(str(webhook.file)) as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise ValueError(f"{webhook.file} can be read by others: chmod 600 {webhook.file}")
            text = file.read(4096).decode(errors="replace")
    url = text.strip()
    where = urlsplit(url)
    if where.scheme != "https" and not (where.scheme == "http" and where.hostname in _LOOPBACK):
        raise ValueError("the webhook is no https URL")
    return url


def metrics_file(folder: str, campaign: str, run_folder: Path) -> Path:
    """The campaign's file in the collector's folder: another run folder of the same campaign has another."""
    return Path(folder, f"fermigrid-{campaign}-{sha256(str(run_folder).encode()).hexdigest()[:8]}.prom")


def write_metrics_file(path: Path, text: str) -> str:
    """Write it whole or not at all, such that the collector can read it. Returns what is in the way, in words."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(FileNotFoundError):
            part.unlink()
        with os.fdopen(os.open(part, flags, 0o644), "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
        part.rename(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        return f"the metrics file {path} cannot be written: {error.strerror}"
    return ""


def alerts_or_none(campaign: Campaign, environment: Mapping[str, str]) -> tuple[Alerts, list[str]]:
    """The same as `alerts_of`; a person's own file that is wrong is told, and does not count."""
    try:
        return alerts_of(campaign, environment), []
    except (ConfigError, OSError) as error:
        return campaign.alerts, [f"your alerts file does not count: {error}"]
