"""Optimisers and learning-rate schedules, built from named parameters once the length of the training is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from star.training.muon import Muon, check

Named = Iterable[tuple[str, nn.Parameter]]
UNDECAYED = ("position.table", "start_position", "level.weight", "log_scale", "codebook", "embedding", "offsets")


@dataclass(frozen=True)
class WarmupLinear:
    """VAR's "lin0": the rate rises linearly from `start`, then falls linearly to `end` of it.

    Args:
        warmup: share of all steps that the rise takes.
        plateau: share of all steps, counted from the beginning, until which the rate stays at its peak.
        start: rate of the first step over the peak.
        end: rate of the last step over the peak.

    Raises:
        ValueError: for what isn't a share.

    """

    warmup: float = 0.02
    plateau: float = 0.05
    start: float = 0.005
    end: float = 0.01

    def __post_init__(self) -> None:
        """Check the shares."""
        if wrong := {name: value for name, value in vars(self).items() if not 0 <= value <= 1}:
            raise ValueError(
                "warmup and plateau are shares of all steps (not numbers of steps), start and end are shares of the "
                f"peak rate, all in [0, 1]; got {wrong}"
            )

    def __call__(self, step: int, total_steps: int) -> float:
        """Factor of the learning rate at `step` of `total_steps`."""
        progress = step / max(total_steps, 1)
        if progress < self.warmup:
            return self.start + (1 - self.start) * progress / self.warmup
        begin = max(self.warmup, self.plateau)
        if progress <= begin:
            return 1.0
        return 1 - (1 - self.end) * min((progress - begin) / (1 - begin), 1.0)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay belongs on a parameter: on matrices; not on biases, gains, embeddings or positions."""
    return parameter.ndim > 1 and not any(part in name for part in UNDECAYED)


def groups(named: Named, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups, with and without decay; frozen parameters are left out."""
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    split = {True: [], False: []}  # type: dict[bool, list[nn.Parameter]]
    for name, parameter in trained:
        split[decays(name, parameter)].append(parameter)
    return [
        {"params": split[decayed], "weight_decay": weight_decay if decayed else 0.0}
        for decayed in (True, False)
        if split[decayed]
    ]


def check_adam(lr: float, betas: Sequence[float], weight_decay: float) -> None:
    """Check what Adam, Muon's other half, is given.

    Raises:
        ValueError: for a rate that isn't positive, a negative decay, or betas that aren't two numbers in [0, 1).

    """
    if lr <= 0:
        raise ValueError(f"a learning rate must be positive, got {lr}")
    if weight_decay < 0:
        raise ValueError(f"weight_decay can't be negative, got {weight_decay}")
    if not isinstance(betas, list | tuple) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas are two numbers in [0, 1), such as [0.9, 0.95], got {betas}")


class AdamW:
    """AdamW with decay only where it belongs (STAR: betas 0.9 and 0.95, decay 0.05).

    Args:
        lr: peak learning rate.
        betas: decay rates of the moments.
        weight_decay: decoupled decay of matrices.
        schedule: learning-rate factor from (step, total steps).
        fused: PyTorch's fused kernel; None lets it decide by device.

    """

    def __init__(
        self,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        schedule: Callable[[int, int], float] | None = None,
        fused: bool | None = None,
    ) -> None:
        check_adam(lr, betas, weight_decay)
        self.lr = lr
        self.betas = (betas[0], betas[1])
        self.weight_decay = weight_decay
        self.schedule = schedule or WarmupLinear()
        self.fused = fused

    def build(self, named: Named, total_steps: int) -> tuple[Optimizer, LambdaLR]:
        """The optimiser of named parameters, and its schedule over `total_steps` optimiser steps."""
        optimizer = torch.optim.AdamW(groups(named, self.weight_decay), lr=self.lr, betas=self.betas, fused=self.fused)
        # a fused step could unscale fp16's gradients by itself; Lightning then refuses to clip, and in bf16, too
        optimizer._step_supports_amp_scaling = False
        return optimizer, LambdaLR(optimizer, lambda step: self.schedule(step, total_steps))


class MuonAdamW:
    """Muon for the matrices of the blocks, AdamW for everything else: learns far more per step in small budgets.

    Args:
        lr: peak learning rate of both; Muon's update is scaled to AdamW's size (`match_rms_adamw`).
        blocks: what the names of the matrices (and convolutions) for Muon contain; "" takes all of them.
        momentum, iterations: Muon's.
        betas, weight_decay, schedule: as for `AdamW`.

    """

    def __init__(
        self,
        lr: float,
        *,
        blocks: str = "blocks.",
        momentum: float = 0.95,
        iterations: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        schedule: Callable[[int, int], float] | None = None,
    ) -> None:
        check_adam(lr, betas, weight_decay)
        check(momentum, iterations)
        self.lr = lr
        self.blocks = blocks
        self.momentum = momentum
        self.iterations = iterations
        self.betas = (betas[0], betas[1])
        self.weight_decay = weight_decay
        self.schedule = schedule or WarmupLinear()

    def build(self, named: Named, total_steps: int) -> tuple[Optimizer, LambdaLR]:
        """The joint optimiser of named parameters, and its schedule over `total_steps` optimiser steps."""
        trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        matrices = [pair for pair in trained if self.blocks in pair[0] and decays(*pair)]
        if not matrices:
            raise ValueError(f"no trained matrix has {self.blocks!r} in its name, so there is nothing for Muon")
        muon = Muon(
            [parameter for _, parameter in matrices],
            self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            iterations=self.iterations,
        )
        taken = {id(parameter) for _, parameter in matrices}
        rest = [pair for pair in trained if id(pair[1]) not in taken]
        adamw = torch.optim.AdamW(groups(rest, self.weight_decay), lr=self.lr, betas=self.betas)
        optimizer = JointOptimizer(muon, adamw)
        return optimizer, LambdaLR(optimizer, lambda step: self.schedule(step, total_steps))


class JointOptimizer(Optimizer):
    """Several optimisers behind one interface, sharing groups and state: Lightning steps only one by itself."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._share()

    def _share(self) -> None:
        first = 0
        for optimizer in self.optimizers:
            count = len(optimizer.param_groups)
            optimizer.param_groups = self.param_groups[first : first + count]
            optimizer.state = self.state
            first += count

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure once, then step every optimiser."""
        with torch.enable_grad():
            loss: Tensor | None = None if closure is None else closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load, then share the new groups and state again. The argument has the name that DCP passes it by."""
        super().load_state_dict(state_dict)
        self._share()
