"""Pages that show commands: taken apart, run in a shell in their order, and compared with what they say comes out.

In a block ```console a line `$ COMMAND` is a command (a `\\` at its end goes on with the next line), the other lines
are what it prints, stdout and stderr together; a line `...` stands for any lines. A block with `file=NAME` behind its
language is the text of a file. Each command must end with 0, unless `$ echo $?` follows it. The comment
`<!-- varies -->` before a block: of its output only the beginnings of the lines are compared. Other blocks are not run.

    python tests/docs/transcript.py PAGE     runs a page and writes what came out into it; look at the diff
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
HOME = "/home/fermi"  # the pages' home folder
HOST = "lat-desktop"  # the pages' machine
FENCE = re.compile(
    r"(?P<varies><!-- varies -->\n)?```(?P<kind>\w+)(?: file=(?P<file>\S+))?\n(?P<text>.*?)^```$", re.M | re.S
)
SAME = (  # what differs from one time to the next: pattern, what it is taken for
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:Z|\+00:00)", "<time>"),
    (r"-\d{8}-\d{6}-\d{6}\b", "-<time>"),
    (r"\b[0-9a-f]{32}\.[0-9a-f]{8}\b", "<digest>"),
    (r"\b[0-9a-f]{64}\b|\b[0-9a-f]{32}\b|sha256 [0-9a-f]{12}\b", "<digest>"),
    (r"\bg(\d+)\.s(\d+)\.[0-9a-f]{8}\b", r"g\1.s\2.<attempt>"),
    (r"\b\d+ s\b", "<n> s"),
    (r"/tmp/fermigrid-diracx-[\w-]+", "<server>"),
)
PRETTY = (  # how the pages show what a shell in a test prints otherwise
    (r"^.*: line \d+: +\d+ Killed .*$", "Killed"),
    (r"none of absent-on-purpose ", "none of apptainer singularity "),
    (r"/fermigrid-\d+/", "/fermigrid-1000/"),
)
SITE = "container:\n  launch: worker\n  rehearsal: true\n  runtimes: [absent-on-purpose]\nlocal: {slots: 4}\n"
LIMIT_S = 300


@dataclass(frozen=True)
class Command:
    """A command of a page and what it is said to print; `block` is the place of its block in the page's text."""

    text: str
    shown: tuple[str, ...]
    varies: bool
    block: int


@dataclass(frozen=True)
class File:
    """A file that the page has its reader write."""

    name: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """What a command printed, in the pages' names for machine and folders, and its exit code."""

    printed: tuple[str, ...]
    code: int


def parse_page(text: str) -> list[Command | File]:
    """The commands and files of a page, in order."""
    items: list[Command | File] = []
    for match in FENCE.finditer(text):
        if match["file"]:
            items.append(File(match["file"], match["text"]))
        elif match["kind"] == "console":
            items += _commands(match["text"], bool(match["varies"]), match.start("text"))
    return items


def _commands(block: str, varies: bool, start: int) -> Iterator[Command]:
    lines = block.splitlines()
    while lines:
        words = lines.pop(0)
        assert words.startswith("$ "), f"a block begins with what no command printed: {words}"
        while words.endswith("\\"):
            words += "\n" + lines.pop(0)
        shown = []
        while lines and not lines[0].startswith("$ "):
            shown.append(lines.pop(0))
        yield Command(words[2:], tuple(shown), varies, start)


def make_script(items: list[Command | File]) -> str:
    """A shell script that does the page; a line after each command tells where its output ends."""
    parts = ["status=0\n"]
    for item in items:
        if isinstance(item, File):
            parts.append(f"mkdir -p -- \"$(dirname {item.name})\"\ncat > {item.name} <<'@@FILE'\n{item.text}@@FILE\n")
        else:
            parts.append(f"(exit $status)\n{item.text}\nstatus=$?\nprintf '\\036%d\\n' $status\n")
    return "".join(parts)


def run_page(items: list[Command | File], folder: Path) -> list[Outcome]:
    """Run a page below `folder`, which becomes the home folder; an outcome for each command. Raises TimeoutExpired."""
    home, temporary = folder / "home", folder / "tmp"
    for path in (home, temporary):
        path.mkdir(parents=True)
    (home / "fermigrid").symlink_to(CHECKOUT)
    write_local_site(folder / "sites")
    script = make_script(items).replace(HOME, str(home))
    output = _run(script, home, _environment(folder)).replace(str(home), HOME).replace(str(temporary), "/tmp")
    for pattern, replacement in ((rf"\b{re.escape(socket.gethostname())}\b", HOST), *PRETTY):
        output = re.sub(pattern, replacement, output, flags=re.M)
    *parts, rest = output.split("\036")
    assert len(parts) == sum(isinstance(item, Command) for item in items), f"the shell ended early:\n{output}"
    outcomes = []
    for before, after in pairwise([*parts, rest]):
        code, _, _ = after.partition("\n")
        printed = before if before is parts[0] else before.partition("\n")[2]
        outcomes.append(Outcome(tuple(printed.splitlines()), int(code)))
    return outcomes


def write_local_site(folder: Path) -> None:
    """A site `local` with four slots that finds no container runtime: the same on every machine."""
    shipped = (CHECKOUT / "sites/local.yaml").read_text()
    rest = re.sub(r"^container:\n(?: .*\n)+", "", shipped, flags=re.M)
    folder.mkdir()
    (folder / "local.yaml").write_text(rest + SITE)


def _environment(folder: Path) -> Mapping[str, str]:
    kept = {name: os.environ[name] for name in ("DIRACX_DIR", "LANG", "USER") if name in os.environ}
    return kept | {
        "FERMIGRID_CACHE": os.environ.get("FERMIGRID_CACHE", f"{Path.home()}/.cache/fermigrid"),
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "FERMIGRID_STATE": str(folder / "state"),
        "FERMIGRID_SITES": str(folder / "sites"),
        "FERMIGRID_POLL_S": "0.2",
    }


def _run(script: str, home: Path, environment: Mapping[str, str]) -> str:
    shell = subprocess.Popen(
        ["bash", "-c", script],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        return shell.communicate(timeout=LIMIT_S)[0]
    finally:
        if shell.returncode is None:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()


def differences(items: list[Command | File], outcomes: list[Outcome]) -> list[str]:
    """What is not as the page says, in words."""
    commands = [item for item in items if isinstance(item, Command)]
    found = []
    followers = [*commands[1:], None]
    for command, outcome, follower in zip(commands, outcomes, followers, strict=True):
        if outcome.code and (follower is None or follower.text != "echo $?"):
            found.append(f"$ {command.text}\nended with {outcome.code}:\n" + "\n".join(outcome.printed))
        elif not matches(_same(command.shown, command.varies), _same(outcome.printed, command.varies)):
            shown, printed = "\n".join(command.shown), "\n".join(outcome.printed)
            found.append(f"$ {command.text}\n--- the page says\n{shown}\n--- it printed\n{printed}")
    return found


def _same(lines: tuple[str, ...], varies: bool) -> list[str]:
    text = "\n".join(lines)
    for pattern, replacement in SAME:
        text = re.sub(pattern, replacement, text, flags=re.M)
    same = [re.sub(r"\s+", " ", line).rstrip() for line in text.splitlines()]
    return [re.split(r"\d", line)[0].split("  ")[0] for line in same] if varies else same


def matches(shown: list[str], printed: list[str]) -> bool:
    """Are the lines the same, with `...` for any lines?"""
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(matches(shown[1:], printed[skip:]) for skip in range(len(printed) + 1))
    return bool(printed) and shown[0] == printed[0] and matches(shown[1:], printed[1:])


def rewrite(text: str, items: list[Command | File], outcomes: list[Outcome]) -> str:
    """The page with what came out; what already matches stays as it is."""
    commands = [item for item in items if isinstance(item, Command)]
    pairs = list(zip(commands, outcomes, strict=True))

    def block(match: re.Match[str]) -> str:
        if match["kind"] != "console" or match["file"]:
            return match[0]
        lines: list[str] = []
        for command, outcome in pairs:
            if command.block == match.start("text"):
                good = matches(_same(command.shown, command.varies), _same(outcome.printed, command.varies))
                lines += [f"$ {command.text}", *(command.shown if good else outcome.printed)]
        return f"{match['varies'] or ''}```console\n" + "\n".join(lines) + "\n```"

    return FENCE.sub(block, text)


def main() -> None:
    """Run the page named on the command line and write what came out into it."""
    page = Path(sys.argv[1])
    items = parse_page(page.read_text())
    with tempfile.TemporaryDirectory(prefix="fermigrid-page-") as folder:
        outcomes = run_page(items, Path(folder))
    page.write_text(rewrite(page.read_text(), items, outcomes))
    print("\n\n".join(differences(items, outcomes)) or "as the page says")


if __name__ == "__main__":
    main()
