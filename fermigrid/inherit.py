"""Site files that extend each other: which files they are, their data as one, and where each value of it stands.

A file's own values lie over those of the site that it extends: keys with values are merged, however deep; lists and
single values take the other's place; an empty value (`proxy:`) takes away what the other has. An `output`, a grid or a
secret of another `kind` takes the other's place as a whole.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fermigrid.config import Ask, Key, Source, nearest, open_questions, parse_yaml, read_text
from fermigrid.errors import ConfigError, NotFound, Problem
from fermigrid.resources import shipped

_NAME = re.compile(r"[^./\0][^/\0]{0,99}\Z")
_OWN = ("site", "extends")  # what a file says of itself: never inherited


@dataclass(frozen=True)
class SiteText:
    """A site as its files say it, not validated: `files` are its own first, then what it extends, in order. `taken`:
    the keys that an empty value takes away."""

    name: str
    files: tuple[Path, ...]
    data: dict[str, Any]
    source: Source
    taken: tuple[Key, ...] = ()

    @property
    def parents(self) -> tuple[str, ...]:
        """The names of the sites that it extends, the nearest first."""
        return tuple(path.stem for path in self.files[1:])

    @property
    def questions(self) -> tuple[tuple[Key, Ask], ...]:
        """The values that are still to be asked for."""
        return tuple(open_questions(self.data))

    @property
    def blocks(self) -> bool:
        """Is a value still to be asked for that every job needs? Those of a secret concern who names it."""
        return any(key[0] != "secrets" or len(key) == 1 for key, _ in self.questions)

    def open_problems(self) -> list[Problem]:
        """Each open question, where it stands, and whom to ask."""
        return [self._problem(key, ask) for key, ask in self.questions]

    def _problem(self, key: Key, ask: Ask) -> Problem:
        written = self.data.get("contact")
        contact = written if isinstance(written, str) else "the site's people"
        return self.source.problem(key, f"ask {contact}: {ask.question}")

    def without_open_secrets(self) -> tuple[dict[str, Any], Source]:
        """The data without the secrets that have open questions; the source says what these are."""
        unanswered: dict[str, tuple[Problem, ...]] = {}
        for key, ask in self.questions:
            name = str(key[1])
            unanswered[name] = (*unanswered.get(name, ()), self._problem(key, ask))
        if not unanswered:
            return self.data, self.source
        offered = {name: secret for name, secret in self.data["secrets"].items() if name not in unanswered}
        return {**self.data, "secrets": offered}, replace(self.source, unanswered=unanswered)

    @property
    def way_out(self) -> str:
        """What to do about open questions."""
        return "\n".join(ways_to_answer(self.name, self.source.file, self.open_problems()))


@dataclass(frozen=True)
class _Layer:
    """One file of a site; `position` is that of its folder."""

    position: int
    path: Path
    data: dict[str, Any]
    source: Source


def site_names(folders: Sequence[Path]) -> list[str]:
    """The names of all sites that can be found."""
    found = {path.stem for folder in folders for path in folder.glob("[!.]*.yaml")}
    return sorted(found - {"images"})


def read_site(name: str, folders: Sequence[Path]) -> SiteText:
    """The site `name` of the first folder that has it, over what it extends. Raises NotFound, ConfigError."""
    found = next(_files(name, folders), None)
    if found is None:
        known = site_names(folders)
        raise NotFound(_no_site(name, known), f"Known sites: {', '.join(known) or 'none'}")
    layers = [_read_layer(*found)]
    while isinstance(parent := layers[-1].data.get("extends"), str):
        layers.append(_read_parent(parent, layers, folders))
    *above, last = layers
    site = SiteText(last.path.stem, (last.path,), last.data, last.source)
    for layer in reversed(above):
        site = _over(layer, site)
    return site


def _files(name: str, folders: Sequence[Path]) -> Iterator[tuple[int, Path]]:
    """Every file of that name, in the order of the folders, with the position of its folder."""
    if name != "images" and _NAME.match(name):
        for position, folder in enumerate(folders):
            path = folder / f"{name}.yaml"
            if is_there(path):
                yield position, path


def is_there(path: Path) -> bool:
    """Is there a file? Raises ConfigError for what is none: without a word one of a later folder would be used."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        if path.is_symlink():
            raise ConfigError([Problem(str(path), 0, "", "is a link to a file that is not there")]) from error
        return False
    except OSError as error:
        raise ConfigError([Problem(str(path), 0, "", f"cannot be read: {error.strerror}")]) from error
    if not stat.S_ISREG(mode):
        what = "is a folder, not a file" if stat.S_ISDIR(mode) else "is no plain file"
        raise ConfigError([Problem(str(path), 0, "", f"{what}: a file is wanted here, or nothing of that name")])
    return True


def _no_site(name: str, known: Sequence[str]) -> str:
    """That there is none of that name, up to the end of the sentence."""
    stem = Path(name).stem if name.endswith((".yaml", ".yml")) or "/" in name else name
    if stem != name:
        return f"no site {name!r}: give its name, {stem!r}, and its folder with --sites or FERMIGRID_SITES."
    return f"no site {name!r}{nearest(name, known)}"


def _read_layer(position: int, path: Path) -> _Layer:
    return _Layer(position, path, *parse_yaml(read_text(path), str(path)))


def _read_parent(name: str, layers: Sequence[_Layer], folders: Sequence[Path]) -> _Layer:
    """The file that the last of `layers` extends. Raises ConfigError."""
    child = layers[-1]
    position, path = _find_parent(name, layers, folders)
    if any(layer.path.samefile(path) for layer in layers):
        chain = " -> ".join([*(layer.path.stem for layer in layers), name])
        raise _refused(child, f"the sites extend each other, round and round: {chain}. Take one `extends` out")
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise _refused(child, f"{name!r}: {path} cannot be read: {error.strerror}") from error
    return _read_layer(position, path)


def _find_parent(name: str, layers: Sequence[_Layer], folders: Sequence[Path]) -> tuple[int, Path]:
    """Where the site is that the last of `layers` extends; of its own name, it is the one in a later folder."""
    child = layers[-1]
    itself = name == child.path.stem
    for position, path in _files(name, folders):
        if not itself or (position > child.position and not path.samefile(child.path)):
            return position, path
    if itself:
        text = f"{name!r} is this site itself; it means the {name!r} of a later folder, and there is none."
        text += " Take the line out, or name another site"
        raise _refused(child, text)
    known = sorted({*site_names(folders)} - {child.path.stem})
    raise _refused(child, f"{_no_site(name, known)} Known sites: {', '.join(known) or 'none'}")


def ways_to_answer(name: str, file: str, asked: Sequence[Problem]) -> list[str]:
    """What to do about open questions of the site `name` with its `file`: one's own are answered where they stand,
    those of what is shipped in a file over it."""
    lines: dict[str, list[int]] = {}
    for problem in asked:
        lines.setdefault(problem.file, []).append(problem.line)
    own = [f"{each}:{', '.join(map(str, sorted({*at})))}" for each, at in lines.items() if not _is_shipped(each)]
    said = [f"Answer these in {' and '.join(own)}: put each answer in the place of its !ask."] if own else []
    if len(own) < len(lines) and _is_shipped(file):
        said += [
            "Those of a shipped file you answer in one of your own, in a folder of --sites or FERMIGRID_SITES:",
            f"`fermigrid site new {name} --extends {name}` begins it.",
        ]
    elif len(own) < len(lines):
        said.append(f"Those of a shipped file: write their keys with your answers into {file}.")
    return said


def _is_shipped(file: str) -> bool:
    return Path(file).parent == shipped("sites")


def _refused(child: _Layer, text: str) -> ConfigError:
    return ConfigError([child.source.problem(("extends",), text)])


def _over(layer: _Layer, below: SiteText) -> SiteText:
    """A file over what it extends."""
    replaced: set[Key] = {(name,) for name in _OWN}
    taken: list[Key] = []
    base = {name: value for name, value in below.data.items() if name not in _OWN}
    data = _merge(layer.data, base, (), replaced, taken)
    places = below.source.places
    left = (key for key in places if not any(key[:end] in replaced for end in range(1, len(key) + 1)))
    source = Source(layer.source.file, {key: places[key] for key in left} | layer.source.places)
    return SiteText(layer.path.stem, (layer.path, *below.files), data, source, (*below.taken, *taken))


def _merge(
    mine: dict[str, Any], theirs: dict[str, Any], key: Key, replaced: set[Key], taken: list[Key]
) -> dict[str, Any]:
    """Keys that take the other's place as a whole are put into `replaced`, those with an empty value into `taken`."""
    merged = dict(theirs)
    for name, value in mine.items():
        here, other = (*key, name), theirs.get(name)
        is_merged = isinstance(other, dict) and isinstance(value, dict) and not _is_other_kind(value, other, here)
        if not is_merged:
            replaced.add(here)
        if value is None:
            taken.append(here)
            merged.pop(name, None)
        elif isinstance(value, dict):
            merged[name] = _merge(value, other if is_merged and other else {}, here, replaced, taken)
        else:
            merged[name] = value
    return merged


def _is_other_kind(mine: dict[str, Any], theirs: dict[str, Any], key: Key) -> bool:
    """Are the two described by different keys, because they are of different kinds?"""
    has_kind = key in (("output",), ("htcondor", "grid")) or (key[0] == "secrets" and len(key) == 2)
    kinds = mine.get("kind"), theirs.get("kind")
    return has_kind and all(isinstance(kind, str) for kind in kinds) and kinds[0] != kinds[1]
