"""How a generator's weights begin (VAR, kept by STAR)."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn

from star.nn.block import Block


def init_weights(module: nn.Module, *, width: int) -> None:
    """Truncated normal of std sqrt(1 / 3C) for linear layers and embeddings, zero biases."""
    std = math.sqrt(1 / width / 3)
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def shrink_residuals(blocks: Iterable[Block], *, depth: int) -> None:
    """Divide what self-attention and feed-forward add by sqrt(2 depth); the text branch keeps its size, as released."""
    for block in blocks:
        block.attention.out.weight.data.div_(math.sqrt(2 * depth))
        block.feed_forward.out.weight.data.div_(math.sqrt(2 * depth))
        if block.modulation is not None and block.modulation.linear is not None:
            # VAR starts close to a plain block: scales and shifts at half, gates near zero
            width = block.modulation.linear.weight.shape[1]
            block.modulation.linear.weight.data[2 * width :].mul_(0.5)
            block.modulation.linear.weight.data[: 2 * width].mul_(1e-5)
