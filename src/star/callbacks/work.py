"""How much a training computes: tokens and operations of what is trained, forward and backward."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from star.models.flops import BACKWARD, decode_flops, encode_flops, transformer_flops
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.schedule import ScaleSchedule


class WorkMeter:
    """Counts what the trained generator, or the trained tokenizer, does on this device.

    Only the model's own operations count, as usual for a utilisation (MFU): neither what is computed twice to save
    memory, nor frozen networks, text encoders, discriminators or optimisers.

    Attributes:
        tokens: trained so far.
        flops: operations so far.

    """

    def __init__(self) -> None:
        self.tokens = 0
        self.flops = 0
        self._handle: RemovableHandle | None = None
        self._costs: dict[Any, tuple[int, int]] = {}
        self._per_image: tuple[int, int] | None = None

    def attach(self, module: nn.Module) -> None:
        """Begin to watch the trained network of a LightningModule; a module without one has no work."""
        transformer = getattr(module, "transformer", None)
        tokenizer = getattr(module, "tokenizer", None)
        if isinstance(transformer, STARTransformer):
            self._handle = transformer.register_forward_pre_hook(self._count, with_kwargs=True)
        elif isinstance(tokenizer, MultiScaleTokenizer):
            schedule: Any = module.schedule
            self._per_image = (schedule.total, autoencoder_flops(tokenizer, schedule))

    def detach(self) -> None:
        """Watch no longer."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._per_image = None

    def images(self, count: int) -> None:
        """So many pictures were trained on; needed for tokenizers alone."""
        if self._per_image is not None:
            self.tokens += count * self._per_image[0]
            self.flops += count * self._per_image[1]

    def take(self) -> tuple[int, int]:
        """Tokens and operations since the last time."""
        taken = self.tokens, self.flops
        self.tokens = self.flops = 0
        return taken

    def _count(self, model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert isinstance(model, STARTransformer)
        if not (model.training and torch.is_grad_enabled()):
            return
        given = inspect.signature(model.forward).bind(*arguments, **named).arguments
        condition, schedule, kept = given["condition"], given["schedule"], given.get("kept")
        text_tokens = 0 if condition.context is None else condition.context.shape[1]
        # How many tokens of each scale are kept depends on no chance, so one look at the positions is enough.
        key = (schedule, text_tokens, None if kept is None else kept.shape[-1])
        if key not in self._costs:
            self._costs[key] = _cost(model, schedule, text_tokens, kept)
        tokens, flops = self._costs[key]
        self.tokens += len(condition) * tokens
        self.flops += len(condition) * flops


def _cost(model: STARTransformer, schedule: ScaleSchedule, text_tokens: int, kept: Tensor | None) -> tuple[int, int]:
    """Tokens and operations of training on one picture."""
    counts = schedule.lengths
    if kept is not None:
        row = (kept if kept.dim() == 1 else kept[0]).cpu()
        counts = tuple(schedule.scale_ids()[row].bincount(minlength=len(schedule)).tolist())
    forward = transformer_flops(model, schedule, text_tokens=text_tokens, counts=counts)
    return sum(counts), (1 + BACKWARD) * forward


def autoencoder_flops(tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule) -> int:
    """Operations of training a tokenizer on one picture; its frozen parts only run forward."""
    encoded, decoded = encode_flops(tokenizer, schedule), decode_flops(tokenizer, schedule)
    learns = [any(p.requires_grad for p in part.parameters()) for part in (tokenizer.encoder, tokenizer.decoder)]
    return encoded * (1 + BACKWARD * learns[0]) + decoded * (1 + BACKWARD * learns[1])
