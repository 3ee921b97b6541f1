"""Doubling and convolving in one: four small kernels on the small map in place of a large one on the doubled map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))


def fold(weight: Tensor) -> list[Tensor]:
    """The 2x2 kernels, one per `PHASES`, that see of the small map what a 3x3 kernel sees of the doubled one.

    Of three neighbouring pixels of a doubled map two are the same pixel of the small one, so their weights add up:
    4/9 of the multiplications, equal but for rounding.
    """
    top, middle, bottom = weight.float().unbind(2)  # (out, in, 3) each
    kernels = []
    for rows in ((top, middle + bottom), (top + middle, bottom)):
        left, centre, right = torch.stack(rows, 2).unbind(3)  # (out, in, 2) each
        kernels += [torch.stack([left, centre + right], 3), torch.stack([left + centre, right], 3)]
    return kernels


def double_and_convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What `conv2d(interpolate(x, scale_factor=2), weight, bias, padding=1)` gives for x (B, C, h, w)."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1))
    flat = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if flat else torch.contiguous_format
    if flat:
        padded = padded.contiguous(memory_format=layout)
    out: Tensor | None = None
    for (down, right), kernel in zip(PHASES, fold(weight), strict=True):
        window = padded[:, :, down : down + height + 1, right : right + width + 1]
        part = F.conv2d(window, kernel.to(weight.dtype).contiguous(memory_format=layout), bias)
        if out is None:
            shape = (x.shape[0], weight.shape[0], 2 * height, 2 * width)
            out = torch.empty(shape, dtype=part.dtype, device=x.device, memory_format=layout)
        out[:, :, down::2, right::2] = part
    assert out is not None
    return out
