"""Critics that tell images from reconstructions: PatchGAN, and heads on frozen DINO features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from star.models.tokenizer.dino import DINOTransformer
from star.models.tokenizer.frozen import Frozen, read_weights

DINO_FILE = "dino_deitsmall16_pretrain.pth"
DINO_SOURCE = "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/" + DINO_FILE


class PatchDiscriminator(nn.Module):
    """Judges overlapping squares of an image (PatchGAN, arXiv 1611.07004).

    Args:
        channels: width after the first convolution; doubles with each of the next ones, up to eight times.
        num_layers: strided convolutions; 3 looks at squares of 70 pixels.
        normalization: `group` or `spectral`. Batch statistics would let real and drawn images, and the processes of a
            distributed training, see each other.
        groups: groups of every GroupNorm.

    Raises:
        ValueError: for another normalization, no layer, or images that are too small.

    """

    def __init__(
        self, *, channels: int = 64, num_layers: int = 3, normalization: str = "group", groups: int = 32
    ) -> None:
        super().__init__()
        if normalization not in ("group", "spectral") or num_layers < 1:
            raise ValueError(
                f"a patch discriminator needs layers and 'group' or 'spectral' normalization, "
                f"got {num_layers} and {normalization!r}"
            )
        self.num_layers = num_layers
        widths = [channels * min(2**i, 8) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [_conv(3, widths[0], stride=2, spectral=normalization == "spectral")]
        for i in range(num_layers):
            stride = 2 if i < num_layers - 1 else 1
            layers.append(nn.LeakyReLU(0.2))
            layers.append(_conv(widths[i], widths[i + 1], stride=stride, spectral=normalization == "spectral"))
            if normalization == "group":
                layers.append(nn.GroupNorm(groups, widths[i + 1]))
        layers += [nn.LeakyReLU(0.2), _conv(widths[-1], 1, stride=1, spectral=normalization == "spectral")]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, N), one per square, of images (B, 3, H, W) in [-1, 1]; positive: real."""
        smallest = 3 * 2**self.num_layers
        if min(images.shape[2:]) < smallest:
            raise ValueError(
                f"a patch discriminator of {self.num_layers} layers needs images of {smallest} pixels or more, "
                f"got {tuple(images.shape[2:])}: use fewer layers"
            )
        return self.layers(images).flatten(1)


class DINODiscriminator(nn.Module):
    """Judges an image by its DINO features at several depths (StyleGAN-T's discriminator, which VAR's tokenizer used).

    Only the small heads are trained and saved.

    Args:
        weights: DINO's published ViT weights (`dino_deitsmall16_pretrain.pth`, or `deitsmall8` for finer patches), a
            file or the folder that holds it.
        layers: after which layers the features are judged; -1: before the first.
        resolution: side that images are resized to; None: they keep their size, for judging details of large images.
        kernel_size: of the heads' convolution over neighbouring features.
        groups: groups of every GroupNorm.

    Raises:
        FileNotFoundError: when the weights aren't there.
        ValueError: when they aren't DINO's, or a layer doesn't exist.

    """

    def __init__(
        self,
        *,
        weights: str | Path | None,
        layers: Sequence[int] = (-1, 2, 5, 8, 11),
        resolution: int | None = 224,
        kernel_size: int = 3,
        groups: int = 32,
    ) -> None:
        super().__init__()
        state = read_weights(
            weights, name=DINO_FILE, source=DINO_SOURCE, key="tokenizer_training.discriminator.weights"
        )
        backbone = DINOTransformer(state)
        if wrong := [layer for layer in layers if not -1 <= layer < len(backbone.blocks)]:
            raise ValueError(f"this transformer has layers 0 to {len(backbone.blocks) - 1}, got {wrong}")
        self.layers = tuple(layers)
        self.resolution = resolution
        self.patch = backbone.patch
        self.backbone = Frozen(backbone)
        self.heads = nn.ModuleList(FeatureHead(backbone.width, kernel_size=kernel_size, groups=groups) for _ in layers)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, N), one per layer and position, of images (B, 3, H, W) in [-1, 1]; positive: real."""
        features = self.backbone.network(self._resized(images), self.layers)
        return torch.cat([head(map_).flatten(1) for head, map_ in zip(self.heads, features, strict=True)], 1)

    def _resized(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if self.resolution is None:
            size = tuple(max(1, round(side / self.patch)) * self.patch for side in (height, width))
        else:
            size = (self.resolution, self.resolution)
        if size == (height, width):
            return images
        return F.interpolate(images, size, mode="bicubic", antialias=True)


class FeatureHead(nn.Module):
    """A small judge of one feature map."""

    def __init__(self, width: int, *, kernel_size: int, groups: int) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.enter = spectral_norm(nn.Conv2d(width, width, 1))
        self.norm1 = nn.GroupNorm(groups, width)
        self.mix = spectral_norm(nn.Conv2d(width, width, kernel_size, padding=padding, padding_mode="replicate"))
        self.norm2 = nn.GroupNorm(groups, width)
        self.out = spectral_norm(nn.Conv2d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of features (B, C, h, w)."""
        x = F.leaky_relu(self.norm1(self.enter(x)), 0.2)
        x = x + F.leaky_relu(self.norm2(self.mix(x)), 0.2)
        return self.out(x)


def _conv(channels: int, out_channels: int, *, stride: int, spectral: bool) -> nn.Module:
    conv = nn.Conv2d(channels, out_channels, 4, stride=stride, padding=1)
    nn.init.normal_(conv.weight, std=0.02)
    return spectral_norm(conv) if spectral else conv
