"""Muon (momentum, made orthogonal) for matrices and convolutions alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from star.utils.devices import cpu_has_bf16

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_TOGETHER = 2**23  # elements: so many are made orthogonal at once


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
            for parameters in alike(parameter for parameter in group["params"] if parameter.grad is not None):
                self._update(parameters, group)
        return loss

    def _update(self, parameters: Sequence[nn.Parameter], group: dict[str, Any]) -> None:
        """One step of parameters of one shape."""
        wanted = [self._direction(parameter, group["momentum"]) for parameter in parameters]
        scale = 0.2 * max(wanted[0].shape) ** 0.5
        if len(wanted) > 1:
            updates = list(orthogonal(torch.stack(wanted), group["iterations"]))
        else:
            updates = [orthogonal(wanted[0], group["iterations"])]
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.view_as(parameter).to(parameter), alpha=-group["lr"] * scale)

    def _direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """The averaged gradient, of which a little more is taken from the newest one: a matrix."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum).flatten(1)


def alike(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one shape together, since one product of many small matrices is faster than many products.

    Large ones, and those that are spread over processes, are alone.
    """
    found: dict[object, list[nn.Parameter]] = {}
    for parameter in parameters:
        if isinstance(parameter, DTensor):
            yield [parameter]
        else:
            found.setdefault((parameter.shape, parameter.dtype, parameter.device), []).append(parameter)
    for same in found.values():
        count = max(_TOGETHER // same[0].numel(), 1)
        yield from (same[first : first + count] for first in range(0, len(same), count))


def check(momentum: float, iterations: int) -> None:
    """Raise a ValueError unless these are settings of Muon."""
    if not 0 <= momentum < 1 or iterations < 1:
        raise ValueError(
            f"Muon's momentum lies in [0, 1) and it takes at least one iteration, got {momentum} and {iterations}"
        )


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Matrices (N, M) or (B, N, M), singular values moved close to 1 (Newton-Schulz), in bf16 where that is fast."""
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16() if matrices.device.type != "cpu" or cpu_has_bf16() else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    add: Callable[..., Tensor] = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(iterations):
        gram = x @ x.mT
        x = add(x, add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT.contiguous() if tall else x
