"""Finding, opening and loading checkpoints of our own."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from star.checkpoints.pretrained import is_pretrained, read_pretrained
from star.checkpoints.report import compare
from star.checkpoints.sharded import is_sharded
from star.utils.files import set_aside

State = Mapping[str, Tensor]


def find(path: str | Path) -> Path:
    """The checkpoint of a run directory (its `checkpoints/last.ckpt`), or the file or folder itself.

    Raises:
        FileNotFoundError: when there is none, with what was looked for.

    """
    given = Path(path)
    if given.is_file() or is_pretrained(given) or is_sharded(given):
        return given
    if given.is_dir():
        last = given / "checkpoints" / "last.ckpt"
        # A run that died while a sharded checkpoint took the place of the one before has that one beside it.
        for candidate in (last, set_aside(last)):
            if candidate.is_file() or is_sharded(candidate):
                return candidate
        raise FileNotFoundError(f"the run directory {given} has no checkpoint: {last} does not exist")
    raise FileNotFoundError(f"no checkpoint at {given}: give a run directory, a .ckpt file or a converted folder")


def read(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """Open a checkpoint or a converted folder of this project: tensors and plain containers only, never code.

    Args:
        path: what `find` takes; a sharded checkpoint is put together in memory.
        mmap: map the checkpoint's tensors instead of reading them, as those of a converted folder are in any case.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when the file isn't a checkpoint, or holds anything but tensors and plain containers.

    """
    file = find(path)
    if is_sharded(file):
        from star.checkpoints.sharded_reader import read_sharded

        return read_sharded(file)
    if file.is_dir():
        return read_pretrained(file)
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is not a checkpoint (or only a part of one): expected a file that torch.save wrote")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file} holds more than tensors and plain containers and was not opened: {error}") from error
    except RuntimeError as error:
        raise ValueError(f"{file} can't be read: {error}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{file} has no state_dict: it is not a checkpoint of this project")
    return checkpoint


def is_ours(path: str | Path) -> bool:
    """Whether a path is a checkpoint, run directory or converted folder of this project, and no released file."""
    given = Path(path)
    if given.is_dir():
        last = given / "checkpoints" / "last.ckpt"
        return is_pretrained(given) or is_sharded(given) or last.is_file() or is_sharded(last)
    if given.suffix == ".safetensors" or not zipfile.is_zipfile(given):
        return False
    try:
        held = torch.load(given, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError):
        return False  # whoever reads it says what is wrong
    return isinstance(held, dict) and "state_dict" in held and "config" in held


def weights(checkpoint: Mapping[str, Any], *, averaged: bool = True) -> dict[str, Tensor]:
    """The model's tensors; with `averaged`, the moving averages in place of the last step's where there are any."""
    state = dict(checkpoint["state_dict"])
    if averaged:
        state |= checkpoint.get("averaged", {}).get("weights", {})
    return state


def part(state: State, prefix: str) -> dict[str, Tensor]:
    """The tensors of one submodule, with the prefix cut off."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def load(module: nn.Module, state: State, *, what: str) -> None:
    """Load all of a module's tensors, or none.

    Raises:
        ValueError: a table of every missing, unexpected and reshaped tensor; `what` names the checkpoint in it.

    """
    shapes = [{name: tuple(value.shape) for name, value in tensors.items()} for tensors in (module.state_dict(), state)]
    compare(shapes[0], shapes[1], source=what)
    module.load_state_dict(dict(state), strict=True)


def config(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """The resolved configuration of the run that wrote the checkpoint.

    Raises:
        ValueError: when it has none.

    """
    if not isinstance(checkpoint.get("config"), dict):
        raise ValueError(f"{path} holds no configuration, so the model can't be rebuilt from it")
    return checkpoint["config"]


def export(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint without what only resuming needs: averaged weights, configuration, step."""
    return {
        "state_dict": {name: value.clone() for name, value in weights(checkpoint).items()},
        "config": checkpoint["config"],
        "global_step": checkpoint.get("global_step", 0),
    }
