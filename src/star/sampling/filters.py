"""Which codes may be drawn (top-k, then top-p), and the draw itself, without ever sorting a codebook."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from star.sampling.noise import clocks, draw_bits, exponential


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Set what top-k, and then top-p on what is left, removes from logits (..., V) to -inf.

    Codes as likely as the k-th stay, so more than k may. top-p removes, from the least likely upwards, codes while
    their probabilities add up to at most 1 - p; the likeliest always stays. 0 switches a filter off.

    This is the definition; `draw` comes to the same codes without the sort.
    """
    size = logits.shape[-1]
    if 0 < top_k < size:
        candidates = logits.topk(top_k, -1).values  # descending
        logits = logits.masked_fill(logits < candidates[..., -1:], float("-inf"))
    if top_p > 0:
        ascending, order = logits.sort(-1)
        removed = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        removed[..., -1] = False
        logits = logits.masked_fill(torch.zeros_like(removed).scatter(-1, order, removed), float("-inf"))
    return logits


def race(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw codes (B, L_k) from logits (B, L_k, V): exponential clocks, the first to ring wins.

    The same distribution as `multinomial`, but the noise belongs to (image, token, code), so rounding differences
    between batch sizes change a code only where two clocks ring together.
    """
    noise = exponential(logits.shape, generators, logits.device)
    return (logits.float() - noise.log_()).argmax(-1)


def draw(
    logits: Tensor, generators: Sequence[torch.Generator], *, top_k: int = 0, top_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """What `race(filter_logits(logits, top_k, top_p), generators)` draws, looking only at the candidates.

    Args:
        logits: (B, L_k, V).
        generators: one per image.
        top_k: see `filter_logits`.
        top_p: see `filter_logits`.

    Returns:
        Codes (B, L_k) long, and the probability (B, L_k) that each had after the filters.

    """
    logits = logits.float()
    bits = draw_bits(logits.shape, generators, logits.device)
    values, codes, tied = narrow(logits, top_k, top_p)
    winner, probability = _winner(values, bits if codes is None else bits.gather(-1, codes))
    drawn = winner if codes is None else codes.gather(-1, winner[..., None])[..., 0]
    if tied.any():
        kept = filter_logits(logits[tied], top_k, top_p)
        drawn[tied], probability[tied] = _winner(kept, bits[tied])
    return drawn, probability


def _winner(values: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the candidates' clocks (..., m) rings first, and the probability that it does."""
    winner = clocks(bits).log_().neg_().add_(values).argmax(-1, keepdim=True)
    probability = (values.gather(-1, winner) - values.logsumexp(-1, keepdim=True)).exp()
    return winner[..., 0], probability[..., 0]


def narrow(logits: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """The candidates of logits (..., V), in no particular order.

    Returns:
        Their logits (..., m), -inf for what is removed; their codes (..., m) long, or None where candidate i is code i;
        and (...) bool, where equal logits leave it open which codes stay: there `filter_logits` has to be asked.

    """
    size = logits.shape[-1]
    values, codes = logits, None
    if 0 < top_k < size:
        values, codes = logits.topk(top_k + 1, -1, sorted=False)  # one more: is the k-th tied with those outside?
    elif top_p <= 0:
        return logits, None, torch.zeros(logits.shape[:-1], dtype=torch.bool, device=logits.device)
    ascending = _ascending(values)
    first = 0 if codes is None else 1
    place = torch.full_like(ascending[..., :1], first, dtype=torch.long)
    if top_p > 0:
        small = ascending[..., first:].softmax(-1).cumsum(-1)[..., :-1] <= 1 - top_p
        place = place + small.sum(-1, keepdim=True)
    least = ascending.gather(-1, place)
    tied = (place > 0) & (ascending.gather(-1, (place - 1).clamp_(min=0)) == least)
    if codes is not None:
        tied = tied | (ascending[..., 1:2] == ascending[..., :1])
    return values.masked_fill(values < least, float("-inf")), codes, tied[..., 0]


def _ascending(values: Tensor) -> Tensor:
    """Sorted values; NumPy's sort uses a CPU's vector units and PyTorch's doesn't (1.7 and 17 ms for 680 x 600)."""
    if values.device.type == "cpu" and values.dtype == torch.float32:
        return torch.from_numpy(np.sort(values.detach().numpy(), -1))
    return values.sort(-1).values
