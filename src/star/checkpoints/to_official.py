"""Checkpoints of ours as files that the releases' own code opens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from star.checkpoints import io
from star.checkpoints.build import build
from star.checkpoints.official_writers import dump_refiner, dump_tokenizer, dump_transformer
from star.checkpoints.tensors import write_tensors
from star.schedule import ScaleSchedule
from star.utils.files import write_atomically
from star.utils.instantiate import instantiate_trusted

NUM_CLASSES = 1000  # of the class embedding that STAR carries along without using it


def write_official(checkpoint: Mapping[str, Any], path: Path, *, kind: str | None, what: str) -> None:
    """Write a checkpoint's model as its release would have written it.

    Args:
        checkpoint: of ours, as `io.read` gives it.
        path: a .pth, nested as STAR writes it, flat for VAR and the tokenizer; or a .safetensors, always flat.
        kind: `star` or `var`: the generator; `tokenizer`; `refiner`: it and its generator. None takes the generator, or
            what there is.
        what: what messages call the checkpoint.

    Raises:
        FileExistsError: when the file is there already.
        ValueError: for another suffix, a part that the checkpoint doesn't have, or a model that no release knows.

    """
    if path.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"the released layouts are written as .pth or .safetensors, got out={path}")
    if path.exists():
        raise FileExistsError(f"{path} is there already: choose another out=")
    module = checkpoint["config"]["module"]
    conditional = module.get("transformer", {}).get("adaptive_norm", "none") != "none"
    present = {"star": "transformer", "var": "transformer", "refiner": "refiner", "tokenizer": "tokenizer"}
    kind = kind or next(
        name for name in ("var" if conditional else "star", "refiner", "tokenizer") if present[name] in module
    )
    if present[kind] not in module or (kind in ("star", "var") and conditional != (kind == "var")):
        raise ValueError(
            f"{what} holds no {kind}, only {', '.join(name for name in present.values() if name in module)}"
        )
    tensors = _tensors(checkpoint, kind, what)
    if path.suffix == ".safetensors":
        write_tensors(path, tensors)
    else:
        held = tensors if kind in ("var", "tokenizer") else _nested(checkpoint, tensors, what)
        write_atomically(path, lambda partial: torch.save(held, partial))


def _tensors(checkpoint: Mapping[str, Any], kind: str, what: str) -> dict[str, Tensor]:
    if kind == "tokenizer":
        return dump_tokenizer(_part(checkpoint, "tokenizer", what), schedule=_schedule(checkpoint))
    sampler = dump_refiner(_part(checkpoint, "refiner", what)) if kind == "refiner" else {}
    if "transformer" not in checkpoint["config"]["module"]:
        return sampler
    transformer = _part(checkpoint, "transformer", what)
    classes = io.weights(checkpoint).get("text_encoder.embedding.weight") if kind == "var" else None
    if classes is None:
        classes = transformer.embed.weight.new_zeros(NUM_CLASSES + 1, transformer.width)
    return dump_transformer(transformer, class_embedding=classes) | sampler


def _nested(checkpoint: Mapping[str, Any], tensors: Mapping[str, Tensor], what: str) -> dict[str, Any]:
    """What STAR's training saves, and its inference scripts look into."""
    schedule = _schedule(checkpoint)
    trainer: dict[str, Any] = {"var_wo_ddp": tensors}
    if all(height == width for height, width in schedule.sizes):
        trainer["config"] = {"patch_nums": [height for height, _ in schedule.sizes]}
    if "tokenizer" in checkpoint["config"]["module"]:
        trainer["vae_local"] = dump_tokenizer(_part(checkpoint, "tokenizer", what), schedule=schedule)
    return {"epoch": 0, "iter": 0, "trainer": trainer}


def _schedule(checkpoint: Mapping[str, Any]) -> ScaleSchedule:
    schedule: ScaleSchedule = instantiate_trusted(checkpoint["config"]["module"]["schedule"])
    return schedule


def _part(checkpoint: Mapping[str, Any], name: str, what: str) -> Any:
    state = io.part(io.weights(checkpoint), f"{name}.")
    return build(checkpoint["config"]["module"][name], state, what=f"{name} of {what}")
