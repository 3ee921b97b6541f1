from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.objectives.teacher_forcing import TeacherForcing, scale_means
from star.schedule import ScaleSchedule, concatenate
from star.types import Condition, LossReport

Score = Callable[[TeacherForcing], tuple[LossReport, torch.Tensor]]


@pytest.fixture
def codes(tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule) -> list[torch.Tensor]:
    return tokenizer.encode(torch.rand(3, 3, 8, 8) * 2 - 1, schedule)


@pytest.fixture
def score(
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    codes: list[torch.Tensor],
) -> Score:
    """What an objective says of a generator, and that generator's logits."""
    model = build_transformer()
    logits = model(tokenizer.quantizer.teacher_forcing(codes, schedule), condition, schedule)
    return lambda objective: (objective(model, tokenizer, codes, condition, schedule), logits)


def test_every_token_weighs_the_same(score: Score, codes: list[torch.Tensor], schedule: ScaleSchedule) -> None:
    report, logits = score(TeacherForcing())
    torch.testing.assert_close(report.total, F.cross_entropy(logits.transpose(1, 2), concatenate(codes)))
    lengths = torch.tensor(schedule.lengths, dtype=torch.float)
    torch.testing.assert_close((report.per_scale["loss"] * lengths).sum() / lengths.sum(), report.total.detach())
    torch.testing.assert_close(
        (report.per_scale["accuracy"] * lengths).sum() / lengths.sum(), report.scalars["accuracy"]
    )


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_loss_of_kept_tokens_keeps_its_scale(
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    codes: list[torch.Tensor],
    per_sample: bool,
) -> None:
    """A mean over what is trained: not multiplied by the batch, so the learning rate keeps its meaning."""
    kept = torch.arange(schedule.offsets[3])
    rows = kept.expand(3, -1) if per_sample else kept
    model = build_transformer()
    full = TeacherForcing()(model, tokenizer, codes, condition, schedule)
    part = TeacherForcing(train_tokens=lambda schedule, batch: rows)(model, tokenizer, codes, condition, schedule)
    torch.testing.assert_close(part.per_scale["loss"][:3], full.per_scale["loss"][:3], atol=1e-5, rtol=1e-5)
    assert part.per_scale["loss"][3].isnan()
    weights = torch.tensor(schedule.lengths[:3], dtype=torch.float)
    torch.testing.assert_close(
        part.total.detach(), (full.per_scale["loss"][:3] * weights).sum() / weights.sum(), atol=1e-5, rtol=1e-5
    )


def test_the_tokenizer_gets_no_gradient(
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    codes: list[torch.Tensor],
) -> None:
    TeacherForcing()(build_transformer(), tokenizer, codes, condition, schedule).total.backward()
    assert all(parameter.grad is None for parameter in tokenizer.parameters())


def test_means_of_scales() -> None:
    means = scale_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]), 3)
    assert means[0] == 2
    assert means[1].isnan()
    assert means[2] == 5
    with pytest.raises(ValueError, match="1"):
        TeacherForcing(label_smoothing=1.0)


def test_label_smoothing_spreads_the_target(score: Score, codes: list[torch.Tensor]) -> None:
    report, logits = score(TeacherForcing(label_smoothing=0.3))
    logs = logits.log_softmax(-1)
    right = logs.gather(2, concatenate(codes)[..., None])[..., 0]
    torch.testing.assert_close(report.total, -(0.7 * right + 0.3 * logs.mean(-1)).mean())
