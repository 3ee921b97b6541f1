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
        seen_size: pixels per side at which a larger patch is looked at, averaged; None: all of its pixels. The first
            layer of a small tokenizer for large patches has more weights than all the rest.

    Raises:
        ValueError: for a size below 1, or when a larger patch isn't a whole number of times `seen_size`.

    """

    def __init__(
        self, *, width: int, depth: int, code_width: int, patch_size: int, seen_size: int | None = None
    ) -> None:
        super().__init__()
        self.factor = patch_size
        side = patch_size if seen_size is None else min(patch_size, seen_size)
        if side < 1 or patch_size % side:
            raise ValueError(
                f"a patch of {patch_size} pixels a side can't be averaged to {seen_size}: tokenizer.encoder.seen_size "
                "divides every larger patch, or is null"
            )
        self.shrink = patch_size // side
        self.fold = nn.PixelUnshuffle(side)
        self.stem = nn.Linear(3 * side**2, width)
        self.blocks = nn.ModuleList(PatchBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, code_width)

    @property
    def code_width(self) -> int:
        """`D`."""
        return self.out.out_features

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D, H / factor, W / factor) of images (B, 3, H, W).

        Raises:
            ValueError: when averaging would cut off a border.

        """
        if self.shrink > 1:
            if images.shape[2] % self.factor or images.shape[3] % self.factor:
                size = f"{images.shape[2]}x{images.shape[3]}"
                raise ValueError(f"an image of {size} has no whole patches of {self.factor}")
            images = F.avg_pool2d(images, self.shrink)
        # in one piece: torch else multiplies a frozen stem under autocast row by row, a copy of its weight for each
        x = self.stem(self.fold(images).movedim(1, -1).contiguous())
        for block in self.blocks:
            x = block(x)
        return self.out(F.silu(self.norm(x))).movedim(-1, 1)
