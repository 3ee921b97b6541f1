"""What a run was: its resolved configuration, beside and inside every checkpoint."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from star.utils.files import write_atomically

LIBRARIES = ("torch", "lightning", "hydra-core", "webdataset", "torchmetrics", "open_clip_torch")


class RunRecord(Callback):
    """Writes `config.json` into the run directory, and the configuration into every checkpoint under `config`.

    Args:
        config: plain containers, interpolations resolved.
        directory: the run directory.

    """

    def __init__(self, config: dict[str, Any], directory: str | Path) -> None:
        self.config = config
        self.directory = Path(directory)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        if trainer.is_global_zero:
            record = {
                "config": self.config,
                "versions": {name: version(name) for name in LIBRARIES},
                "world_size": trainer.world_size,
            }
            text = json.dumps(record, indent=2)
            write_atomically(self.directory / "config.json", lambda path: _write(path, text))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the configuration into the checkpoint, so that it can be opened without retyped flags."""
        checkpoint["config"] = self.config


def _write(path: Path, text: str) -> None:
    path.write_text(text)
