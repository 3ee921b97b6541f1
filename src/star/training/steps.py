"""Where optimiser steps end, how many there are, and what is logged about them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from lightning import LightningModule, Trainer
from torch import Tensor


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimiser steps after this batch; it does after an epoch's last one, too."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def total_steps(trainer: Trainer) -> int:
    """How many steps the training has.

    Raises:
        ValueError: when nothing but the clock ends it.

    """
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise ValueError("learning-rate schedules need to know the length of the training: set trainer.max_steps")
    return int(steps)


class StepLog:
    """Logs the mean of what batches report over all that one step learns from: accumulated batches, all processes.

    So a curve is the same however a global batch is divided. Processes are asked on steps that loggers show alone.
    """

    def __init__(self) -> None:
        self._held: list[Tensor] = []

    def add(self, module: LightningModule, named: Mapping[str, Tensor], *, batch_size: int, batch_idx: int) -> None:
        """Take scalars of a batch; the same names from every batch of a step."""
        trainer = module.trainer
        self._held.append(torch.stack([value.detach().float() for value in named.values()]))
        if not ends_step(trainer, batch_idx):
            return
        means = torch.stack(self._held).mean(0)
        self._held = []
        shown = (trainer.global_step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if shown and trainer.world_size > 1:
            means = trainer.strategy.reduce(means, reduce_op="mean")
        module.log_dict(dict(zip(named, means, strict=True)), batch_size=batch_size)
