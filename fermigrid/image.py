"""The image catalogue: what containers and mount-in software there are, where from, and how they are known again."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fermigrid.campaign import BindPath, Bytes, Variable, Word
from fermigrid.config import Model

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_MARKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+-]*\Z")


def _digest(text: str) -> str:
    if not _SHA256.match(text):
        raise ValueError("is no sha256: 64 hexadecimal digits in lower case (sha256sum FILE prints it)")
    return text


def _url(text: str) -> str:
    if not re.match(r"https?://[A-Za-z0-9.\[\]:_-]+/\S*\Z", text):
        raise ValueError("is no http(s) URL")
    return text


def _marker(text: str) -> str:
    if not _MARKER.match(text) or len(text) > 100:
        raise ValueError("is no marker: one word, as in the image's /etc/fermigrid-image")
    return text


def _by_digest(text: str) -> str:
    if not re.match(r"(docker|oras|library)://\S+@sha256:[0-9a-f]{64}\Z", text):
        raise ValueError("must name the image by digest: docker://host/name@sha256:<64 hexadecimal digits>")
    return text


def check_version(text: str) -> str:
    """`apptainer 1.3` or `singularity 3.8`, given back. Raises ValueError."""
    if not re.fullmatch(r"(?:apptainer|singularity) [0-9]+(?:\.[0-9]+){0,2}", text):
        raise ValueError("is no runtime with its version, such as apptainer 1.3 or singularity 3.8")
    return text


def is_at_least(version: str, needed: str) -> bool:
    """Has a runtime of `version` what came with `needed`? Both as in `check_version`.

    Apptainer went on from Singularity 3.8: it is later than any singularity 3. Singularity 4 and Apptainer went apart:
    neither is known to have what the other brought.
    """
    (name, numbers), (other, least) = _parts(version), _parts(needed)
    if name == other:
        return numbers >= least
    return name == "apptainer" and least < (4,)


def _parts(version: str) -> tuple[str, tuple[int, ...]]:
    name, numbers = version.split(" ")
    return name, tuple(int(number) for number in (numbers + ".0.0").split(".")[:3])


class Http(Model):
    """The same image as a file behind HTTP: mirrors in the order to try, the file's sha256 and size in bytes."""

    urls: Annotated[tuple[Annotated[str, AfterValidator(_url)], ...], Field(min_length=1)]
    sha256: Annotated[str, AfterValidator(_digest)]
    size: Bytes


class Image(Model):
    """A container image. `path` is a directory or SIF on CVMFS or a shared file system, `sif` the same as a SIF where
    both exist; `http` fetches a SIF, `tar` a tarred directory image. `marker` is the text of its /etc/fermigrid-image,
    by which the worker knows that it is inside this image. `needs`: the oldest runtime that starts it, where its format
    alone does not tell (`apptainer 1.3`)."""

    title: str = ""
    flavour: Literal["light", "uber"]
    distribution: Literal["cvmfs", "http", "registry", "site"] = "cvmfs"
    path: BindPath | None = None
    sif: BindPath | None = None
    marker: Annotated[str, AfterValidator(_marker)] | None = None
    http: Http | None = None
    tar: Http | None = None
    registry: Annotated[str, AfterValidator(_by_digest)] | None = None
    mount_points: tuple[BindPath, ...] = ()
    needs: Annotated[str, AfterValidator(check_version)] | None = None


class Software(Model):
    """Software that is mounted into a light image. `{path}` in `environment` is where it is seen."""

    source: BindPath = Field(alias="from")
    target: BindPath = Field(alias="to")
    environment: dict[Variable, str] = {}


class Catalogue(Model):
    """`images.yaml`."""

    images: dict[Word, Image] = {}
    software: dict[Word, Software] = {}
