"""How Lightning reads and writes checkpoints here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from star.checkpoints.sharded import is_sharded
from star.utils.files import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints: written beside their place and renamed; read without unpickling more than tensors."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint to a local path."""
        del storage_options
        write_atomically(Path(path), lambda partial: torch.save(checkpoint, partial))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint; only tensors and plain containers, whatever is asked for. A sharded one becomes whole."""
        del weights_only
        if is_sharded(path):
            from star.checkpoints.sharded_reader import read_sharded

            return read_sharded(path)
        return super().load_checkpoint(path, map_location, weights_only=True)
