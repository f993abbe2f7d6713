"""`watch` as a job of the schedd itself, which starts it again after a crash: made once, found again, said in words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jinja2

from fermigrid.backends import htcondor_watch
from fermigrid.credential import has_secret_name, looks_secret
from fermigrid.errors import BackendUnavailable, FermigridError, NotFound, SubmissionRefused
from fermigrid.quoting import encode_environment, encode_path, encode_submit_string, encode_submit_value
from fermigrid.records import WatchJob
from fermigrid.resources import shipped
from fermigrid.runfolder import RunFolder
from fermigrid.submit import options_of
from fermigrid.telling import alerts_or_none
from fermigrid.watch import Following

SILENT_S = 600  # a watch that has not looked for so long is asked after
_NAMES = {
    "HOME", "PATH", "LANG", "TZ", "TMPDIR", "USER", "LOGNAME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "P2_SENDMAIL",
    "CONDOR_CONFIG", "X509_USER_PROXY", "X509_CERT_DIR", "BEARER_TOKEN", "BEARER_TOKEN_FILE", "KRB5CCNAME",
    "FERMIGRID_ALERTS", "FERMIGRID_POLL_S", "FERMIGRID_STATE", "FERMIGRID_TEAM", "FERMIGRID_TRUST",
}  # fmt: skip
_FAMILIES = ("LC_", "_CONDOR_", "XRD_", "Xrd")
_LENT = ("X509_USER_PROXY", "BEARER_TOKEN_FILE", "KRB5CCNAME")  # they end, and somebody else has to renew them
_PACKAGE_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Begun:
    """What became of `watch --as-job`: the job, whether it was there before, and what a person should know."""

    job: WatchJob
    words: str
    is_new: bool
    remarks: tuple[str, ...] = ()


def begin(f: Following, python: str) -> Begun:
    """See that one job of the campaign's schedd watches it; `python`: the program that runs it.

    The caller holds the writer's lock, so that two of them do not send two. Raises NotFound for a campaign without a
    schedd, SubmissionRefused for one on another machine, SubmissionDoubt when no answer came: then again finds it.
    """
    options, now = _options(f), f.hand.now()
    where, instance = htcondor_watch.schedd_name(options), f.ledger.campaign().instance
    if found := htcondor_watch.find_watches(options, where, instance):
        job = WatchJob(where, found[0].cluster, now.isoformat(timespec="seconds"))
        f.ledger.watch_begins(job, f.hand.who)
        return Begun(job, found[0].words, is_new=False)
    f.folder.make_inside(log_file(f.folder).parent)
    kept, left_out = chosen(f.hand.environment)
    try:
        cluster = htcondor_watch.send_watch(options, where, render_watch_job(f, python, kept))
    except SubmissionRefused as error:
        error.hint = error.hint or "A timer or cron on a machine that may is as good: docs/how-to/unattended.md"
        raise
    job = WatchJob(where, cluster, now.isoformat(timespec="seconds"))
    f.ledger.watch_begins(job, f.hand.who)
    return Begun(job, "sent", is_new=True, remarks=tuple(_remarks(f, kept, left_out)))


def log_file(folder: RunFolder) -> Path:
    """What the job says: it is added to, start after start."""
    return folder.path / "watch" / "watch.log"


def _options(f: Following) -> Mapping[str, object]:
    """The settings of the schedd that has the campaign's batches, or will have them."""
    for batch in f.ledger.batches():
        if batch.backend == "htcondor":
            return {**batch.options, "schedd": batch.options.get("schedd") or batch.place}
    for site in f.assembled.sites.values():
        if site.backend == "htcondor":
            return options_of(site, f.assembled.campaign.retries.max)
    name = f.assembled.campaign.campaign
    hint = "A timer or cron does it there: docs/how-to/unattended.md"
    raise NotFound(f"{name} has no site with a schedd, which could run its watch", hint)


def chosen(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The variables of this shell that the job needs, and the names of those that it must not be given: the job's ad
    can be read by all who may read the queue."""
    wanted = {
        name: value
        for name, value in environment.items()
        if value and (name in _NAMES or name.startswith(_FAMILIES)) and not name.startswith("_CONDOR_ANCESTOR")
    }
    secret = [
        name
        for name, value in wanted.items()
        if looks_secret(value) or (has_secret_name(name) and not value.startswith("/"))
    ]
    kept = {name: value for name, value in wanted.items() if name not in secret}
    path = (str(_PACKAGE_ROOT), environment.get("PYTHONPATH"))
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, path))}, sorted(secret)


def render_watch_job(f: Following, python: str, environment: Mapping[str, str]) -> str:
    """The submit file. Raises Unrepresentable for a text that it cannot carry."""
    name, folder = f.assembled.campaign.campaign, encode_path(str(f.folder.path), "run folder")
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(shipped("submit_templates") / "htcondor"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return templates.get_template("watch.sub.j2").render(
        batch_name=encode_submit_value(f"{name}.watch", "batch name"),
        python=encode_path(python, "Python"),
        environment=encode_environment(environment),
        folder=folder,
        campaign=encode_submit_string(name),
        instance=encode_submit_string(f.ledger.campaign().instance),
    )


def _remarks(f: Following, kept: Mapping[str, str], left_out: list[str]) -> list[str]:
    """What the job will not be able to do."""
    said = [f"not given to it, because all who read the queue could read it: {name}" for name in left_out]
    lent = [f"{name} ({kept[name]})" for name in _LENT if name in kept]
    kinds = {each.kind for site in f.assembled.sites.values() for each in site.secrets.values()}
    if lent or kinds & {"proxy", "token"}:
        what = f": {', '.join(lent)}" if lent else ""
        said.append(f"it renews no proxy, token or ticket{what}: somebody must; people are told when one is too short")
    alerts, problems = alerts_or_none(f.assembled.campaign, f.hand.environment)
    if alerts.webhook and alerts.webhook.variable:
        said.append(f"it has no {alerts.webhook.variable}, so the webhook tells nobody: use webhook: {{file: ...}}")
    return said + problems


# --- afterwards


def in_words(f: Following, now: datetime) -> str:
    """Who watches: `watched by job 7 of pool@...`. The schedd is asked only where nothing was seen of the job for long.
    Empty where no job was ever sent."""
    job = f.ledger.watch_job()
    if job is None:
        return ""
    name = f"job {job.cluster} of {job.place}"
    if job.ended:
        return f"watched by nobody: {name} ended on {job.ended}"
    seen = f.ledger.watching()
    since = max(map(datetime.fromisoformat, (job.since, seen.looked if seen else job.since)))
    if f.folder.archive or abs((now - since).total_seconds()) < SILENT_S:
        return f"watched by {name}"
    try:
        found = htcondor_watch.find_watches(_options(f), job.place, f.ledger.campaign().instance)
    except FermigridError as error:
        return f"watched by {name}, of which nobody knows: {error}"
    if not found:
        return f"watched by nobody: {name} is not in the queue any more (`fermigrid watch --as-job` sends another)"
    return f"watched by job {found[0].cluster} of {job.place}, which does not look: {found[0].words}"


def end(f: Following) -> None:
    """Take the job that watches out of the queue. Raises BackendUnavailable and SubmissionRefused."""
    job = f.ledger.watch_job()
    if job is None or job.ended:
        return
    options = _options(f)
    try:
        for found in htcondor_watch.find_watches(options, job.place, f.ledger.campaign().instance):
            htcondor_watch.remove_watch(options, job.place, found.cluster)
    except BackendUnavailable as error:
        error.hint = "It ends by itself once it sees that the campaign was removed."
        raise
    f.ledger.watch_ends(f.hand.now(), f.hand.who)


def arrive(f: Following, cluster: int) -> None:
    """The job itself has begun: it is the one that watches, whatever its sender could write down."""
    job = f.ledger.watch_job()
    if job and job.cluster == cluster and not job.ended:
        return
    where = htcondor_watch.schedd_name(_options(f))
    f.ledger.watch_begins(WatchJob(where, cluster, f.hand.now().isoformat(timespec="seconds")), f.hand.who)
