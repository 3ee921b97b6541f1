"""What happens when gradients are no longer finite: training stops, or goes back to the last good checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from star.callbacks.ema import averages
from star.callbacks.norms import norm

log = logging.getLogger(__name__)

ACTIONS = ("stop", "rollback")


class NanGuard(Callback):
    """Looks at the gradients before every step, so that nan and inf never reach the weights, nor these a checkpoint.

    `stop` ends the training with an error; the checkpoints that are there are good. `rollback` goes back to the newest
    one: weights, optimiser and averages are those of then, while steps, learning rate and data go on, so that the
    same samples don't come again.

    A gradient scaler (fp16) meets infinite gradients whenever it tries a larger scale, and leaves the step out itself:
    with one, only several such steps in a row count.

    The look costs one pass over the gradients, and a GPU is waited for.

    Args:
        action: `stop` or `rollback`.
        patience: how many steps in a row a gradient scaler may leave out.
        max_rollbacks: how often training goes back to the same checkpoint before it stops.

    Raises:
        ValueError: for another action, or a negative number.

    """

    def __init__(self, action: str = "stop", *, patience: int = 20, max_rollbacks: int = 3) -> None:
        if action not in ACTIONS:
            raise ValueError(f"callbacks.nan_guard.action is one of {', '.join(ACTIONS)}, got {action!r}")
        if min(patience, max_rollbacks) < 0:
            raise ValueError(f"patience and max_rollbacks can't be negative, got {patience} and {max_rollbacks}")
        self.action = action
        self.patience = patience
        self.max_rollbacks = max_rollbacks
        self._in_a_row = 0
        self._due = False
        self._went_back: tuple[int, int] = (-1, 0)  # to the checkpoint of which step, and how often

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Look at the gradients.

        Raises:
            FloatingPointError: when they aren't finite and training shall stop.

        """
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        if not gradients or bool(norm(gradients).isfinite()):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled and self._in_a_row <= self.patience:
            return
        if self.action == "stop":
            raise FloatingPointError(
                f"step {trainer.global_step + 1}: the gradients are not finite, so training stops before they reach "
                "the weights. The last checkpoint is good: go on from it (resume_from=auto) with a lower optim.lr or "
                "trainer.precision=32-true, or set callbacks.nan_guard.action=rollback"
            )
        self._due = True
        for parameter in pl_module.parameters() if not scaled else ():
            parameter.grad = None  # the optimiser leaves what has no gradient as it is

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Go back, once the step that led nowhere is over."""
        if self._due:
            self._due, self._in_a_row = False, 0
            self._roll_back(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let no checkpoint be written whose weights aren't finite.

        Raises:
            FloatingPointError: when one would be.

        """
        if not trainer.strategy.reduce_boolean_decision(finite(pl_module), all=True):
            raise FloatingPointError(
                f"step {trainer.global_step}: the weights are not finite, so no checkpoint is written; "
                "the one before is good"
            )

    def _roll_back(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = Path(trainer.strategy.broadcast(str(newest_checkpoint(trainer) or "")))
        if not path.name:
            raise FloatingPointError(
                f"step {trainer.global_step}: the gradients are not finite, and no checkpoint is there to go back to"
            )
        step = restore(trainer, pl_module, path)
        times = self._went_back[1] + 1 if self._went_back[0] == step else 1
        if times > self.max_rollbacks:
            raise FloatingPointError(
                f"step {trainer.global_step}: the gradients are not finite, after {self.max_rollbacks} rollbacks to "
                f"{path}: lower optim.lr, or set trainer.precision=32-true"
            )
        self._went_back = (step, times)
        log.warning(
            "step %d: the gradients were not finite; back to the weights of step %d (%s), rollback %d of %d",
            trainer.global_step,
            step,
            path,
            times,
            self.max_rollbacks,
        )


def newest_checkpoint(trainer: Trainer) -> Path | None:
    """What was written last into the folders of the trainer's checkpoint callbacks."""
    folders = {Path(found) for one in trainer.checkpoint_callbacks if (found := getattr(one, "dirpath", None))}
    files = [file for folder in folders if folder.is_dir() for file in folder.glob("[!.]*.ckpt")]
    return max(files, key=lambda file: file.stat().st_mtime_ns, default=None)


def restore(trainer: Trainer, pl_module: LightningModule, path: Path) -> int:
    """Weights, optimisers and averages of a checkpoint; learning rates stay. Returns the checkpoint's step."""
    strategy = trainer.strategy
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]
    checkpoint = strategy.load_checkpoint(path, weights_only=True)
    strategy.load_model_state_dict(checkpoint, strict=pl_module.strict_loading)
    if strategy.lightning_restore_optimizer:
        strategy.load_optimizer_state_dict(checkpoint)
    for optimizer, held in zip(trainer.optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, held, strict=True):
            group["lr"] = rate
    if (ema := averages(trainer)) is not None:
        ema.on_load_checkpoint(trainer, pl_module, checkpoint)
        ema.on_train_start(trainer, pl_module)
    return int(checkpoint["global_step"])


def finite(module: nn.Module) -> bool:
    """Whether all trained weights are; of spread ones this process's part."""
    trained = [_local(parameter.detach()) for parameter in module.parameters() if parameter.requires_grad]
    return not trained or bool(torch.stack([part.isfinite().all() for part in trained]).all())


def _local(value: Tensor) -> Tensor:
    own = getattr(value, "to_local", None)
    return value if own is None else own()
