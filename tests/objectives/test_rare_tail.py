from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.objectives.rare_tail import RareTail, inclusion, systematic
from star.objectives.teacher_forcing import TeacherForcing
from star.schedule import ScaleSchedule, concatenate
from star.types import Condition

S64 = ScaleSchedule.square(1, 2, 4, 8)


def plain(batch: int = 1) -> Tensor:
    """Codes whose finest map is one code but for ten tokens."""
    codes = torch.zeros(batch, S64.total, dtype=torch.long)
    codes[:, 21 + 20 : 21 + 30] = torch.arange(1, 11)
    return codes


def test_chances_are_in_proportion_and_add_up() -> None:
    wanted = torch.rand(50, 64, dtype=torch.double) ** 6
    for count in (1, 5, 40, 63):
        chances = inclusion(wanted, count)
        torch.testing.assert_close(chances.sum(1), torch.full((50,), float(count), dtype=torch.double))
        assert chances.max() <= 1
        assert chances.min() > 0
        ratios = (chances / wanted).where(chances < 1, torch.nan)
        spread = ratios.nan_to_num(-1).max(1).values / ratios.nan_to_num(1e99).min(1).values
        assert (spread < 1 + 1e-9).all()
    assert (inclusion(wanted, 40) == 1).any()


def test_each_position_is_drawn_with_its_chance() -> None:
    chances = inclusion(torch.arange(1, 17, dtype=torch.double)[None] ** 2, 6).expand(20000, -1)
    drawn = systematic(chances)
    assert drawn.shape == (20000, 6)
    assert (drawn.diff(dim=1) > 0).all()
    found = drawn.flatten().bincount(minlength=16) / 20000
    torch.testing.assert_close(found.double(), chances[0], atol=0.015, rtol=0)


def test_rare_codes_stay_and_coarse_scales_are_whole() -> None:
    kept, weights = RareTail(share=None, length=21 + 20).by_codes(plain(8), S64)  # type: ignore[misc]
    assert kept.shape == weights.shape == (8, 41)
    assert (kept.diff(dim=1) > 0).all()
    assert torch.equal(kept[:, :21], torch.arange(21).expand(8, -1))
    for row in kept:
        assert set(range(41, 51)) <= set(row.tolist())
    assert len({tuple(row.tolist()) for row in kept}) > 1
    # ten rare tokens are certain, the other ten stand for 54
    torch.testing.assert_close(weights.sum(1), torch.full((8,), 41.0))
    torch.testing.assert_close(weights.max() / weights.min(), torch.tensor(5.4))


def test_without_power_it_is_a_random_tail() -> None:
    _, weights = RareTail(share=0.5, power=0.0).by_codes(plain(3), S64)  # type: ignore[misc]
    assert weights.unique().numel() == 2  # coarse, last
    assert RareTail(share=1.0).by_codes(plain(), S64) is None
    assert RareTail(share=0.5)(S64, 2).shape == (2, RareTail(share=0.5).count(S64))  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"power is at least 0, got -0\.5"):
        RareTail(power=-0.5)


def test_in_expectation_the_loss_is_that_of_all_tokens(
    tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule, condition: Condition
) -> None:
    codes = tokenizer.encode(torch.rand(3, 3, 8, 8) * 2 - 1, schedule)
    codes[-1][:, :11] = 5  # plain in part
    table = torch.randn(3, schedule.total, 32)

    def fixed(x_in: Tensor, condition: Condition, schedule: ScaleSchedule, kept: Tensor | None) -> Tensor:
        return table if kept is None else table.gather(1, kept[..., None].expand(-1, -1, 32))

    everything = TeacherForcing()(fixed, tokenizer, codes, condition, schedule)
    torch.testing.assert_close(everything.total, F.cross_entropy(table.transpose(1, 2), concatenate(codes)))
    objective = TeacherForcing(train_tokens=RareTail(share=None, length=schedule.total - 10))
    reports = [objective(fixed, tokenizer, codes, condition, schedule) for _ in range(600)]
    mean = torch.stack([report.total for report in reports]).mean()
    torch.testing.assert_close(mean, everything.total, atol=0.02, rtol=0)
    scales = torch.stack([report.per_scale["loss"] for report in reports]).mean(0)
    torch.testing.assert_close(scales, everything.per_scale["loss"], atol=0.05, rtol=0)


def test_a_generator_learns_from_what_stays(
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
) -> None:
    codes = tokenizer.encode(torch.rand(3, 3, 8, 8) * 2 - 1, schedule)
    objective = TeacherForcing(train_tokens=RareTail(share=0.8))
    report = objective(build_transformer(), tokenizer, codes, condition, schedule)
    report.total.backward()
    validated = objective(build_transformer(), tokenizer, codes, condition, schedule, every_token=True)
    assert torch.isfinite(validated.per_scale["loss"]).all()
