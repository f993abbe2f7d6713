"""`fermigrid render`."""

from __future__ import annotations

from pathlib import Path

import click

from fermigrid.commands.options import checked, search_folders, set_option, sites_option


@click.command("render")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--site", "-s", required=True, metavar="SITE", help="Where the jobs would run.")
@click.option(
    "--output", "-o", required=True, type=click.Path(path_type=Path), help="A folder that does not exist yet."
)
@click.option("--documents", is_flag=True, help="At a site of DIRAC: write the JDL of each document, too.")
@set_option
@sites_option
def command(
    file: Path, site: str, output: Path, documents: bool, parameters: tuple[str, ...], folders: tuple[Path, ...]
) -> None:
    """Write the plans of a campaign FILE: the very bytes that submit would send.

    Steps that wait for others are rendered as if those had done every run.
    """
    from fermigrid.advance import all_work
    from fermigrid.errors import RunFolderError
    from fermigrid.plan import plan_batch
    from fermigrid.planfolder import write_plan
    from fermigrid.submit import sites_of_blocks
    from fermigrid.units import show_count

    assembled = checked(file, site, parameters, search_folders(folders))
    if documents and assembled.sites[site].backend != "dirac":
        raise click.UsageError(f"--documents is for sites of DIRAC; {site} is backend: {assembled.sites[site].backend}")
    if output.exists():
        raise RunFolderError(f"{output} exists", "Give another folder: a plan is never written over.")
    for work in all_work(assembled.campaign, assembled.runs, sites_of_blocks(assembled, site)):
        plan = plan_batch(assembled, work)
        folder = output / work.block / f"{work.step}.g{work.generation}"
        digest = write_plan(plan, folder)
        click.echo(f"{folder}: {show_count(plan.header.jobs, 'job')}, sha256 {digest[:12]}")
        if documents:
            from fermigrid.jdl import write_documents

            count = write_documents(plan, folder, beside := folder.with_name(f"{folder.name}.documents"))
            click.echo(f"{beside}: {show_count(count, 'document')}")
