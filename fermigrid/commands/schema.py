"""`fermigrid schema`."""

from __future__ import annotations

import click


@click.command("schema")
@click.argument("file", type=click.Choice(["campaign", "site", "images"]))
def command(file: str) -> None:
    """Print the JSON Schema of a campaign, site or images FILE: editors complete and check by it."""
    from fermigrid.resources import shipped

    click.echo((shipped("schemas") / f"{file}.schema.json").read_text(encoding="utf-8"), nl=False)
