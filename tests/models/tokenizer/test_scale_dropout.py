from __future__ import annotations

import pytest
import torch

from star.models.tokenizer.scale_dropout import ScaleDropout


def test_the_chosen_share_loses_scales_and_every_prefix_occurs() -> None:
    kept = ScaleDropout(0.3)(4000, 4, torch.Generator().manual_seed(0))
    assert (kept < 4).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert set(kept.tolist()) == {1, 2, 3, 4}


def test_probability_zero_and_a_single_scale_lose_nothing() -> None:
    assert (ScaleDropout(0.0)(50, 4) == 4).all()
    assert (ScaleDropout(1.0)(50, 1) == 1).all()


def test_the_generator_decides() -> None:
    draws = [ScaleDropout(0.5)(20, 4, torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*draws)


def test_another_probability_is_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        ScaleDropout(1.5)
