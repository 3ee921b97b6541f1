"""Self-attention over scales and cross-attention to text, both with normalised queries and keys."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.nn.backends import BACKENDS, choose
from star.nn.cache import KVCache
from star.nn.masks import Visibility
from star.nn.position import Rotation, rotate


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visibility: Visibility | None = None,
    *,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Softmax attention of q (B, heads, L, d) over k and v (B, heads, L_seen, d), without a scale factor.

    Args:
        q: queries, already scaled.
        k: keys.
        v: values.
        visibility: what the scales of a training sequence see; None when every query sees every key.
        bias: additive mask that broadcasts to (B, heads, L, L_seen), for cross-attention.
        backend: `prefix` runs one unmasked call per scale over the keys that it sees, so no L x L mask exists; `flex`
            is one FlexAttention kernel that skips what isn't seen (CUDA); `matmul` writes the softmax out; `dense` is
            the masked reference; `auto` is one of them, see `star.nn.backends.choose`.

    """
    if backend == "auto":
        whole = type(visibility) is Visibility
        backend = choose(q.device.type, q.dtype, k.shape[2], head_width=q.shape[3], whole_scales=whole)
    if visibility is not None and backend == "flex":
        from star.nn.flex import flex_attend

        return flex_attend(q, k, v, visibility)
    if visibility is not None and backend == "prefix":
        parts = [
            F.scaled_dot_product_attention(q[:, :, i], k[:, :, j], v[:, :, j], scale=1.0) for i, j in visibility.spans()
        ]
        return torch.cat(parts, 2)
    if visibility is not None:
        bias = visibility.bias(q.device)
    if bias is not None:
        bias = bias.to(q.dtype)
    if backend == "matmul":
        scores = q @ k.transpose(-1, -2)
        return (scores if bias is None else scores + bias).softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, bias, scale=1.0)


class QKNorm(nn.Module):
    """Unit queries and keys, and a learned temperature per head (VAR): cosines times exp(min(s, log 100)).

    Args:
        num_heads: heads, each with its own s, which starts at log 4.
        head_width: channels of a head.
        enabled: off, queries are only scaled by 0.25 / sqrt(d), as in VAR without normalisation.

    """

    def __init__(self, num_heads: int, head_width: int, *, enabled: bool = True) -> None:
        super().__init__()
        self.fixed = 0.25 / math.sqrt(head_width)
        self.log_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(4.0))) if enabled else None

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise q and k (B, heads, L, d), in fp32 and back."""
        return self.queries(q), self.keys(k)

    def queries(self, q: Tensor) -> Tensor:
        """Normalised and scaled queries."""
        if self.log_scale is None:
            return q * self.fixed
        return (F.normalize(q.float(), dim=-1) * self.log_scale.clamp(max=math.log(100.0)).exp()).to(q.dtype)

    def keys(self, k: Tensor) -> Tensor:
        """Normalised keys."""
        return k if self.log_scale is None else F.normalize(k.float(), dim=-1).to(k.dtype)


class SelfAttention(nn.Module):
    """Attention over the scales a token may see; the cache, if any, belongs to the caller.

    Args:
        width: channels `C`.
        num_heads: heads; divides `width`.
        qk_norm: normalise queries and keys.
        backend: see `attend`.

    """

    def __init__(self, width: int, *, num_heads: int, qk_norm: bool = True, backend: str = "auto") -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not divisible by num_heads {num_heads}")
        if backend not in BACKENDS:
            raise ValueError(f"attention backend is one of {', '.join(BACKENDS)}, got {backend!r}")
        self.num_heads = num_heads
        self.backend = backend
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.norm = QKNorm(num_heads, width // num_heads, enabled=qk_norm)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None = None,
        visibility: Visibility | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        scale: int = 0,
    ) -> Tensor:
        """Mix tokens (B, L, C).

        Args:
            x: the tokens: of all scales in training, of one scale with a cache.
            rotation: cosines and sines of the tokens' positions.
            visibility: what each scale sees; None with a cache, which holds just that.
            cache: keys and values of earlier scales.
            layer: this layer's number in the cache.
            scale: the scale that `x` is.

        """
        # keys have no bias: a constant added to every key changes no softmax
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k = (part.to(v.dtype) for part in self.norm(q, k))  # (B, heads, L, d)
        if cache is not None:
            k, v = cache.append(layer, scale, q, k, v)
        mixed = attend(q, k, v, visibility, backend=self.backend)
        return self.out(mixed.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention of image tokens to the hidden states of their own text.

    Args:
        width: channels `C` of the image tokens.
        context_width: channels of the text.
        num_heads: heads; divides `width`.
        qk_norm: normalise queries and keys.
        backend: see `attend`.

    """

    def __init__(
        self, width: int, context_width: int, *, num_heads: int, qk_norm: bool = True, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend = backend
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(context_width, 2 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.norm = QKNorm(num_heads, width // num_heads, enabled=qk_norm)
        self.out = nn.Linear(width, width)

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, T, d) of hidden states (B, T, context_width): the same for every scale."""
        bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        k, v = F.linear(context, self.kv.weight, bias).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.norm.keys(k).to(v.dtype), v

    def forward(self, x: Tensor, keys_and_values: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
        """What the text says to each token of x (B, L, C); `bias` (B, 1, 1, T) is -inf on padding."""
        k, v = keys_and_values
        q = F.linear(x, self.q.weight, self.q_bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        mixed = attend(self.norm.queries(q).to(v.dtype), k, v, bias=bias, backend=self.backend)
        return self.out(mixed.transpose(1, 2).flatten(2))
