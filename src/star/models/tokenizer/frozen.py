"""Pretrained networks that help in training but are no part of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """Holds a network that is never trained and never saved, yet follows its owner from device to device.

    It appears in neither `parameters()` nor `state_dict()`, so no optimiser, checkpoint or DDP bucket ever sees it.
    Gradients still pass through it to its input.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._hidden = (network.eval().requires_grad_(False),)  # a tuple: modules don't look for children in it

    @property
    def network(self) -> nn.Module:
        """The network itself."""
        return self._hidden[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        self.network._apply(fn, recurse)
        return super()._apply(fn, recurse)


def read_weights(path: str | Path | None, *, name: str, source: str, key: str) -> dict[str, Tensor]:
    """The tensors of a published weight file, read without running any code in it.

    Args:
        path: the file, or a folder that holds it under its published name.
        name: what the file is called where it is published.
        source: where to get it.
        key: the configuration key of the path.

    Raises:
        FileNotFoundError: when there is no such file.

    """
    file = (
        Path(path).expanduser() / name if path and Path(path).expanduser().is_dir() else Path(path or name).expanduser()
    )
    if not path or not file.is_file():
        raise FileNotFoundError(f"{file} is missing: get {name} from {source} and set {key} to its path")
    return torch.load(file, map_location="cpu", weights_only=True)
