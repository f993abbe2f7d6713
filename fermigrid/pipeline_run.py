"""The verbs of `fermigrid pipeline`: submit once, tell how it stands, kill. Each may be cut short and repeated.

The run folder of a try is named by its process instance, which is its key: a submission that is repeated finds it, and
goes on where the first one was. Everything else that could double a job is behind the job folder's lock.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from fermigrid.access import Trust, at_work_in, check_team, trust_of
from fermigrid.assemble import assemble_data, assemble_kept
from fermigrid.check import find_problems
from fermigrid.control import control
from fermigrid.errors import (
    ConfigError,
    FermigridError,
    LedgerBusy,
    NotFound,
    PipelineRefused,
    RunFolderError,
    SubmissionDoubt,
)
from fermigrid.ledger import open_ledger
from fermigrid.ledger_file import writing
from fermigrid.messages import send_missing
from fermigrid.pipeline import Order, parse_names, read_order
from fermigrid.pipeline_campaign import Limits, Place, choose_image, covers, describe_job, payload_of
from fermigrid.pipeline_folder import (
    LOG,
    OURS,
    SAVED_ENVIRONMENT,
    SUMMARY,
    Clusters,
    Entry,
    JobFolder,
    is_folder,
    locate_folder,
    writing_patiently,
)
from fermigrid.pipeline_result import (
    Standing,
    answer_of,
    cluster_of,
    deliver,
    keep_result,
    kept_result,
    standing_of_try,
    unknown,
    with_usage,
)
from fermigrid.plainfile import write_new
from fermigrid.plan import Assembled
from fermigrid.records import BatchRecord
from fermigrid.runfolder import RunFolder
from fermigrid.site import Site, load_catalogue, load_site
from fermigrid.states import State
from fermigrid.submit import Hand, begin, certainly_not_sent, give_up, prepare, settle
from fermigrid.watch import Following, advance, look

LOCK_LIMIT_S = 120.0  # for another one at work on the same job folder: a submission with a slow schedd takes a minute
KILL_LIMIT_S = 30.0  # for an earlier try that was killed, to be gone
NOT_CODE = (OURS, "archive", SUMMARY, SAVED_ENVIRONMENT, "pipeline_wrapper")


@dataclass(frozen=True)
class Request:
    """What the command line of `pipeline submit` says. `shared`: do the nodes see the job folder? None: find out."""

    site: str
    search: tuple[Path, ...]
    limits: Limits = field(default_factory=Limits)
    image: str | None = None
    name: str | None = None
    log_file: str | None = None
    shared: bool | None = None
    variables: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


@contextmanager
def opened(run: RunFolder, hand: Hand) -> Iterator[Following]:
    """A try that was begun."""
    with at_work_in(run.path, trust_of({})), closing(open_ledger(run.ledger)) as ledger:
        record = ledger.campaign()
        check_team(run.path, record.team)
        yield Following(ledger, run, assemble_kept(run, record), record.site, hand)


# --- submit


def submit(request: Request, environment: Mapping[str, str], here: Path, hand: Hand) -> str:
    """Submit the job of the folder `here`, once for each process instance; returns the line that tells its cluster.

    Nothing is changed when it raises PipelineRefused or ConfigError. RunFolderError when an earlier try in the folder
    is still alive, and the errors of a submission.
    """
    folder = locate_folder(environment, here)
    order = _read(request, environment, folder)
    with ExitStack() as stack:
        assembled, search = None, list[str]()
        if folder.find(order.instance) is None:
            own = Path(stack.enter_context(TemporaryDirectory(prefix="fermigrid-pipeline-")))
            assembled, search = assemble_job(request, order, environment, folder, own, hand)
        stack.enter_context(folder.locked(LOCK_LIMIT_S))
        run = folder.find(order.instance)
        if run is None:
            if assembled is None:
                raise RunFolderError(
                    f"{folder.path}: the try of process instance {order.instance} has just been moved away"
                )
            run = folder.run(order.instance)
            _clear(folder, order, hand)
            prepare(run)
            with writing_patiently(run.ledger, LOCK_LIMIT_S):
                begin(assembled, run, request.site, search, hand).close()
        if kept_result(run) is None:
            run = folder.bring_back(run)
        if run == folder.run(order.instance):  # and not an archived one, asked for once more
            _save_environment(folder, order)
        with opened(run, hand) as f, writing_patiently(run.ledger, LOCK_LIMIT_S):
            batch, name = _send(f), f.assembled.campaign.campaign
    cluster = cluster_of(batch, order.instance)
    try:
        Clusters(environment).remember(Entry(cluster, order.instance, folder))
    except OSError as error:
        hand.tell(f"cluster {cluster} will be known in its job folder only: {error}")
    return answer_of(batch, order.instance, name)


def _read(request: Request, environment: Mapping[str, str], folder: JobFolder) -> Order:
    listed = parse_names(folder.saved_environment())
    order = read_order(environment, listed, request.variables, os.path.exists)
    log = str(folder.path / (request.log_file or order.messages.log))
    if is_folder(Path(log)):
        text = f"the job's log, {log}, is a folder"
        raise PipelineRefused(text, "Nothing was changed. JOBCONTROL_LOGFILE or --log-file must be the path of a file.")
    if request.log_file is None:
        return order
    messages = order.messages.model_copy(update={"log": log})
    passed = replace(order.passed, values={**order.passed.values, "JOBCONTROL_LOGFILE": log})
    return replace(order, messages=messages, passed=passed)


def assemble_job(
    request: Request, order: Order, environment: Mapping[str, str], folder: JobFolder, own: Path, hand: Hand
) -> tuple[Assembled, list[str]]:
    """The job as a campaign, checked, and the folders that its site and image are in; `own` is for those made here.

    Raises ConfigError, PipelineRefused.
    """
    site, _ = load_site(request.site, request.search)
    image, entry = choose_image(order.image or request.image, site, load_catalogue(request.search))
    if entry:
        (own / "images.yaml").write_text(yaml.safe_dump({"images": {image: entry}}))
    if order.runtime:
        _write_site(request, order.runtime, own)
    shared = request.shared
    if shared is None:
        shared = site.backend == "local" or covers(str(folder.path), (*site.binds, *order.binds))
    command = _payload(request, environment, folder, hand)
    place = _place(folder, order, shared)
    data = describe_job(order, request.limits, place, name=request.name, image=image, command=command, site=site)
    search = (own, *request.search)
    assembled = assemble_data(data, folder.path, request.site, search, _trust(folder, environment))
    if problems := find_problems(assembled):
        raise ConfigError(problems)
    _tell(order, site, place, hand)
    return assembled, [str(path) for path in search]


def _trust(folder: JobFolder, environment: Mapping[str, str]) -> Trust:
    """Whoever owns the job folder wrote the script, and whoever is in its group may: the pipeline lets them."""
    found = folder.path.stat()
    return trust_of(environment).with_owner(found.st_uid).with_group(found.st_gid)


def _write_site(request: Request, runtime: str, own: Path) -> None:
    """The site with the container runtime of the order: it extends the one of its name in the folders behind."""
    data = {"site": request.site, "extends": request.site, "container": {"runtimes": [runtime]}}
    (own / f"{request.site}.yaml").write_text(yaml.safe_dump(data, sort_keys=False))


def _payload(request: Request, environment: Mapping[str, str], folder: JobFolder, hand: Hand) -> tuple[str, ...]:
    script = folder.path / "script"
    try:
        with script.open("rb") as file:
            first = file.readline(200)
    except OSError:
        first = b""
    words, is_script = payload_of(request.command, environment, first)
    if is_script and not script.is_file():
        raise PipelineRefused(
            f"there is no file `script` in {folder.path}", "Nothing was changed. Or: -- COMMAND ARG..."
        )
    if (folder.path / "pipeline_wrapper").exists():
        hand.tell("pipeline_wrapper is not run: fermigrid's worker takes its place, messages included")
    return words


def _place(folder: JobFolder, order: Order, shared: bool) -> Place:
    log = folder.path / order.messages.log
    if shared:
        return Place(str(folder.path), str(log))
    left = {*NOT_CODE, os.path.relpath(log, folder.path).split("/")[0], LOG}
    return Place(".", None, tuple(sorted(path.name for path in folder.path.iterdir() if path.name not in left)))


def _tell(order: Order, site: Site, place: Place, hand: Hand) -> None:
    for name in order.passed.withheld:
        hand.tell(f"{name} does not travel with the job: it looks like a credential")
    if order.runtime and site.container.launch == "site":
        hand.tell(f"PIPELINE_CONTAINER_BIN={order.runtime}: site {site.site} starts the container itself, with its own")
    if not (site.messages.via or order.passed.values.get("P2_SENDMAIL")):
        hand.tell(f"site {site.site} names no way for messages (messages: via): only a node's own P2_SENDMAIL is left")
    if place.log is None:
        hand.tell(f"the nodes of site {site.site} do not see the job folder: its files travel, its log comes back")


def _clear(folder: JobFolder, order: Order, hand: Hand) -> None:
    """Archive the earlier tries of this folder. Raises RunFolderError when one is alive."""
    for run in folder.begun():
        if kept_result(run) is None:
            with opened(run, hand) as f, writing_patiently(run.ledger, LOCK_LIMIT_S):
                _see_ended(f)
    log = os.path.relpath(folder.path / order.messages.log, folder.path)
    logs = {LOG, f"{LOG}.worker", *([log, f"{log}.worker"] if "/" not in log else [])}
    if moved := folder.archive((SUMMARY, SAVED_ENVIRONMENT, *sorted(logs)), but=order.instance):
        hand.tell(f"the earlier try is in {moved}")


def _see_ended(f: Following) -> None:
    deadline = time.monotonic() + KILL_LIMIT_S
    while True:
        look(f)
        for record in certainly_not_sent(f.ledger, f.folder, f.hand):
            give_up(f.ledger, f.folder, record, f.hand, "another try came before it was sent")
        now = standing_of_try(f)
        if now.state not in (State.WAITING, State.RUNNING, State.HELD):
            _take_in(f, now)
            return
        if not f.ledger.campaign().stopped or time.monotonic() > deadline:
            what = f"process instance {now.instance}, is {now.state} as cluster {now.cluster}"
            text = f"an earlier try in this folder, {what}"
            raise RunFolderError(text, f"Nothing was changed. End it first: fermigrid pipeline kill {now.cluster}")
        time.sleep(0.2)


def _save_environment(folder: JobFolder, order: Order) -> None:
    """`pipeline_env`, for a person who wants to run the script again by hand; not a reason to fail."""
    path, part = folder.path / SAVED_ENVIRONMENT, folder.path / f".{SAVED_ENVIRONMENT}.{os.getpid()}"
    text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in order.passed.values.items())
    with suppress(OSError):
        part.unlink(missing_ok=True)
        write_new(part, text.encode(), 0o600)
        part.rename(path)


def _send(f: Following) -> BatchRecord:
    """Send the job unless it was sent."""
    try:
        settle(f.ledger, f.folder, f.assembled, f.hand)
        advance(f)
    except SubmissionDoubt:
        settle(f.ledger, f.folder, f.assembled, f.hand)
        advance(f)
    batch = next(iter(f.ledger.batches()), None)
    if batch is None:
        raise RunFolderError(
            f"process instance {f.folder.path.name} was killed before it was sent", "A new try has a new one."
        )
    f.hand.tell(f"run folder: {f.folder.path}")
    return batch


# --- status and kill


def status(
    clusters: Sequence[str], everything: bool, environment: Mapping[str, str], here: Path, hand: Hand
) -> list[Standing]:
    """How jobs stand, by cluster; without any the newest try of the folder `here`, or all that are under way.

    Takes in what came back. May be called at any time, by several at once: one of them looks, the others tell what is
    known. A cluster that nobody knows is UNKNOWN, with an empty process instance.
    """
    known = Clusters(environment)
    if clusters:
        return [_look_for(cluster, known, here, hand) for cluster in clusters]
    folder = JobFolder(here)
    if not everything and is_folder(folder.path / OURS):
        return [_look_at(run, known, hand) for run in folder.tries()[-1:] if run.ledger.is_file()]
    return [_look_at_entry(entry, known, hand) for entry in known.open_ones()]


def _look_for(cluster: str, known: Clusters, here: Path, hand: Hand) -> Standing:
    try:
        entry = known.find(cluster, here)
    except NotFound as error:
        found = [
            now
            for run in JobFolder(here).tries()
            if run.ledger.is_file() and (now := _look_at(run, known, hand)).cluster == cluster
        ]
        return found[-1] if found else unknown(cluster, str(error))
    return _look_at_entry(entry, known, hand)


def _look_at_entry(entry: Entry, known: Clusters, hand: Hand) -> Standing:
    """How it stands; UNKNOWN where its folder or ledger cannot be used now: the others are told all the same."""
    try:
        run = entry.folder.find(entry.instance)
        if run is None:
            now = unknown(entry.cluster, f"its run folder in {entry.folder.path} is gone")
            over = is_folder(entry.folder.path.parent)  # else perhaps only its file system is not mounted now
        else:
            now = _look_at(run, known, hand)
            over = now.closed
    except FermigridError as error:
        now, over = unknown(entry.cluster, f"{error} {error.hint}".replace("\n", " ").strip()), False
    except OSError as error:
        now, over = unknown(entry.cluster, f"{entry.folder.path}: {error}"), False
    if over:
        known.close(entry)
    return replace(now, instance=entry.instance)


def _look_at(run: RunFolder, known: Clusters, hand: Hand) -> Standing:
    if kept := kept_result(run):
        return kept
    with opened(run, hand) as f:
        try:
            with writing(run.ledger):
                now = _take_in(f, None)
        except LedgerBusy:
            return standing_of_try(f)
        if now.closed:
            known.close(Entry(now.cluster, now.instance, JobFolder(f.assembled.folder)))
        return now


def _take_in(f: Following, now: Standing | None) -> Standing:
    """Look, send messages that the node could not, and put the result of a job that has ended into its folder."""
    problems = list(look(f).problems) if now is None else []
    problems += send_missing(f.ledger, f.assembled, f.hand)
    now = standing_of_try(f)
    batch = next(iter(f.ledger.batches()), None)
    if now.state.final and batch is not None:
        now = with_usage(now, batch, f.folder.event_log(batch.block))
        problems += deliver(f, now)
    now = replace(now, problems=tuple(problems))
    if now.closed:
        keep_result(f.folder, now)
    return now


def kill(cluster: str, environment: Mapping[str, str], here: Path, hand: Hand) -> Standing:
    """Take a job out of the queue for good; one that has ended stays as it is, one that nobody knows is UNKNOWN."""
    known = Clusters(environment)
    try:
        entry = known.find(cluster, here)
    except NotFound as error:
        return unknown(cluster, str(error))
    run = entry.folder.find(entry.instance)
    if run is None or kept_result(run):
        return _look_at_entry(entry, known, hand)
    with opened(run, hand) as f, writing_patiently(run.ledger, LOCK_LIMIT_S):
        if not _take_in(f, None).state.final:
            control(f, "remove", (), ())
    return _look_at_entry(entry, known, hand)
