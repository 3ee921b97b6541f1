"""When checkpoints are written."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from star.training.steps import ends_step


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, and also after the last step; never between batches accumulated for one step.

    Such a checkpoint would know the place in the data and not the gradients: a training that goes on from it loses
    batches. For the same reason none is written when training breaks off in the middle of a step; `StopOnSignal` writes
    one where a step has ended.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint if it is time and a step has ended."""
        if not ends_step(trainer, batch_idx):
            return
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == trainer.max_steps:
            self._save_final(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write one if something else than the number of steps ended the training."""
        self._save_final(trainer)

    def _save_final(self, trainer: Trainer) -> None:
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
