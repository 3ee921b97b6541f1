"""Tokenizer and discriminator each have an optimiser and a schedule; Lightning steps them as one.

Under manual optimisation, which Lightning offers for such cases, it clips no gradients, accumulates none, saves no
checkpoints by time and counts two steps for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from star.training.optim import JointOptimizer


class RivalOptimizer(JointOptimizer):
    """The optimisers of networks that have no parameter in common, of which any may itself be joint."""

    def _share(self) -> None:
        super()._share()
        for optimizer in self.optimizers:
            if isinstance(optimizer, JointOptimizer):
                optimizer._share()


class RivalSchedules:
    """Steps the schedule of each optimiser, some from a later step on.

    Args:
        optimizer: what the schedules' optimisers are part of.
        schedulers: of each.
        begins: the step at which each begins; until then its rate is that of its first step.

    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], begins: Sequence[int]) -> None:
        self.optimizer = optimizer
        self.schedulers = tuple(schedulers)
        self.begins = tuple(begins)
        self.last_epoch = 0

    def step(self) -> None:
        """Set the rates of the next step."""
        self.last_epoch += 1
        for scheduler, begin in zip(self.schedulers, self.begins, strict=True):
            if self.last_epoch > begin:
                scheduler.step()

    def get_last_lr(self) -> list[Any]:
        """The rates of all parameter groups."""
        return [rate for scheduler in self.schedulers for rate in scheduler.get_last_lr()]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {"last_epoch": self.last_epoch, "schedulers": [scheduler.state_dict() for scheduler in self.schedulers]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where another training stopped."""
        self.last_epoch = state_dict["last_epoch"]
        for scheduler, state in zip(self.schedulers, state_dict["schedulers"], strict=True):
            scheduler.load_state_dict(state)
