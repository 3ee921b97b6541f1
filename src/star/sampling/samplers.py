"""Token samplers: from the logits of a scale to its codes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import Tensor

from star.sampling.decoder import DecodeState
from star.sampling.filters import draw, filter_logits
from star.sampling.noise import exponential
from star.types import Draw

log = logging.getLogger(__name__)

Head = Callable[[Tensor], Tensor]
Guiding = Callable[[Tensor, int], Tensor]


class Greedy:
    """The likeliest code of every token."""

    def __call__(self, hidden: Tensor, head: Head, guide: Guiding, k: int, state: DecodeState) -> Draw:
        """Codes of scale `k`."""
        return Draw(guide(head(hidden), k).argmax(-1))


class TopKTopP:
    """Multinomial sampling after a top-k, then a top-p filter.

    Args:
        top_k: keep the k likeliest codes (ties with the k-th stay); 0 keeps all. More than `V` is clamped.
        top_p: then keep the likeliest codes whose probabilities add up to p; 0 keeps all.
        temperature: divides the logits.
        last_temperature: that of the last scale, whose tokens say how things look that coarser ones have placed; None
            takes the same.

    Raises:
        ValueError: for a top_k that is no whole number from 0, a top_p outside [0, 1] or a temperature that isn't
            positive.

    """

    def __init__(
        self,
        top_k: int = 600,
        top_p: float = 0.8,
        *,
        temperature: float = 1.0,
        last_temperature: float | None = None,
    ) -> None:
        last = temperature if last_temperature is None else last_temperature
        numbers = all(isinstance(value, int | float) for value in (top_p, temperature, last))
        if (
            not numbers
            or not isinstance(top_k, int)
            or top_k < 0
            or not 0 <= top_p <= 1
            or not (temperature > 0 and last > 0)
        ):
            raise ValueError(
                "top_k is a whole number from 0 (which keeps all), top_p lies in [0, 1], temperatures are positive: "
                f"got {top_k}, {top_p}, {temperature}, {last}"
            )
        self.top_k = top_k
        self.top_p = top_p
        self.temperature = temperature
        self.last_temperature = last_temperature
        self._clamped = False

    def __call__(self, hidden: Tensor, head: Head, guide: Guiding, k: int, state: DecodeState) -> Draw:
        """Codes of scale `k`, each image drawn with its own generator."""
        logits = guide(head(hidden), k)
        if (temperature := self.at(k, len(state.schedule))) != 1:
            logits = logits / temperature
        return Draw(draw(logits, state.generators, top_k=self.clamp(logits), top_p=self.top_p)[0])

    def at(self, k: int, num_scales: int) -> float:
        """The temperature of scale `k`."""
        if self.last_temperature is not None and k == num_scales - 1:
            return self.last_temperature
        return self.temperature

    def clamp(self, logits: Tensor) -> int:
        """`top_k`, at most the codebook's size, which is said once."""
        if self.top_k > logits.shape[-1] and not self._clamped:
            log.info(
                "top_k %d is more than the codebook's %d entries and keeps all of them", self.top_k, logits.shape[-1]
            )
            self._clamped = True
        return min(self.top_k, logits.shape[-1])


class Gumbel:
    """Mix codebook entries by a gumbel-softmax (the paper's "smooth" baseline, appendix table 1).

    Args:
        temperature: of the mixture at the first scale; falls to 5 % of it at the last, and never below 0.005.
        top_k, top_p: the filter before it, see `TopKTopP`.

    Raises:
        ValueError: for settings out of range.

    """

    def __init__(self, temperature: float = 0.27, *, top_k: int = 0, top_p: float = 0.0) -> None:
        if not isinstance(temperature, int | float) or not temperature > 0:
            raise ValueError(f"a gumbel temperature must be positive, got {temperature!r}")
        self.temperature = temperature
        self.filters = TopKTopP(top_k, top_p)
        self.top_k = top_k
        self.top_p = top_p

    def __call__(self, hidden: Tensor, head: Head, guide: Guiding, k: int, state: DecodeState) -> Draw:
        """Codes of scale `k` and the mixed embeddings that stand for them."""
        progress = k / max(len(state.schedule) - 1, 1)
        logits = guide(head(hidden), k) * (1 + progress)
        logits = filter_logits(logits, self.filters.clamp(logits), self.top_p)
        noise = exponential(logits.shape, state.generators, logits.device).log().neg()
        temperature = max(self.temperature * (1 - 0.95 * progress), 0.005)
        mixture = ((logits + noise) / temperature).softmax(-1)  # (B, L_k, V)
        return Draw(mixture.argmax(-1), mixture @ state.codebook.float())
