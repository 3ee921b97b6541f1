from __future__ import annotations

import pytest

from star.models.tokenizer.progress import Progress


def test_a_moment_is_a_step_or_a_share() -> None:
    progress = Progress(50, 200)
    assert progress.steps(7) == 7
    assert progress.steps(0.25) == 50
    assert progress.steps(1) == 1
    assert progress.steps(1.0) == 200
    assert progress.reached(50)
    assert progress.reached(0.25)
    assert not progress.reached(51)


def test_a_ramp_rises_from_its_start_to_one() -> None:
    values = [Progress(step, 100).ramp(10, 0.05) for step in range(20)]
    assert values[:10] == [0.0] * 10
    assert 0 < values[10] < 1
    assert values == sorted(values)
    assert values[15:] == [1.0] * 5
    assert Progress(3, 100).ramp(3, 0) == 1.0


def test_an_endless_training_has_steps_but_no_shares() -> None:
    assert Progress(5).reached(5)
    with pytest.raises(ValueError, match="max_steps"):
        Progress(5).reached(0.5)


@pytest.mark.parametrize("moment", [-1, -0.5, 1.5])
def test_impossible_moments_are_refused(moment: float) -> None:
    with pytest.raises(ValueError, match="moment"):
        Progress(0, 10).steps(moment)


def test_impossible_progress_is_refused() -> None:
    with pytest.raises(ValueError, match="progress"):
        Progress(-1, 10)
