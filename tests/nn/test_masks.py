from __future__ import annotations

import pytest
import torch

from star.nn.masks import ScaleMask
from star.schedule import ScaleSchedule


@pytest.mark.parametrize("order", [None, 0, 1, 2])
def test_the_bias_says_what_first_visible_says(schedule: ScaleSchedule, order: int | None) -> None:
    mask = ScaleMask(order)
    scale = schedule.scale_ids()
    first = torch.tensor([mask.first_visible(k) for k in range(len(schedule))])[scale]
    sees = (scale[None] <= scale[:, None]) & (scale[None] >= first[:, None])
    assert torch.equal(mask.bias(schedule) == 0, sees)


def test_thinned_scales_keep_their_order(schedule: ScaleSchedule) -> None:
    spans = list(ScaleMask().visibility(schedule, (1, 4, 0, 5)).spans())
    assert spans == [(slice(0, 1), slice(0, 1)), (slice(1, 5), slice(0, 5)), (slice(5, 10), slice(0, 10))]


@pytest.mark.parametrize("order", [-1, 1.5])
def test_another_order_is_refused(order: int) -> None:
    with pytest.raises(ValueError, match=f"got {order}"):
        ScaleMask(order)
