"""The way out: plan -> intent in the ledger -> batch system -> record. Submitted exactly once, whatever is killed when.

Order of the steps and what a crash between them leaves (docs/explanation/exactly-once.md):
plan written, not intended: the folder is written again. Intended, not recorded: `settle` asks the batch system whether
it landed, and submits only when it has said no twice. Recorded: done.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from fermigrid import __version__, backends
from fermigrid.access import Trust, group_name, make_run_folder, team_of, trust_of
from fermigrid.advance import Work, block_name, blocks_of, runs_of_block
from fermigrid.assemble import assemble_kept
from fermigrid.backends import WHOLE, Handle, RenderedBatch
from fermigrid.errors import BackendUnavailable, LedgerError, RunFolderError, SubmissionRefused
from fermigrid.given import given_by, lay_out, without_unpublished
from fermigrid.inherit import read_site
from fermigrid.ledger import Ledger, create_ledger, open_ledger
from fermigrid.plan import Assembled, Header, plan_batch, shares
from fermigrid.planfolder import make_work, plan_faults, write_plan
from fermigrid.rates import limits_of, scopes_of
from fermigrid.records import BatchRecord, CampaignRecord
from fermigrid.render import is_late
from fermigrid.runfolder import EVENTS, RunFolder
from fermigrid.runs import parse_table, write_table
from fermigrid.sealed import SealedFiles, file_names
from fermigrid.secret_check import refuse_unfit, with_sealed
from fermigrid.site import Site
from fermigrid.split import count_jobs
from fermigrid.trial import choose_runs
from fermigrid.units import show_count

_NONE: Mapping[str, str] = {}
NAMESPACE = uuid.UUID("6f2c0c1e-5d0b-5f43-9a3e-3c8f0b1f4a55")
MADE_FIRST = ("ledger.lock", "ledger.draft", "ledger.draft-wal", "ledger.draft-shm", "ledger.draft-journal",
              "campaign.yaml", "runs.csv", "bundle.tar.gz", "sites")  # fmt: skip
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Hand:
    """What the core may not read from its surroundings: who acts, the clock, the program of P2_SENDMAIL, and the
    environment, which says where alerts go, and may hold a secret of theirs."""

    who: str
    now: Callable[[], datetime]
    tell: Tell
    sendmail: str = ""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


def batch_id(instance: str, digest: str, step: str, site: str, generation: int) -> str:
    """uuid5 of what makes a batch, 32 hex digits (DIRAC's JobGroup has room for no more).

    `instance` is the campaign's: without it, the same campaign in a second run folder would find, and adopt, the
    batches of the first.
    """
    return uuid.uuid5(NAMESPACE, f"{instance}/{digest}/{step}/{site}/{generation}").hex


def campaign_digest(assembled: Assembled, site: str | None) -> str:
    """Of everything that a person asked for: the same digest is the same campaign, and may be resumed."""
    digest = hashlib.sha256()
    asked = [assembled.text, site, sorted(assembled.campaign.parameters.items())]
    digest.update(json.dumps(asked).encode())
    for run in assembled.runs:
        digest.update(f"{run.name} {run.events} {sorted((run.columns or {}).items())}\n".encode())
    digest.update((assembled.bundle.sha256 if assembled.bundle else "").encode())
    return digest.hexdigest()


def prepare(folder: RunFolder, gid: int | None = None, trust: Trust | None = None) -> None:
    """Make the run folder, private, or for the group `gid`.

    Raises RunFolderError when it has files of somebody else; none is touched then; and AccessRefused.
    """
    try:
        make_run_folder(folder.path, gid, trust or trust_of({}))
        names = {path.name for path in folder.path.iterdir()}
    except OSError as error:
        raise RunFolderError(f"cannot make the run folder {folder.path}: {error.strerror}") from error
    if folder.pointer.name in names:
        text = f"{folder.path} held a campaign that was archived: {folder.pointer} says where to"
        raise RunFolderError(text, "To submit it once more: another folder with --run-dir.")
    # Without a ledger it may only hold what a submission that was cut short had made so far, its lock first of all:
    # campaign.yaml and runs.csv alone are a person's own.
    ours = set(MADE_FIRST) if MADE_FIRST[0] in names else set()
    if folder.ledger.name not in names and (foreign := sorted(names - ours)):
        text = f"{folder.path} exists and is no run folder of fermigrid: it holds {foreign[0]}"
        raise RunFolderError(text, "Give another folder with --run-dir.")


def begin(
    assembled: Assembled, folder: RunFolder, site: str | None, search: Sequence[str], hand: Hand, trial: int = 0
) -> Ledger:
    """A new ledger in the run folder, or the one that is there if it is of this very campaign.

    `trial`: so many runs come first, and the rest waits; a ledger that is there must have been begun so. The caller
    holds the writer's lock. Raises RunFolderError when the folder holds another campaign: nothing in it is touched.
    """
    digest = campaign_digest(assembled, site)
    if folder.ledger.is_file():
        ledger = open_ledger(folder.ledger)
        known = ledger.campaign()
        if known.digest == digest and not known.stopped:
            _refuse_late_trial(ledger, folder, trial)
            return ledger
        ledger.close()
        if known.stopped:
            text = f"{folder.path} holds campaign {known.name!r}, which was removed on {known.stopped}"
            raise RunFolderError(text, "To submit it again, give another folder with --run-dir.")
        what = " and ".join(_differences(assembled, folder, site, known))
        text = f"{folder.path} holds campaign {known.name!r} of {known.created}; what differs now: {what}"
        raise RunFolderError(
            text, "Give another folder with --run-dir, or undo the change to go on with that campaign."
        )
    try:
        _keep(assembled, folder, search)
    except OSError as error:
        raise RunFolderError(f"cannot write into the run folder {folder.path}: {error.strerror}") from error
    record = CampaignRecord(
        name=assembled.campaign.campaign,
        instance=uuid.uuid4().hex,
        digest=digest,
        site=site,
        parameters=dict(assembled.campaign.parameters),
        folder=str(assembled.folder),
        search=tuple(search),
        created=hand.now().isoformat(timespec="seconds"),
        version=__version__,
        team=None if (gid := team_of(folder.path)) is None else group_name(gid),
    )
    draft = folder.ledger.with_suffix(".draft")
    for name in MADE_FIRST:
        if name.startswith(draft.name):
            (folder.path / name).unlink(missing_ok=True)
    ledger = create_ledger(draft, record, hand.now(), hand.who)
    if 0 < trial < len(assembled.runs):
        ledger.begin_trial(choose_runs(assembled.runs, trial), hand.now(), hand.who)
    ledger.close()
    draft.rename(folder.ledger)  # a ledger that exists has its campaign in it
    return open_ledger(folder.ledger)


def _refuse_late_trial(ledger: Ledger, folder: RunFolder, trial: int) -> None:
    if trial and len(begun := ledger.trial()) != trial:
        ledger.close()
        what = f"with a trial of {show_count(len(begun), 'run')}" if begun else "without a trial"
        text = f"{folder.path} holds this campaign, and it was begun {what}"
        raise RunFolderError(text, "Go on with it without --trial, or give another folder with --run-dir.")


def _differences(assembled: Assembled, folder: RunFolder, site: str | None, known: CampaignRecord) -> Iterator[str]:
    """What of a campaign is not as it was when it was submitted, in words."""
    if folder.campaign.read_text(encoding="utf-8") != assembled.text:
        yield "the campaign file"
    if known.site != site:
        yield f"the site ({known.site or 'by the campaign'} then)"
    if known.parameters != assembled.campaign.parameters:
        yield "a parameter (--set)"
    if parse_table(folder.runs.read_text(encoding="utf-8"), str(folder.runs)) != assembled.runs:
        yield "the runs"
    if assembled.bundle and folder.bundle.is_file() and folder.bundle.read_bytes() != assembled.bundle.data:
        yield "the code"


def _keep(assembled: Assembled, folder: RunFolder, search: Sequence[str]) -> None:
    """Copies of what the campaign was made of, so that later changes of its files do not reach it."""
    folders = [Path(origin) for origin in search]
    names = {"images.yaml", *(path.name for site in assembled.sites for path in read_site(site, folders).files)}
    for number, origin in enumerate(folders):
        kept = folder.sites / str(number)
        kept.mkdir(parents=True, exist_ok=True)
        for name in sorted(names):
            if (source := origin / name).is_file():
                shutil.copyfile(source, kept / name)
    folder.campaign.write_text(assembled.text, encoding="utf-8")
    with folder.runs.open("w", encoding="utf-8", newline="") as file:
        write_table(assembled.runs, file)
    if assembled.bundle:
        folder.bundle.write_bytes(assembled.bundle.data)


def as_submitted(assembled: Assembled, folder: RunFolder, record: CampaignRecord, tell: Tell) -> Assembled:
    """The campaign as it was submitted, from the copies in its run folder; `tell` hears what is another now.

    Site files and the image catalogue belong to many campaigns: a change of them does not stop one, nor reach it.
    """
    kept = assemble_kept(folder, record)
    changed = [f"site {name}" for name, site in kept.sites.items() if assembled.sites.get(name) != site]
    now, then, image = assembled.catalogue, kept.catalogue, kept.campaign.image
    changed += [f"image {image}"] if now.images.get(image) != then.images.get(image) else []
    software = (name for name in kept.campaign.software if now.software.get(name) != then.software.get(name))
    changed += [f"software {name}" for name in software]
    if changed:
        what = f"{' and '.join(changed)} changed since {record.name} was submitted on {record.created}"
        way = "For what is now: `fermigrid remove`, and submit with another --run-dir"
        tell(f"{what}: this run folder goes on with what was then. {way}")
    return kept


def sites_of_blocks(
    assembled: Assembled, site: str | None, begun: Mapping[str, str] = _NONE, before: Container[str] = ()
) -> list[str]:
    """The site of each block: the one of the command line, or by the campaign's weights.

    `begun`: block -> site of those of which something was sent: they stay there. `before`: those of them that had begun
    when the weights were last changed: they do not count for the new ones. A drained site gets none of the others.
    """
    blocks = blocks_of(assembled.campaign, assembled.runs, assembled.trial)
    if site:
        return [site] * blocks
    counted = Counter(place for block, place in begun.items() if block not in before)
    weights = {name: weight for name, weight in assembled.campaign.sites.items() if name not in assembled.drained}
    others = [block for block in map(block_name, range(blocks)) if block not in begun]
    rest = dict(zip(others, shares(weights or assembled.campaign.sites, len(others), counted), strict=True))
    return [begun.get(block) or rest[block] for block in map(block_name, range(blocks))]


def begun_blocks(ledger: Ledger) -> dict[str, str]:
    """Block -> the site of its first batch, of the blocks of which something was sent."""
    found: dict[str, str] = {}
    for batch in ledger.batches():
        found.setdefault(batch.block, batch.site)
    return found


def options_of(site: Site, retries: int, again: Sequence[int] = ()) -> dict[str, object]:
    """What a backend is told of its site; `again`: the exit codes after which it is to start a job once more."""
    if site.backend == "local":
        own = {"slots": site.local.slots, "scratch": site.local.scratch}
        return {**own, "retries": retries, "again": list(again)}
    if site.dirac is not None:
        d = site.dirac
        return {
            "transport": d.transport,
            "url": d.url,
            "vo": d.vo,
            "group": d.group,
            "sites": list(d.sites),
            "chunk": d.chunk,
            "flights": d.flights,
            "transfer_s": d.transfer,
            "credentials": d.credentials,
            "output_se": list(d.output_se),
            "timeout_s": d.timeout,
            "settle_s": d.settle,
        }
    c = site.htcondor
    return {
        "schedd": c.schedd,
        "pool": c.pool,
        "shared_filesystem": c.shared_filesystem,
        "timeout_s": c.timeout,
        "settle_s": c.settle,
    }


def submit_work(ledger: Ledger, folder: RunFolder, assembled: Assembled, works: Iterable[Work], hand: Hand) -> int:
    """Plan, write, intend and send each batch; returns how many were sent.

    Raises SecretRefused before anything of a batch is made whose secrets are not there, or end too soon.
    """
    sent, instance, fit = 0, ledger.campaign().instance, set[tuple[str, str]]()
    for work in works:
        if not fit:
            _refuse_changed(ledger, folder, assembled)
        if (work.step, work.site) not in fit:
            assembled = with_sealed(assembled)
            refuse_unfit(assembled, [(work.step, work.site)], hand.now(), _goes_on(folder))
            fit.add((work.step, work.site))
        work = without_unpublished(ledger, assembled.campaign, work)
        if not count_jobs(assembled.campaign.steps[work.step], work.runs, work.pieces):
            continue
        plan = plan_batch(assembled, work, given_by(ledger))
        header, site = plan.header, plan.header.request.site
        place = folder.batch(work.block, work.step, work.generation)
        folder.make_inside(place)
        if (place / "plan").exists():  # written, but never intended: nobody has it
            shutil.rmtree(place / "plan")
        digest = write_plan(plan, place / "plan")
        record = BatchRecord(
            id=batch_id(instance, digest, work.step, work.site, work.generation),
            block=work.block,
            step=work.step,
            generation=work.generation,
            site=work.site,
            backend=site.backend,
            name=header.name,
            digest=digest,
            jobs=header.jobs,
            options=_options(ledger, assembled, work, header),
            runs=_runs_of(assembled, work),
            pieces=work.pieces,
            parameters=work.parameters,
        )
        again = plan.jobs() if work.generation else ()
        ledger.intend(record, hand.now(), hand.who, again)
        _send(ledger, folder, record, hand)
        sent += 1
    return sent


def _options(ledger: Ledger, a: Assembled, work: Work, header: Header) -> dict[str, object]:
    """Where the block's first batch went to another schedd, this one has an event log of its own: there, too, clusters
    are counted from 1."""
    request = header.request
    options = options_of(request.site, request.retries, request.in_queue.again)
    first = ledger.first_options(work.block) or options
    if any(first.get(name) != options.get(name) for name in ("schedd", "pool")):
        options["events"] = f"events.{work.site}.log"
    begins = first_limits(a, header, ledger.banned(work.site))
    return {**options, "memory": request.resources.memory, **begins}


def first_limits(a: Assembled, header: Header, banned: tuple[str, ...]) -> dict[str, object]:
    """What a batch is sent with: one place where there is a limit (throttle.py gives it more), else all of them. None
    can be given or taken later where all jobs are in the queue at once: of a small HTCondor batch without a limit, and
    where batches are sent whole."""
    request, c = header.request, header.request.site.htcondor
    given: dict[str, object] = {"banned": list(banned), "priority": request.priority}
    if request.site.backend in WHOLE:
        return given
    _, starts = limits_of(scopes_of(a.campaign.limits, a.sites), header.step, header.site)
    given["stay"] = -(-60 // starts) if starts else 0
    if request.site.backend == "local":
        return {**given, "places": 1 if request.limited else header.jobs}
    if not is_late(header):
        return given
    places = 1 if request.limited else c.max_materialize
    return {**given, "places": places, "idle": min(c.max_idle, starts or c.max_idle)}


def _refuse_changed(ledger: Ledger, folder: RunFolder, assembled: Assembled) -> None:
    """The copies in the run folder are what was submitted, or no more of the campaign is planned from them."""
    record = ledger.campaign()
    if campaign_digest(assembled, record.site) == record.digest:  # a trial has another order of runs
        return
    if campaign_digest(assemble_kept(folder, record), record.site) != record.digest:
        names = ", ".join(path.name for path in (folder.campaign, folder.runs, folder.bundle) if path.is_file())
        text = f"one of {names} in {folder.path} was changed since {record.name} was submitted: nothing more is sent"
        raise RunFolderError(text, "They are copies of what was submitted: put them back as they were.")


def _runs_of(a: Assembled, work: Work) -> tuple[str, ...] | None:
    """The names of a batch's runs, None when they are all of its block."""
    block = runs_of_block(a.campaign, a.runs, work.block, a.trial)
    return None if len(work.runs) == len(block) else tuple(run.name for run in work.runs)


def rendered(folder: RunFolder, record: BatchRecord) -> RenderedBatch:
    """A batch of the ledger, as its backend takes it."""
    place = folder.batch(record.block, record.step, record.generation)
    return RenderedBatch(
        batch_id=record.id,
        name=record.name,
        plan_dir=place / "plan",
        work_dir=place / "work",
        event_log=folder.event_log(record.block, str(record.options.get("events", EVENTS))),
        jobs=record.jobs,
        options=record.options,
    )


def handle_of(folder: RunFolder, record: BatchRecord) -> Handle:
    """The handle of a batch that is known to have landed."""
    if record.cluster is None:
        raise LedgerError(f"batch {record.name} is not known to have been submitted")
    return Handle(rendered(folder, record), record.place or "", record.cluster)


def _send(ledger: Ledger, folder: RunFolder, record: BatchRecord, hand: Hand) -> None:
    batch = rendered(folder, record)
    folder.make_inside(batch.plan_dir.parent)
    if changed := plan_faults(batch.plan_dir, record.digest):
        text = f"the plan {batch.plan_dir} was changed or damaged after it was intended: {changed[0]}"
        raise RunFolderError(text, "It is not submitted. To submit anew: another folder with --run-dir.")
    make_work(batch.work_dir, batch.plan_dir, batch.event_log)
    lay_out(folder.outputs, batch.plan_dir, batch.work_dir)
    try:
        handle = backends.load(record.backend).submit(batch)
    except SubmissionRefused as error:
        ledger.withdraw(record.id, hand.now(), hand.who, str(error))
        raise
    except BackendUnavailable as error:
        error.hint = "The batch stays intended: the same command again, or fermigrid watch, sends it."
        raise
    ledger.record(record.id, handle.where, handle.cluster, hand.now(), hand.who, "submitted")
    hand.tell(f"submitted {record.name}: {show_count(record.jobs, 'job')}, {_where(record.backend, handle)}")


def _where(backend: str, handle: Handle) -> str:
    if backend == "dirac":
        return f"DIRAC at {handle.where}"  # jobs of its own, with no number in common
    return f"cluster {handle.cluster} at {handle.where}" if handle.where else f"{backend}: this machine"


def doubtful(ledger: Ledger) -> list[BatchRecord]:
    """The batches of which nobody knows whether they landed."""
    return [record for record in ledger.batches() if record.submitted is None]


def adopt(ledger: Ledger, folder: RunFolder, hand: Hand) -> None:
    """Record the doubtful batches that have landed; the others stay in doubt. Sends nothing."""
    for record in doubtful(ledger):
        _adopt(ledger, folder, record, hand)


def _adopt(ledger: Ledger, folder: RunFolder, record: BatchRecord, hand: Hand) -> bool:
    handle = backends.load(record.backend).find(rendered(folder, record))
    if handle is None:
        return False
    ledger.record(record.id, handle.where, handle.cluster, hand.now(), hand.who, "adopted")
    hand.tell(f"adopted {record.name}: it had landed, {_where(record.backend, handle)}")
    return True


def certainly_not_sent(
    ledger: Ledger, folder: RunFolder, hand: Hand, sleep: Callable[[float], None] = time.sleep
) -> list[BatchRecord]:
    """The doubtful batches that did not land, asked twice; those that did are adopted.

    A commit can arrive after a negative answer, so the second question comes after the site's settle time.
    """
    missing = []
    for record in doubtful(ledger):
        if not _adopt(ledger, folder, record, hand):
            sleep(float(str(record.options.get("settle_s") or 0)))
            if not _adopt(ledger, folder, record, hand):
                missing.append(record)
    return missing


def settle(
    ledger: Ledger, folder: RunFolder, assembled: Assembled, hand: Hand, sleep: Callable[[float], None] = time.sleep
) -> int:
    """End every doubt: adopt the batches that landed, send those that did not. Returns how many there were.

    Raises SecretRefused for one whose secrets will not do now: it stays in doubt. One whose secrets were sealed anew
    is withdrawn: what is sent next plans it with them.
    """
    count = len(doubtful(ledger))
    for record in certainly_not_sent(ledger, folder, hand, sleep):
        assembled = with_sealed(assembled)
        refuse_unfit(assembled, [(record.step, record.site)], hand.now(), _goes_on(folder))
        if _is_sealed_anew(folder, assembled, record):
            give_up(ledger, folder, record, hand, "it did not land, and a secret of it was sealed anew")
        else:
            _send(ledger, folder, record, hand)
    return count


def give_up(ledger: Ledger, folder: RunFolder, record: BatchRecord, hand: Hand, why: str) -> None:
    """Withdraw a doubtful batch that did not land; what landed in part is taken back. Raises BackendUnavailable."""
    backends.load(record.backend).take_back(rendered(folder, record))
    ledger.withdraw(record.id, hand.now(), hand.who, why)


def _is_sealed_anew(folder: RunFolder, assembled: Assembled, record: BatchRecord) -> bool:
    secrets = folder.batch(record.block, record.step, record.generation) / "plan/secrets"
    for name in assembled.campaign.steps[record.step].secrets:
        files, planned = assembled.sealed.get((record.site, name)), secrets / file_names(name)[0]
        if isinstance(files, SealedFiles) and planned.is_file() and planned.read_bytes() != files.sealed.envelope:
            return True
    return False


def _goes_on(folder: RunFolder) -> str:
    return f"It is not sent. Once it is mended, the same command, or `fermigrid watch {folder.path}`, goes on."
