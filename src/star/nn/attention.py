"""Self-attention over scales and cross-attention to text, both with normalised queries and keys."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.nn.backends import BACKENDS, choose
from star.nn.cache import KVCache
from star.nn.masks import Visibility
from star.nn.position import Rotation, rotate
from star.nn.prefix import EVERYTHING, attend_prefix, shares
from star.nn.recipe import Recipe, linear, run, worthwhile


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
            is one FlexAttention kernel that skips what isn't seen (CUDA); `matmul` is `prefix` with the softmax
            written out; `dense` is the masked reference; `auto` is one of them, see `star.nn.backends.choose`.

    """
    if backend == "auto":
        whole = type(visibility) is Visibility
        backend = choose(q.device.type, q.dtype, k.shape[2], head_width=q.shape[3], whole_scales=whole)
    if visibility is not None and backend == "flex":
        from star.nn.flex import flex_attend

        return flex_attend(q, k, v, visibility)
    if visibility is not None and backend in ("prefix", "matmul"):
        parts = [
            attend(q[:, :, i], k[:, :, j], v[:, :, j], backend=backend if backend == "matmul" else "dense")
            for i, j in visibility.spans()
        ]
        return torch.cat(parts, 2)
    if visibility is not None:
        bias = visibility.bias(q.device)
    if bias is not None:
        bias = bias.to(q.dtype)
    if backend == "matmul":
        return shares(q, k, bias).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, bias, scale=1.0)


def attend_recipe(
    split: Recipe,
    visibility: Visibility | None = None,
    *,
    length: int,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """`attend` as (B, L, C), of a recipe for queries, keys and values, of which only the inputs are kept.

    Args:
        split: gives q, k and v; all three have the dtype of its first input.
        visibility: see `attend`.
        length: how many keys there are, `L_seen`.
        bias: see `attend`.
        backend: see `attend`.

    """
    like = split.inputs[0]
    assert like is not None
    if like.device.type == "cpu" and worthwhile(*split.inputs):
        if backend == "auto":
            backend = choose("cpu", like.dtype, length, head_width=1, whole_scales=True)
        if backend in ("prefix", "matmul"):
            spans = EVERYTHING if visibility is None else tuple(visibility.spans())
            bias = None if bias is None else bias.to(like.dtype)
            return attend_prefix(split, spans, bias, written_out=backend == "matmul")
    q, k, v = split.value()
    return attend(q, k, v, visibility, bias=bias, backend=backend).transpose(1, 2).flatten(2)


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

    def forward(self, q: Tensor, k: Tensor, log_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalise q and k (B, heads, L, d), in fp32 and back; `log_scale` stands for the module's own."""
        return self.queries(q, log_scale), self.keys(k)

    def queries(self, q: Tensor, log_scale: Tensor | None = None) -> Tensor:
        """Normalised and scaled queries."""
        log_scale = self.log_scale if log_scale is None else log_scale
        if log_scale is None:
            return q * self.fixed
        return (F.normalize(q.float(), dim=-1) * log_scale.clamp(max=math.log(100.0)).exp()).to(q.dtype)

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
        x: Tensor | Recipe,
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
        qkv = linear(x, self.qkv.weight, bias)
        split = Recipe(partial(self._split, rotation=rotation), qkv, self.norm.log_scale)
        if cache is None:
            return self.out(attend_recipe(split, visibility, length=qkv.shape[1], backend=self.backend))
        q, k, v = split()
        k, v = cache.append(layer, scale, q, k, v)
        return self.out(attend(q, k, v, visibility, backend=self.backend).transpose(1, 2).flatten(2))

    def _split(
        self, qkv: Tensor, log_scale: Tensor | None, *, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, L, d) as they are multiplied, of their projections (B, L, 3C)."""
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k = run(self.norm, q, k, log_scale)
        return q.to(v.dtype), k.to(v.dtype), v


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

    def forward(self, x: Tensor | Recipe, keys_and_values: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
        """What the text says to each token of x (B, L, C); `bias` (B, 1, 1, T) is -inf on padding."""
        q = linear(x, self.q.weight, self.q_bias)
        split = Recipe(self._split, q, *keys_and_values, self.norm.log_scale)
        return self.out(attend_recipe(split, length=keys_and_values[0].shape[2], bias=bias, backend=self.backend))

    def _split(self, q: Tensor, k: Tensor, v: Tensor, log_scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, heads, L, d) as they are multiplied, of their projections (B, L, C); keys and values are so."""
        q = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return self.norm.queries(q, log_scale).to(v.dtype), k, v
