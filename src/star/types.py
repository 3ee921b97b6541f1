"""What the parts of the framework hand to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from star.schedule import ScaleSchedule

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Batch:
    """Images with their captions.

    Attributes:
        images: (B, 3, H, W) in [-1, 1].
        captions: B strings; the empty string is the unconditional caption.
        keys: what the data set calls each sample, for logs and caches.
        skipped: how many samples were skipped since the batch before, by cause (`decode: UnidentifiedImageError`,
            `filter: aspect_ratio`).
        waited: seconds that whoever asked for the batch waited for it.
        codes: (B, L) long, the codes of all scales in a row, from a cache of codes. The images then are (B, 3, 0, 0).
        features: (B, D, h_K, w_K) float, what the tokenizer quantises, from a cache of latents. No images either.
        text: pooled (B, D), context (B, T, D_text) and context_mask (B, T) bool of the captions, from a cache that
            has them; a tuple, since trainers convert plain containers alone.
        empty: the same of the empty caption, one row.

    """

    images: Tensor
    captions: list[str]
    keys: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    waited: float = 0.0
    codes: Tensor | None = None
    features: Tensor | None = None
    text: tuple[Tensor, Tensor, Tensor] | None = None
    empty: tuple[Tensor, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        """How many images, `B`."""
        return self.images.shape[0]

    def first(self, count: int) -> Batch:
        """The first `count` samples alone."""
        return replace(
            self,
            images=self.images[:count],
            captions=self.captions[:count],
            keys=self.keys[:count],
            codes=None if self.codes is None else self.codes[:count],
            features=None if self.features is None else self.features[:count],
            text=None if self.text is None else (self.text[0][:count], self.text[1][:count], self.text[2][:count]),
        )


@dataclass(frozen=True)
class Condition:
    """What a text (or a class) tells the generator (STAR section 3.2).

    Attributes:
        pooled: eta(y), (B, D): one vector per text, from which the start token is made.
        context: tau(y), (B, T, D_text): hidden states of the text tokens; None for a class-conditional model.
        context_mask: (B, T) bool, False on padding; None when there is no context.

    Raises:
        ValueError: when the parts disagree about B or T, or context and its mask don't come together.

    """

    pooled: Tensor
    context: Tensor | None = None
    context_mask: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that the parts belong together."""
        if (self.context is None) != (self.context_mask is None):
            raise ValueError("context and context_mask come together or not at all")
        if self.context is not None and self.context_mask is not None:
            rows = (self.pooled.shape[0], self.context.shape[1])
            if self.context.shape[0] != rows[0] or tuple(self.context_mask.shape) != rows:
                raise ValueError(
                    f"condition of different sizes: pooled {tuple(self.pooled.shape)}, "
                    f"context {tuple(self.context.shape)}, mask {tuple(self.context_mask.shape)}"
                )

    def __len__(self) -> int:
        """How many texts, `B`."""
        return self.pooled.shape[0]

    def select(self, rows: Tensor) -> Condition:
        """The texts `rows` (N,) long, in that order; repeats allowed."""
        return self._map(lambda part: part[rows])

    def repeat(self, times: int) -> Condition:
        """Every text `times` times, neighbours: a a b b."""
        return self._map(lambda part: part.repeat_interleave(times, 0))

    def to(self, *args: Any, **kwargs: Any) -> Condition:
        """Like `Tensor.to`; a dtype changes the features, never the mask."""
        moved = self._map(lambda part: part.to(*args, **kwargs))
        return moved if moved.context_mask is None else replace(moved, context_mask=moved.context_mask.bool())

    def stack(self, other: Condition) -> Condition:
        """These texts, then the other's (B + B' rows); the shorter context is padded."""
        if (self.context is None) != (other.context is None):
            raise ValueError("a condition with context can't be stacked on one without")
        pooled = torch.cat([self.pooled, other.pooled])
        if self.context is None or other.context is None or self.context_mask is None or other.context_mask is None:
            return Condition(pooled)
        length = max(self.context.shape[1], other.context.shape[1])
        contexts = [_pad(part, length) for part in (self.context, other.context)]
        masks = [_pad(part, length) for part in (self.context_mask, other.context_mask)]
        return Condition(pooled, torch.cat(contexts), torch.cat(masks))

    def drop(self, probability: float, empty: Condition, generator: torch.Generator | None = None) -> Condition:
        """Replace each text with `probability` by `empty` (one row), the training half of classifier-free guidance."""
        dropped = torch.rand(len(self), generator=generator) < probability
        rows = torch.where(dropped, len(self), torch.arange(len(self)))
        return self.stack(empty).select(rows.to(self.pooled.device))

    def trim(self) -> Condition:
        """Cut the padding that no text of the batch uses."""
        if self.context is None or self.context_mask is None:
            return self
        used = self.context_mask.any(0).nonzero()
        length = int(used[-1]) + 1 if len(used) else 1
        return replace(self, context=self.context[:, :length], context_mask=self.context_mask[:, :length])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        parts = (self.pooled, self.context, self.context_mask)
        return Condition(*(None if part is None else change(part) for part in parts))  # type: ignore[arg-type]


def _pad(part: Tensor, length: int) -> Tensor:
    """Lengthen (B, T, ...) to (B, length, ...) with zeros (False)."""
    missing = length - part.shape[1]
    return part if missing == 0 else torch.cat([part, part.new_zeros(part.shape[0], missing, *part.shape[2:])], 1)


@dataclass
class LossReport:
    """The loss of one step and what to log about it.

    Attributes:
        total: scalar, what is minimised.
        scalars: named scalars to log: parts of the loss, accuracies, ...
        per_scale: named values of each scale, each (K,): `loss`, `accuracy`, `usage`, ...

    """

    total: Tensor
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    per_scale: Mapping[str, Tensor] = field(default_factory=dict)

    def report(self, prefix: str) -> dict[str, Tensor]:
        """Flat names for a logger: `train/loss`, `train/loss/scale_03`, ..."""
        named = {f"{prefix}/{name}": value.detach() for name, value in self.scalars.items()}
        for name, values in self.per_scale.items():
            named |= {f"{prefix}/{name}/scale_{k:02d}": value for k, value in enumerate(values.detach())}
        return {f"{prefix}/loss": self.total.detach()} | named


@dataclass
class Draw:
    """What a token sampler decided for one scale.

    Attributes:
        codes: (B, L_k) long.
        embeddings: (B, L_k, D) when the sampler mixes codebook entries instead of picking one.
        trace: what the sampler wants to show for it (revealed positions, confidences); like a condition it can
            `select(rows)` and `stack(other)`.

    """

    codes: Tensor
    embeddings: Tensor | None = None
    trace: Any = None


@runtime_checkable
class TextEncoder(Protocol):
    """Captions in, condition out.

    Attributes:
        pooled_width: channels of the pooled vector.
        context_width: channels of the hidden states; None where there are none.
        max_tokens: longer captions are cut.
        identity: names encoder, layer and tokenizer, for caches and records.
        trainable: trained with the generator and saved in its checkpoint; otherwise frozen and never saved.
        batch_invariant: encode so that a caption's features have the same bits whatever else is in the batch.

    """

    pooled_width: int
    context_width: int | None
    max_tokens: int
    identity: str
    trainable: bool
    batch_invariant: bool

    def __call__(self, captions: Sequence[str]) -> Condition:
        """Encode B captions: pooled (B, pooled_width), context (B, T, context_width)."""
        ...


class Guidance(Protocol):
    """How conditional and unconditional logits become one distribution."""

    def strength(self, k: int, schedule: ScaleSchedule) -> float:
        """How far scale `k` is pushed from the unconditional prediction; 0 is the plain conditional model."""
        ...

    def __call__(self, conditional: Tensor, unconditional: Tensor, k: int, schedule: ScaleSchedule) -> Tensor:
        """Guided logits (B, L_k, V)."""
        ...


class TokenSampler(Protocol):
    """Draws the codes of a scale."""

    def __call__(
        self,
        hidden: Tensor,
        head: Callable[[Tensor], Tensor],
        guide: Callable[[Tensor, int], Tensor],
        k: int,
        state: Any,
    ) -> Draw:
        """From hidden (R, L_k, C), R = 2B under guidance, to a `Draw`; `guide` turns (R, L_k, V) into (B, L_k, V)."""
        ...


class CachePolicy(Protocol):
    """Decides which keys and values of finished scales stay."""

    def keep(self, layer: int, scale: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What stays of the scale's keys and values (R, heads, L_k, d) once the scale is drawn."""
        ...


class Constraint(Protocol):
    """Overrules drawn codes: editing, in-painting, watermarks."""

    def __call__(self, draw: Draw, k: int, state: Any) -> Draw:
        """The draw that is used instead."""
        ...


class Search(Protocol):
    """Test-time search: looks at the images after a scale and may keep, drop or double some."""

    def __call__(self, state: Any, k: int) -> Any:
        """The state to go on with, usually `state.select(rows)`."""
        ...


class ImageMetric(Protocol):
    """Scores images; never sees a model."""

    def update(self, images: Tensor, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Take images (B, 3, H, W) in [0, 1] and what each was drawn from: `prompt`, `index`, its suite's metadata."""
        ...

    def compute(self) -> Mapping[str, Any]:
        """Named results; `value` is the number that stands for the metric."""
        ...

    def iterate_missing(self) -> Iterator[str]:
        """What files the metric still lacks, one sentence each; nothing when it can run."""
        ...
