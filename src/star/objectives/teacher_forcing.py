"""Next-scale prediction under teacher forcing: cross-entropy of every token given the true coarser maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.objectives.train_tokens import AllTokens
from star.schedule import ScaleSchedule, concatenate
from star.types import Condition, LossReport

TrainTokens = Callable[[ScaleSchedule, int], Tensor | None]


@runtime_checkable
class ByCodes(Protocol):
    """What a `train_tokens` has besides that chooses by what the tokens are."""

    def by_codes(self, target: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor] | None:
        """Kept positions (B, L') and their weights (B, L') in the loss; None for all."""
        ...


class TeacherForcing:
    """Every trained token weighs the same, whatever its scale (VAR, STAR: weight 1/L).

    The loss is a mean over the tokens that are trained, never a sum, so that the learning rate means the same whatever
    `train_tokens` leaves out and however large the batch is. What does change with `train_tokens` is the balance of the
    scales: with the default windows at 1024, the last two scales have 35 % of the trained tokens instead of 68 % of all
    tokens. `balance="tokens"` lets that be: all trained tokens have equal weight, which gives the least noisy gradient,
    and coarse scales, which decide what is in the picture, more of it; it is also what the release's weights 1/L' were
    meant to do. `balance="scales"` gives each scale the share of the loss that it has when everything is trained, by
    heavier weights for the tokens that are left: the loss of all tokens in expectation, where each is equally likely
    to stay and its logits don't depend on which others do. Where `train_tokens` chooses by codes and weighs what it
    keeps (`ByCodes`), the loss and each scale's numbers are so weighted, and `balance` doesn't count.

    Args:
        train_tokens: which tokens are trained; all of them by default.
        label_smoothing: share of the target spread over the codebook.
        balance: `tokens` or `scales`; no difference when all tokens are trained.

    Raises:
        ValueError: for a value out of range.

    """

    def __init__(
        self, *, train_tokens: TrainTokens | None = None, label_smoothing: float = 0.0, balance: str = "tokens"
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label smoothing lies in [0, 1), got {label_smoothing}")
        if balance not in ("tokens", "scales"):
            raise ValueError(f"balance is 'tokens' or 'scales', got {balance!r}")
        self.train_tokens = train_tokens or AllTokens()
        self.label_smoothing = label_smoothing
        self.balance = balance

    def __call__(
        self,
        transformer: STARTransformer | Callable[..., Tensor],
        tokenizer: MultiScaleTokenizer,
        codes: Sequence[Tensor],
        condition: Condition,
        schedule: ScaleSchedule,
        *,
        every_token: bool = False,
    ) -> LossReport:
        """Loss of one batch.

        Args:
            transformer: the generator (or what wraps its forward).
            tokenizer: gives the teacher-forcing input; frozen.
            codes: true codes of each scale, (B, L_k).
            condition: the texts.
            schedule: the scales.
            every_token: whatever `train_tokens` says, as validation needs it: its numbers compare between trainings.

        Returns:
            The mean cross-entropy, and loss and accuracy of each scale (nan where no token of it was trained).

        """
        target = concatenate(codes)  # (B, L)
        scales = schedule.scale_ids().to(target.device)
        kept, weights = (None, None) if every_token else self.kept(target, schedule)
        x_in = tokenizer.quantizer.teacher_forcing(codes, schedule)
        logits = transformer(x_in, condition, schedule, kept)
        if kept is not None:
            kept = kept.to(target.device).expand(target.shape[0], -1)
            target, scales = target.gather(1, kept), scales[kept]
        scales = scales.expand(target.shape)
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(), target.flatten(), reduction="none", label_smoothing=self.label_smoothing
        )
        right = (logits.detach().argmax(-1) == target).float()
        per_scale = {
            "loss": scale_means(loss.detach(), scales.flatten(), len(schedule), weights),
            "accuracy": scale_means(right.flatten(), scales.flatten(), len(schedule), weights),
        }
        if weights is not None:
            loss, right = loss * weights.flatten(), right * weights
        elif kept is not None and self.balance == "scales":
            loss = loss * scale_weights(scales.flatten(), schedule)
        return LossReport(loss.mean(), {"accuracy": right.mean()}, per_scale)

    def kept(self, target: Tensor, schedule: ScaleSchedule) -> tuple[Tensor | None, Tensor | None]:
        """Which positions of target (B, L) are trained, (L') or (B, L'), and their weights (B, L'), if any."""
        if isinstance(self.train_tokens, ByCodes):
            return self.train_tokens.by_codes(target, schedule) or (None, None)
        return self.train_tokens(schedule, target.shape[0]), None


def scale_means(values: Tensor, scales: Tensor, num_scales: int, weights: Tensor | None = None) -> Tensor:
    """Mean, weighted if need be, of values (N,) of each scale (N,) long: (num_scales,), nan for one without values."""
    weights = torch.ones_like(values) if weights is None else weights.flatten()
    sums = torch.zeros(num_scales, device=values.device).index_add_(0, scales, values * weights)
    return sums / torch.zeros(num_scales, device=values.device).index_add_(0, scales, weights)


def scale_weights(scales: Tensor, schedule: ScaleSchedule) -> Tensor:
    """Weights (N,), 1 on average, that give each scale of (N,) long its share of all tokens of the scales there are."""
    there = torch.zeros(len(schedule), device=scales.device).index_add_(
        0, scales, torch.ones(len(scales), device=scales.device)
    )
    wanted = torch.tensor(schedule.lengths, device=scales.device) * (there > 0)
    return (wanted / wanted.sum() / (there / there.sum()).clamp(min=1e-12))[scales]
