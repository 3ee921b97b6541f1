"""A card: one number with everything that is needed to trust it and to get it again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from star.evaluation.pictures import Picture
from star.utils.files import write_atomically

LIBRARIES = (
    "star-t2i",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "numpy",
    "pillow",
    "open_clip_torch",
    "timm",
)
# Where files lie changes no number; other features, weights or references are deviations of their own.
LOCAL = {
    "root",
    "weights",
    "given",
    "verify_hash",
    "results",
    "answers",
    "cache",
    "source",
    "shards",
    "choice",
    "device",
    "export",
}
LOCAL |= {"needed_by", "hint", "_partial_"}


@dataclass
class Result:
    """What a metric found.

    Attributes:
        value: the number that stands for the metric; None when it only exported pictures for another program to score.
        label: what exactly was computed: `fid/pytorch_fid@256`.
        count: pictures (or pairs, or runs) behind it.
        interval: 95 %, where it makes sense.
        results: everything else, named.
        facts: where it comes from: features, files, folders, preset.
        deviations: in what it isn't the protocol's number; empty when it is.
        pictures: some to look at, each with a caption.

    """

    value: float | None
    label: str
    count: int
    interval: Sequence[float] | None = None
    results: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    deviations: list[str] = field(default_factory=list)
    pictures: Sequence[tuple[Picture, str]] = field(default_factory=tuple)


def protocol_hash(item: Mapping[str, Any]) -> str:
    """Sixteen digits that name a protocol: its settings without those that say where files lie."""
    text = json.dumps(_global(item), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _global(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _global(part) for name, part in value.items() if name not in LOCAL}
    return [_global(part) for part in value] if isinstance(value, list | tuple) else value


def frozen_protocols() -> dict[str, str]:
    """The hashes of the protocols as they were published with this package, by name."""
    text = (resources.files("star.evaluation") / "protocols.json").read_text("utf-8")
    return dict(json.loads(text))


def make_card(
    name: str, item: Mapping[str, Any], result: Result, *, shared: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """The card of a result, as `card.json` holds it.

    Args:
        name: the metric's, as in `metric=NAME`.
        item: its configuration.
        result: what it found.
        shared: what all cards of the command say: checkpoint, weights, ...
        seconds: how long it took.

    """
    digest = protocol_hash(item)
    deviations = list(result.deviations)
    frozen = frozen_protocols().items()
    # `reconstruction_full` is a protocol of the metric `reconstruction`
    known = [key for key, value in frozen if value == digest and (key == name or key.startswith(f"{name}_"))]
    if not known:
        deviations.insert(0, f"settings differ from the protocol {name} (hash {digest})")
    return {
        "metric": name,
        "status": "done" if result.value is not None else "exported",
        "value": result.value,
        "interval": None if result.interval is None else list(result.interval),
        "label": result.label,
        "count": result.count,
        "standard": not deviations,
        "deviations": deviations,
        "results": dict(result.results),
        "protocol": {"name": known[0] if known else name, "hash": digest, "settings": _global(item)},
        **shared,
        "facts": dict(result.facts),
        "libraries": library_versions(),
        "hardware": hardware(str(shared.get("device", "cpu"))),
        "seconds": round(seconds, 3),
    }


def missing_card(name: str, item: Mapping[str, Any], messages: Sequence[str]) -> dict[str, Any]:
    """The card of a metric that could not run: no number, but what it lacks."""
    protocol = {"name": name, "hash": protocol_hash(item)}
    return {"metric": name, "status": "missing", "value": None, "missing": list(messages), "protocol": protocol}


def library_versions() -> dict[str, str]:
    """Installed versions of what decides numbers."""
    return {"python": platform.python_version(), **{library: _version(library) for library in LIBRARIES}}


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def hardware(device: str) -> dict[str, Any]:
    """What it ran on."""
    facts: dict[str, Any] = {"device": device, "machine": platform.machine(), "cpus": os.cpu_count()}
    facts["threads"] = torch.get_num_threads()
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
        facts["tf32"] = torch.backends.cuda.matmul.allow_tf32
    return facts


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""

    def write(partial: Path) -> None:
        partial.write_text(json.dumps(content, indent=2, allow_nan=True) + "\n")

    write_atomically(path, write)
