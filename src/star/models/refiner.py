"""The network of causal-driven stable sampling: a scale's unknown tokens from its known ones (STAR section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from star.models.transformer import Head, STARTransformer
from star.nn.block import Block
from star.nn.init import init_weights, shrink_residuals
from star.nn.masks import Visibility
from star.nn.position import Rotary2D, Rotation
from star.schedule import ScaleSchedule
from star.types import Condition


class PrefixVisibility(Visibility):
    """Tokens see their own scale and the prefix, which sees all; `offsets` are 0, each scale's begin, and the end."""

    def spans(self) -> Iterator[tuple[slice, slice | Tensor]]:
        """The prefix, then each scale, with the keys they see; a scale's keys aren't a contiguous run."""
        yield slice(0, 1), slice(0, self.offsets[-1])
        for begin, end in pairwise(self.offsets[1:]):
            yield slice(begin, end), torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(begin, end)])


class TokenRefiner(Protocol):
    """What a sampler that reveals a scale in steps asks: the unknown tokens of the scale, given the known ones.

    `Refiner` is the paper's. One in the manner of HMAR, whose generator itself fills in masked tokens, would hold
    copies of the generator's last blocks and of its head: `step` joins `hidden` with the known tokens' embeddings, runs
    these blocks over the scale's tokens alone, without a cache, their cross-attention reading `condition.context`, and
    gives the head's logits. To be trained by `MaskedRefinement` it also needs `forward`, with several scales at once;
    `SamplerModule` also asks for its `width`, its `head` (whose `logits` is the last layer) and, unless `adopt_head` is
    off, for `adopt`.
    """

    def step(
        self, hidden: Tensor, embeddings: Tensor, known: Tensor, condition: Condition, schedule: ScaleSchedule, k: int
    ) -> Tensor:
        """Logits (R, L_k, V) of a scale, see `Refiner.step`."""
        ...


class Refiner(nn.Module):
    """A shallow transformer over one scale's tokens, of which some are known, beside the frozen generator.

    A token's input is the embedding of its code (zero where unknown) with the scale's level, beside the generator's
    last hidden state of that token before the head's norm. Tokens attend within their own scale and to a prefix made of
    the pooled text; there is no cross-attention. Trained on several late scales at once (`forward`, all their tokens in
    one pass), used on one (`step`, several times per scale while tokens are revealed). In the released training the
    prefix is one token for all scales of the pass and itself sees all of them, so what it says in deeper blocks depends
    on which scales share it; at sampling each scale is alone with it.

    Heads of attention need thousands of steps until they find the tokens beside their own. With a `neighbourhood` a
    token gets the known codes around it by a convolution as well, so that a refiner of few minutes knows more than its
    generator; this isn't in the paper.

    Neither the objective nor the order in which tokens are revealed is decided here: `known` says what is given.

    Args:
        width: channels `C`, those of the generator.
        num_heads: heads per attention.
        codebook_size: `V`.
        code_width: `D`, channels of a code.
        pooled_width: channels of the pooled text.
        num_levels: how many level embeddings; at least as many as the longest schedule has scales.
        position: where tokens lie; the prefix lies where the schedule's first token does.
        depth: number of blocks.
        mlp_ratio, qk_norm, backend: see `star.nn.block.Block`.
        drop_path: rate of stochastic depth in every block.
        neighbourhood: side of the square of tokens, in its own scale, whose known codes a token gets before the first
            block; odd; 1: its own alone, as published.

    Raises:
        ValueError: for a neighbourhood without a middle.

    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        codebook_size: int,
        code_width: int,
        pooled_width: int,
        num_levels: int,
        position: Rotary2D,
        depth: int = 3,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        qk_norm: bool = True,
        backend: str = "auto",
        neighbourhood: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(neighbourhood, int) or neighbourhood < 1 or neighbourhood % 2 == 0:
            raise ValueError(f"a neighbourhood is 1, 3, 5, ... tokens wide, got {neighbourhood!r}")
        self.width, self.num_heads, self.depth = width, num_heads, depth
        self.neighbourhood = neighbourhood
        self.position = position
        self.start = nn.Linear(pooled_width, width)
        self.start_position = nn.Parameter(torch.empty(1, width))
        self.embed = nn.Linear(code_width, width)
        self.around = None  # its middle adds to what `embed` says, which keeps the published names
        if neighbourhood > 1:
            self.around = nn.Conv2d(code_width, width, neighbourhood, padding=neighbourhood // 2, bias=False)
        self.level = nn.Embedding(num_levels, width)
        self.join = nn.Linear(2 * width, width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                num_heads=num_heads,
                context_width=None,
                mlp_ratio=mlp_ratio,
                drop_path=drop_path,
                qk_norm=qk_norm,
                backend=backend,
            )
            for _ in range(depth)
        )
        self.head = Head(width, codebook_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The generator's initialisation."""
        init_weights(self, width=self.width)
        nn.init.trunc_normal_(self.start_position, std=math.sqrt(1 / self.width / 3))
        if self.around is not None:  # all places together say as much as a token's own
            nn.init.trunc_normal_(self.around.weight, std=math.sqrt(1 / self.width / 3) / self.neighbourhood)
        self.head.logits.weight.data.mul_(0.02)
        shrink_residuals((block for block in self.blocks if isinstance(block, Block)), depth=self.depth)

    @torch.no_grad()
    def adopt(self, head: Head, codebook: Tensor) -> None:
        """Begin where the generator is: pass its hidden states on, to a copy of its head.

        An untrained refiner then repeats the generator's prediction whatever is known, and training spends no time on
        learning that again. Known codes are embedded with unit deviation, whatever the tokenizer's scale: beside the
        generator's hidden states, which are far larger than 1, small ones stay unseen for thousands of steps.

        Args:
            head: the generator's.
            codebook: (V, D), the tokenizer's.

        Raises:
            ValueError: for a head of another shape.

        """
        if head.logits.weight.shape != self.head.logits.weight.shape:
            raise ValueError(
                f"a refiner with a head of {tuple(self.head.logits.weight.shape)} can't begin with the generator's, "
                f"of {tuple(head.logits.weight.shape)}"
            )
        self.head.logits.load_state_dict(head.logits.state_dict())
        self.join.weight[:, self.width :] = torch.eye(self.width)
        self.join.weight[:, : self.width] = 0.0
        self.join.bias.zero_()
        scale = self.embed(codebook.to(self.embed.weight)).std(0).mean().clamp(min=1e-6)
        self.embed.weight.div_(scale)
        if self.around is not None:
            self.around.weight.div_(scale)

    def forward(
        self,
        hidden: Tensor,
        embeddings: Tensor,
        known: Tensor,
        condition: Condition,
        schedule: ScaleSchedule,
        scales: Sequence[int],
    ) -> Tensor:
        """Predict all tokens of several scales, each scale from its own known ones.

        Args:
            hidden: (B, n, C), the generator's last hidden states of the scales' tokens, before its head's norm.
            embeddings: (B, n, D), entries of the tokens' codes; those of unknown tokens aren't looked at.
            known: (B, n) bool, which tokens are given.
            condition: the texts, of which only `pooled` is used.
            schedule: all scales of the picture.
            scales: which of them the n tokens are, in this order.

        Returns:
            Logits (B, n, V), fp32, also of the known tokens.

        Raises:
            ValueError: when hidden states, embeddings, known and scales don't agree about B and n.

        """
        part = schedule.only(*scales)
        rows = (len(condition), part.total)
        if not rows == tuple(hidden.shape[:2]) == tuple(embeddings.shape[:2]) == tuple(known.shape):
            raise ValueError(
                f"scales {tuple(scales)} of {rows[0]} texts have (B, n) = {rows}, but hidden has "
                f"{tuple(hidden.shape[:2])}, embeddings {tuple(embeddings.shape[:2])}, known {tuple(known.shape)}"
            )
        x = self._tokens(hidden, embeddings, known, condition, part)
        rotation = self._rotation(part, schedule, x.device)
        offsets = (0, *(1 + offset for offset in part.offsets))
        # a lone scale and its prefix all see each other
        visibility = PrefixVisibility(offsets, first=()) if len(part) > 1 else None
        for block in self.blocks:
            x = block(x, rotation=rotation, visibility=visibility)
        return self.head(x[:, 1:])

    def step(
        self, hidden: Tensor, embeddings: Tensor, known: Tensor, condition: Condition, schedule: ScaleSchedule, k: int
    ) -> Tensor:
        """Logits (R, L_k, V) of one scale while it is drawn.

        Args:
            hidden: (R, L_k, C), the generator's; under guidance R = 2B, first the conditional half.
            embeddings: (B, L_k, D), entries of the codes drawn so far; those of unknown tokens aren't looked at.
            known: (B, L_k) bool, which tokens are drawn.
            condition: R texts.
            schedule: all scales of the picture.
            k: the scale.

        """
        halves = hidden.shape[0] // max(embeddings.shape[0], 1)
        return self(hidden, embeddings.repeat(halves, 1, 1), known.repeat(halves, 1), condition, schedule, (k,))

    def _tokens(
        self, hidden: Tensor, embeddings: Tensor, known: Tensor, condition: Condition, part: ScaleSchedule
    ) -> Tensor:
        """The prefix and the scales' tokens as the first block sees them, (B, 1 + n, C)."""
        visible = embeddings.masked_fill(~known.bool()[..., None], 0.0)
        codes = self.embed(visible)
        if self.around is not None:
            codes = codes + self._around(visible, part)
        codes = codes + self.level(part.level_ids().to(codes.device))
        prefix = (self.start(condition.pooled.to(self.start_position.dtype)) + self.start_position)[:, None]
        # the prefix stands in both halves of what is joined
        halves = [torch.cat([prefix.to(half.dtype), half], 1) for half in (codes, hidden)]
        return self.join(torch.cat([half.to(codes.dtype) for half in halves], -1))

    def _around(self, visible: Tensor, part: ScaleSchedule) -> Tensor:
        """What lies around each token of each scale, (B, n, C); beyond the edge, as where unknown, lies nothing."""
        assert self.around is not None
        maps = [
            self.around(tokens.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)
            for tokens, size in zip(part.split(visible), part.sizes, strict=True)
        ]
        return torch.cat(maps, 1)

    def _rotation(self, part: ScaleSchedule, schedule: ScaleSchedule, device: torch.device) -> Rotation | None:
        head_width = self.width // self.num_heads
        tokens = self.position.rotation(part, head_width, device)
        first = self.position.rotation(schedule.only(0), head_width, device)
        if tokens is None or first is None:
            return None
        return torch.cat([first[0][:1], tokens[0]]), torch.cat([first[1][:1], tokens[1]])


def first_refined(schedule: ScaleSchedule, first_scale: int | None = None) -> int:
    """The first refined scale: as given (negative counts from the end), or the paper's 9 of 14 at this length.

    The last scale is refined however short the schedule is.

    Raises:
        ValueError: when the schedule has no such scale.

    """
    count = len(schedule)
    if first_scale is None:
        return min(math.ceil(9 * count / 14), count - 1)
    return schedule.place(first_scale, "first_scale")


def refined_scales(schedule: ScaleSchedule, first_scale: int | None = None, last_scale: int | None = None) -> range:
    """The refined scales: from `first_refined` to the last one, or to the one given (negative counts from the end).

    Raises:
        ValueError: when the schedule has no such scales.

    """
    first = first_refined(schedule, first_scale)
    last = len(schedule) - 1 if last_scale is None else schedule.place(last_scale, "last_scale")
    if last < first:
        raise ValueError(f"the last refined scale, {last}, lies before the first, {first}: set first_scale, too")
    return range(first, last + 1)


def check_fit(refiner: Refiner, transformer: STARTransformer) -> None:
    """Raise a ValueError unless a refiner's width and codebook are the generator's."""
    sizes = [(part.width, part.head.logits.out_features) for part in (refiner, transformer)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the refiner has width {sizes[0][0]} and {sizes[0][1]} codes, the generator {sizes[1][0]} and "
            f"{sizes[1][1]}: the two don't belong together (a training sets them by module.refiner.width and "
            "module.refiner.codebook_size)"
        )
