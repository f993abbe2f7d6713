"""`fermigrid secret`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fermigrid.commands.options import json_option, search_folders, set_option, sites_option

if TYPE_CHECKING:
    from fermigrid.config import Source
    from fermigrid.plan import Assembled
    from fermigrid.secret_check import State
    from fermigrid.site import Site

COLUMNS = ("site", "secret", "kind", "from", "sets")
CHECKED = ("site", "secret", "kind", "ends", "state")


@click.group("secret")
def command() -> None:
    """List, check and seal secrets."""


@command.command("list")
@click.option("--site", "-s", "names", multiple=True, metavar="SITE", help="Only those of this site.")
@sites_option
@json_option
def list_secrets(names: tuple[str, ...], folders: tuple[Path, ...], as_json: bool) -> None:
    """The secrets that sites offer: names, kinds and places; no values."""
    from fermigrid.commands.tables import print_json, print_table

    rows = [
        {
            "site": site.site,
            "secret": name,
            "kind": secret.kind,
            "from": secret.source or secret.service or "",
            "sets": " ".join((*secret.point, *secret.home, *secret.environment)),
        }
        for site, _ in _sites(names, folders)
        for name, secret in site.secrets.items()
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(COLUMNS, [[row[column] for column in COLUMNS] for row in rows])


def _sites(names: tuple[str, ...], folders: tuple[Path, ...]) -> list[tuple[Site, Source]]:
    """The sites of these names, with the places of their values; without any, all that are complete."""
    from fermigrid.errors import ConfigError
    from fermigrid.inherit import site_names
    from fermigrid.site import load_site

    search, found = search_folders(folders), []
    for name in names or site_names(search):
        try:
            site, source = load_site(name, search)
            found.append((site, source))
            for secret in source.unanswered:
                click.echo(f"{name}: secret {secret} is still to be filled in: fermigrid site check {name}", err=True)
        except ConfigError:
            if names:
                raise
            click.echo(f"{name}: not looked at, its file is not complete: fermigrid site check {name}", err=True)
    return found


@command.command("check")
@click.argument("campaign", required=False, type=click.Path(path_type=Path))
@click.option("--site", "-s", "names", multiple=True, metavar="SITE", help="The secrets of this site.")
@set_option
@sites_option
@json_option
def check(
    campaign: Path | None, names: tuple[str, ...], parameters: tuple[str, ...], folders: tuple[Path, ...], as_json: bool
) -> None:
    """Look at secrets on this machine: are they there, mine alone, whole, and do they last?

    For a CAMPAIGN's file, those that its steps name, each against the time that the step's jobs may take; else all of
    a SITE. Tokens are asked for at the credential daemon, which gets them where that needs nobody.
    """
    from fermigrid.commands.tables import print_json, print_table
    from fermigrid.errors import SecretRefused

    now = datetime.now(UTC)
    if campaign is not None and len(names) < 2:
        rows = _of_campaign(campaign, next(iter(names), None), parameters, folders, now)
    elif names and campaign is None:
        rows = _of_sites(_sites(names, folders), now)
    else:
        raise click.UsageError("give a CAMPAIGN, or --site SITE")
    if as_json:
        print_json(rows)
    else:
        print_table(CHECKED, [["good" if row[c] == [] else _first(row[c]) for c in CHECKED] for row in rows])
    if faults := list(dict.fromkeys(fault for row in rows for fault in row["state"])):
        raise SecretRefused("\n".join(faults))


def _first(value: Any) -> str:
    return "bad" if isinstance(value, list) else str(value)


def _of_campaign(
    path: Path, site: str | None, parameters: tuple[str, ...], folders: tuple[Path, ...], now: datetime
) -> list[dict[str, Any]]:
    """Each secret that a step names at a site, with all that is wrong for any of these steps."""
    from fermigrid.commands.options import checked
    from fermigrid.secret_check import faults_for, look_at

    a: Assembled = checked(path, site, parameters, search_folders(folders))
    rows = []
    for there in a.sites.values():
        asked = {name: None for step in a.campaign.steps.values() for name in step.secrets}
        for name in asked:
            state = look_at(there, a.site_sources[there.site], name)
            users = [step for step, what in a.campaign.steps.items() if name in what.secrets]
            faults = [fault for step in users for fault in faults_for(a, state, step, now)]
            rows.append(_row(state, [*faults, *_token_faults(state, there)]))
    return rows


def _of_sites(sites: list[tuple[Site, Source]], now: datetime) -> list[dict[str, Any]]:
    from fermigrid.lifetime import MARGIN_S, Part, find_early, find_shortfall
    from fermigrid.secret_check import look_at

    rows = []
    for site, source in sites:
        for name in site.secrets:
            state = look_at(site, source, name)
            faults = [f"secret {name} of site {site.site}: {fault}" for fault in state.faults]
            if state.span:
                what = f"{state.span.what} of secret {name} at site {site.site}"
                late = find_shortfall(what, state.span.until, "any kind", (Part(MARGIN_S, "to spare"),), now)
                faults += filter(None, (find_early(what, state.span.since, now), late))
            rows.append(_row(state, [*map(state.say, faults), *_token_faults(state, site)]))
    return rows


def _row(state: State, faults: list[str]) -> dict[str, Any]:
    from fermigrid.lifetime import show_time

    unseen = {"path": "on the node", "token": "renewed"}.get(state.secret.kind, "")
    ends = show_time(state.span.until) if state.span else unseen
    if state.unseen:
        click.echo(f"{state.site}: secret {state.name} {state.unseen}", err=True)
    kind = state.secret.kind
    return {"site": state.site, "secret": state.name, "kind": kind, "ends": ends, "state": list(dict.fromkeys(faults))}


def _token_faults(state: State, site: Site) -> list[str]:
    from fermigrid.backends.htcondor import check_tokens
    from fermigrid.errors import SubmissionRefused
    from fermigrid.render import token_lines
    from fermigrid.submit import options_of

    if state.secret.kind != "token" or site.backend != "htcondor":
        return []
    try:
        check_tokens(options_of(site, 0), token_lines([state.secret]))
    except SubmissionRefused as error:
        return [state.say(f"secret {state.name} of site {site.site}: {error} {error.hint}".strip())]
    return []


@command.command("seal")
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="The name under which the site offers the secret.")
@click.option(
    "--to", multiple=True, type=click.Path(path_type=Path), metavar="CERT", help="A site's certificate (PEM)."
)
@click.option(
    "--sign-with",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="My private key (PEM), or the folder of --new-key.",
)
@click.option(
    "--certificate", type=click.Path(path_type=Path), metavar="CERT", help="Default: certificate.pem beside the key."
)
@click.option("--days", type=click.IntRange(1, 3660), help="Valid for so many days from now (default 90).")
@click.option("--until", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M"]), help="Valid until then, UTC.")
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE", help="The sealed file.")
@click.option(
    "--passphrase-file", type=click.Path(path_type=Path), metavar="FILE", help="Of my key; default: asked for."
)
@click.option("--new-key", type=click.Path(path_type=Path), metavar="DIR", help="Make a key and its certificate there.")
@click.option("--holder", metavar="WHO", help="With --new-key: whose it is, such as 'slac fermigrid secrets'.")
@click.option("--passphrase", is_flag=True, help="With --new-key: ask for a passphrase (for a signer's key).")
def seal(**options: Any) -> None:
    """Seal SOURCE, a file or a folder, for sites that hold the key of a certificate; or make such a key.

    The sealed file may be read by anybody. On the node only who has the site's key can open it, and only what was
    signed by the signer that the site file names is used.

    \b
      fermigrid secret seal --new-key slac-key --holder "slac fermigrid secrets"
      fermigrid secret seal wallet --name oracle --to slac.pem --sign-with my-key -o oracle.sealed
    """
    if options["new_key"]:
        _new_key(options)
        return
    missing = [option for option in ("source", "name", "to", "sign_with", "output") if not options[option]]
    if missing:
        words = ", ".join("SOURCE" if option == "source" else f"--{option.replace('_', '-')}" for option in missing)
        raise click.UsageError(f"to seal, give {words}; or --new-key DIR to make a key")
    if options["days"] and options["until"]:
        raise click.UsageError("give --days or --until, not both")
    _seal(options)


def _new_key(options: Mapping[str, Any]) -> None:
    from fermigrid.seal import make_key

    if not options["holder"]:
        raise click.UsageError("--new-key needs --holder: whose key it is")
    passphrase = _ask(confirm=True) if options["passphrase"] else None
    key, certificate = make_key(
        options["new_key"], options["holder"], options["days"] or 730, passphrase, datetime.now(UTC)
    )
    click.echo(f"{key}")
    click.echo(f"{certificate}")
    click.echo("The certificate may be given to everybody, the key to nobody but where it is used.", err=True)


def _seal(options: Mapping[str, Any]) -> None:
    from fermigrid.lifetime import show_time
    from fermigrid.seal import check_name, read_certificate, replace_file, seal
    from fermigrid.sealed import write_text

    now = datetime.now(UTC).replace(microsecond=0)
    until = options["until"].replace(tzinfo=UTC) if options["until"] else now + timedelta(days=options["days"] or 90)
    to = [(path, read_certificate(path)) for path in options["to"]]
    check_name(options["name"])
    sealed = seal(options["name"], options["source"], to, _signer(options), since=now, until=until)
    replace_file(options["output"], write_text(sealed))
    click.echo(f"{options['output']}: {sealed.name}, until {show_time(until)}, for {'; '.join(sealed.recipients)}")


def _signer(options: Mapping[str, Any]) -> Any:
    from fermigrid.errors import PassphraseNeeded
    from fermigrid.seal import read_passphrase, read_signer

    key: Path = options["sign_with"]
    if key.is_dir():
        key = key / "key.pem"
    certificate = options["certificate"] or key.with_name("certificate.pem")
    if options["passphrase_file"]:
        return read_signer(key, certificate, read_passphrase(options["passphrase_file"]))
    try:
        return read_signer(key, certificate, None)
    except PassphraseNeeded:
        return read_signer(key, certificate, _ask(confirm=False))


def _ask(*, confirm: bool) -> bytes:
    """A passphrase, typed unseen. Without a terminal there is nobody to ask."""
    import sys

    from fermigrid.errors import PassphraseNeeded

    if not sys.stdin.isatty():
        raise PassphraseNeeded(
            "the key's passphrase cannot be asked for: this is no terminal", "Give it with --passphrase-file FILE."
        )
    text: str = click.prompt("passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    return text.encode()
