"""GELU in its tanh form (VAR), at half of PyTorch's time on a CPU."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

SLOPE = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715


def gelu(x: Tensor) -> Tensor:
    """Of x, of any shape: x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))).

    In bf16 on a CPU it is the form that this one approximates, x times the normal distribution's share below x, which
    oneDNN has in a quarter of the time: the two are at most 4.8e-4 apart, and bf16 rounds numbers above 0.125 by more.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        if not torch.is_grad_enabled():
            return _share(x).mul_(x)
        # a compiler decides itself what is kept
        changed: Tensor = x * _share(x) if torch.compiler.is_compiling() else _SigmoidForm.apply(x)
        return changed
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
        return F.gelu(x)
    return F.gelu(x, approximate="tanh")


def _share(x: Tensor) -> Tensor:
    """What is left of x: (1 + tanh u) / 2 as sigmoid(2 u), which takes a quarter of the time."""
    return x.square().mul_(SLOPE * CUBIC).add_(SLOPE).mul_(x).sigmoid_()


class _SigmoidForm(Function):
    """The same, with the sigmoid kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        share = _share(x)
        ctx.save_for_backward(x, share)
        return x * share

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, share = ctx.saved_tensors
        slope = x.square().mul_(3 * SLOPE * CUBIC).add_(SLOPE).mul_(x)
        slope.addcmul_(slope, share, value=-1)  # times 1 - sigmoid
        return slope.add_(1).mul_(share).mul_(grad)
