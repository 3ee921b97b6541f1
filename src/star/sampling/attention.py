"""Where a token looks: self-attention over all coarser scales and its own (the paper's appendix C)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.transformer import STARTransformer
from star.sampling.trace import paint
from star.schedule import ScaleSchedule
from star.types import Condition


@torch.no_grad()
def attention_maps(
    transformer: STARTransformer,
    quantizer: MultiScaleVQ,
    codes: Sequence[Tensor],
    condition: Condition,
    schedule: ScaleSchedule,
    *,
    query: int,
) -> Tensor:
    """The attention of one token of a picture, averaged over the heads.

    Args:
        transformer: looks.
        quantizer: turns codes into its input.
        codes: of all scales, each (1, L_k).
        condition: the text, one row.
        schedule: the scales.
        query: the token's place in the sequence, 0 ... L - 1.

    Returns:
        (depth, L): a row for each block; 0 where the token can't look; a row sums up to 1.

    Raises:
        ValueError: when there is no such token.

    """
    if not 0 <= query < schedule.total:
        raise ValueError(f"the picture has the tokens 0 ... {schedule.total - 1}, there is no token {query}")
    visible = torch.full((schedule.total,), float("-inf"))
    for queries, keys in transformer.mask.visibility(schedule).spans():
        if queries.start <= query < queries.stop:
            visible[keys] = 0
    with _watched(transformer) as seen:
        x_in = quantizer.teacher_forcing(codes, schedule)
        transformer(x_in, condition, schedule)
    maps = []
    for q, k in seen:
        scores = (q[0, :, query : query + 1].float() @ k[0].float().transpose(1, 2))[:, 0]  # (heads, L)
        maps.append((scores.cpu() + visible).softmax(-1).mean(0))
    return torch.stack(maps)


def attention_picture(attention: Tensor, schedule: ScaleSchedule, *, side: int = 96) -> Tensor:
    """One row of attention (L,) as maps side by side, coarse to fine, each relative to its own largest value.

    Returns:
        (3, side, W) in [0, 1]; grey is what can't be seen.

    """
    parts = []
    for k, size in enumerate(schedule.sizes):
        values = attention[schedule.slice(k)]
        largest = values.max()
        shown = values / largest if largest > 0 else torch.full_like(values, torch.nan)
        parts.append(torch.nn.functional.pad(paint(shown, size, side), (0, 4), value=1.0))
    return torch.cat(parts, 2)[..., :-4]


def token_at(schedule: ScaleSchedule, across: float, down: float) -> int:
    """The token of the last scale at a place of the picture, both coordinates from 0 to 1."""
    height, width = schedule.sizes[-1]
    row, column = min(int(down * height), height - 1), min(int(across * width), width - 1)
    return schedule.offsets[-2] + row * width + column


@contextmanager
def _watched(transformer: STARTransformer) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Note queries and keys (B, heads, L, d), as they are multiplied, of every block's self-attention."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: Any, given: Any, result: tuple[Tensor, Tensor]) -> None:
        seen.append(result)

    handles = [block.attention.norm.register_forward_hook(note) for block in transformer.blocks]  # type: ignore[union-attr]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
