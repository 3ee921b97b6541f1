from __future__ import annotations

import pytest
import torch

from star.schedule import ScaleSchedule, concatenate


@pytest.mark.parametrize(
    ("sides", "total"),
    [
        ((1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 680),
        ((1, 2, 3, 4, 6, 9, 13, 18, 24, 32), 2240),
        ((1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64), 9451),
    ],
)
def test_published_schedules_have_their_lengths(sides: tuple[int, ...], total: int) -> None:
    assert ScaleSchedule.square(*sides).total == total


def test_yaml_lists_and_ints_make_the_same_schedule() -> None:
    assert ScaleSchedule([1, 2, [2, 3]]) == ScaleSchedule(((1, 1), (2, 2), (2, 3)))  # type: ignore[arg-type, list-item]


def test_slices_tile_the_sequence(schedule: ScaleSchedule) -> None:
    covered = [i for k in range(len(schedule)) for i in range(schedule.total)[schedule.slice(k)]]
    assert covered == list(range(schedule.total))


def test_splitting_undoes_concatenation(schedule: ScaleSchedule) -> None:
    codes = [torch.randint(9, (2, length)) for length in schedule.lengths]
    assert all(torch.equal(a, b) for a, b in zip(schedule.split(concatenate(codes)), codes, strict=True))


def test_a_place_may_be_counted_from_the_end(schedule: ScaleSchedule) -> None:
    assert [schedule.place(k, "it") for k in (0, 3, -1, -4)] == [0, 3, 3, 0]
    for wrong in (4, -5, "x"):
        with pytest.raises(ValueError, match=f"it {wrong} isn't one of the 4 scales of '1 2 2x3 4'"):
            schedule.place(wrong, "it")  # type: ignore[arg-type]


def test_a_part_keeps_its_levels(schedule: ScaleSchedule) -> None:
    part = schedule.only(1, 3)
    assert part.levels == (1, 3)
    assert part.sizes == ((2, 2), (4, 4))
    assert part.only(1).levels == (3,)
    assert torch.equal(part.level_ids().unique(), torch.tensor([1, 3]))
    assert torch.equal(part.scale_ids().unique(), torch.tensor([0, 1]))


@pytest.mark.parametrize("sizes", [(), ((0, 1),), ("ab",), ((1,),)])
def test_nonsense_is_refused_with_the_value(sizes: object) -> None:
    with pytest.raises(ValueError, match="schedule needs"):
        ScaleSchedule(sizes)  # type: ignore[arg-type]


def test_a_sequence_of_another_length_is_refused(schedule: ScaleSchedule) -> None:
    with pytest.raises(ValueError, match=f"{schedule.total} tokens"):
        schedule.split(torch.zeros(1, 3))
