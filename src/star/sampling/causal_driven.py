"""Causal-driven stable sampling: a late scale's tokens are revealed in steps (STAR section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from star.models.refiner import refined_scales
from star.sampling.decoder import NO_REFINER, DecodeState
from star.sampling.filters import draw
from star.sampling.noise import branch, exponential
from star.sampling.reveal import RevealSchedule
from star.sampling.samplers import Head, TopKTopP
from star.sampling.trace import RevealTrace
from star.schedule import ScaleSchedule
from star.types import Draw, TokenSampler


class CausalDriven:
    """Coarse scales are drawn at once, late ones step by step, each step seeing the tokens of those before.

    A step draws a code for every position, then keeps those of a few positions: of random ones, or of those it is
    surest of. What it draws elsewhere is forgotten, and a known token never changes. Where the generator's logits are
    used they are drawn from anew at every step, as in the release.

    Args:
        steps: `T` of each refined scale: one number, or one per scale from the last backwards (`[8, 15]`: 15 for the
            last, 8 for all before). Larger scales deserve more (section 4.3).
        shape: how the steps grow, see `RevealSchedule`.
        first_scale: the first refined scale; negative counts from the end; None is the paper's 9 of 14 scaled to the
            schedule's length.
        last_scale: the last refined scale, counted likewise; None: the schedule's last, as published.
        random_steps: this many steps reveal random positions, the later ones the most confident; None: all random.
        generator_steps: this many steps take the generator's own logits instead of the refiner's ...
        generator_until: ... on scales before this one (negative counts from the end; their number: on all).
        constant_guidance: the refiner's logits are guided as at the scale that is guided most, whatever their own
            strength, unless it is none; off: as their own scale is.
        top_k, top_p, temperature: of the refined scales, see `TopKTopP`.
        coarse: draws the scales that aren't refined; None takes the same filters.
        double_reveal: steps on the generator's logits reveal twice, as the released code does: first the most confident
            of *all* positions, known ones included, then as many random unknown ones.
        return_trace: record a `RevealTrace` of every refined scale in `Draw.trace`.

    Raises:
        ValueError: for settings out of range.

    """

    needs_refiner = True

    def __init__(
        self,
        *,
        steps: int | Sequence[int] = 8,
        shape: str = "arccos",
        first_scale: int | None = None,
        last_scale: int | None = None,
        random_steps: int | None = None,
        generator_steps: int = 0,
        generator_until: int = -1,
        constant_guidance: bool = True,
        top_k: int = 600,
        top_p: float = 0.8,
        temperature: float = 1.0,
        coarse: TokenSampler | None = None,
        double_reveal: bool = False,
        return_trace: bool = False,
    ) -> None:
        counts = tuple(steps) if isinstance(steps, list | tuple) else (steps,)
        parts = (*counts, generator_steps, random_steps or 0)
        if not counts or not all(isinstance(part, int) and part >= 0 for part in parts):
            raise ValueError(
                "steps are one whole number or several, and no part of them is negative: "
                f"got steps {steps}, random_steps {random_steps}, generator_steps {generator_steps}"
            )
        self.reveals = tuple(RevealSchedule(count, shape) for count in counts)
        self.steps, self.shape = steps, shape
        self.first_scale, self.last_scale = first_scale, last_scale
        self.random_steps = random_steps
        self.generator_steps = generator_steps
        self.generator_until = generator_until
        self.constant_guidance = constant_guidance
        self.filters = TopKTopP(top_k, top_p, temperature=temperature)
        self.top_k, self.top_p, self.temperature = top_k, top_p, temperature
        self.coarse = coarse
        self.double_reveal = double_reveal
        self.return_trace = return_trace

    def reveal(self, k: int, schedule: ScaleSchedule) -> RevealSchedule:
        """How scale `k` is revealed."""
        return self.reveals[max(len(self.reveals) - len(schedule) + k, 0)]

    def until(self, schedule: ScaleSchedule) -> int:
        """The first scale whose steps never take the generator's logits."""
        count = len(schedule)
        return count if self.generator_until == count else schedule.place(self.generator_until, "generator_until")

    def __call__(self, hidden: Tensor, head: Head, guide: Any, k: int, state: DecodeState) -> Draw:
        """Codes of scale `k`; `guide` is a `star.sampling.guidance.Guide`.

        Raises:
            ValueError: at a refined scale when the decoder has no refiner; for a scale that the schedule doesn't have.

        """
        if k not in refined_scales(state.schedule, self.first_scale, self.last_scale):
            return (self.coarse or self.filters)(hidden, head, guide, k, state)
        scale = _Scale(hidden, head, guide, k, state)
        counts = self.reveal(k, state.schedule).counts(scale.length)
        strongest = guide.strongest(k) if self.constant_guidance else k
        from_generator = self.generator_steps if k < self.until(state.schedule) else 0
        for step, count in enumerate(counts):
            before = scale.known
            by_generator = step < from_generator
            logits = scale.generated if by_generator else guide(scale.refined(), strongest)
            codes, confidence = self.draw(logits, scale.streams)
            if by_generator and self.double_reveal:
                scale.reveal(codes, confidence, count, among_known=True)
            at_random = self.random_steps is None or step < self.random_steps
            scale.reveal(codes, self.shuffle(codes, scale.streams) if at_random else confidence, count)
            scale.trace.append((scale.known & ~before, confidence, not by_generator))
            state.watch(k, step + 1, len(counts))
            if self.double_reveal and bool(scale.known.all()):
                break  # each scale has streams of its own, so that a batch mate that isn't done yet changes nothing
        return Draw(scale.codes, trace=scale.traced() if self.return_trace else None)

    def draw(self, logits: Tensor, streams: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """A code for every position (B, L_k), and its probability, from logits (B, L_k, V)."""
        return draw(logits / self.temperature, streams, top_k=self.filters.clamp(logits), top_p=self.top_p)

    def shuffle(self, codes: Tensor, streams: Sequence[torch.Generator]) -> Tensor:
        """A random number for every position (B, L_k): the highest are revealed."""
        return exponential(codes.shape, streams, codes.device)


class _Scale:
    """One scale on its way: what is known of it, and what the refiner says about the rest."""

    def __init__(self, hidden: Tensor, head: Head, guide: Any, k: int, state: DecodeState) -> None:
        if state.refiner is None:
            raise ValueError(NO_REFINER)
        self.refiner = state.refiner
        self.hidden, self.head, self.guide, self.k, self.state = hidden, head, guide, k, state
        self.length = state.schedule.lengths[k]
        self.codes = torch.zeros(len(state.generators), self.length, dtype=torch.long, device=hidden.device)
        self.known = torch.zeros_like(self.codes, dtype=torch.bool)
        self.streams = branch(state.generators)
        self.trace: list[tuple[Tensor, Tensor, bool]] = []

    @cached_property
    def generated(self) -> Tensor:
        """The generator's own logits, guided: (B, L_k, V)."""
        return self.guide(self.head(self.hidden), self.k)

    def refined(self) -> Tensor:
        """The refiner's logits, not guided yet: (R, L_k, V)."""
        embeddings = self.state.codebook[self.codes]
        return self.refiner.step(self.hidden, embeddings, self.known, self.state.condition, self.state.schedule, self.k)

    def reveal(self, codes: Tensor, order: Tensor, count: int, *, among_known: bool = False) -> None:
        """Keep the codes at the `count` positions highest in `order`, known ones counting or not."""
        ranked = order if among_known else order.masked_fill(self.known, float("-inf"))
        chosen = torch.zeros_like(self.known).scatter(1, ranked.topk(count, 1).indices, value=True) & ~self.known
        self.codes = torch.where(chosen, codes, self.codes)
        self.known = self.known | chosen

    def traced(self) -> RevealTrace:
        """The record of all steps."""
        revealed, confidence, by_refiner = zip(*self.trace, strict=True)
        return RevealTrace(torch.stack(revealed, 1), torch.stack(confidence, 1), by_refiner)
