"""How likely a generator finds given codes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.schedule import ScaleSchedule, concatenate
from star.types import Condition


def token_losses(
    transformer: STARTransformer,
    tokenizer: MultiScaleTokenizer,
    codes: Sequence[Tensor],
    condition: Condition,
    schedule: ScaleSchedule,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats of every code under its text, all coarser scales being true (STAR equation 1).

    Args:
        transformer: the generator.
        tokenizer: that made the codes.
        codes: of each scale, (B, L_k) long.
        condition: B texts.
        schedule: all scales.

    Returns:
        The losses (B, L), fp32, and whether the likeliest code is the true one (B, L), 1 or 0.

    """
    logits = transformer(tokenizer.quantizer.teacher_forcing(codes, schedule), condition, schedule)
    assert isinstance(logits, Tensor)
    logits, target = logits.float(), concatenate(codes)
    losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
    return losses, (logits.argmax(-1) == target).float()
