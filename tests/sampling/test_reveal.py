from __future__ import annotations

import pytest

from star.sampling.reveal import SHAPES, RevealSchedule


@pytest.mark.parametrize("shape", SHAPES)
def test_every_token_is_revealed_once_and_every_step_reveals_some(shape: str) -> None:
    for steps in (1, 2, 3, 8, 15, 40):
        for length in range(1, 130):
            counts = RevealSchedule(steps, shape).counts(length)
            assert sum(counts) == length
            assert min(counts) >= 1
            assert len(counts) == min(steps, length)


def test_the_published_schedule_starts_with_few_tokens() -> None:
    assert RevealSchedule(8).counts(16 * 16) == (1, 18, 26, 32, 38, 43, 48, 50)


@pytest.mark.parametrize("arguments", [(0, "arccos"), (8, "sine")])
def test_no_steps_or_an_unknown_shape_are_refused(arguments: tuple[int, str]) -> None:
    with pytest.raises(ValueError, match="a reveal schedule needs"):
        RevealSchedule(*arguments)
