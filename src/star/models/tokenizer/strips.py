"""The parts of the convolutional decoder, strip by strip: the same picture in a fraction of the memory.

Only what is large is cut: a strip's convolutions see a row more on each side, and the normalisations take the mean and
variance of the whole map, which are gathered beforehand. So there are no seams to blend, and no strip knows less of the
picture than it would uncut. At any time two maps of the finest resolution exist, and what a strip needs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.models.tokenizer.autoencoder import ResidualBlock
from star.models.tokenizer.upsampling import double_and_convolve


def strips(height: int, rows: int) -> Iterator[slice]:
    """A map's strips of `rows` rows."""
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def residual(block: ResidualBlock, x: Tensor, rows: int) -> Tensor:
    """`block(x)` for one picture x (1, C, h, w), which is overwritten where the widths allow."""
    inner = _norm_and_convolve(block.norm1, block.conv1, x, rows)
    if isinstance(block.shortcut, nn.Identity):
        out = x
    else:
        out = _empty(x, inner, inner.shape[2:])
        for strip in strips(x.shape[2], rows):
            out[:, :, strip] = block.shortcut(x[:, :, strip])
    return _norm_and_convolve(block.norm2, block.conv2, inner, rows, onto=out)


def upsample(conv: nn.Conv2d, x: Tensor, rows: int, *, fold: bool) -> Tensor:
    """Double x (1, C, h, w) and convolve it; in one, with `fold`."""
    height, width = x.shape[2:]
    out: Tensor | None = None
    for strip in strips(height, max(rows // 2, 1)):
        part, own = _with_margin(strip, height)
        if fold:
            made = double_and_convolve(x[:, :, part], conv.weight, conv.bias)
        else:
            made = conv(F.interpolate(x[:, :, part], scale_factor=2.0, mode="nearest"))
        out = _empty(x, made, (2 * height, 2 * width)) if out is None else out
        out[:, :, 2 * strip.start : 2 * strip.stop] = made[:, :, 2 * own.start : 2 * own.stop]
    assert out is not None
    return out


def finish(norm: nn.GroupNorm, conv: nn.Conv2d, x: Tensor, rows: int) -> Tensor:
    """The last normalisation and convolution."""
    return _norm_and_convolve(norm, conv, x, rows)


def _norm_and_convolve(norm: nn.GroupNorm, conv: nn.Conv2d, x: Tensor, rows: int, onto: Tensor | None = None) -> Tensor:
    """conv(silu(norm(x))), added onto a map if there is one."""
    height, width = x.shape[2:]
    mean, variance = _statistics(norm, x, rows)
    out = onto
    for strip in strips(height, rows):
        part, own = _with_margin(strip, height)
        # with the statistics known, a normalisation is one factor and one offset per channel, as in a batch norm
        normed = F.batch_norm(x[:, :, part], mean, variance, norm.weight, norm.bias, eps=norm.eps)
        made = conv(F.silu(normed, inplace=True))[:, :, own]
        if onto is not None:
            onto[:, :, strip] += made
            continue
        out = _empty(x, made, (height, width)) if out is None else out
        out[:, :, strip] = made
    assert out is not None
    return out


def _with_margin(strip: slice, height: int) -> tuple[slice, slice]:
    """The strip with a row more on each side where there is one, and where in that the strip itself lies."""
    part = slice(max(strip.start - 1, 0), min(strip.stop + 1, height))
    return part, slice(strip.start - part.start, strip.stop - part.start)


def _statistics(norm: nn.GroupNorm, x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,), fp32, of each channel's group over the whole map x (1, C, h, w)."""
    height = x.shape[2]
    shares, means, spreads = [], [], []
    for strip in strips(height, rows):
        # a batch norm's own statistics, in fp32 since its weights are; what it makes of the map isn't needed
        _, mean, inverse = torch.native_batch_norm(
            x[:, :, strip], norm.weight.float(), norm.bias.float(), None, None, True, 0.0, norm.eps
        )
        shares.append((strip.stop - strip.start) / height)
        means.append(mean.double())
        spreads.append(inverse.double().pow(-2) - norm.eps)
    share = torch.tensor(shares, dtype=torch.float64, device=x.device)[:, None, None]
    mean = torch.stack(means).unflatten(1, (norm.num_groups, -1))  # (strips, groups, channels of a group)
    spread = torch.stack(spreads).unflatten(1, (norm.num_groups, -1))
    whole = (share * mean).sum(0).mean(1, keepdim=True)  # (groups, 1)
    variance = (share * (spread + (mean - whole).square())).sum(0).mean(1, keepdim=True)
    each = norm.num_channels // norm.num_groups
    return whole.expand(-1, each).flatten().float(), variance.expand(-1, each).flatten().float()


def _empty(like: Tensor, made: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Room for a map of `size` with the channels and kind of numbers of `made`, laid out in memory as `like` is."""
    flat = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    layout = torch.channels_last if flat else torch.contiguous_format
    shape = (1, made.shape[1], *size)
    return torch.empty(shape, dtype=made.dtype, device=made.device, memory_format=layout)
