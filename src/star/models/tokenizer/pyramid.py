"""A tokenizer each of whose maps has an encoder of its own, which looks at its tokens' pixels alone.

Where coarse maps are averages of the finest one's features, they say what is in a region, not how it is arranged: that
is left to the finest map, whose tokens a generator draws independently of each other. Here a token of a coarse map is
the code of its whole region, so that much of the arrangement is settled while there are few tokens to agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.models.tokenizer.patches import PatchEncoder
from star.models.tokenizer.quantizer import MultiScaleVQ, Quantized
from star.models.tokenizer.residual_conv import ResidualConv
from star.schedule import ScaleSchedule


class PyramidEncoder(nn.Module):
    """Images to features of all scales: for each a `PatchEncoder` of its patch size.

    Args:
        width: channels inside.
        depth: number of blocks.
        code_width: channels `D` of a scale's features.
        patch_sizes: pixels per side of a token, coarse to fine, each a multiple of the next; the last one is the factor
            between pixels and features.
        seen_size: pixels per side at which larger patches are looked at, see `PatchEncoder`; None: all of them.

    Raises:
        ValueError: for patch sizes that don't nest, or aren't a whole number of times a smaller `seen_size`.

    """

    def __init__(
        self, *, width: int, depth: int, code_width: int, patch_sizes: Sequence[int], seen_size: int | None = None
    ) -> None:
        super().__init__()
        if not patch_sizes or any(small < 1 or large % small for large, small in pairwise([*patch_sizes, 1])):
            raise ValueError(f"patch sizes go from coarse to fine, each a multiple of the next, got {patch_sizes}")
        self.levels = nn.ModuleList(
            PatchEncoder(width=width, depth=depth, code_width=code_width, patch_size=size, seen_size=seen_size)
            for size in patch_sizes
        )

    @property
    def code_width(self) -> int:
        """`D`."""
        return self.parts[0].code_width

    @property
    def factor(self) -> int:
        """Pixels per side of a token of the finest scale."""
        return self.parts[-1].factor

    @property
    def parts(self) -> list[PatchEncoder]:
        """The encoders, coarse to fine."""
        return list(self.levels)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, K * D, H / factor, W / factor) of images (B, 3, H, W): those of coarse scales repeated.

        Raises:
            ValueError: when the image can't be divided into the coarsest patches.

        """
        coarsest = self.parts[0].factor
        if images.shape[2] % coarsest or images.shape[3] % coarsest:
            raise ValueError(
                f"an image of {images.shape[2]}x{images.shape[3]} has no whole patches of {coarsest}: take another "
                "resolution, or smaller tokenizer.encoder.patch_sizes, one for each scale of the schedule"
            )
        maps = []
        for part in self.parts:
            times = part.factor // self.factor
            maps.append(part(images).repeat_interleave(times, 2).repeat_interleave(times, 3))
        return torch.cat(maps, 1)


class PyramidVQ(MultiScaleVQ):
    """Quantises each scale's own features; every map is a whole picture and f_hat the last one.

    Train it with `tokenizer_training.scale_dropout`: otherwise no picture is made of a coarse map, and its codes learn
    nothing.

    Args:
        codebook_size: `V`, entries shared by all scales.
        code_width: `D`, channels of an entry.
        phi: smooths each upsampled map.
        patch_sizes: the encoder's.

    """

    def __init__(self, codebook_size: int, code_width: int, *, phi: ResidualConv, patch_sizes: Sequence[int]) -> None:
        super().__init__(codebook_size, code_width, phi=phi, composition="independent")
        self.patch_sizes = tuple(patch_sizes)

    def level(self, k: int, schedule: ScaleSchedule) -> int:
        """Which of the encoders codes scale `k`: that of its patches, or of the largest that are no larger."""
        patch = self.patch_sizes[-1] * schedule.sizes[-1][0] / schedule.sizes[k][0]
        return next(level for level, size in enumerate(self.patch_sizes) if size <= patch)

    def own(self, f: Tensor, k: int, schedule: ScaleSchedule) -> Tensor:
        """The features (B, D, h_k, w_k) of scale `k` among those of all encoders (B, levels * D, h_K, w_K).

        Where no encoder has the scale's patches, as for the coarsest maps of larger pictures, features are averaged.
        """
        first = self.level(k, schedule) * self.code_width
        part = f[:, first : first + self.code_width]
        size = schedule.sizes[k]
        return part if tuple(part.shape[2:]) == tuple(size) else F.adaptive_avg_pool2d(part, size)

    def target(self, f: Tensor, f_hat: Tensor, k: int, schedule: ScaleSchedule) -> Tensor:
        """What scale `k` has to code: vectors (B * L_k, D)."""
        del f_hat
        return self.own(f, k, schedule).permute(0, 2, 3, 1).flatten(0, 2)

    def unquantized(self, f: Tensor, schedule: ScaleSchedule, kept: Tensor | None = None) -> Tensor:
        """What the decoder gets while nothing is quantised; see `quantize`."""
        seen = self.start(f.shape[0], schedule)
        for k in range(len(schedule)):
            z = self.target(f.float(), seen, k, schedule).unflatten(0, (f.shape[0], -1))
            f_hat = self.accumulate(seen, z, k, schedule)
            seen = f_hat if kept is None else torch.where((kept > k).view(-1, 1, 1, 1), f_hat, seen)
        return seen

    def quantize(self, f: Tensor, schedule: ScaleSchedule, kept: Tensor | None = None) -> Quantized:
        """Quantise features with gradients: straight through at each scale's codes.

        Args:
            f: (B, K * D, h_K, w_K).
            schedule: the scales.
            kept: (B,) long, the number of the scale, from 1, that each image is made of; None: the last one.

        """
        f = f.float()
        seen = self.start(f.shape[0], schedule)
        codes = []
        commitment = codebook = f.new_zeros(())
        for k in range(len(schedule)):
            z = self.target(f, seen, k, schedule)
            drawn = self.nearest(z.detach())
            entries = self.lookup(drawn).float()
            commitment = commitment + F.mse_loss(z, entries.detach()) / len(schedule)
            codebook = codebook + F.mse_loss(entries, z.detach()) / len(schedule)
            through = z + (entries - z).detach()
            f_hat = self.accumulate(seen, through.unflatten(0, (f.shape[0], -1)), k, schedule)
            seen = f_hat if kept is None else torch.where((kept > k).view(-1, 1, 1, 1), f_hat, seen)
            codes.append(drawn.unflatten(0, (f.shape[0], -1)))
        return Quantized(seen, codes, commitment, codebook)


def check_pyramid(encoder: nn.Module, quantizer: nn.Module, conv_size: int) -> None:
    """Raise a ValueError unless an encoder and a quantiser of a pyramid are the same one's, with nothing between."""
    if not (isinstance(encoder, PyramidEncoder) and isinstance(quantizer, PyramidVQ)) or conv_size:
        raise ValueError("PyramidEncoder and PyramidVQ go together, with conv_size=0")
    sizes = tuple(part.factor for part in encoder.parts)
    if sizes != quantizer.patch_sizes:
        raise ValueError(f"encoder and quantiser must share patch_sizes, got {sizes} and {quantizer.patch_sizes}")
