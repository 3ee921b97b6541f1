"""The public releases of VAR and STAR as checkpoints of ours: one released file, or a folder of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from star.checkpoints.describe import describe
from star.checkpoints.official import (
    load_class_labels,
    load_refiner,
    load_tokenizer,
    load_transformer,
)
from star.checkpoints.official_files import read_official
from star.nn.position import AbsolutePosition, Rotary2D
from star.schedule import ScaleSchedule

log = logging.getLogger(__name__)

KINDS = ("star", "var", "tokenizer", "refiner")
# How many scales a published schedule has doesn't tell 256 from 512 pixels; files that say nothing else are 256's.
USUAL = {10: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 14: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)}

FIRST_SAMPLE_TEXT = (
    "on, because the released STAR code adds the first row's text branch to every row of a batch, also to the "
    "unconditional rows of guidance, and its weights were trained that way; false gives each row its own text "
    "(docs/first_sample_text.md)"
)


def import_released(
    source: str | Path,
    *,
    kind: str,
    schedule: ScaleSchedule | None = None,
    position: Rotary2D | AbsolutePosition | None = None,
    first_sample_text: bool | None = None,
    logit_norm: bool = True,
    num_heads: int | None = None,
) -> dict[str, Any]:
    """A released file as `{"state_dict": ..., "config": ...}`, without the parts that it doesn't hold.

    Args:
        source: a .pth or .safetensors file; it is mapped and has to stay as it is.
        kind: `star` or `var`: the generator (with VAR's class labels as its text encoder); `tokenizer`; `refiner`.
        schedule: the scales; None takes what the file says.
        position: see `star.checkpoints.official.load_transformer`.
        first_sample_text: the release's batch behaviour; None switches it on for `star` alone.
        logit_norm: see `load_transformer`.
        num_heads: see `load_transformer`.

    Raises:
        ValueError: for another kind, a file that isn't one or doesn't fit, or one that doesn't say its schedule.

    """
    if kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}, got {kind!r}")
    scales: dict[str, Any] = {"schedule": schedule or schedule_of(source, kind=kind)}
    switch = kind == "star" if first_sample_text is None else first_sample_text
    if kind == "tokenizer":
        parts: dict[str, nn.Module] = {"tokenizer": load_tokenizer(source, **scales)}
    elif kind == "refiner":
        rotary = position if isinstance(position, Rotary2D) else None
        parts = {"refiner": load_refiner(source, **scales, position=rotary, num_heads=num_heads)}
    else:
        options: dict[str, Any] = {"position": position, "logit_norm": logit_norm, "num_heads": num_heads}
        parts = {"transformer": load_transformer(source, **scales, **options, first_sample_text=switch)}
        _check_kind(parts["transformer"], kind, source)
        if kind == "var":
            parts["text_encoder"] = load_class_labels(source)
    notes = {"first_sample_text": FIRST_SAMPLE_TEXT} if kind == "star" and switch else {}
    return _checkpoint(parts, scales["schedule"], notes)


def _checkpoint(parts: Mapping[str, nn.Module], schedule: ScaleSchedule, notes: Mapping[str, str]) -> dict[str, Any]:
    module = {name: describe(part) for name, part in parts.items()} | {"schedule": describe(schedule)}
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    task = "generator" if "transformer" in parts else "tokenizer" if "tokenizer" in parts else "sampler"
    return {"state_dict": state, "config": {"task": task, "module": module, "notes": dict(notes)}}


def holds_tokenizer(source: str | Path) -> bool:
    """Whether a STAR training checkpoint has the tokenizer beside the generator."""
    try:
        return any(name.startswith("encoder.") for name in read_official(source, "vae_local").tensors)
    except ValueError:
        return False


def holds_refiner(source: str | Path) -> bool:
    """Whether a released generator's file is of STAR's sampler training, with the causal-driven sampler beside it."""
    return "lvl_embed_2.weight" in read_official(source, "var_wo_ddp").shapes


def schedule_of(source: str | Path, *, kind: str) -> ScaleSchedule:
    """The scales that a released file was trained on.

    Raises:
        ValueError: when it says nothing about them.

    """
    official = read_official(source, "vae_local" if kind == "tokenizer" else "var_wo_ddp")
    if official.sides is not None:
        return ScaleSchedule.square(*official.sides)
    marks = official.tensors.get("lvl_1L")
    if marks is not None and not marks.is_meta:
        sides = [math.isqrt(length) for length in marks.flatten().long().bincount().tolist()]
        if sum(side * side for side in sides) == marks.numel():
            return ScaleSchedule.square(*sides)
    counting = ("lvl_embed.weight", "lvl_embed_2.weight", "quantize.ema_vocab_hit_SV")
    count = next((official.shapes[name][0] for name in counting if name in official.shapes), None)
    if count in USUAL:
        usual = ScaleSchedule.square(*USUAL[count])
        log.warning("%s doesn't say its scales, only that there are %d: taken to be '%s'", source, count, usual)
        return usual
    raise ValueError(
        f"{source} doesn't say which scales it was trained on: give schedule=256, 512, 1024 or the sides of its maps"
    )


def find_released(folder: str | Path, files: Mapping[str, Sequence[str]], *, name: str, source: str) -> dict[str, Path]:
    """The files of a release in a folder.

    Args:
        folder: where they should be.
        files: for each part the names that it may have, the first that is there counts; `*` stands for anything. A
            folder called `text_encoder` is optional.
        name: what messages call the release.
        source: where it can be had.

    Raises:
        FileNotFoundError: names everything that is missing, and where it comes from.
        ValueError: when several files could be meant.

    """
    found = {part: path for part, names in files.items() if (path := _first(Path(folder), names, part)) is not None}
    if "transformer" in found and "tokenizer" not in found and holds_tokenizer(found["transformer"]):
        found["tokenizer"] = found["transformer"]
        log.info("the tokenizer is the one inside of %s", found["tokenizer"])
    missing = [part for part in files if part not in found and part != "text_encoder"]
    if missing:
        lines = [f"  {part}: {files[part][0]}" + _or(files[part][1:]) for part in missing]
        raise FileNotFoundError(
            "\n".join([f"{folder} lacks files of {name}:", *lines])
            + f"\nThey are published at {source}. Put them there as they are, name yours with "
            f"pretrained.files.{missing[0]}=[NAME], or give a folder that python -m star.checkpoints.convert wrote"
        )
    return found


def _first(folder: Path, names: Sequence[str], part: str) -> Path | None:
    for name in names:
        matching = sorted(folder.glob(name))
        if len(matching) > 1:
            shown = ", ".join(path.name for path in matching)
            raise ValueError(
                f"{folder} has several files that may be the {part}: {shown}; choose: pretrained.files.{part}=[NAME]"
            )
        if matching:
            return matching[0]
    return None


def _or(names: Sequence[str]) -> str:
    return f" (or {', '.join(names)})" if names else ""


def _check_kind(transformer: nn.Module, kind: str, source: str | Path) -> None:
    conditional = transformer.head.modulation is not None  # type: ignore[union-attr]
    if conditional != (kind == "var"):
        other = "var" if conditional else "star"
        raise ValueError(f"{source} is {'class-conditional VAR' if conditional else 'STAR'}: use kind={other}")
