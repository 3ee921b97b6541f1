from __future__ import annotations

import pytest
import torch

from star.sampling.guidance import ClassifierFreeGuidance, Guide
from star.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule.square(1, 2, 3, 4, 5)


def test_the_ramp_goes_from_nothing_to_everything() -> None:
    guidance = ClassifierFreeGuidance(4.0)
    assert [guidance.strength(k, SCHEDULE) for k in range(5)] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert ClassifierFreeGuidance(4.0, ramp="constant").strength(0, SCHEDULE) == 4.0
    assert ClassifierFreeGuidance(4.0).strength(0, ScaleSchedule.square(3)) == 4.0  # its only scale is the last


@pytest.mark.parametrize("off_after", [2, -3])
def test_late_scales_can_go_without(off_after: int) -> None:
    guidance = ClassifierFreeGuidance(4.0, off_after=off_after)
    assert [guidance.strength(k, SCHEDULE) for k in range(5)] == [0.0, 1.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("on_from", [2, -3])
def test_early_scales_can_go_without(on_from: int) -> None:
    guidance = ClassifierFreeGuidance(4.0, on_from=on_from, off_after=-2)
    assert [guidance.strength(k, SCHEDULE) for k in range(5)] == [0.0, 0.0, 2.0, 3.0, 0.0]


def test_strength_0_is_the_conditional_model() -> None:
    conditional, unconditional = torch.randn(2, 1, 3, 4)
    logits = torch.cat([conditional[None], unconditional[None]])
    assert torch.equal(Guide(ClassifierFreeGuidance(0.0), SCHEDULE)(logits, 3)[0], conditional)
    assert torch.equal(Guide(None, SCHEDULE)(logits, 3), logits)
    guided = Guide(ClassifierFreeGuidance(2.0, ramp="constant"), SCHEDULE)(logits, 3)[0]
    torch.testing.assert_close(guided, 3 * conditional - 2 * unconditional)


def test_nonsense_is_refused_with_the_value() -> None:
    with pytest.raises(ValueError, match="'cosine'"):
        ClassifierFreeGuidance(1.0, ramp="cosine")
    with pytest.raises(ValueError, match="-2"):
        ClassifierFreeGuidance(-2)
    for unset in (None, float("nan"), float("inf"), "2"):
        with pytest.raises(ValueError, match=f"must be a number, got {unset!r}"):
            ClassifierFreeGuidance(unset)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 'strong'"):
        ClassifierFreeGuidance("strong")  # type: ignore[arg-type]
    for wrong in (5, -6):
        with pytest.raises(ValueError, match=f"off_after {wrong} isn't one of the 5 scales"):
            ClassifierFreeGuidance(2.0, off_after=wrong).strength(1, SCHEDULE)
        with pytest.raises(ValueError, match=f"on_from {wrong} isn't one of the 5 scales"):
            ClassifierFreeGuidance(2.0, on_from=wrong).strength(1, SCHEDULE)
    with pytest.raises(ValueError, match="on_from 3 and off_after 1 is nowhere"):
        ClassifierFreeGuidance(2.0, on_from=3, off_after=1).strength(1, SCHEDULE)
