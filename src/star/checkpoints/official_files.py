"""Opening a released file: where its tensors are, without running its code and without copying it into memory."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

Source = Mapping[str, Any] | str | os.PathLike[str]


@dataclass(frozen=True)
class OfficialTensors:
    """The tensors of one model.

    Attributes:
        name: what messages call the source.
        tensors: by released name.
        sides: sides of the square token maps that the file says it was trained on; None when it doesn't say.

    """

    name: str
    tensors: Mapping[str, Tensor]
    sides: tuple[int, ...] | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_official(source: Source, part: str) -> OfficialTensors:
    """Find a model's tensors.

    Args:
        source: a state dict, flat or nested as STAR's training writes it, or a file of either, or a .safetensors file.
        part: the model's name in a nested one: `var_wo_ddp` or `vae_local`.

    Raises:
        ValueError: when the file can't be read as tensors, or holds none for `part`.

    """
    if isinstance(source, Mapping):
        return _unwrap(source, "the state dict", part)
    path = Path(source)
    return _unwrap(_open(path), str(path), part)


def _open(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # mapped, not read: pages come in as tensors are used and cost no memory of their own
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # what PyTorch's unpickler raises for bytes that are no pickle depends on the first of them
    except (pickle.UnpicklingError, SafetensorError, EOFError, RuntimeError, LookupError, ValueError) as error:
        raise ValueError(
            f"{path} can't be opened as a file of tensors (nothing else is ever unpickled): {error}"
        ) from error


def _unwrap(held: Mapping[str, Any], name: str, part: str) -> OfficialTensors:
    if not isinstance(held, Mapping):
        raise ValueError(f"{name} holds a {type(held).__name__}, not a state dict")
    sides = None
    trainer = held.get("trainer")
    if isinstance(trainer, Mapping):
        if part not in trainer:
            raise ValueError(f"{name} holds no {part!r} under 'trainer', only {', '.join(map(repr, trainer))}")
        sides = _sides(trainer.get("config"))
        held = trainer[part]
        if not isinstance(held, Mapping):
            raise ValueError(f"{name} holds a {type(held).__name__} called {part!r}, not a state dict")
    others = [key for key, value in held.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if others or not held:
        shown = ", ".join(map(repr, others[:8])) or "nothing"
        raise ValueError(f"{name} isn't a released state dict: besides tensors it holds {shown}")
    return OfficialTensors(name, held, sides)


def _sides(config: Any) -> tuple[int, ...] | None:
    sides = config.get("patch_nums") if isinstance(config, Mapping) else None
    known = isinstance(sides, list | tuple) and all(isinstance(side, int) for side in sides)
    return tuple(sides) if known and sides else None
