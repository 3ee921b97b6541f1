"""An encoder that looks at each patch of pixels alone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PatchBlock(nn.Module):
    """Two normalised linear layers and a shortcut, position by position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """From (..., width) to (..., width)."""
        return x + self.linear2(F.silu(self.norm2(self.linear1(F.silu(self.norm1(x))))))


class PatchEncoder(nn.Module):
    """Images to features, each from its own `patch_size` x `patch_size` pixels.

    A convolutional encoder sees past the patch, so that the code of plain background depends on what lies around it.
    The decoder can use that; a generator has to learn it, and a small one doesn't. Here equal patches have equal
    features wherever they lie: of the demo's pictures, whose background takes half of the tokens, a code of the finest
    map then says 4 bits instead of 8. It wants `composition: independent` in the quantiser, since what coarser maps
    leave over is no function of the patch alone.

    Args:
        width: channels inside.
        depth: number of blocks.
        code_width: channels `D` of the features.
        patch_size: side of a patch, and the factor between pixels and features.

    """

    def __init__(self, *, width: int, depth: int, code_width: int, patch_size: int) -> None:
        super().__init__()
        self.factor = patch_size
        self.fold = nn.PixelUnshuffle(patch_size)
        self.stem = nn.Linear(3 * patch_size**2, width)
        self.blocks = nn.ModuleList(PatchBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, code_width)

    @property
    def code_width(self) -> int:
        """`D`."""
        return self.out.out_features

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D, H / factor, W / factor) of images (B, 3, H, W)."""
        # in one piece: torch else multiplies a frozen stem under autocast row by row, a copy of its weight for each
        x = self.stem(self.fold(images).movedim(1, -1).contiguous())
        for block in self.blocks:
            x = block(x)
        return self.out(F.silu(self.norm(x))).movedim(-1, 1)
