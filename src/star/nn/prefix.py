"""Attention over scales on a CPU for training, with less kept and less copied than autograd would.

Through `scaled_dot_product_attention`, autograd keeps queries, keys and every scale's output, puts the outputs together
twice (once by scale, once by head), and fills a gradient of full length for every slice of keys and values. Here all
scales write into one output, laid out as the next product reads it, and into one gradient.

In fp32 each scale is PyTorch's fused kernel. In bf16 that one is slow, above all backward: there the softmax is written
out, some rows at a time, and made again for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from star.nn.recipe import Recipe, made_again, plainly

Spans = Sequence[tuple[slice, slice | Tensor]]
EVERYTHING: Spans = ((slice(None), slice(None)),)

ROOM = 2**24  # scores that are held at a time where the softmax is written out

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_of_softmax = torch.ops.aten._softmax_backward_data


def attend_prefix(split: Recipe, spans: Spans, bias: Tensor | None = None, *, written_out: bool = False) -> Tensor:
    """Softmax attention without a scale factor, (B, L, C).

    Args:
        split: makes queries (B, heads, L, d), keys and values (B, heads, L_seen, d); only its inputs are kept.
        spans: which queries see which keys; together all queries.
        bias: additive mask (B, 1, 1, L_seen), for a single span.
        written_out: by products and a softmax in place of the fused kernel.

    """
    attention = _WrittenOut if written_out else _Attention
    with plainly(split.inputs):
        mixed: Tensor = attention.apply(split.make, spans, bias, *split.inputs)
    return mixed


def shares(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """The softmax (B, heads, L, L_seen) of queries and keys."""
    scores = q @ k.transpose(-1, -2)
    return (scores if bias is None else scores + bias).softmax(-1)


def in_pieces(spans: Spans, q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice | Tensor]]:
    """The same spans, their queries cut so that no piece has more than `ROOM` scores."""
    for i, j in spans:
        first, last, _ = i.indices(q.shape[2])
        seen = k[:, :, j].shape[2]
        rows = max(ROOM // (q.shape[0] * q.shape[1] * max(seen, 1)), 1)
        for start in range(first, last, rows):
            yield slice(start, min(start + rows, last)), j


def by_head(mixed: Tensor, heads: int) -> Tensor:
    """A view (B, heads, L, d) of (B, L, C)."""
    return mixed.unflatten(-1, (heads, -1)).transpose(1, 2)


def room_for(q: Tensor) -> tuple[Tensor, Tensor]:
    """An output (B, L, C) to be written, and the view of it by head, for queries (B, heads, L, d)."""
    mixed = q.new_empty(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])
    return mixed, by_head(mixed, q.shape[1])


def zeros_by_token(made: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros (B, heads, L, d) laid out by token, as what queries, keys and values were split from."""
    return torch.zeros(made.transpose(1, 2).shape, dtype=dtype).transpose(1, 2)


class _WrittenOut(Function):
    """All spans, one after another, of which nothing but the recipe's inputs is kept."""

    @staticmethod
    def forward(
        ctx: Any, make: Callable[..., Any], spans: Spans, bias: Tensor | None, *inputs: Tensor | None
    ) -> Tensor:
        q, k, v = make(*inputs)
        mixed, heads = room_for(q)
        for i, j in in_pieces(spans, q, k):
            heads[:, :, i] = shares(q[:, :, i], k[:, :, j], bias) @ v[:, :, j]
        ctx.make, ctx.spans = make, spans
        ctx.save_for_backward(bias, *inputs)
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        bias, *inputs = ctx.saved_tensors
        made, gradients = made_again(ctx.make, inputs, ctx.needs_input_grad[3:])
        q, k, v = (part.detach() for part in made)
        grad = by_head(grad, q.shape[1])
        of_q = zeros_by_token(q, q.dtype)
        # each key is seen by several scales, whose gradients bf16 would round at every sum
        of_k, of_v = (zeros_by_token(x, torch.float32) for x in (k, v))
        for i, j in in_pieces(ctx.spans, q, k):
            given, taken = grad[:, :, i], shares(q[:, :, i], k[:, :, j], bias)
            of_scores = _of_softmax(given @ v[:, :, j].transpose(-1, -2), taken, -1, q.dtype)
            of_q[:, :, i] = of_scores @ k[:, :, j]
            of_k[:, :, j] += of_scores.transpose(-1, -2) @ q[:, :, i]
            of_v[:, :, j] += taken.transpose(-1, -2) @ given
        return None, None, None, *gradients(of_q, of_k.to(k.dtype), of_v.to(v.dtype))


class _Attention(Function):
    """All spans, one after another, by the fused kernel."""

    @staticmethod
    def forward(
        ctx: Any, make: Callable[..., Any], spans: Spans, bias: Tensor | None, *inputs: Tensor | None
    ) -> Tensor:
        q, k, v = make(*inputs)
        mixed, heads = room_for(q)
        sums = []  # logarithms of the softmax's denominators
        for i, j in spans:
            heads[:, :, i], logs = _forward(q[:, :, i], k[:, :, j], v[:, :, j], attn_mask=bias, scale=1.0)
            sums.append(logs)
        ctx.make, ctx.spans = make, spans
        ctx.save_for_backward(mixed, bias, *sums, *inputs)
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        mixed, bias, *rest = ctx.saved_tensors
        sums, inputs = rest[: len(ctx.spans)], rest[len(ctx.spans) :]
        made, gradients = made_again(ctx.make, inputs, ctx.needs_input_grad[3:])
        q, k, v = (part.detach() for part in made)
        grad, mixed = (by_head(x, q.shape[1]) for x in (grad, mixed))
        of_q, of_k, of_v = (zeros_by_token(x, x.dtype) for x in made)
        for (i, j), logs in zip(ctx.spans, sums, strict=True):
            own = q[:, :, i], k[:, :, j], v[:, :, j]
            parts = _backward(grad[:, :, i], *own, mixed[:, :, i], logs, 0.0, False, attn_mask=bias, scale=1.0)
            of_q[:, :, i] = parts[0]
            of_k[:, :, j] += parts[1]
            of_v[:, :, j] += parts[2]
        return None, None, None, *gradients(of_q, of_k, of_v)
