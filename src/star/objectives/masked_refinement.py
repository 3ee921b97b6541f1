"""Training of the refiner: masked tokens of late scales from the known ones (STAR section 4.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from star.models.refiner import Refiner, refined_scales
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.objectives.teacher_forcing import scale_means
from star.schedule import ScaleSchedule
from star.types import Condition, LossReport


class MaskedRefinement:
    """Cross-entropy of the unknown tokens of every late scale, the generator being frozen.

    Each image draws a share of known tokens per scale, arccos(r) / (pi / 2) with r uniform in [0, 1], and each of its
    tokens is known with that probability. The release also trains on the known ones, with an extra class (release
    row 20), which teaches nothing and isn't done here.

    Args:
        first_scale, last_scale: the trained scales, see `star.models.refiner.refined_scales`; the generator works no
            further than to the last of them.
        label_smoothing: share of the target spread over the codebook.
        balance: `tokens`: every unknown token weighs the same; `scales`: every scale does, whose unknown tokens share
            its weight. Where the first maps are refined too, of few tokens each, they are hardly learned otherwise.
        shared_prefix: whether all scales of a pass share the token that carries the text, as in the release. That token
            sees the hidden states of them all, and those of a later scale were made from the true codes of the earlier
            ones, which then needn't be guessed: what an early scale learns so is of no use at sampling, where it has
            the token for itself. False: also in training. Of a single scale it makes no difference.
        tokens_per_scale: of each scale so many tokens of a batch, or a few less, are trained: the first pictures of a
            batch on all scales, the others on the coarse ones, which need many pictures to have as many tokens, and
            cost little. None: every picture on every scale. Needs `shared_prefix=False`.

    Raises:
        ValueError: for a value out of range, or settings that exclude each other.

    """

    def __init__(
        self,
        *,
        first_scale: int | None = None,
        last_scale: int | None = None,
        label_smoothing: float = 0.0,
        balance: str = "tokens",
        shared_prefix: bool = True,
        tokens_per_scale: int | None = None,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label smoothing lies in [0, 1), got {label_smoothing}")
        if balance not in ("tokens", "scales"):
            raise ValueError(f"balance is 'tokens' or 'scales', got {balance!r}")
        if tokens_per_scale is not None and shared_prefix:
            raise ValueError("tokens_per_scale gives scales different pictures, which shared_prefix=true excludes")
        if tokens_per_scale is not None and tokens_per_scale < 1:
            raise ValueError(f"tokens_per_scale is at least 1, got {tokens_per_scale}")
        self.first_scale, self.last_scale = first_scale, last_scale
        self.tokens_per_scale = tokens_per_scale
        self.label_smoothing = label_smoothing
        self.balance = balance
        self.shared_prefix = shared_prefix

    def scales(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        """The scales that are trained."""
        return tuple(refined_scales(schedule, self.first_scale, self.last_scale))

    def pictures(self, batch: int, schedule: ScaleSchedule) -> list[int]:
        """How many of a batch's pictures are trained on each of the scales."""
        budget = self.tokens_per_scale
        if budget is None:
            return [batch] * len(self.scales(schedule))
        return [min(batch, max(1, budget // schedule.lengths[k])) for k in self.scales(schedule)]

    def __call__(
        self,
        refiner: Refiner | Callable[..., Tensor],
        transformer: STARTransformer,
        tokenizer: MultiScaleTokenizer,
        codes: Sequence[Tensor],
        condition: Condition,
        schedule: ScaleSchedule,
        *,
        known_share: float | None = None,
    ) -> LossReport:
        """Loss of one batch.

        Args:
            refiner: what is trained (or what wraps its forward).
            transformer: the frozen generator; runs without a gradient.
            tokenizer: gives the teacher-forcing input and the codes' embeddings; frozen.
            codes: true codes of each scale, (B, L_k).
            condition: the texts.
            schedule: the scales.
            known_share: a fixed share of known tokens in [0, 1], for evaluation: each scale has a prefix of its own, as
                at sampling. None draws it as in training.

        Returns:
            The cross-entropy of unknown tokens, averaged as `balance` says; their accuracy, beside the generator's own
            on the same tokens; loss and accuracy of each scale (nan where no token was unknown or the scale isn't
            trained).

        """
        scales, batch = self.scales(schedule), len(condition)
        counts = self.pictures(batch, schedule) if known_share is None else [batch] * len(scales)
        target = [codes[k][:count] for k, count in zip(scales, counts, strict=True)]
        with torch.no_grad():
            x_in = tokenizer.quantizer.teacher_forcing(codes, schedule)
            own, hidden = _observe(transformer, x_in, condition, schedule, dict(zip(scales, counts, strict=True)))
            embeddings = [tokenizer.quantizer.lookup(part) for part in target]
        known = self.known(batch, schedule, known_share).to(x_in.device)
        given = [part[:count] for part, count in zip(schedule.only(*scales).split(known), counts, strict=True)]
        shared = known_share is None and self.shared_prefix
        logits = self._refine(refiner, hidden, embeddings, given, condition, schedule, shared=shared)
        unknown = [~part for part in given]
        found, wanted, ids = (
            torch.cat([part[where] for part, where in zip(parts, unknown, strict=True)])
            for parts in (logits, target, [torch.full_like(part, k) for part, k in zip(target, scales, strict=True)])
        )
        report = self._compare(found, wanted, ids, schedule)
        guessed = torch.cat([part.argmax(-1)[where] for part, where in zip(own, unknown, strict=True)])
        return replace(report, scalars={**report.scalars, "generator_accuracy": _mean((guessed == wanted).float())})

    def _refine(
        self,
        refiner: Refiner | Callable[..., Tensor],
        hidden: Sequence[Tensor],
        embeddings: Sequence[Tensor],
        known: Sequence[Tensor],
        condition: Condition,
        schedule: ScaleSchedule,
        *,
        shared: bool,
    ) -> Sequence[Tensor]:
        """Logits of each scale, all scales behind one prefix or each behind its own."""
        scales = self.scales(schedule)
        if shared:
            whole = [torch.cat(list(parts), 1) for parts in (hidden, embeddings, known)]
            return schedule.only(*scales).split(refiner(*whole, condition, schedule, scales))
        texts = [condition.select(torch.arange(len(part), device=part.device)) for part in known]
        asked = zip(hidden, embeddings, known, texts, scales, strict=True)
        return [refiner(*parts, schedule, (k,)) for *parts, k in asked]

    def _compare(self, logits: Tensor, target: Tensor, scales: Tensor, schedule: ScaleSchedule) -> LossReport:
        """Logits (N, V) of unknown tokens with their codes (N,); each belongs to one of `scales` (N,) long."""
        loss = F.cross_entropy(logits.float(), target, reduction="none", label_smoothing=self.label_smoothing)
        right = (logits.detach().argmax(-1) == target).float()
        per_scale = {
            "loss": scale_means(loss.detach(), scales, len(schedule)),
            "accuracy": scale_means(right, scales, len(schedule)),
        }
        # a batch whose tokens are all known has no loss, but still a graph
        total = loss.sum() / max(len(loss), 1)
        if self.balance == "scales" and len(loss):
            total = scale_means(loss, scales, len(schedule)).nanmean()
        return LossReport(total, {"accuracy": _mean(right)}, per_scale)

    def known(self, batch: int, schedule: ScaleSchedule, share: float | None = None) -> Tensor:
        """Which tokens of the trained scales are given, (B, n) bool."""
        lengths = [schedule.lengths[k] for k in self.scales(schedule)]
        if share is None:
            shares = torch.rand(batch, len(lengths)).acos() / (math.pi / 2)
        else:
            shares = torch.full((batch, len(lengths)), share)
        each = shares.repeat_interleave(torch.tensor(lengths), 1)
        return torch.rand(each.shape) < each


def _observe(
    transformer: STARTransformer,
    x_in: Tensor,
    condition: Condition,
    schedule: ScaleSchedule,
    counts: Mapping[int, int],
) -> tuple[list[Tensor], list[Tensor]]:
    """The generator's logits and hidden states of each scale, of its first so many pictures.

    Later scales have fewer pictures: the first ones go through all maps, the others as far as any scale needs them.
    """
    logits: dict[int, list[Tensor]] = {k: [] for k in counts}
    hidden: dict[int, list[Tensor]] = {k: [] for k in counts}
    begin = 0
    for last in sorted(counts, reverse=True):
        if counts[last] <= begin:
            continue
        part, rows = schedule.only(*range(last + 1)), torch.arange(begin, counts[last], device=x_in.device)
        length = part.total - part.lengths[0]
        said, states = _generate(transformer, x_in[rows][:, :length], condition.select(rows), part)
        for k in (scale for scale in counts if scale <= last):
            logits[k].append(said[:, part.slice(k)])
            hidden[k].append(states[:, part.slice(k)])
        begin = counts[last]
    return [torch.cat(parts) for parts in logits.values()], [torch.cat(parts) for parts in hidden.values()]


def _generate(
    transformer: STARTransformer, x_in: Tensor, condition: Condition, schedule: ScaleSchedule
) -> tuple[Tensor, Tensor]:
    """The generator's logits and hidden states, each image alone where a batch would show all the first one's text."""
    rows = torch.arange(len(condition), device=x_in.device)
    groups = rows.split(1 if transformer.first_sample_text else len(rows))
    parts = [transformer(x_in[group], condition.select(group), schedule, return_hidden=True) for group in groups]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _mean(values: Tensor) -> Tensor:
    return values.mean() if len(values) else values.new_tensor(float("nan"))
