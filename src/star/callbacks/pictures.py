"""Pictures that show how training goes: samples and reconstructions, as files and in the loggers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from star.callbacks.ema import averages
from star.training.distributed import is_sharding
from star.types import Batch


class Pictures(Callback):
    """Asks the module for `sample_images(batch)` at fixed steps and shows the grids.

    Args:
        every_n_steps: how often.
        num_images: how many images of the batch.
        directory: where `NAME_00001000.png` are written.

    Raises:
        ValueError: for less than one step or picture.

    """

    def __init__(self, *, every_n_steps: int, num_images: int = 8, directory: str | Path) -> None:
        if every_n_steps < 1 or num_images < 1:
            raise ValueError(
                "callbacks.pictures takes every_n_steps and num_images from 1 (callbacks.pictures=null for none), got "
                f"{every_n_steps} and {num_images}"
            )
        self.every_n_steps = every_n_steps
        self.num_images = num_images
        self.directory = Path(directory)
        self._shown = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Show pictures if it is time."""
        step = trainer.global_step
        # Where a model is spread over processes, all of them have to draw for one to show.
        draws = trainer.is_global_zero or is_sharding(trainer.strategy)
        if step == self._shown or step % self.every_n_steps or not draws:
            return
        self._shown = step
        few = batch.first(self.num_images)
        ema = averages(trainer)
        training = pl_module.training
        draw: Callable[[Batch], dict[str, Tensor]] = pl_module.sample_images  # type: ignore[assignment]
        pl_module.eval()
        with (
            torch.no_grad(),
            ema.swapped(pl_module) if ema else nullcontext(),
            trainer.precision_plugin.val_step_context(),
        ):
            shown = draw(few)
        pl_module.train(training)
        for name, images in shown.items() if trainer.is_global_zero else ():
            self._show(trainer, name, images, few.captions, step)

    def _show(self, trainer: Trainer, name: str, images: Tensor, captions: list[str], step: int) -> None:
        grid = make_grid(images.float().cpu(), nrow=max(1, len(images) if len(images) <= 8 else 8), padding=2)
        pixels = grid.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        self.directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.directory / f"{name}_{step:08d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, pixels, step, dataformats="HWC")
            elif hasattr(logger, "log_image"):
                logger.log_image(key=name, images=[pixels], step=step, caption=[" | ".join(captions)])
