"""A released model for a shorter schedule: the first scales of a longer one are drawn the same way."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from star.checkpoints.official_files import OfficialTensors
from star.schedule import ScaleSchedule


def begin_of(
    official: OfficialTensors, schedule: ScaleSchedule, *, levels: str
) -> tuple[OfficialTensors, tuple[str, ...], str | None]:
    """Cut level embeddings and learned positions to a schedule that is the beginning of the file's.

    Args:
        official: the file's tensors.
        schedule: the scales that the model is wanted for.
        levels: the released name of the level embeddings.

    Returns:
        The tensors, those two cut where they are longer, notes of what was done, and, with the tensors as they are, why
        the schedule can't be meant: it is longer than the file's, or isn't its beginning as far as the file shows.

    Raises:
        ValueError: when the schedule isn't a whole one.

    """
    count = len(schedule)
    if schedule.levels != tuple(range(count)):
        raise ValueError(
            f"{official.name} needs a whole schedule, from its first scale on; got the levels {schedule.levels}"
        )
    if levels not in official.tensors or official.tensors[levels].dim() != 2:
        return official, (), None
    available = official.tensors[levels].shape[0]
    if problem := _problem(official, schedule, available):
        return official, (), problem
    if count == available:
        return official, (), None
    cut = {levels: official.tensors[levels][:count].clone()}
    if "pos_1LC" in official.tensors and official.tensors["pos_1LC"].dim() == 3:
        cut["pos_1LC"] = official.tensors["pos_1LC"][:, : schedule.total].clone()
    notes = [f"the first {count} of {available} scales are used ({', '.join(cut)} cut)"]
    if official.sides is None and not _readable(official.tensors.get("lvl_1L")):
        notes.append(f"the file doesn't say which maps it was trained on: '{schedule}' is taken to be their beginning")
    return replace(official, tensors={**official.tensors, **cut}), tuple(notes), None


def _problem(official: OfficialTensors, schedule: ScaleSchedule, available: int) -> str | None:
    """Compare with what the file shows of its schedule: its sides, each token's level, or how many tokens there are."""
    wanted = schedule.lengths
    if len(wanted) > available:
        return (
            f"{official.name} was trained on {available} scales, the schedule '{schedule}' has {len(wanted)}: "
            "open it with its own schedule, and let a longer one begin from it (init_from)"
        )
    marks = official.tensors.get("lvl_1L")
    lengths: tuple[int, ...] | None = None
    if official.sides is not None:
        lengths = tuple(side * side for side in official.sides)
    elif _readable(marks):
        lengths = tuple(marks.flatten().long().bincount().tolist())  # type: ignore[union-attr]
    if lengths is not None and lengths[: len(wanted)] != wanted:
        return (
            f"the schedule '{schedule}' isn't the beginning of the one that {official.name} was trained on: "
            f"tokens per scale are {wanted}, there {lengths}"
        )
    if "pos_1LC" not in official.tensors or official.tensors["pos_1LC"].dim() != 3:
        return None
    positions, later = official.tensors["pos_1LC"].shape[1], available - len(wanted)
    if schedule.total + later > positions or (later == 0 and schedule.total != positions):
        return (
            f"the schedule '{schedule}' has {schedule.total} tokens in {len(wanted)} scales, {official.name} learned "
            f"{positions} positions for {available} scales: give the schedule that it was trained on, or its beginning"
        )
    return None


def _readable(tensor: Tensor | None) -> bool:
    return tensor is not None and not tensor.is_meta
