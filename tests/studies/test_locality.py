from __future__ import annotations

import pytest
import torch

from star.schedule import ScaleSchedule
from star.studies.locality import aligned_mass, main, near_tokens

SCHEDULE = ScaleSchedule.square(1, 2, 4)


def test_a_token_is_near_itself_and_all_that_cover_its_place() -> None:
    query = SCHEDULE.offsets[-2]  # the last scale's upper left corner
    near = near_tokens(SCHEDULE, query, radius=0.0)
    assert near.nonzero().flatten().tolist() == [0, 1, query]
    assert near_tokens(SCHEDULE, query, radius=2.0).all()
    assert near_tokens(SCHEDULE, query, radius=0.26)[query + 1]


def test_uniform_attention_has_the_uniform_share() -> None:
    query = SCHEDULE.total - 3
    found = aligned_mass(torch.full((SCHEDULE.total,), 1 / SCHEDULE.total), SCHEDULE, query, radius=0.3)
    assert found["own scale"] == pytest.approx(found["own scale, uniform"])
    assert found["near"] == pytest.approx(found["near, uniform"])


def test_attention_to_itself_is_all_near() -> None:
    query = SCHEDULE.total - 1
    found = aligned_mass(torch.eye(SCHEDULE.total)[query], SCHEDULE, query, radius=0.1)
    assert found["own scale"] == found["near"] == 1


def test_a_scale_that_is_not_seen_counts_for_nothing() -> None:
    found = aligned_mass(torch.eye(SCHEDULE.total)[2], SCHEDULE, 2, radius=2.0)
    assert found["own scale, uniform"] == pytest.approx(4 / 5)


def test_a_checkpoint_is_needed() -> None:
    with pytest.raises(SystemExit):
        main([])
