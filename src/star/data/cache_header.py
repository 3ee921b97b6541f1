"""What a cache of tokens says about itself, so that nobody trains on the tokens of another tokenizer."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

HEADER = "cache.json"
KINDS = ("codes", "latents")
SPLITS = ("train", "validation")
_FORMAT = 1
# Settings under which the same samples are the same bytes; weights can be chosen anew in training.
_DECIDING = ("format", "kind", "copies", "tokenizer", "text_encoder", "schedule", "prepared")


@dataclass(frozen=True)
class Features:
    """A text as an encoder tells it.

    Attributes:
        pooled: (D,) fp16.
        context: (n, D_text) fp16, one row per real token.

    """

    pooled: np.ndarray[Any, Any]
    context: np.ndarray[Any, Any]


@dataclass(frozen=True)
class CacheHeader:
    """The `cache.json` of a cache.

    Attributes:
        kind: `codes`, or `latents`: the features that the tokenizer quantises.
        copies: how many draws of crop and mirroring each picture has.
        tokenizer: name of what decides codes and features.
        schedule: the scales, `1 2 4 8`; of latents the last one alone.
        prepared: how pictures were prepared: resolution, crop, filters, seed, precision, ...
        sources: split -> source -> weight.
        text_encoder: name of the frozen encoder whose features are here; None for captions alone.
        empty: the empty caption's features, for dropping captions.

    """

    kind: str
    copies: int
    tokenizer: str
    schedule: str
    prepared: Mapping[str, Any]
    sources: Mapping[str, Mapping[str, float]]
    text_encoder: str | None = None
    empty: Features | None = None
    format: int = field(default=_FORMAT)

    def write(self, directory: Path) -> None:
        """Write the file, whole or not at all."""
        record = asdict(self) | {"empty": None if self.empty is None else _encode(self.empty)}
        partial = directory / f".{HEADER}.partial"
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        partial.replace(directory / HEADER)

    def differences(self, other: CacheHeader) -> list[str]:
        """Names of the settings under which another cache's samples would not be this one's."""
        return [name for name in _DECIDING if getattr(self, name) != getattr(other, name)]


def read_header(directory: str | Path | None) -> CacheHeader:
    """The header of a cache.

    Raises:
        ValueError: without a directory, or when the file is of another format.
        FileNotFoundError: when there is no cache.

    """
    if directory is None:
        raise ValueError("data.directory is null: set it to a cache that python -m star.data.cache wrote")
    file = Path(directory) / HEADER
    if not file.is_file():
        raise FileNotFoundError(
            f"no cache in {directory}: {HEADER} is missing; python -m star.data.cache out={directory} ... writes one"
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["format"] != _FORMAT:
            raise ValueError(
                f"{file} has format {record['format']}, this version reads {_FORMAT}: write the cache anew"
            )
        held = {name.name: record[name.name] for name in fields(CacheHeader)}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is no header of a cache: {error!r}") from error
    return CacheHeader(**held | {"empty": None if held["empty"] is None else _decode(held["empty"])})


def _encode(features: Features) -> dict[str, Any]:
    parts = {"pooled": features.pooled, "context": features.context}
    return {
        name: {"shape": part.shape, "fp16": base64.b64encode(part.tobytes()).decode()} for name, part in parts.items()
    }


def _decode(record: Mapping[str, Any]) -> Features:
    parts = {
        name: np.frombuffer(base64.b64decode(part["fp16"]), np.float16).reshape(part["shape"])
        for name, part in record.items()
    }
    return Features(**parts)
