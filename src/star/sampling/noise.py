"""The random numbers of a picture: they belong to (image, token, code), whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BITS = 31


def draw_bits(shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device) -> Tensor:
    """Random whole numbers of `shape` (B, ...) in [0, 2^31), row i from generator i.

    Of most codes nobody ever asks what their clock says, and a whole number is a tenth of the work that exponential
    noise is on a CPU: it is turned into noise (`clocks`) only where it is looked at.
    """
    rows = [
        torch.empty(tuple(shape[1:]), dtype=torch.int32, device=generator.device).random_(generator=generator)
        for generator in generators
    ]
    return torch.stack(rows).to(device)


def clocks(bits: Tensor) -> Tensor:
    """Exponential noise, fp32, of whole numbers in [0, 2^31)."""
    # the clocks that ring first decide: log1p keeps small values apart, down to 2^-32
    return bits.float().add_(0.5).mul_(2.0**-BITS).neg_().log1p_().neg_()


def exponential(shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device) -> Tensor:
    """Exponential noise of `shape` (B, ...), row i from generator i."""
    return clocks(draw_bits(shape, generators, device))


def branch(generators: Sequence[torch.Generator]) -> list[torch.Generator]:
    """A stream of its own for each generator, which itself moves on by one number whatever the branch is used for."""
    seeds = [int(torch.randint(2**62, (1,), generator=each, device=each.device)) for each in generators]
    return [torch.Generator(each.device).manual_seed(seed) for each, seed in zip(generators, seeds, strict=True)]
