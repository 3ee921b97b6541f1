"""The transformer block, and how a class or pooled text may modulate it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.nn.attention import CrossAttention, SelfAttention
from star.nn.cache import KVCache
from star.nn.gelu import gelu
from star.nn.masks import Visibility
from star.nn.position import Rotation
from star.nn.recipe import Recipe, call, run

NORM_EPS = 1e-6


class DropPath(nn.Module):
    """Stochastic depth: a sample loses a residual branch with `rate`, and the others are scaled up."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"a drop path rate lies in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole rows of x (B, ...)."""
        if self.rate == 0 or not self.training:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


class FeedForward(nn.Module):
    """Two linear layers around GELU in its tanh form (VAR)."""

    def __init__(self, width: int, *, ratio: float = 4.0) -> None:
        super().__init__()
        self.inner = nn.Linear(width, round(width * ratio))
        self.out = nn.Linear(round(width * ratio), width)

    def forward(self, x: Tensor | Recipe) -> Tensor:
        """Change every token of x (B, L, C) on its own."""
        return call(self.out, Recipe(gelu, call(self.inner, x)))


class AdaptiveNorm(nn.Module):
    """AdaLN (VAR): gates, scales and shifts of a block as a linear function of its condition.

    Args:
        width: channels `C`.
        shared: the linear layer belongs to the whole model (VAR d36); the block only adds its own offsets.

    """

    def __init__(self, width: int, *, shared: bool = False) -> None:
        super().__init__()
        self.linear = None if shared else nn.Linear(width, 6 * width)
        self.offsets = nn.Parameter(torch.randn(6, width) / width**0.5) if shared else None

    def forward(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """Two gates, two scales, two shifts, each (B, 1, C), from (B, C), or from the shared layer's (B, 6C)."""
        if self.linear is not None:
            six = self.linear(F.silu(modulation)).unflatten(-1, (6, -1))
        else:
            six = modulation.unflatten(-1, (6, -1)) + self.offsets
        return six[:, None].unbind(2)


class Block(nn.Module):
    """Pre-norm block: self-attention over scales, cross-attention to text, feed-forward (STAR Fig. 3).

    Args:
        width: channels `C`.
        num_heads: heads of both attentions.
        context_width: channels of the text; None for a block without cross-attention.
        mlp_ratio: width of the feed-forward's inner layer over `C`.
        drop_path: rate of stochastic depth for self-attention and feed-forward.
        qk_norm: normalise queries and keys.
        adaptive_norm: `none`, `own` (VAR) or `shared` (VAR d36).
        first_sample_text: every row adds the text branch of row 0, as the released code does (see docs). Off, each row
            attends to its own text.
        backend: see `star.nn.attention.attend`.

    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        context_width: int | None,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        qk_norm: bool = True,
        adaptive_norm: str = "none",
        first_sample_text: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if adaptive_norm not in ("none", "own", "shared"):
            raise ValueError(f"adaptive_norm is 'none', 'own' or 'shared', got {adaptive_norm!r}")
        self.norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.attention = SelfAttention(width, num_heads=num_heads, qk_norm=qk_norm, backend=backend)
        self.cross_attention = (
            None
            if context_width is None
            else CrossAttention(width, context_width, num_heads=num_heads, qk_norm=qk_norm, backend=backend)
        )
        self.feed_forward = FeedForward(width, ratio=mlp_ratio)
        self.modulation = None if adaptive_norm == "none" else AdaptiveNorm(width, shared=adaptive_norm == "shared")
        self.drop_path = DropPath(drop_path)
        self.first_sample_text = first_sample_text

    def forward(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        context_bias: Tensor | None = None,
        modulation: Tensor | None = None,
        rotation: Rotation | None = None,
        visibility: Visibility | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        scale: int = 0,
    ) -> Tensor:
        """Tokens (B, L, C) in and out; see `SelfAttention.forward` for what the arguments mean."""
        attend = self.attention
        if self.modulation is None or modulation is None:
            x = x + self.drop_path(attend(Recipe(self._normed, x), rotation, visibility, cache, layer, scale))
            x = x + self.text(x, context, context_bias, cache, layer)
            return x + self.drop_path(self.feed_forward(Recipe(self._normed, x)))
        gate_a, gate_f, scale_a, scale_f, shift_a, shift_f = self.modulation(modulation)
        inner = Recipe(self._modulated, x, scale_a, shift_a)
        x = x + self.drop_path(attend(inner, rotation, visibility, cache, layer, scale) * gate_a)
        x = x + self.text(x, context, context_bias, cache, layer)
        return x + self.drop_path(self.feed_forward(Recipe(self._modulated, x, scale_f, shift_f)) * gate_f)

    def _normed(self, x: Tensor) -> Tensor:
        """Normalised tokens (B, L, C)."""
        normed: Tensor = run(self.norm, x)
        return normed

    def _modulated(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Normalised tokens (B, L, C), scaled and shifted by (B, 1, C)."""
        return self._normed(x) * (1 + scale) + shift

    def text(
        self, x: Tensor, context: Tensor | None, bias: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor | float:
        """The text branch, (B, L, C), or 0 where there is no text."""
        cross = self.cross_attention
        if cross is None or context is None:
            return 0.0
        if cache is None:
            pair = cross.keys_and_values(context)
        else:
            pair = cache.text(layer, lambda: cross.keys_and_values(context))
        said = cross(Recipe(self._normed, x), pair, bias)
        return said[:1] if self.first_sample_text else said
