"""The loop over scales (STAR section 3.1; VAR algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from star.models.refiner import TokenRefiner
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.cache import KVCache
from star.nn.halves import HalvedCache
from star.sampling.guidance import ClassifierFreeGuidance, Guide, is_guided
from star.sampling.rows import fork, merge
from star.sampling.speed import Speed
from star.sampling.steps import Steps
from star.schedule import ScaleSchedule
from star.types import CachePolicy, Condition, Constraint, Search, TokenSampler

if TYPE_CHECKING:
    from star.sampling.best_of import BestOf

NO_REFINER = (
    "this preset reveals late scales in steps, which needs a refiner: train one (train.py task=sampler "
    "init_from=GENERATOR) and give it as refiner=RUN_OR_FILE, or choose a preset that needs none (sampling=topk600)"
)
Watch = Callable[[int, int, int], None]


def unwatched(k: int, step: int, steps: int) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class DecodeState:
    """Pictures on their way.

    Attributes:
        f_hat: (B, D, h_K, w_K), what is drawn so far.
        cache: keys and values of the scales so far, R rows: the conditional ones, then the unconditional ones while
            guidance needs them.
        condition: the same R rows of text.
        schedule: all scales.
        codebook: (V, D), for samplers that mix entries.
        generators: one per image.
        refiner: for samplers that reveal a scale in steps; None where there is none.
        watch: told (scale, step, steps of this scale) after every step of a scale that is revealed in steps, and
            (scale, 1, 1) once any scale is done.
        codes: of every finished scale, (B, L_k).
        traces: what the token sampler recorded of every finished scale.

    """

    f_hat: Tensor
    cache: KVCache | HalvedCache
    condition: Condition
    schedule: ScaleSchedule
    codebook: Tensor
    generators: Sequence[torch.Generator]
    refiner: TokenRefiner | None = None
    watch: Watch = unwatched
    codes: list[Tensor] = field(default_factory=list)
    traces: list[Any] = field(default_factory=list)

    def select(self, rows: Tensor) -> DecodeState:
        """Keep, repeat or reorder images `rows` (N,) long; their unconditional halves follow them.

        A repeated image goes on with its own copy of the generator, advanced differently, so that copies may differ.
        """
        images = self.f_hat.shape[0]
        both = torch.cat([rows + images * half for half in range(len(self.condition) // images)])
        self.cache.select(both)
        return replace(
            self,
            f_hat=self.f_hat[rows],
            condition=self.condition.select(both),
            generators=fork([self.generators[row] for row in rows.tolist()]),
            codes=[drawn[rows] for drawn in self.codes],
            traces=[None if trace is None else trace.select(rows) for trace in self.traces],
        )

    def conditional(self) -> DecodeState:
        """The same without the unconditional rows, whose cache stays where it is."""
        images = torch.arange(self.f_hat.shape[0], device=self.f_hat.device)
        return self if len(self.condition) == len(images) else replace(self, condition=self.condition.select(images))


class ScaleWiseDecoder:
    """Draws pictures scale by scale with a key/value cache.

    Args:
        transformer: predicts a scale from all coarser ones.
        tokenizer: turns codes into f_hat, and f_hat into images.
        schedule: the scales to draw.
        sampler: draws a scale's codes.
        guidance: classifier-free guidance; None runs the conditional rows alone.
        constraint: may overrule drawn codes.
        search: may select images between scales.
        cache_policy: may shorten what stays in the cache.
        best_of: draws several candidates of every picture and keeps one; None, or a count of 1, draws one.
        refiner: for a sampler that reveals late scales in steps (`CausalDriven`).
        speed: how it is computed.

    Raises:
        ValueError: for such a sampler without a refiner, `best_of` beside a search, or a speed that can't be had with
            the other settings.

    """

    def __init__(
        self,
        transformer: STARTransformer,
        tokenizer: MultiScaleTokenizer,
        schedule: ScaleSchedule,
        *,
        sampler: TokenSampler,
        guidance: ClassifierFreeGuidance | None = None,
        constraint: Constraint | None = None,
        search: Search | None = None,
        cache_policy: CachePolicy | None = None,
        best_of: BestOf | None = None,
        refiner: TokenRefiner | None = None,
        speed: Speed | None = None,
    ) -> None:
        if needs_refiner(sampler) and refiner is None:
            raise ValueError(NO_REFINER)
        if best_of is not None and not callable(best_of):
            raise ValueError(f"best_of is a star.sampling.best_of.BestOf (sampling.best_of.count=4), got {best_of!r}")
        several = best_of if best_of is not None and best_of.count > 1 else None
        if search is not None and several is not None:
            raise ValueError("search and best_of both select among pictures: choose one of them")
        self.speed = speed or Speed()
        self.speed.check(transformer, search=search is not None, cache_policy=cache_policy is not None)
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.schedule = schedule
        self.sampler = sampler
        self.guidance = guidance
        self.constraint = constraint
        self.search = search
        self.cache_policy = cache_policy
        self.best_of = several
        self.refiner = refiner
        self.paint = self.speed.painter(tokenizer)
        self.step = Steps(transformer, self.speed)

    @torch.no_grad()
    def __call__(self, condition: Condition, empty: Condition | None, seeds: Sequence[int]) -> DecodeState:
        """Draw one picture per text; see `scales`. Decode the result with `images`."""
        *_, state = self.scales(condition, empty, seeds)
        return state

    @torch.no_grad()
    def scales(
        self, condition: Condition, empty: Condition | None, seeds: Sequence[int], watch: Watch = unwatched
    ) -> Iterator[DecodeState]:
        """The state after every scale, so that callers can show a picture growing.

        Args:
            condition: B texts.
            empty: the empty text, one row or B; needed with guidance.
            seeds: one per picture; a picture depends on its text, its seed and the settings alone.
            watch: see `DecodeState`.

        Raises:
            ValueError: for another number of seeds than texts, or guidance without an empty text.

        """
        if len(seeds) != len(condition):
            raise ValueError(f"{len(condition)} texts need as many seeds, got {len(seeds)}")
        draw = self.candidates if self.best_of is None else partial(self.best_of, self)
        yield from draw(condition, empty, seeds, watch)

    def candidates(
        self, condition: Condition, empty: Condition | None, seeds: Sequence[int], watch: Watch = unwatched
    ) -> Iterator[DecodeState]:
        """As `scales`, one candidate of every picture whatever `best_of` says."""
        # search may double a lone picture
        if self.transformer.first_sample_text and (len(condition) > 1 or self.search is not None):
            yield from self._one_by_one(condition, empty, seeds, watch)
            return
        state = replace(self._start(condition, empty, seeds), watch=watch)
        for k in range(len(self.schedule)):
            state = self._draw(state, k)
            if k + 1 == len(self.schedule):
                state.cache.clear()  # room for decoding
            elif self.search is not None:
                state = self.search(state, k)
            yield state

    def _one_by_one(
        self, condition: Condition, empty: Condition | None, seeds: Sequence[int], watch: Watch
    ) -> Iterator[DecodeState]:
        """Each picture on its own: under `first_sample_text` a batch would show every picture the first one's text.

        Nothing goes on from what this gives, so its cache is empty.
        """
        if self.search is not None:
            raise ValueError("search selects among the pictures of a batch, which first_sample_text draws one by one")
        rows = [torch.tensor([row], device=condition.pooled.device) for row in range(len(condition))]
        empties = [empty if empty is None or len(empty) == 1 else empty.select(row) for row in rows]
        alone = [
            list(self.candidates(condition.select(row), e, [seed], watch))
            for row, e, seed in zip(rows, empties, seeds, strict=True)
        ]
        for states in zip(*alone, strict=True):
            yield merge(states, self.no_cache())

    def no_cache(self) -> KVCache:
        """For states that nothing goes on from."""
        return KVCache(self.schedule, self.transformer.mask, self.cache_policy)

    @torch.no_grad()
    def images(self, state: DecodeState) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of what is drawn so far."""
        return self.paint(state.f_hat).add(1).div(2)

    @torch.no_grad()
    def preview(self, state: DecodeState, side: int | None = None) -> Tensor:
        """Small pictures (B, 3, h, w) in [0, 1] of what is drawn so far.

        Shown after every scale but the last they cost less than a tenth of the pictures' time.

        Args:
            state: what `scales` yields.
            side: the longer side in tokens; None takes that of the scale just drawn, but at most an eighth of the
                last scale's, where decoding is a sixty-fourth of the work.

        """
        if side is None:
            drawn = state.schedule.sizes[max(len(state.codes) - 1, 0)]
            side = max(min(max(drawn), max(state.schedule.sizes[-1]) // 8), 1)
        return self.paint.preview(state.f_hat, side).add(1).div(2)

    def _start(self, condition: Condition, empty: Condition | None, seeds: Sequence[int]) -> DecodeState:
        device = condition.pooled.device
        images = len(condition)
        if self.guidance is not None:
            if empty is None:
                raise ValueError("guidance needs the condition of the empty text")
            condition = condition.stack(empty if len(empty) == images else empty.repeat(images))
        return DecodeState(
            f_hat=self.tokenizer.quantizer.start(images, self.schedule),
            cache=self.step.cache(self.schedule, len(condition) // images, device, self.cache_policy),
            condition=self.step.trim(condition),
            schedule=self.schedule,
            codebook=self.tokenizer.quantizer.codebook.weight,
            generators=[torch.Generator(device).manual_seed(seed) for seed in seeds],
            refiner=self.refiner,
        )

    def _draw(self, state: DecodeState, k: int) -> DecodeState:
        quantizer = self.tokenizer.quantizer
        images = state.f_hat.shape[0]
        guided = [is_guided(self.guidance, j, self.schedule) for j in range(k, len(self.schedule))]
        if self.speed.skip_guidance and not any(guided) and len(state.condition) > images:
            state.cache.first(images)
            state = state.conditional()
        x_in = None
        if k > 0:
            x_in = quantizer.next_input(state.f_hat, k, self.schedule)
            x_in = x_in.repeat(len(state.condition) // images, 1, 1)
        hidden = self.step(x_in, state.condition, self.schedule, k, state.cache)
        seen, guidance = state, self.guidance
        if self.speed.skip_guidance and not guided[0]:
            seen, hidden, guidance = state.conditional(), hidden[:images], None
        head: Callable[[Tensor], Tensor] = partial(self.transformer.head, pooled=seen.condition.pooled)
        draw = self.sampler(hidden, head, Guide(guidance, self.schedule), k, seen)
        if self.constraint is not None:
            draw = self.constraint(draw, k, state)
        f_hat = self._accumulate(state.f_hat, draw.codes if draw.embeddings is None else draw.embeddings, k)
        state.watch(k, 1, 1)
        return replace(state, f_hat=f_hat, codes=[*state.codes, draw.codes], traces=[*state.traces, draw.trace])

    def _accumulate(self, f_hat: Tensor, drawn: Tensor, k: int) -> Tensor:
        """f_hat with scale `k`; picture by picture on a CPU, whose convolutions add up otherwise in another batch."""
        add, size = self.tokenizer.quantizer.accumulate, 1 if f_hat.device.type == "cpu" else len(f_hat)
        pairs = zip(f_hat.split(size), drawn.split(size), strict=True)
        return torch.cat([add(one, own, k, self.schedule) for one, own in pairs])


def needs_refiner(sampler: Any) -> bool:
    """Whether a token sampler asks a refiner."""
    return bool(getattr(sampler, "needs_refiner", False))
