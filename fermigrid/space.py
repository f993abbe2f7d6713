"""Expected output against the room for it, before a batch is sent. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fermigrid.units import show_bytes

ENOUGH = 10  # good jobs of a step whose output is taken for that of the others


@dataclass(frozen=True)
class Sent:
    """A batch that was sent: how many jobs, how many of them are good, and the bytes that those published."""

    step: str
    site: str
    jobs: int
    good: int
    bytes: int
    ended: bool


def output_of_a_job(step: str, declared: int | None, sent: Sequence[Sent]) -> int | None:
    """Bytes that a job of a step is expected to publish: as measured, else as the campaign says; None: nobody knows."""
    good = sum(batch.good for batch in sent if batch.step == step)
    if good >= ENOUGH:
        return round(sum(batch.bytes for batch in sent if batch.step == step) / good)
    return declared


@dataclass(frozen=True)
class Room:
    """What a site has room for. `quota`: bytes for the campaign in all; `free`: bytes of its file system; None: not
    known. `place` is where, in words."""

    site: str
    quota: int | None
    free: int | None
    place: str = ""


def find_shortage(name: str, wanted: int, room: Room, sent: Sequence[Sent], each: Mapping[str, int | None]) -> str:
    """Why there is no room at a site for the `wanted` bytes of a batch, in words; "" when there is.

    `sent`: the batches of this site; `each`: bytes of a job of a step, which those under way will still publish.
    """
    published = sum(batch.bytes for batch in sent)
    coming = sum((batch.jobs - batch.good) * (each.get(batch.step) or 0) for batch in sent if not batch.ended)
    need = f"{name} is expected to publish {show_bytes(wanted)}, jobs under way {show_bytes(coming)}"
    if room.quota is not None and published + coming + wanted > room.quota:
        there = f"{show_bytes(published)} of the {show_bytes(room.quota)} that {room.site} has room for are used"
        return f"{need}; {there}"
    if room.free is not None and coming + wanted > room.free:
        return f"{need}; {room.place} has {show_bytes(room.free)} left"
    return ""
