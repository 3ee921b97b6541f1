"""Randomness of training that is the same in a resumed run."""

from __future__ import annotations

import random
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from star.utils.seed import derive


class StepSeed(Callback):
    """Seeds dropout, noise and whatever else draws random numbers anew for every batch of training.

    They depend on the seed, the step, the process, and the batch's place among those accumulated for the step, alone.
    So a resumed training draws what the uninterrupted one drew, however many validations, pictures and interruptions
    lie between.

    Args:
        seed: of the run.

    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the first batch of a step, also where other numbers were accumulated before.

        Lightning tells by its count of batches where a step ends, and a resumed one would go on from three with the
        second of two.
        """
        held = trainer.fit_loop.epoch_loop.batch_progress.current
        missing = -held.ready % trainer.accumulate_grad_batches
        if held.ready < trainer.num_training_batches:  # else an epoch is over, whose last step may have had fewer
            for name in ("ready", "started", "processed", "completed"):
                setattr(held, name, getattr(held, name) + missing)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed Python's and PyTorch's generators, those of GPUs included."""
        place = batch_idx % trainer.accumulate_grad_batches
        seed = derive(self.seed, "training", trainer.global_step, place, trainer.global_rank)
        random.seed(seed)
        torch.manual_seed(seed)
