"""`fermigrid archive`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fermigrid.commands.options import campaign_argument

if TYPE_CHECKING:
    from fermigrid.archive import About, Pointer
    from fermigrid.audit_campaign import CampaignAudit
    from fermigrid.watch import Following


@click.command("archive")
@campaign_argument
@click.option("--output", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="The archive: a gzipped tar.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Audit with the outputs' sizes only.")
@click.option("--force", is_flag=True, help="Archive it although the audit is not clean; the archive says so.")
def command(campaign: str, output: Path, quick: bool, force: bool) -> int:
    """Audit CAMPAIGN, put all of it but its outputs into one FILE, and remove that from the run folder. Status, why,
    logs and report still read it."""
    from fermigrid.archive import read_pointer, remove_rest
    from fermigrid.commands.following import following, locate, make_hand
    from fermigrid.errors import RunFolderError
    from fermigrid.ledger_file import BUSY_S, writing

    folder, file = locate(campaign), output.absolute()
    pointer = read_pointer(folder)
    if pointer is None:
        with following(folder, make_hand()) as f, writing(folder.ledger, BUSY_S):
            pointer = _archive(f, file, quick, force)
            if pointer is None:
                click.echo("not archived: --force archives it all the same", err=True)
                return 1
    elif Path(pointer.file) != file:
        raise RunFolderError(f"{pointer.about.campaign} was archived to {pointer.file} on {pointer.about.time}")
    remove_rest(folder, pointer)
    folder.ledger.with_suffix(".lock").unlink(missing_ok=True)
    click.echo(f"{pointer.about.campaign}: archived in {file} (audit: {pointer.about.audit}); outputs stay in place")
    return 0


def _archive(f: Following, file: Path, quick: bool, force: bool) -> Pointer | None:
    """The archive, written and verified, and the run folder's pointer to it. None: the audit is not clean."""
    import tempfile

    from fermigrid.archive import EXTRA, make_archive, pack_left_logs, point, refuse_place
    from fermigrid.audit_campaign import CampaignAudit, Subject
    from fermigrid.commands.auditing import show_totals
    from fermigrid.summary_campaign import MEMORY, memory_to_keep
    from fermigrid.watch import look

    look(f)
    name = f.assembled.campaign.campaign
    refuse_place(file, f.folder, f.ledger.campaign().instance)
    _refuse_unfinished(f)
    audit = CampaignAudit(Subject(f.ledger, f.assembled, f.folder.outputs), quick)
    with tempfile.TemporaryDirectory(prefix="fermigrid-audit-") as made:
        extra = {each: Path(made, each) for each in EXTRA}
        _audit(name, audit, *extra.values())
        show_totals(name, audit)
        if not audit.totals.clean and not force:
            return None
        about = _about(f, audit)
        f.ledger.note(f.hand.now(), f.hand.who, f"archives to {file} (audit: {about.audit})")
        pack_left_logs(f.folder, f.ledger.batches())
        f.ledger.settle_file()
        Path(made, MEMORY).write_text(memory_to_keep(f), encoding="utf-8")
        pointer = make_archive(f.folder, file, about, {**extra, MEMORY: Path(made, MEMORY)})
    point(f.folder, pointer)
    return pointer


def _audit(campaign: str, audit: CampaignAudit, findings: Path, outputs: Path) -> None:
    from fermigrid.commands.auditing import csv_lines, do_audit, end_json, json_findings, show_findings

    with findings.open("w", encoding="utf-8") as told, outputs.open("w", encoding="utf-8", newline="") as table:
        do_audit(campaign, audit, [show_findings(audit), json_findings(told)], [csv_lines(table)])
        end_json(told, campaign, audit.totals)


def _refuse_unfinished(f: Following) -> None:
    """Raises RunFolderError for a campaign of which something is still to come, or only lies in its work folders."""
    from fermigrid.errors import RunFolderError
    from fermigrid.standing import standing_of
    from fermigrid.units import show_count

    standing = standing_of(f)
    if open_ := standing.jobs - standing.ended:
        text = f"{show_count(open_, 'job')} of it may still end: {standing.words}"
        raise RunFolderError(text, "`fermigrid watch` waits for them, `fermigrid remove` gives them up.")
    if waiting := standing.unpublished:
        text = f"the accepted outputs of {show_count(waiting, 'job')} have no final names yet"
        raise RunFolderError(text, "`fermigrid watch --once` tells what is in the way.")
    if unsent := len(f.ledger.unsent_messages()):
        raise RunFolderError(f"{show_count(unsent, 'message')} of it are still to be sent", "`fermigrid watch --once`.")


def _about(f: Following, audit: CampaignAudit) -> About:
    from fermigrid import __version__
    from fermigrid.archive import About
    from fermigrid.commands.auditing import kinds_of
    from fermigrid.standing import standing_of

    record, standing = f.ledger.campaign(), standing_of(f)
    how = f"{kinds_of(audit.totals)}{' (sizes only)' if audit.quick else ''}"
    if unlooked := sum(audit.totals.unlooked.values()):
        how += f", {unlooked} not looked at"
    time = f.hand.now().isoformat(timespec="seconds")
    return About(record.name, record.instance, str(f.folder.path), time, f.hand.who, __version__, how,
                 standing.words, standing.every)  # fmt: skip
