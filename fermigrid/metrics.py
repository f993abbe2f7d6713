"""A campaign in Prometheus' text format, for node_exporter's textfile collector. Pure.

Source: Prometheus documentation, "Exposition formats", text-based format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fermigrid.alerts import KINDS, Concern


@dataclass(frozen=True)
class Counts:
    """Jobs of one step at one site by state."""

    step: str
    site: str
    states: Mapping[str, int]


def write_metrics(
    campaign: str, looked: float, finished: bool, counts: Sequence[Counts], concerns: Sequence[Concern]
) -> str:
    """The whole file. `looked`: when `watch` looked, seconds since 1970: the alarm for a watch that has stopped."""
    return "".join(f"{line}\n" for line in _lines(campaign, looked, finished, counts, concerns))


def _lines(
    campaign: str, looked: float, finished: bool, counts: Sequence[Counts], concerns: Sequence[Concern]
) -> Iterator[str]:
    yield from _head("fermigrid_jobs", "Jobs submitted so far, by step, site and state.")
    for one in counts:
        for state, count in one.states.items():
            labels = {"campaign": campaign, "step": one.step, "site": one.site, "state": state}
            yield f"fermigrid_jobs{_labels(labels)} {count}"
    yield from _head("fermigrid_looked_timestamp_seconds", "When fermigrid watch looked last.")
    yield f"fermigrid_looked_timestamp_seconds{_labels({'campaign': campaign})} {looked:.0f}"
    yield from _head("fermigrid_finished", "1 when nothing is left to wait for.")
    yield f"fermigrid_finished{_labels({'campaign': campaign})} {int(finished)}"
    yield from _head("fermigrid_alert", "1 when a person is needed, by reason.")
    for kind in KINDS[:-1]:
        number = sum(concern.kind == kind for concern in concerns)
        yield f"fermigrid_alert{_labels({'campaign': campaign, 'kind': kind})} {number}"


def _head(name: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} gauge"


def _labels(values: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in values.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
