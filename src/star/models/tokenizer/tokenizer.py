"""The whole tokenizer: images to token maps and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from star.models.tokenizer.autoencoder import Decoder, Encoder, fade_in
from star.models.tokenizer.patches import PatchEncoder
from star.models.tokenizer.pyramid import PyramidEncoder, PyramidVQ, check_pyramid
from star.models.tokenizer.quantizer import MultiScaleVQ, Quantized
from star.schedule import ScaleSchedule


class MultiScaleTokenizer(nn.Module):
    """Multi-scale residual VQ-VAE (VAR section 3.2).

    Args:
        encoder: images to features.
        decoder: features to images.
        quantizer: features to token maps.
        conv_size: side of the convolutions before and after the quantiser; 0: there are none, which a `PyramidEncoder`
            asks for.
        zero_init: start every residual block as its shortcut, which trains faster in small budgets; off, as VAR starts.

    Raises:
        ValueError: when encoder, decoder and quantiser don't fit together, or an image doesn't fit a schedule.

    """

    def __init__(
        self,
        *,
        encoder: Encoder | PatchEncoder | PyramidEncoder,
        decoder: Decoder,
        quantizer: MultiScaleVQ,
        conv_size: int = 3,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        widths = {encoder.code_width, decoder.stem.in_channels, quantizer.code_width}
        if len(widths) > 1 or encoder.factor != decoder.factor:
            raise ValueError(
                f"encoder, decoder and quantiser must share one code width, got {sorted(widths)}, "
                f"and one factor, got {encoder.factor} and {decoder.factor}"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.quantizer = quantizer
        if isinstance(encoder, PyramidEncoder) or isinstance(quantizer, PyramidVQ):
            check_pyramid(encoder, quantizer, conv_size)
        self.before = _conv(quantizer.code_width, conv_size)
        self.after = _conv(quantizer.code_width, conv_size)
        if zero_init:
            fade_in(self)

    @property
    def factor(self) -> int:
        """Pixels per side of a token of the finest scale."""
        return self.encoder.factor

    def check(self, resolution: tuple[int, int], schedule: ScaleSchedule) -> None:
        """Raise a ValueError unless images of `resolution` (height, width) end in the schedule's last scale."""
        height, width = schedule.sizes[-1]
        if (height * self.factor, width * self.factor) != tuple(resolution):
            raise ValueError(
                f"the schedule ends at {height}x{width} tokens, which this tokenizer (factor {self.factor}) draws at "
                f"{height * self.factor}x{width * self.factor} pixels, but the resolution is "
                f"{resolution[0]}x{resolution[1]}: change the stage (resolution and schedule) or the tokenizer"
            )

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D, h_K, w_K), fp32, of images (B, 3, H, W) in [-1, 1]; a pyramid's are (B, K * D, h_K, w_K)."""
        found: Tensor = self.before(self.encoder(images)).float()
        return found

    @torch.no_grad()
    def encode(self, images: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
        """Codes of each scale, (B, L_k) long, of images (B, 3, H, W) in [-1, 1]."""
        self.check((images.shape[2], images.shape[3]), schedule)
        return self.quantizer.encode(self.features(images), schedule)

    def decode(self, f_hat: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of f_hat (B, D, h_K, w_K)."""
        return self.paint(f_hat).clamp(-1, 1)

    def paint(self, f_hat: Tensor) -> Tensor:
        """The same without the clamp, which would stop gradients."""
        painted: Tensor = self.decoder(self.after(f_hat)).float()
        return painted

    @torch.no_grad()
    def decode_codes(self, codes: Sequence[Tensor], schedule: ScaleSchedule) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of the codes of all scales, or of the first few."""
        return self.decode(self.quantizer.decode(codes, schedule))

    def forward(self, images: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Quantized]:
        """Reconstructions (B, 3, H, W), not clamped, and what the quantiser did: the training pass."""
        self.check((images.shape[2], images.shape[3]), schedule)
        quantized = self.quantizer.quantize(self.features(images), schedule)
        return self.paint(quantized.f_hat), quantized


def _conv(width: int, size: int) -> nn.Module:
    """A convolution that keeps channels and size; nothing for size 0."""
    return nn.Conv2d(width, width, size, padding=size // 2) if size else nn.Identity()
