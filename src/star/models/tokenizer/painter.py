"""From f_hat to pixels, as fast as the machine allows or in as little memory."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.models.tokenizer import strips
from star.models.tokenizer.autoencoder import Decoder, Level, ResidualBlock, Upsample
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.tokenizer.upsampling import double_and_convolve
from star.utils.devices import cpu_has_bf16

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTO = {"cpu": 128, "cuda": 768}
WORTH_FOLDING = 256  # positions of the small map: with fewer, adding up the kernels costs more than it saves
ROWS = 64  # of a strip: two more are computed in vain


class Painter:
    """Decodes f_hat without gradients: what `tokenizer.decode` gives, but for rounding.

    Args:
        tokenizer: whose decoder paints.
        dtype: `fp32`, `bf16` or `fp16`: what the convolutions compute in; None: whatever autocast says.
        channels_last: keep a pixel's channels together in memory, which convolutions are faster with (the tokenizer's
            weights are laid out anew, their values stay).
        fold_upsampling: double and convolve in one (`double_and_convolve`).
        strips_above: a picture with a longer side than this many pixels is decoded on its own and in strips (see
            `star.models.tokenizer.strips`); None never does; `auto`: above 128 on a CPU, which strips cost nothing,
            and above 768 elsewhere, where whole batches of smaller pictures fit. A CPU decodes smaller pictures on
            their own, too, so that none depends on its batch.
        hold_weights: keep a copy of the weights in half precision once there is use for it, in place of casting them
            for every picture; previews are then painted in bf16 whatever the rest is, but on CPUs without instructions
            for it. The tokenizer must not change.

    Raises:
        ValueError: for another dtype, or a side below 1.

    """

    def __init__(
        self,
        tokenizer: MultiScaleTokenizer,
        *,
        dtype: str | None = None,
        channels_last: bool = False,
        fold_upsampling: bool = False,
        strips_above: int | str | None = None,
        hold_weights: bool = False,
    ) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"the decoder's dtype is one of {', '.join(DTYPES)} or null, got {dtype!r}")
        if strips_above not in (None, "auto") and not (isinstance(strips_above, int) and strips_above > 0):
            raise ValueError(f"strips_above is a side in pixels, auto or null, got {strips_above!r}")
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.channels_last = channels_last
        self.fold_upsampling = fold_upsampling
        self.strips_above = strips_above
        self.hold_weights = hold_weights
        self._copies: dict[tuple[torch.dtype, torch.device], tuple[nn.Module, Decoder]] = {}
        if channels_last:
            for part in (tokenizer.after, tokenizer.decoder):
                part.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, f_hat: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of f_hat (B, D, h_K, w_K)."""
        return self._in(self.dtype, f_hat)

    def _in(self, dtype: str | None, f_hat: Tensor) -> Tensor:
        if f_hat.device.type == "cpu" and len(f_hat) > 1:
            # its convolutions add up in another order in another batch; a picture mustn't depend on its batch
            return torch.cat([self._in(dtype, one) for one in f_hat.split(1)])
        with _autocast(dtype, f_hat.device):
            if self._is_large(f_hat):
                painted = torch.cat([self._paint(one, in_strips=True) for one in f_hat.split(1)])
            elif self.fold_upsampling or self.channels_last or self.hold_weights:
                painted = self._paint(f_hat, in_strips=False)
            else:
                return self.tokenizer.decode(f_hat)
            return painted.float().clamp_(-1, 1)

    def _is_large(self, f_hat: Tensor) -> bool:
        limit = AUTO.get(f_hat.device.type, AUTO["cuda"]) if self.strips_above == "auto" else self.strips_above
        return isinstance(limit, int) and max(f_hat.shape[2:]) * self.tokenizer.factor > limit

    @torch.no_grad()
    def preview(self, f_hat: Tensor, side: int) -> Tensor:
        """Small images in [-1, 1] of f_hat, averaged down to at most `side` tokens a side first."""
        longest = max(f_hat.shape[2:])
        if longest > side:
            size = [max(round(length * side / longest), 1) for length in f_hat.shape[2:]]
            f_hat = F.interpolate(f_hat, size, mode="area")
        fast = f_hat.device.type != "cpu" or cpu_has_bf16()
        return self._in("bf16" if self.hold_weights and fast else self.dtype, f_hat)

    def _parts(self, device: torch.device) -> tuple[nn.Module, Decoder]:
        """The convolution behind the quantiser and the decoder, in what they compute in."""
        own = (self.tokenizer.after, self.tokenizer.decoder)
        if not self.hold_weights or not torch.is_autocast_enabled(device.type):
            return own
        key = (torch.get_autocast_dtype(device.type), device)
        if key not in self._copies:
            convs = [part for whole in own for part in whole.modules() if isinstance(part, nn.Conv2d)]
            cast = {id(conv.weight): nn.Parameter(conv.weight.to(key[0]), requires_grad=False) for conv in convs}
            # whoever copies asks this dictionary first, so that no weight is copied in full
            after, decoder = copy.deepcopy(own, cast)
            self._copies[key] = (after, decoder)
        return self._copies[key]

    def _paint(self, f_hat: Tensor, *, in_strips: bool) -> Tensor:
        after, decoder = self._parts(f_hat.device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        x = decoder.middle(decoder.stem(after(f_hat.contiguous(memory_format=layout))))
        for level in decoder.levels:
            assert isinstance(level, Level)
            x = self._level(level, x, in_strips=in_strips)
        if in_strips:
            return decoder.unfold(strips.finish(decoder.norm, decoder.out, x, ROWS))
        return decoder.unfold(decoder.out(F.silu(decoder.norm(x))))

    def _level(self, level: Level, x: Tensor, *, in_strips: bool) -> Tensor:
        """One resolution's blocks, and on to the next resolution."""
        for number, block in enumerate(level.blocks):
            assert isinstance(block, ResidualBlock)
            x = strips.residual(block, x, ROWS) if in_strips else block(x)
            if level.attentions is not None:
                x = level.attentions[number](x)
        if not isinstance(level.resample, Upsample):
            return x
        return self._upsample(level.resample.conv, x, in_strips=in_strips)

    def _upsample(self, conv: nn.Conv2d, x: Tensor, *, in_strips: bool) -> Tensor:
        if in_strips:
            return strips.upsample(conv, x, ROWS, fold=self.fold_upsampling)
        if self.fold_upsampling and x.shape[2] * x.shape[3] >= WORTH_FOLDING:
            return double_and_convolve(x, conv.weight, conv.bias)
        return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _autocast(name: str | None, device: torch.device) -> torch.autocast:
    """Half precision by name, or as it is already."""
    kind = device.type
    enabled = torch.is_autocast_enabled(kind) if name is None else name != "fp32"
    dtype = torch.get_autocast_dtype(kind) if name is None else DTYPES[name]
    # each weight is used but once: no reason to keep all of them in half precision until the end
    return torch.autocast(kind, dtype=dtype if enabled else None, enabled=enabled, cache_enabled=False)
