"""What a generator's checkpoint needs to draw pictures, and what to say when it lacks something."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from star.checkpoints import io
from star.checkpoints.fingerprint import fingerprint
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.attention import CrossAttention
from star.schedule import ScaleSchedule

log = logging.getLogger(__name__)

DRAWING = ("text_encoder", "transformer", "tokenizer")
# A sampler's training saves the generator, too.
WITH_GENERATOR = ("generator", "sampler")


def check_drawable(checkpoint: Mapping[str, Any], *, what: str) -> None:
    """Check that a checkpoint has all that pictures need, and the tokenizer that its generator learned from.

    Raises:
        ValueError: what is missing or wrong, and what mends it.

    """
    config, state = checkpoint["config"], checkpoint["state_dict"]
    if config.get("task") == "sampler" and "transformer" not in config["module"]:
        raise ValueError(f"{what} is a refiner alone: give its generator as ckpt=, and this as refiner=")
    if config.get("task") not in WITH_GENERATOR:
        raise ValueError(f"{what} is a checkpoint of task={config.get('task')}, pictures need one of task=generator")
    for name in DRAWING:
        if name not in config["module"]:
            mend = " (python -m star.checkpoints.convert kind=tokenizer adds one)" if name == "tokenizer" else ""
            raise ValueError(f"{what} has no {name}, which pictures need{mend}")
    recorded = config.get("tokenizer_hash")
    if recorded is not None and (found := fingerprint(io.part(state, "tokenizer."))) != recorded:
        raise ValueError(
            f"{what} was written for the tokenizer {recorded}, but has {found}: the two don't belong together"
        )


def check_widths(transformer: STARTransformer, pooled: int, context: int | None) -> None:
    """Raise a ValueError unless a text encoder's widths (pooled vector, hidden states) are what the generator takes."""
    start, cross = transformer.start, getattr(transformer.blocks[0], "cross_attention", None)
    wanted = (
        start.in_features if isinstance(start, nn.Linear) else transformer.width,
        cross.kv.in_features if isinstance(cross, CrossAttention) else None,
    )
    if wanted[0] != pooled or (wanted[1] is not None and wanted[1] != context):
        raise ValueError(
            f"the generator takes texts of width {wanted[0]} (pooled) and {wanted[1]} (hidden states), this text "
            f"encoder gives {pooled} and {context}: it was trained with another one"
        )


def check_tokens(transformer: STARTransformer, tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule) -> None:
    """Raise a ValueError unless a generator's codes are the tokenizer's and it has a level for each of the scales."""
    quantizer, level = tokenizer.quantizer, transformer.level
    ours = (transformer.head.logits.out_features, transformer.embed.in_features)
    theirs = (quantizer.codebook_size, quantizer.code_width)
    if ours != theirs:
        raise ValueError(
            f"the generator draws {ours[0]} codes of width {ours[1]}, the tokenizer has {theirs[0]} of width "
            f"{theirs[1]}: model.codebook_size and model.code_width follow the tokenizer unless they are set"
        )
    if level is not None and max(schedule.levels) >= level.num_embeddings:
        raise ValueError(
            f"the schedule '{schedule}' needs {max(schedule.levels) + 1} levels, the generator has "
            f"{level.num_embeddings}: model.num_levels follows the schedule unless it is set"
        )


def with_tokenizer(checkpoint: Mapping[str, Any], other: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    """A checkpoint with the tokenizer of another one.

    Raises:
        ValueError: when the other one has none.

    """
    tokenizer = other["config"].get("module", {}).get("tokenizer")
    found = {name: value for name, value in io.weights(other).items() if name.startswith("tokenizer.")}
    if tokenizer is None or not found:
        raise ValueError(f"{what} has no tokenizer")
    kept = {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith("tokenizer.")}
    config = checkpoint["config"]
    module = {**config["module"], "tokenizer": tokenizer}
    return {**checkpoint, "state_dict": kept | found, "config": {**config, "module": module}}


def drawn_with(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that decide a picture drawn without a refiner."""
    return {name: value for name, value in state.items() if name.partition(".")[0] in DRAWING}


def identity_of(text_encoder: nn.Module) -> str | None:
    """What names a text encoder's features; None when that takes weights that aren't here."""
    try:
        return str(text_encoder.identity)
    except FileNotFoundError as error:
        log.warning("the text encoder isn't named in the record, because its weights aren't here: %s", error)
        return None
