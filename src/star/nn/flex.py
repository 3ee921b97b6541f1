"""Attention over scales as one FlexAttention kernel: a `BlockMask` says which blocks of keys are skipped.

The mask is made from where scales begin, block by block: not even in passing is there anything of L x L elements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

if TYPE_CHECKING:
    from star.nn.masks import Visibility

BLOCK = 128  # FlexAttention's own default

_kernel = torch.compile(flex_attention)
_masks: dict[tuple[Visibility, torch.device], BlockMask] = {}


def spans(visibility: Visibility) -> tuple[Tensor, Tensor]:
    """The first key that every query sees, and the one after the last: two (L,) int.

    Raises:
        ValueError: when the keys of a scale aren't a contiguous run, or a later scale looks further back than an
            earlier one.

    """
    starts, stops = [], []
    hint = "FlexAttention is used for masks of whole scales that move forward: choose backend 'prefix' or 'auto'"
    for queries, keys in visibility.spans():
        if not isinstance(keys, slice):
            raise ValueError(hint)
        starts.append(torch.full((queries.stop - queries.start,), keys.start, dtype=torch.int32))
        stops.append(torch.full((queries.stop - queries.start,), keys.stop, dtype=torch.int32))
    start, stop = torch.cat(starts), torch.cat(stops)
    if (start.diff() < 0).any():
        raise ValueError(hint)
    return start, stop


def block_mask(visibility: Visibility, device: torch.device) -> BlockMask:
    """The mask of a sequence on a device."""
    start, stop = spans(visibility)
    length = len(start)
    first = torch.arange(0, length, BLOCK)
    last = (first + BLOCK).clamp(max=length) - 1
    inside = first + BLOCK <= length
    # Both ends of what is seen only move forward, so the first and the last query of a block bound all of its queries;
    # what they see together has no gap, because each sees its own scale.
    seen = (start[first][:, None] <= last) & (stop[last][:, None] > first)
    full = (start[last][:, None] <= first) & (stop[first][:, None] > last) & inside[:, None] & inside
    start, stop = start.to(device), stop.to(device)

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key >= start[query]) & (key < stop[query])

    return BlockMask.from_kv_blocks(
        *_ordered((seen & ~full).to(device)),
        *_ordered(full.to(device)),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(length, length),
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries needs, (1, 1, N), and which ones, (1, 1, N, N), those first."""
    order = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.int()[None, None]


def flex_attend(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility) -> Tensor:
    """Softmax attention of q (B, heads, L, d), already scaled, over the keys that each scale sees.

    Compiled on the first call. Written for CUDA; on a CPU it only runs forward.

    Raises:
        ValueError: on a CPU with gradients, or for a mask whose keys aren't contiguous.

    """
    if q.device.type == "cpu" and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise ValueError("PyTorch's FlexAttention has no backward pass on a CPU: train with backend 'auto' or 'prefix'")
    # a plain dictionary, which compiled blocks can read, too; as few entries as there are lengths to train and validate
    if (visibility, q.device) not in _masks:
        with torch.inference_mode(False):  # a validation may ask first, and training keeps them for its gradients
            _masks[visibility, q.device] = block_mask(visibility, q.device)
    mask = _masks[visibility, q.device]
    mixed: Tensor = _kernel(q.contiguous(), k.contiguous(), v.contiguous(), block_mask=mask, scale=1.0)
    return mixed
