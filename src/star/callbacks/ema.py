"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from star.training.distributed import placed_like


class EMA(Callback):
    """Keeps averages of everything that is trained; validation, pictures and checkpoints' readers use them.

    Only trained parameters are averaged, so a frozen text encoder costs nothing. Of a model that is spread over
    processes each keeps the averages of its own part. The averages lie in the checkpoint under `averaged` and are
    resumed.

    Args:
        decay: share of the old average kept at each step; the first steps use (1 + n) / (10 + n) while it is smaller.

    Raises:
        ValueError: for a decay outside [0, 1).

    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"an EMA decay lies in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.weights: dict[str, Tensor] = {}
        self._step = 0
        self._swapped = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights as they are, or go on with the checkpoint's averages, placed like the weights."""
        trained = _trained(pl_module)
        kept = {name: placed_like(self.weights[name], value) for name, value in trained.items() if name in self.weights}
        self.weights = {name: kept.get(name, value.detach().clone()) for name, value in trained.items()}
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Move the averages, once per optimiser step."""
        if trainer.global_step == self._step:
            return  # a batch whose gradients are only accumulated
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        trained = _trained(pl_module)
        torch._foreach_lerp_(
            [self.weights[name] for name in trained], [value.detach() for value in trained.values()], 1 - decay
        )

    @contextmanager
    def swapped(self, pl_module: LightningModule) -> Iterator[None]:
        """The module with averaged weights, for as long as the context lasts."""
        self._exchange(pl_module)
        try:
            yield
        finally:
            self._exchange(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the averages."""
        self._exchange(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on training with the last step's weights."""
        self._exchange(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the averages into the checkpoint; an interrupted validation is undone first, in the checkpoint alone."""
        kept = {name: value.clone() for name, value in self.weights.items()}
        if self._swapped:
            kept, last = {name: checkpoint["state_dict"][name].clone() for name in kept}, kept
            checkpoint["state_dict"] |= last
        checkpoint["averaged"] = {"weights": kept, "updates": self.updates}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take them out again."""
        held = checkpoint.get("averaged", {})
        self.weights, self.updates = dict(held.get("weights", {})), int(held.get("updates", 0))

    @torch.no_grad()
    def _exchange(self, pl_module: LightningModule) -> None:
        self._swapped = not self._swapped
        for name, parameter in _trained(pl_module).items():
            if name in self.weights:
                held = self.weights[name].clone()
                self.weights[name].copy_(parameter)
                parameter.copy_(held)


def _trained(module: LightningModule) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def averages(trainer: Trainer) -> EMA | None:
    """The trainer's EMA callback, if it has one."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), None)  # type: ignore[attr-defined]
