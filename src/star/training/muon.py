"""Muon (momentum, made orthogonal) for matrices and convolutions alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from star.utils.devices import cpu_has_bf16

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Muon with its update scaled to AdamW's size; a convolution counts as the matrix (out, in * height * width).

    On matrices it is `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, which refuses convolutions.

    Args:
        params: parameters of two or more dimensions, or groups of them.
        lr: learning rate, as for AdamW.
        momentum: decay rate of the averaged gradient (Nesterov's form).
        weight_decay: decoupled decay.
        iterations: Newton-Schulz steps per update; fewer are cheaper and less exact.

    Raises:
        ValueError: for a parameter with fewer dimensions, a momentum outside [0, 1), or no iteration.

    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        iterations: int = 5,
    ) -> None:
        check(momentum, iterations)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "iterations": iterations}
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim < 2:
                    raise ValueError(
                        f"Muon is for matrices and convolutions, got a parameter of {tuple(parameter.shape)}"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure, if any, then update every parameter that has a gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        matrix = gradient.lerp(average, group["momentum"]).flatten(1)
        scale = 0.2 * max(matrix.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(
            orthogonal(matrix, group["iterations"]).view_as(parameter).to(parameter), alpha=-group["lr"] * scale
        )


def check(momentum: float, iterations: int) -> None:
    """Raise a ValueError unless these are settings of Muon."""
    if not 0 <= momentum < 1 or iterations < 1:
        raise ValueError(
            f"Muon's momentum lies in [0, 1) and it takes at least one iteration, got {momentum} and {iterations}"
        )


def orthogonal(matrix: Tensor, iterations: int = 5) -> Tensor:
    """A matrix (N, M) with its singular values moved close to 1, in bfloat16 where that is fast (Newton-Schulz)."""
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16() if matrix.device.type != "cpu" or cpu_has_bf16() else matrix.float()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T.contiguous() if tall else x
