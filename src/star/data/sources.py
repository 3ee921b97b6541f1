"""Where shards come from: local paths, braces, globs, pipes, s3 and http addresses."""

from __future__ import annotations

import glob
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from star.data.captions import Captions

_SCHEME = re.compile(r"^[a-z0-9+]+:", re.IGNORECASE)


@dataclass(frozen=True)
class ShardSource:
    """One set of shards and how much of the training comes from it.

    Args:
        urls: one address or several: a path, a folder, a glob (`*.tar`), braces (`{00000..00999}.tar`), `pipe:COMMAND`,
            `s3://...` or `http(s)://...`; None only while the weight is 0.
        weight: how often the source is drawn from, relative to the others; 0 switches it off.
        captions: which fields hold captions.
        name: what the source is called in keys and messages; in a mapping of sources, its key.
        made_by: the command that makes the shards, for who doesn't have them yet.

    Raises:
        ValueError: for a weight that is negative or not a number.

    """

    urls: str | Sequence[str] | None
    weight: float = 1.0
    captions: Captions = field(default_factory=Captions)
    name: str = "shards"
    made_by: str | None = None

    def __post_init__(self) -> None:
        """Normalise what YAML gives, then validate."""
        try:
            weight = float(self.weight)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the weight of source '{self.name}' must be a number, got {self.weight!r}") from error
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"the weight of source '{self.name}' must be 0 or more, got {self.weight!r}")
        object.__setattr__(self, "weight", weight)


def parse_sources(entries: Mapping[str, Any] | None, key: str) -> tuple[ShardSource, ...]:
    """Sources with a weight above 0, `urls` expanded to the addresses of their shards.

    An entry with a weight and no `urls` at all (not even null) is left out: a stage sets weights for the sources of one
    data set, and must not break the others.

    Args:
        entries: name -> `ShardSource`, or name -> mapping of its arguments (`captions` as a mapping field ->
            weight); None means no source.
        key: the setting the entries come from (`data.sources`), named by errors.

    Raises:
        ValueError: for an entry that is no source, or a source without shards.

    """
    if entries is not None and not isinstance(entries, Mapping):
        raise ValueError(f"{key} must map names to sources, e.g. {{mine: {{urls: 'shards/*.tar'}}}}, got {entries!r}")
    sources = [_parse_source(str(name), entry, f"{key}.{name}") for name, entry in (entries or {}).items()]
    return tuple(
        replace(source, urls=expand_urls(source.urls, f"{key}.{source.name}.urls", made_by=source.made_by))
        for source in sources
        if source is not None and source.weight > 0
    )


def _parse_source(name: str, entry: Any, key: str) -> ShardSource | None:
    if isinstance(entry, ShardSource):
        return replace(entry, name=name)
    if not isinstance(entry, Mapping):
        raise ValueError(f"{key} must be a mapping such as {{urls: 'shards/*.tar'}}, got {entry!r}")
    known = [argument.name for argument in fields(ShardSource)]
    if unknown := [argument for argument in entry if argument not in known]:
        raise ValueError(f"{key}.{unknown[0]} is not a setting of a source; known are {', '.join(known)}")
    if "urls" not in entry and "weight" in entry:
        return None
    arguments = {"urls": None} | dict(entry) | {"name": name}
    captions = arguments.get("captions", Captions())
    try:
        arguments["captions"] = captions if isinstance(captions, Captions) else Captions(captions)
        return ShardSource(**arguments)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def expand_urls(urls: str | Sequence[str] | None, key: str, *, made_by: str | None = None) -> tuple[str, ...]:
    """Turn paths, globs, braces and addresses into one address per shard.

    Args:
        urls: one address or several, see `ShardSource`.
        key: the setting that errors name.
        made_by: the command that makes the shards, which errors name too.

    Raises:
        ValueError: for no address, unbalanced braces, a glob that matches nothing, or only missing local shards.

    """
    patterns = [urls] if isinstance(urls, str) else list(urls or [])
    if not patterns or not all(isinstance(pattern, str) and pattern.strip() for pattern in patterns):
        weight = key.removesuffix("urls") + "weight"
        raise ValueError(
            f"{key} is {urls!r}: set it to the shards, e.g. {key}='/data/shards/*.tar', or do without it by {weight}=0"
        )
    expanded = tuple(url for pattern in patterns for url in _expand(pattern.strip(), key, made_by))
    local = [url for url in expanded if not _SCHEME.match(url)]
    if len(local) == len(expanded) and not any(os.path.exists(path) for path in local):
        raise ValueError(f"{key}={urls!r}: none of the {len(local)} shards exists, the first would be {local[0]!r}")
    return expanded


def _expand(pattern: str, key: str, made_by: str | None) -> list[str]:
    from braceexpand import braceexpand

    if pattern.startswith("file:"):
        pattern = re.sub(r"^file:(//)?", "", pattern)
    try:
        urls = list(braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"{key}={pattern!r} has unbalanced braces") from error
    if _SCHEME.match(pattern):
        return [_remote(url) for url in urls]
    return [path for url in urls for path in _local(os.path.expanduser(url), key, made_by)]


def _remote(url: str) -> str:
    # webdataset reads http itself (curl that fails loudly), but knows no s3.
    return f"pipe:aws s3 cp {shlex.quote(url)} -" if url.startswith("s3://") else url


def _local(path: str, key: str, made_by: str | None) -> list[str]:
    if os.path.isdir(path):
        path = os.path.join(glob.escape(path), "*.tar")
    if not glob.has_magic(path):
        return [path]
    matches = sorted(glob.glob(path, recursive=True))
    if not matches:
        make = "make the shards" if made_by is None else f"make the shards ({made_by})"
        raise ValueError(f"{key}: no shard matches {path!r} (from {os.getcwd()}); {make} or correct {key}")
    return matches
