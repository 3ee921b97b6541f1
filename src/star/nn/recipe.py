"""Tensors that are made again for the backward pass because that is cheaper than keeping them.

Norms, rotations and activations take a few per cent of a step's time and most of what it keeps: plain autograd holds
both what goes into them and what comes out. A `Recipe` holds what goes in. The products behind it (`linear` here,
`star.nn.prefix.attend_prefix`) make the rest twice: forward, and once more backward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from star.nn.products import faster, product


class _Pass(threading.local):
    """Of this thread."""

    again = False  # whether something is made for the second time


_pass = _Pass()


class Recipe:
    """What `make(*inputs)` would give: one tensor or several.

    Args:
        make: cheap, without randomness; everything that needs a gradient comes in through `inputs`. Modules in it are
            called by `run`.
        inputs: what is kept; None stays None.

    """

    def __init__(self, make: Callable[..., Any], *inputs: Tensor | None) -> None:
        self.make = make
        self.inputs = inputs

    def __call__(self) -> Any:
        """Make it, in the ordinary way."""
        return self.make(*self.inputs)

    def value(self) -> Any:
        """The same; for the backward pass the inputs are kept and nothing in between."""
        if not worthwhile(*self.inputs):
            return self()
        with plainly(self.inputs):
            return _Make.apply(self.make, *self.inputs)


def worthwhile(*tensors: Tensor | None) -> bool:
    """Whether there will be a backward pass, and no compiler that decides itself what is kept for it."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def linear(x: Tensor | Recipe, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of a tensor (..., C), or of a recipe for one."""
    if isinstance(x, Tensor):
        if not (worthwhile(weight) and faster(x, weight)):
            return F.linear(x, weight, bias)
        x = Recipe(_same, x)
    if not worthwhile(weight):  # a frozen weight needs no input for its gradient: nothing would be kept anyway
        return F.linear(x(), weight, bias)
    device = weight.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    with plainly(x.inputs):
        multiplied: Tensor = _Linear.apply(x.make, weight, bias, *x.inputs)
    return multiplied


def _same(x: Tensor) -> Tensor:
    return x


def run(module: nn.Module, *inputs: Any) -> Any:
    """A module's output, for recipes that contain modules: when it is made again, without the module's hooks.

    They have seen it; and those of PyTorch's flop counter can't run in a backward pass.
    """
    return module.forward(*inputs) if _pass.again else module(*inputs)


def call(layer: nn.Module, x: Tensor | Recipe) -> Tensor:
    """A layer's output; `linear` where the layer is a plain one that nobody watches, wraps or has put in its place."""
    if type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks):
        return linear(x, layer.weight, layer.bias)
    found: Tensor = layer(x if isinstance(x, Tensor) else x())
    return found


def made_again(make: Callable[..., Any], inputs: Sequence[Tensor | None], needed: Sequence[bool]) -> tuple[Any, Any]:
    """Make it once more from detached inputs, with a graph.

    Returns:
        What was made, and a function from its gradients to those of all inputs (None where none is needed).

    """
    own = [None if x is None else x.detach().requires_grad_(need) for x, need in zip(inputs, needed, strict=True)]
    wanted = [x for x in own if x is not None and x.requires_grad]
    before, _pass.again = _pass.again, True
    try:
        with torch.enable_grad():
            made = make(*own)
    finally:
        _pass.again = before

    def gradients(*given: Tensor) -> list[Tensor | None]:
        outputs = [made] if isinstance(made, Tensor) else list(made)
        pairs = [(output, grad) for output, grad in zip(outputs, given, strict=True) if output.requires_grad]
        found = iter(torch.autograd.grad([pair[0] for pair in pairs], wanted, [pair[1] for pair in pairs]))
        return [next(found) if x is not None and x.requires_grad else None for x in own]

    return made, gradients if wanted else lambda *given: [None] * len(own)


def plainly(inputs: Sequence[Tensor | None]) -> torch.autocast:
    """Without autocast, as the backward pass will run: what is narrowed is narrowed before."""
    device = next(x.device.type for x in inputs if x is not None)
    return torch.autocast(device, enabled=False)


class _Make(Function):
    """`make(*inputs)`."""

    @staticmethod
    def forward(ctx: Any, make: Callable[..., Any], *inputs: Tensor | None) -> Any:
        ctx.make = make
        ctx.save_for_backward(*inputs)
        return make(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        _, gradients = made_again(ctx.make, ctx.saved_tensors, ctx.needs_input_grad[1:])
        return None, *gradients(*grads)


class _Linear(Function):
    """`F.linear(make(*inputs), weight, bias)`."""

    @staticmethod
    def forward(
        ctx: Any, make: Callable[..., Tensor], weight: Tensor, bias: Tensor | None, *inputs: Tensor | None
    ) -> Tensor:
        ctx.make = make
        ctx.save_for_backward(weight, *inputs)
        return product(make(*inputs).to(weight.dtype), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        weight, *inputs = ctx.saved_tensors
        _, needs_weight, needs_bias, *needed = ctx.needs_input_grad
        x, gradients = made_again(ctx.make, inputs, needed)
        grad = grad.contiguous()
        rows = grad.flatten(0, -2)
        # not by `product`, which would first write out the transposed gradient, the largest of these matrices
        of_weight = rows.t() @ x.detach().to(weight.dtype).flatten(0, -2) if needs_weight else None
        of_bias = rows.sum(0) if needs_bias else None
        return None, of_weight, of_bias, *gradients(product(grad, weight.t()).to(x.dtype) if any(needed) else grad)
