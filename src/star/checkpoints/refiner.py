"""Refiners by themselves: written out of a sampler's training, found beside a generator, and matched with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from star.checkpoints import io
from star.checkpoints.fingerprint import fingerprint
from star.checkpoints.parts import drawn_with

log = logging.getLogger(__name__)

FILE = "refiner.ckpt"

Checkpoint = Mapping[str, Any]


def export_refiner(checkpoint: Checkpoint) -> dict[str, Any]:
    """A sampler's training without the generator: the refiner's weights, what builds it, and whose it is.

    Raises:
        ValueError: when the checkpoint has no refiner.

    """
    config = checkpoint["config"]
    if not has_refiner(checkpoint):
        raise ValueError(f"a checkpoint of task={config.get('task')} has no refiner to export")
    module = {name: config["module"][name] for name in ("refiner", "schedule")}
    kept = {"task": "sampler", "module": module, "generator_hash": generator_of(checkpoint)}
    if config.get("sampling") is not None:
        kept["sampling"] = config["sampling"]
    state = {name: value.clone() for name, value in io.weights(checkpoint).items() if name.startswith("refiner.")}
    return {"state_dict": state, "config": kept, "global_step": checkpoint.get("global_step", 0)}


def check_own(checkpoint: Checkpoint, *, what: str) -> None:
    """Raise a ValueError when the refiner inside of a checkpoint is said to be another generator's."""
    _check_generator(generator_of(checkpoint), drawn_with(checkpoint["state_dict"]), what, what)


def has_refiner(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds a refiner, weights and all."""
    named = any(name.startswith("refiner.") for name in checkpoint["state_dict"])
    return named and checkpoint["config"].get("module", {}).get("refiner") is not None


def generator_of(checkpoint: Checkpoint) -> str | None:
    """The fingerprint of the generator that a refiner was trained on: as recorded, or of the one beside it."""
    recorded = checkpoint["config"].get("generator_hash")
    if recorded is not None:
        return str(recorded)
    beside = drawn_with(io.weights(checkpoint))
    return fingerprint(beside) if any(name.startswith("transformer.") for name in beside) else None


def beside(path: str | Path) -> Path | None:
    """The `refiner.ckpt` in the folder that a generator's checkpoint lies in, if there is one."""
    file = Path(path).parent / FILE
    return file if file.is_file() else None


def with_refiner(checkpoint: Checkpoint, path: str | Path, *, what: str) -> dict[str, Any]:
    """A generator's checkpoint with the refiner of another file.

    Args:
        checkpoint: the generator's, `state_dict` and `config`.
        path: a `refiner.ckpt`, or a run directory, checkpoint or converted folder of task=sampler.
        what: what messages call the generator.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it has no refiner, or one that was trained on another generator.

    """
    other = io.read(path, mmap=True)
    if not has_refiner({**other, "config": io.config(other, path)}):
        raise ValueError(f"refiner={path} is of task={other['config'].get('task')} and has no refiner")
    state = checkpoint["state_dict"]
    _check_generator(generator_of(other), drawn_with(state), path, what)
    refiner = {name: value for name, value in io.weights(other).items() if name.startswith("refiner.")}
    kept = {name: value for name, value in state.items() if not name.startswith("refiner.")}
    config = checkpoint["config"]
    module = {**config["module"], "refiner": other["config"]["module"]["refiner"]}
    return {**checkpoint, "state_dict": kept | refiner, "config": {**config, "module": module}}


def _check_generator(trained_on: str | None, generator: Mapping[str, Tensor], path: str | Path, what: str) -> None:
    if trained_on is None:
        log.info("refiner=%s doesn't say which generator it was trained on", path)
        return
    found = fingerprint(generator)
    # of weights that are stored in 16 bits a training sees the fp32 copy
    widened = {
        name: value.to(torch.float32) if value.is_floating_point() else value for name, value in generator.items()
    }
    if trained_on not in (found, fingerprint(widened)):
        raise ValueError(
            f"refiner={path} was trained on the generator {trained_on}, but {what} is {found}: the two don't belong "
            "together. Name the refiner of this one with refiner=PATH, or train one: train.py task=sampler init_from="
        )
