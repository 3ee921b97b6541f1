"""Gradient and activation norms: what shows that a training is about to diverge, and where."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.hooks import RemovableHandle

_BLOCK = re.compile(r"^(\w+)\.blocks\.(\d+)\.")


class Norms(Callback):
    """Logs norms every so many steps.

    gradient_norm, gradient_norm/PART: of all gradients and of those of each block or other part, before clipping.
    activation_rms/PART, activation_max/PART: of the residual stream behind each block. It grows with depth; where it
    grows with time too, by orders of magnitude, half precision will not hold it for long.

    Args:
        every_n_steps: how often; a look costs a pass over the gradients and over one activation a block.
        activations: look at these, too.

    Raises:
        ValueError: for less than one step.

    """

    def __init__(self, every_n_steps: int = 50, *, activations: bool = True) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.norms.every_n_steps is at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.activations = activations
        self._found: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Listen to the blocks when a look is due."""
        if self.activations and self._due(trainer) and not self._handles:
            for name, part in pl_module.named_children():
                for number, block in enumerate(_blocks(part)):
                    self._handles.append(block.register_forward_hook(self._listen(f"{name}/block_{number:02d}")))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Look at the gradients, which are unscaled and not clipped yet."""
        if not self._due(trainer):
            return
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None:
                parts[part_of(name)].append(parameter.grad)
        norms = {name: norm(gradients) for name, gradients in parts.items()}
        if norms:
            self._found["gradient_norm"] = torch.stack(list(norms.values())).norm()
            self._found |= {f"gradient_norm/{name}": value for name, value in norms.items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log, once the step is complete."""
        if "gradient_norm" not in self._found:
            return  # nothing is due, or gradients are still accumulated
        pl_module.log_dict(self._found)
        self._forget()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Listen no longer."""
        self._forget()

    def _due(self, trainer: Trainer) -> bool:
        return (trainer.global_step + 1) % self.every_n_steps == 0

    def _listen(self, name: str) -> Callable[..., None]:
        @torch.no_grad()
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            # a block that is computed again in the backward pass says the same again
            values = output.detach().float()
            self._found[f"activation_rms/{name}"] = values.square().mean().sqrt()
            self._found[f"activation_max/{name}"] = values.abs().max()

        return hook

    def _forget(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._found = [], {}


def part_of(name: str) -> str:
    """What a parameter belongs to: `transformer/block_03`, `transformer/head`, `tokenizer/encoder`."""
    if found := _BLOCK.match(name):
        return f"{found[1]}/block_{int(found[2]):02d}"
    return "/".join(name.split(".")[:2])


def norm(gradients: Iterable[Tensor]) -> Tensor:
    """The norm of several tensors together, whole even where they are spread over processes; every process must ask."""
    total = get_total_norm(list(gradients))
    gather = getattr(total, "full_tensor", None)
    return total if gather is None else gather()


def _blocks(part: nn.Module) -> list[nn.Module]:
    trained = any(parameter.requires_grad for parameter in part.parameters())
    blocks = getattr(part, "blocks", None)
    return list(blocks) if trained and isinstance(blocks, nn.ModuleList) else []
