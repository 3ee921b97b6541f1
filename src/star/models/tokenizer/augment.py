"""Differentiable augmentation of what a discriminator sees (DiffAugment, arXiv 2006.10738)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DiffAugment:
    """Changes colours, shifts and cuts out, alike for real and drawn images, so that few images don't get memorised.

    Args:
        probability: share of the images that each of the three kinds is applied to.
        brightness: largest change, up or down, of images in [-1, 1].
        saturation: distance of colours from grey is multiplied by 1 - saturation ... 1 + saturation.
        contrast: distance of pixels from the image's mean is multiplied by 1 - contrast ... 1 + contrast.
        shift: largest shift over the side; what comes in is 0.
        cutout: side of a square set to 0 over the image's.

    Raises:
        ValueError: for a value outside [0, 1].

    """

    probability: float = 1.0
    brightness: float = 0.5
    saturation: float = 1.0
    contrast: float = 0.5
    shift: float = 0.125
    cutout: float = 0.2

    def __post_init__(self) -> None:
        """Check the ranges."""
        if wrong := {name: value for name, value in vars(self).items() if not 0 <= value <= 1}:
            raise ValueError(f"augmentation takes values in [0, 1], got {wrong}")

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augment images (B, 3, H, W), each in its own way; the generator lives on the CPU."""
        draws = torch.rand(10, len(images), generator=generator).to(images.device)
        hit = draws[:3] < self.probability  # (3, B)
        for applied, change, drawn in zip(
            hit, (self._recolour, self._move, self._cut), (draws[3:6], draws[6:8], draws[8:]), strict=True
        ):
            images = torch.where(applied.view(-1, 1, 1, 1), change(images, drawn), images)
        return images

    def _recolour(self, images: Tensor, drawn: Tensor) -> Tensor:
        brightness, saturation, contrast = (2 * drawn - 1).view(3, -1, 1, 1, 1)
        images = images + self.brightness * brightness
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * (1 + self.saturation * saturation)
        mean = images.mean((1, 2, 3), keepdim=True)
        return mean + (images - mean) * (1 + self.contrast * contrast)

    def _move(self, images: Tensor, drawn: Tensor) -> Tensor:
        rows, inside_rows = _shifted(images.shape[2], self.shift, drawn[0])
        columns, inside_columns = _shifted(images.shape[3], self.shift, drawn[1])
        picked = torch.arange(len(images), device=images.device)[:, None, None]
        moved = images[picked, :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, 3)
        inside = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
        return (moved * inside).permute(0, 3, 1, 2)

    def _cut(self, images: Tensor, drawn: Tensor) -> Tensor:
        rows = _covered(images.shape[2], self.cutout, drawn[0])
        columns = _covered(images.shape[3], self.cutout, drawn[1])
        return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _shifted(size: int, share: float, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Where every row comes from, (B, size) long, and whether that lies in the image."""
    most = round(size * share)
    offset = (drawn * (2 * most + 1)).long().clamp(max=2 * most) - most
    source = torch.arange(size, device=drawn.device)[None] + offset[:, None]
    return source.clamp(0, size - 1), (source >= 0) & (source < size)


def _covered(size: int, share: float, drawn: Tensor) -> Tensor:
    """Which rows lie in the square, (B, size) bool; its centre is anywhere in the image."""
    distance = torch.arange(size, device=drawn.device)[None] + 0.5 - drawn[:, None] * size
    return distance.abs() < share * size / 2
