"""Attention over scales on a CPU for training: PyTorch's fused kernel, with less kept and less copied around it.

Through `scaled_dot_product_attention`, autograd keeps queries, keys and every scale's output, puts the outputs together
twice (once by scale, once by head), and fills a gradient of full length for every slice of keys and values. Here all
scales write into one output, laid out as the next product reads it, and into one gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from star.nn.recipe import Recipe, made_again, plainly

Spans = Sequence[tuple[slice, slice | Tensor]]
EVERYTHING: Spans = ((slice(None), slice(None)),)

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_prefix(split: Recipe, spans: Spans, bias: Tensor | None = None) -> Tensor:
    """Softmax attention without a scale factor, (B, L, C).

    Args:
        split: makes queries (B, heads, L, d), keys and values (B, heads, L_seen, d); only its inputs are kept.
        spans: which queries see which keys; together all queries.
        bias: additive mask (B, 1, 1, L_seen), for a single span.

    """
    with plainly(split.inputs):
        mixed: Tensor = _Attention.apply(split.make, spans, bias, *split.inputs)
    return mixed


class _Attention(Function):
    """All spans, one after another."""

    @staticmethod
    def forward(
        ctx: Any, make: Callable[..., Any], spans: Spans, bias: Tensor | None, *inputs: Tensor | None
    ) -> Tensor:
        q, k, v = make(*inputs)
        mixed = q.new_empty(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])
        heads = mixed.unflatten(-1, (q.shape[1], -1)).transpose(1, 2)
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
        grad, mixed = (x.unflatten(-1, (q.shape[1], -1)).transpose(1, 2) for x in (grad, mixed))
        # laid out by token, as what queries, keys and values were split from
        of_q, of_k, of_v = (torch.zeros(x.transpose(1, 2).shape, dtype=x.dtype).transpose(1, 2) for x in made)
        for (i, j), logs in zip(ctx.spans, sums, strict=True):
            own = q[:, :, i], k[:, :, j], v[:, :, j]
            parts = _backward(grad[:, :, i], *own, mixed[:, :, i], logs, 0.0, False, attn_mask=bias, scale=1.0)
            of_q[:, :, i] = parts[0]
            of_k[:, :, j] += parts[1]
            of_v[:, :, j] += parts[2]
        return None, None, None, *gradients(of_q, of_k, of_v)
