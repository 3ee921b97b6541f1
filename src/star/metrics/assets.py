"""Weight files that metrics need: what they are, where they are looked for, and what is said when they are missing."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from star.metrics.asset_list import ASSETS, TORCH_CACHE, Asset

log = logging.getLogger(__name__)

ENVIRONMENT = "STAR_ASSETS"
_CHUNK = 1 << 22


class MissingAssetError(FileNotFoundError):
    """A file that a metric needs is not there; the message says which, from where, and where to put it."""


@dataclass(frozen=True)
class AssetFile:
    """Where to look for one asset.

    Attributes:
        asset: a name in `ASSETS`.
        given: the user's file, or a folder that holds it under its published name; None looks where libraries keep it.
        verify_hash: refuse a file whose sha256 isn't the published one.
        key: the configuration key of `given`, for messages.
        needed_by: who needs it, for messages.
        hint: what else could be done, for messages.

    """

    asset: str
    given: str | Path | None = None
    verify_hash: bool = True
    key: str = "metric.weights"
    needed_by: str = "this metric"
    hint: str = field(default="", kw_only=True)

    @property
    def facts(self) -> Asset:
        """What is published about it.

        Raises:
            ValueError: for an unknown name.

        """
        if self.asset not in ASSETS:
            raise ValueError(f"unknown asset {self.asset!r}, known: {', '.join(ASSETS)}")
        return ASSETS[self.asset]

    def find(self) -> Path | None:
        """The file, None when it is nowhere."""
        given = self._given_file
        if given is not None and _has_marker(given, self.facts.marker):
            return given
        found = next((path for path in self._candidates() if path.is_file()), None)
        if found is not None and given is not None:  # one file for several metrics, of which only some can mean it
            log.warning("%s: %s is another kind of file, so %s is used", self.needed_by, given, found)
        return found

    def path(self) -> Path:
        """The file, verified.

        Raises:
            MissingAssetError: when it isn't there.
            ValueError: when its hash isn't the published one.

        """
        found = self.find()
        if found is None:
            raise MissingAssetError(self.message())
        self.sha256(found)
        return found

    def iterate_missing(self) -> Iterator[str]:
        """One sentence when the file isn't there or isn't the published one."""
        found = self.find()
        if found is None:
            yield self.message()
            return
        try:
            self.sha256(found)
        except ValueError as error:
            yield str(error)

    def message(self) -> str:
        """What is missing, where it was looked for, where to get it and where to put it."""
        facts = self.facts
        folder = os.environ.get(ENVIRONMENT, "unset")
        looked = ", ".join(dict.fromkeys(str(path.parent) for path in self._candidates())) or "nowhere"
        put = f"put it into the folder that ${ENVIRONMENT} names (now: {folder}) or set {self.key}=PATH"
        if facts.pip:
            put = f"run `pip install {facts.pip}`, or {put}"
        wrong = ""
        if self._given_file is not None:
            wrong = f" {self.key}={self.given} is another kind of file: it has no tensor {facts.marker!r}."
        elif self.given is not None:
            there = Path(self.given).expanduser().is_dir()
            wrong = f" {self.key}={self.given} {'holds no such file' if there else 'is not there'}."
        hint = f" {self.hint}" if self.hint else ""
        return (
            f"{self.needed_by} needs {facts.describe()}, which was not found.{wrong} Looked in: {looked}. "
            f"Get it from {facts.source} and {put}.{hint}"
        )

    def sha256(self, path: Path) -> str:
        """The file's hash, checked against the published one if `verify_hash`; computed once per file and change.

        Raises:
            ValueError: for another file than the published one.

        """
        digest = file_hash(path)
        if self.verify_hash and not digest.startswith(self.facts.sha256):
            raise ValueError(
                f"{path} is not the published {self.facts.files[0]}: its sha256 is {digest}, not {self.facts.sha256}. "
                f"Get it again from {self.facts.source}, or set metric.verify_hash=false to use it all the same."
            )
        return digest

    def verified(self, path: Path) -> bool:
        """Whether the file is the published one, as far as that is known."""
        return bool(self.facts.sha256) and file_hash(path).startswith(self.facts.sha256)

    @property
    def _given_file(self) -> Path | None:
        given = None if self.given is None else Path(self.given).expanduser()
        return given if given is not None and given.is_file() else None

    def _candidates(self) -> list[Path]:
        folders = [] if self.given is None or self._given_file else [Path(self.given).expanduser()]
        if os.environ.get(ENVIRONMENT):
            folders.append(Path(os.environ[ENVIRONMENT]).expanduser())
        if os.environ.get("TORCH_HOME") and self.facts.caches == TORCH_CACHE:
            folders.append(Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints")
        folders += [Path(cache).expanduser() for cache in self.facts.caches]
        folders += _package_folders(self.facts.package)
        return [folder / name for folder in folders for name in self.facts.files]


def _package_folders(package: str) -> list[Path]:
    name, _, below = package.partition("/")
    spec = importlib.util.find_spec(name) if name else None
    return [Path(location) / below for location in (spec.submodule_search_locations or ())] if spec else []


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weight file, read without running anything in it.

    Raises:
        ValueError: when it is no such file.

    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        # torch's own message speaks of pickle and how to switch its protection off
        raise ValueError(f"{path} is no file of tensors that torch.save wrote ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no named tensors but a {type(content).__name__}")
    return content


def _has_marker(path: Path, marker: str) -> bool:
    """Whether a weight file has a tensor of that name; a file whose names can't be read cheaply gets the benefit."""
    if not marker or path.suffix == ".safetensors":
        return True
    if not zipfile.is_zipfile(path):
        return _legacy_has(path, marker)
    with zipfile.ZipFile(path) as archive:
        names = [name.rpartition("/")[2] for name in archive.namelist()]
        if "constants.pkl" in names or "data.pkl" not in names:  # TorchScript doesn't hold whole names
            return True
        return marker.encode() in archive.read(archive.namelist()[names.index("data.pkl")])


def _legacy_has(path: Path, marker: str) -> bool:
    """The same for a file that an old torch.save wrote: its names come with its tensors."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError):
        return True  # what it is will be said when it is read
    return not isinstance(content, dict) or marker in content


def file_hash(path: Path) -> str:
    """The sha256 of a file; remembered beside it (or in the user's cache) with its size and time."""
    stat = path.stat()
    state = {"size": stat.st_size, "mtime": stat.st_mtime_ns}
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "star" / "sha256"
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    records: Sequence[Path] = (path.with_name(f"{path.name}.sha256.ok"), home / name)
    for record in records:
        with suppress(OSError, ValueError, KeyError):
            held = json.loads(record.read_text())
            if {"size": held["size"], "mtime": held["mtime"]} == state:
                return str(held["sha256"])
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    text = json.dumps({**state, "sha256": digest.hexdigest()})
    for record in records:
        try:
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(text)
            break
        except OSError:
            log.debug("no record of a hash at %s", record)
    return digest.hexdigest()
