"""Sampling presets: a checkpoint's own with changes, or one of conf/sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from star.checkpoints import io
from star.checkpoints.parts import WITH_GENERATOR
from star.utils.instantiate import instantiate, instantiate_trusted

_BEST_OF = {"_target_": "star.sampling.best_of.BestOf", "count": 1}


def resolve_sampling(config: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a decoder is built with: a preset of its own, or the checkpoint's with changes.

    Returns:
        The instantiated settings, and the preset in plain words for records.

    """
    own: Mapping[str, Any] = {}
    if "_target_" not in changes:
        own = io.config(io.read(config["ckpt"], mmap=True), config["ckpt"])
    return built_preset(config["ckpt"], own, changes, config["trusted"])


def built_preset(
    what: str, own: Mapping[str, Any], changes: Mapping[str, Any], trusted: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a decoder is built with, and the preset in plain words.

    Args:
        what: the checkpoint, for errors.
        own: its configuration.
        changes: a whole preset (with `_target_`), or values that replace those of the checkpoint's.
        trusted: packages whose classes the checkpoint may name.

    Raises:
        ValueError: for changes of a part that there isn't, or a checkpoint without a preset.

    """
    if "_target_" in changes:
        preset = _with_best_of(changes, changes)
        _refuse_bare(preset, "this preset")
        return instantiate({**preset, "_partial_": True}).keywords, _words(preset)
    if own.get("sampling") is None:
        mend = (
            "choose one, e.g. sampling=topk600"
            if own.get("task") in WITH_GENERATOR
            else "pictures need one of task=generator"
        )
        raise ValueError(f"{what} is of task={own.get('task')} and has no sampling preset: {mend}")
    preset = _with_best_of(own["sampling"], changes)
    _refuse_bare(preset, f"the preset of {what}")
    return instantiate_trusted({**preset, "_partial_": True}, packages=trusted).keywords, _words(preset)


def _with_best_of(own: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A preset with changes; any can be asked for the best of several, though releases and older ones don't name it."""
    wanted = changes.get("best_of")
    if wanted is not None and not isinstance(wanted, Mapping):
        raise ValueError(f"how many candidates a picture has is said by sampling.best_of.count={wanted}")
    if (wanted or {}).get("count") is not None and "_target_" not in (own.get("best_of") or {}):
        own = {**own, "best_of": _BEST_OF}
    return merge_preset(own, changes)


def _refuse_bare(preset: Mapping[str, Any], what: str) -> None:
    """Raise a ValueError for values of a part whose class nothing names."""
    if bare := [name for name, part in preset.items() if isinstance(part, Mapping) and "_target_" not in part]:
        raise ValueError(f"{what} has no {bare[0]} to change: choose another, e.g. sampling=topk600")


def _words(preset: Mapping[str, Any]) -> dict[str, Any]:
    """For records: without what earlier ones don't name, where it changes nothing (one candidate, one temperature)."""
    one = (preset.get("best_of") or {"count": 1}).get("count") == 1
    words = {name: part for name, part in preset.items() if not (one and name == "best_of")}
    sampler = words.get("sampler")
    if isinstance(sampler, Mapping) and sampler.get("last_temperature") is None:
        words["sampler"] = {name: value for name, value in sampler.items() if name != "last_temperature"}
    return words


def merge_preset(own: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's preset with single values replaced; null keeps the checkpoint's."""
    merged = dict(own)
    for name, value in changes.items():
        if isinstance(value, Mapping):
            below = merge_preset(own.get(name) or {}, value)
            if below or name in own:
                merged[name] = below or own[name]
        elif value is not None:
            merged[name] = value
    return merged
