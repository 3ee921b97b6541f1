"""How a generator's weights begin (VAR, kept by STAR)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

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


@torch.no_grad()
def follow_codebook(embed: nn.Linear, logits: nn.Linear, codebook: Tensor, *, sharpness: float = 0.5) -> None:
    """Start a generator from what the codes mean, so that it needn't learn anew for each what alike ones share.

    Codes are embedded with unit deviation, whatever the tokenizer's scale: beside level embeddings, small ones are
    overlooked at first. Logits fall with the squared distance between a code's entry and a projection of the hidden
    state, so that alike codes begin, and for a while move, together.

    Args:
        embed: D to C channels, the generator's input.
        logits: C channels to V logits, its output; it begins with normalised hidden states.
        codebook: (V, D), the trained tokenizer's.
        sharpness: how fast logits fall.

    """
    codebook = codebook.float()
    embed.weight.div_((codebook @ embed.weight.float().T).std().clamp(min=1e-6))
    entries = (codebook - codebook.mean(0)) / codebook.std(0).clamp(min=1e-6)
    directions = nn.init.orthogonal_(torch.empty(entries.shape[1], logits.in_features))
    logits.weight.copy_(sharpness * entries @ directions)
    logits.bias.copy_(-sharpness * entries.square().sum(1) / 2)


def calm_modulations(blocks: Iterable[Block], head: nn.Linear) -> None:
    """Start an adaptive model close to a plain one (VAR): scales and shifts at half, gates of the blocks near zero.

    Args:
        blocks: with adaptive norms, their own or a shared one's offsets.
        head: the linear layer of the head's scale and shift.

    """
    head.weight.data.mul_(0.5)
    for modulation in (block.modulation for block in blocks if block.modulation is not None):
        if modulation.offsets is not None:
            weight = nn.init.normal_(modulation.offsets, std=modulation.offsets.shape[1] ** -0.5)
        else:
            assert modulation.linear is not None
            weight = modulation.linear.weight.unflatten(0, (6, -1))
        # two gates, two scales, two shifts
        weight.data[2:].mul_(0.5)
        weight.data[:2].mul_(1e-5)
