"""The convolutional encoder and decoder around the quantiser (VQGAN's, as VAR uses it)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.models.tokenizer.patches import PatchBlock


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    if channels % groups:
        raise ValueError(f"{channels} channels can't be normalised in {groups} groups")
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int, out_channels: int, *, groups: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = _norm(channels, groups)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """From (B, channels, h, w) to (B, out_channels, h, w)."""
        inner = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(inner))))


class SpatialAttention(nn.Module):
    """Single-head attention over all positions of a feature map."""

    def __init__(self, channels: int, *, groups: int = 32) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of (B, C, h, w)."""
        height, width = x.shape[2:]
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, -1)  # (B, h*w, C)
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.out(mixed.transpose(1, 2).unflatten(2, (height, width)))


class Downsample(nn.Module):
    """Halve both sides with a strided convolution; the padding is on the right and below, as in VQGAN."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """From (B, C, h, w) to (B, C, h/2, w/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double both sides by repetition, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """From (B, C, h, w) to (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, with attention after each where asked for, and the change of resolution."""

    def __init__(
        self, widths: Sequence[int], *, groups: int, attention: bool, dropout: float, resample: nn.Module | None
    ) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.blocks = nn.ModuleList(ResidualBlock(a, b, groups=groups, dropout=dropout) for a, b in pairs)
        self.attentions = nn.ModuleList(SpatialAttention(b, groups=groups) for _, b in pairs) if attention else None
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """From (B, C, h, w) to the next level's (B, C', h', w')."""
        for number, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions is not None:
                x = self.attentions[number](x)
        return x if self.resample is None else self.resample(x)


def _middle(width: int, *, groups: int, attention: bool, dropout: float) -> nn.Sequential:
    between = [SpatialAttention(width, groups=groups)] if attention else []
    return nn.Sequential(
        ResidualBlock(width, width, groups=groups, dropout=dropout),
        *between,
        ResidualBlock(width, width, groups=groups, dropout=dropout),
    )


class Encoder(nn.Module):
    """Images to features.

    Args:
        channels: width at the finest resolution.
        multipliers: width of each resolution over `channels`; every one after the first halves the sides.
        num_res_blocks: residual blocks per resolution.
        code_width: channels `D` of the features.
        patch_size: side of the pixel squares that are folded into channels first (1: none); multiplies the factor.
        attention: attend over all positions at the lowest resolution.
        groups: groups of every GroupNorm.
        dropout: inside the residual blocks.

    """

    def __init__(
        self,
        *,
        channels: int,
        multipliers: Sequence[int],
        num_res_blocks: int,
        code_width: int,
        patch_size: int = 1,
        attention: bool = True,
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers]
        last = len(widths) - 1
        self.factor = patch_size * 2**last
        self.fold = nn.PixelUnshuffle(patch_size)
        self.stem = nn.Conv2d(3 * patch_size**2, channels, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(
                [channels if i == 0 else widths[i - 1], *[width] * num_res_blocks],
                groups=groups,
                attention=attention and i == last,
                dropout=dropout,
                resample=None if i == last else Downsample(width),
            )
            for i, width in enumerate(widths)
        )
        self.middle = _middle(widths[-1], groups=groups, attention=attention, dropout=dropout)
        self.norm = _norm(widths[-1], groups)
        self.out = nn.Conv2d(widths[-1], code_width, 3, padding=1)

    @property
    def code_width(self) -> int:
        """`D`."""
        return self.out.out_channels

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D, H / factor, W / factor) of images (B, 3, H, W)."""
        x = self.stem(self.fold(images))
        for level in self.levels:
            x = level(x)
        return self.out(F.silu(self.norm(self.middle(x))))


class Decoder(nn.Module):
    """Features to images: the encoder's mirror with one more residual block per resolution.

    Args:
        channels, multipliers, num_res_blocks, code_width, patch_size, attention, groups, dropout: as for `Encoder`.

    """

    def __init__(
        self,
        *,
        channels: int,
        multipliers: Sequence[int],
        num_res_blocks: int,
        code_width: int,
        patch_size: int = 1,
        attention: bool = True,
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers][::-1]  # coarse to fine
        self.factor = patch_size * 2 ** (len(widths) - 1)
        self.stem = nn.Conv2d(code_width, widths[0], 3, padding=1)
        self.middle = _middle(widths[0], groups=groups, attention=attention, dropout=dropout)
        self.levels = nn.ModuleList(
            Level(
                [widths[max(i - 1, 0)], *[width] * (num_res_blocks + 1)],
                groups=groups,
                attention=attention and i == 0,
                dropout=dropout,
                resample=None if i == len(widths) - 1 else Upsample(width),
            )
            for i, width in enumerate(widths)
        )
        self.norm = _norm(widths[-1], groups)
        self.out = nn.Conv2d(widths[-1], 3 * patch_size**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(patch_size)

    def forward(self, f: Tensor) -> Tensor:
        """Images (B, 3, h * factor, w * factor) of features (B, D, h, w), not clamped."""
        x = self.middle(self.stem(f))
        for level in self.levels:
            x = level(x)
        return self.unfold(self.out(F.silu(self.norm(x))))

    @property
    def last_layer(self) -> Tensor:
        """The weight whose gradients balance an adversarial loss (VQGAN)."""
        return self.out.weight


def fade_in(module: nn.Module) -> None:
    """Zero the last layer of every residual block: a network that starts as its shortcuts learns faster."""
    for part in module.modules():
        if isinstance(part, ResidualBlock):
            torch.nn.init.zeros_(part.conv2.weight)
        elif isinstance(part, PatchBlock):
            torch.nn.init.zeros_(part.linear2.weight)
