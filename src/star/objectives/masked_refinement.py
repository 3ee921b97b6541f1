"""Training of the refiner: masked tokens of late scales from the known ones (STAR section 4.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from star.models.refiner import Refiner, first_refined
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.objectives.teacher_forcing import scale_means
from star.schedule import ScaleSchedule, concatenate
from star.types import Condition, LossReport


class MaskedRefinement:
    """Cross-entropy of the unknown tokens of every late scale, the generator being frozen.

    Each image draws a share of known tokens per scale, arccos(r) / (pi / 2) with r uniform in [0, 1], and each of its
    tokens is known with that probability. The release also trains on the known ones, with an extra class (release
    row 20), which teaches nothing and isn't done here.

    Args:
        first_scale: the first trained scale, see `star.models.refiner.first_refined`.
        label_smoothing: share of the target spread over the codebook.
        balance: `tokens`: every unknown token weighs the same; `scales`: every scale does, whose unknown tokens share
            its weight. Where the first maps are refined too, of few tokens each, they are hardly learned otherwise.
        shared_prefix: whether all scales of a pass share the token that carries the text, as in the release. That token
            sees the hidden states of them all, and those of a later scale were made from the true codes of the earlier
            ones, which then needn't be guessed: what an early scale learns so is of no use at sampling, where it has
            the token for itself. False: also in training. Of a single scale it makes no difference.

    Raises:
        ValueError: for a value out of range.

    """

    def __init__(
        self,
        *,
        first_scale: int | None = None,
        label_smoothing: float = 0.0,
        balance: str = "tokens",
        shared_prefix: bool = True,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label smoothing lies in [0, 1), got {label_smoothing}")
        if balance not in ("tokens", "scales"):
            raise ValueError(f"balance is 'tokens' or 'scales', got {balance!r}")
        self.first_scale = first_scale
        self.label_smoothing = label_smoothing
        self.balance = balance
        self.shared_prefix = shared_prefix

    def scales(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        """The scales that are trained."""
        return tuple(range(first_refined(schedule, self.first_scale), len(schedule)))

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
        scales = self.scales(schedule)
        late = torch.cat([torch.arange(schedule.total)[schedule.slice(k)] for k in scales])
        target = concatenate([codes[k] for k in scales])
        late, scale_ids = late.to(target.device), schedule.scale_ids()[late].to(target.device)
        with torch.no_grad():
            x_in = tokenizer.quantizer.teacher_forcing(codes, schedule)
            own, hidden = _generate(transformer, x_in, condition, schedule)
            embeddings = tokenizer.quantizer.lookup(target)
        known = self.known(target.shape[0], schedule, known_share).to(target.device)
        apart = known_share is not None or not self.shared_prefix
        part, parts = schedule.only(*scales), [(k,) for k in scales] if apart else [scales]
        split = [part.split(each) if apart else [each] for each in (hidden[:, late], embeddings, known)]
        asked = zip(*split, parts, strict=True)
        logits = torch.cat([refiner(h, e, given, condition, schedule, which) for h, e, given, which in asked], 1)
        report = self._compare(logits[~known], target[~known], scale_ids.expand(target.shape)[~known], schedule)
        right = (own[:, late].argmax(-1) == target)[~known].float()
        return replace(report, scalars={**report.scalars, "generator_accuracy": _mean(right)})

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
