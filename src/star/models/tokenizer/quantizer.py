"""Multi-scale residual vector quantisation (VAR algorithms 1 and 2; STAR section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.models.tokenizer.residual_conv import ResidualConv
from star.schedule import ScaleSchedule


@dataclass
class Quantized:
    """What training needs of a quantised feature map.

    Attributes:
        f_hat: (B, D, h_K, w_K), the sum of all scales; gradients pass straight through to the features.
        codes: of each scale, (B, L_k) long.
        commitment: scalar, how far the features lie from f_hat (moves the encoder).
        codebook: scalar, how far f_hat lies from the features (moves the codebook and phi).

    """

    f_hat: Tensor
    codes: list[Tensor]
    commitment: Tensor
    codebook: Tensor


@contextmanager
def _fp32(like: Tensor) -> Iterator[None]:
    """Codes are decided by small differences, and f_hat is a sum of K maps: never in half precision."""
    with torch.autocast(like.device.type, enabled=False):
        yield


class MultiScaleVQ(nn.Module):
    """A picture's features as token maps, coarse to fine, each coding what the coarser ones left.

    Args:
        codebook_size: `V`, entries shared by all scales.
        code_width: `D`, channels of an entry.
        phi: smooths each upsampled map.
        composition: `residual`: f_hat is the sum of all maps (VAR, STAR); `independent`: each map is a whole picture
            and f_hat the last one (FlexVAR).

    Raises:
        ValueError: for another composition, a phi of another width, or a schedule whose last scale isn't the size of
            the features.

    """

    def __init__(
        self, codebook_size: int, code_width: int, *, phi: ResidualConv, composition: str = "residual"
    ) -> None:
        super().__init__()
        if composition not in ("residual", "independent"):
            raise ValueError(f"composition is 'residual' or 'independent', got {composition!r}")
        if phi.width != code_width:
            raise ValueError(f"phi smooths codes of width {phi.width}, these have {code_width}: give both one width")
        self.composition = composition
        self.phi = phi
        self.codebook = nn.Embedding(codebook_size, code_width)
        nn.init.uniform_(self.codebook.weight, -1 / codebook_size, 1 / codebook_size)

    @property
    def codebook_size(self) -> int:
        """`V`."""
        return self.codebook.num_embeddings

    @property
    def code_width(self) -> int:
        """`D`."""
        return self.codebook.embedding_dim

    def nearest(self, z: Tensor) -> Tensor:
        """Codes (N,) long of vectors z (N, D): the closest entries."""
        entries = self.codebook.weight.float()
        with _fp32(z):
            # |z - e|^2 without |z|^2, which is the same for every entry
            return torch.addmm(entries.square().sum(1), z.float(), entries.T, alpha=-2.0).argmin(1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Entries (B, L_k, D) of codes (B, L_k)."""
        return self.codebook(codes)

    def start(self, batch: int, schedule: ScaleSchedule) -> Tensor:
        """f_hat before the first scale: zeros (B, D, h_K, w_K)."""
        return self.codebook.weight.new_zeros(batch, self.code_width, *schedule.sizes[-1], dtype=torch.float32)

    def target(self, f: Tensor, f_hat: Tensor, k: int, schedule: ScaleSchedule) -> Tensor:
        """What scale `k` has to code: vectors (B * L_k, D)."""
        rest = f - f_hat if self.composition == "residual" else f
        return _area(rest, schedule.sizes[k]).permute(0, 2, 3, 1).flatten(0, 2)

    @torch.no_grad()
    def targets(self, f: Tensor, schedule: ScaleSchedule, *, exact: bool = False) -> list[Tensor]:
        """What every scale has to code, each (B * L_k, D), in features (B, D, h_K, w_K).

        Args:
            f: the features.
            schedule: the scales.
            exact: what it would be if coding lost nothing, whatever the codebook.

        """
        f = f.float()
        f_hat = self.start(f.shape[0], schedule)
        found = []
        for k in range(len(schedule)):
            with _fp32(f):
                found.append(self.target(f, f_hat, k, schedule))
                drawn = found[-1] if exact else self.nearest(found[-1])
            f_hat = self.accumulate(f_hat, drawn.unflatten(0, (f.shape[0], -1)), k, schedule)
        return found

    def accumulate(self, f_hat: Tensor, drawn: Tensor, k: int, schedule: ScaleSchedule) -> Tensor:
        """Add scale `k` to f_hat (B, D, h_K, w_K).

        Args:
            f_hat: what the scales before make.
            drawn: the scale's codes (B, L_k) long, or embeddings (B, L_k, D).
            k: the scale.
            schedule: all scales.

        """
        embeddings = drawn if drawn.is_floating_point() else self.lookup(drawn)
        with _fp32(f_hat):
            h = embeddings.float().transpose(1, 2).unflatten(2, schedule.sizes[k])  # (B, D, h_k, w_k)
            h = self.phi(_bicubic(h, schedule.sizes[-1]), k, len(schedule))
        return f_hat + h if self.composition == "residual" else h

    def next_input(self, f_hat: Tensor, k: int, schedule: ScaleSchedule) -> Tensor:
        """What the transformer sees in place of scale `k`: f_hat at that scale's size, (B, L_k, D)."""
        return _area(f_hat, schedule.sizes[k]).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def encode(self, f: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
        """Codes of each scale, (B, L_k) long, of features (B, D, h_K, w_K)."""
        return self.quantize(f, schedule).codes

    def decode(self, codes: Sequence[Tensor], schedule: ScaleSchedule) -> Tensor:
        """f_hat (B, D, h_K, w_K) of the codes of all scales, or of the first few."""
        f_hat = self.start(codes[0].shape[0], schedule)
        for k, drawn in enumerate(codes):
            f_hat = self.accumulate(f_hat, drawn, k, schedule)
        return f_hat

    @torch.no_grad()
    def teacher_forcing(self, codes: Sequence[Tensor], schedule: ScaleSchedule) -> Tensor:
        """The transformer's input (B, L - L_0, D) when the true codes of all coarser scales are known."""
        f_hat = self.start(codes[0].shape[0], schedule)
        inputs = [f_hat.new_zeros(f_hat.shape[0], 0, self.code_width)]
        for k in range(len(schedule) - 1):
            f_hat = self.accumulate(f_hat, codes[k], k, schedule)
            inputs.append(self.next_input(f_hat, k + 1, schedule))
        return torch.cat(inputs, 1)

    def unquantized(self, f: Tensor, schedule: ScaleSchedule, kept: Tensor | None = None) -> Tensor:
        """What the decoder gets of features while a training doesn't quantise yet, (B, D, h_K, w_K): the features."""
        del schedule, kept
        return f

    def quantize(self, f: Tensor, schedule: ScaleSchedule, kept: Tensor | None = None) -> Quantized:
        """Quantise features with gradients: straight through to `f`, and to codebook and phi by the loss.

        Args:
            f: (B, D, h_K, w_K).
            schedule: the scales.
            kept: (B,) long, how many scales of each image reach f_hat, at least 1; None: all of them. Codes and losses
                are always those of all scales.

        """
        if tuple(f.shape[2:]) != schedule.sizes[-1]:
            raise ValueError(
                f"features of size {tuple(f.shape[2:])} don't fit the schedule's last scale {schedule.sizes[-1]}"
            )
        f = f.float()
        fixed = f.detach()
        f_hat = seen = self.start(f.shape[0], schedule)
        codes = []
        commitment = codebook = f.new_zeros(())
        for k in range(len(schedule)):
            with torch.no_grad(), _fp32(f):
                drawn = self.nearest(self.target(fixed, f_hat.detach(), k, schedule)).unflatten(0, (f.shape[0], -1))
            f_hat = self.accumulate(f_hat, drawn, k, schedule)
            seen = f_hat if kept is None else torch.where((kept > k).view(-1, 1, 1, 1), f_hat, seen)
            codes.append(drawn)
            commitment = commitment + F.mse_loss(f, f_hat.detach()) / len(schedule)
            codebook = codebook + F.mse_loss(f_hat, fixed) / len(schedule)
        return Quantized(f + (seen - f).detach(), codes, commitment, codebook)


def _area(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Average down to `size`."""
    return x if tuple(x.shape[2:]) == tuple(size) else F.interpolate(x, size, mode="area")


def _bicubic(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate up to `size`."""
    return x if tuple(x.shape[2:]) == tuple(size) else F.interpolate(x, size, mode="bicubic")
