"""What a checkpoint held, what of it was used, and the one table that says why it doesn't fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Shape = Sequence[int]


@dataclass(frozen=True)
class Leftover:
    """A tensor of a checkpoint that the model has no use for.

    Attributes:
        name: what the checkpoint calls it.
        numel: how many numbers it holds.
        reason: why it isn't needed, or who reads it instead.

    """

    name: str
    numel: int
    reason: str


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint's tensors.

    Attributes:
        source: where they came from.
        model: what was built from them.
        tensors: how many were used.
        parameters: how many numbers those hold.
        leftovers: the tensors that were accepted but not used.
        notes: what else the reader decided, one sentence each.

    """

    source: str
    model: str
    tensors: int
    parameters: int
    leftovers: tuple[Leftover, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A few lines for a log: leftovers are grouped by reason."""
        lines = [f"{self.model} from {self.source}: {self.parameters:,} parameters in {self.tensors} tensors"]
        grouped: dict[str, list[Leftover]] = {}
        for leftover in self.leftovers:
            grouped.setdefault(leftover.reason, []).append(leftover)
        for reason, group in grouped.items():
            more = f" and {len(group) - 1} more" if len(group) > 1 else ""
            lines.append(
                f"  not used: {group[0].name}{more}, {sum(leftover.numel for leftover in group):,} numbers ({reason})"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def compare(expected: Mapping[str, Shape], found: Mapping[str, Shape], *, source: str, hint: str | None = None) -> None:
    """Raise one ValueError that shows every difference, unless names and shapes are the same.

    Args:
        expected: shape of every tensor that the model needs, by name.
        found: shape of every tensor that the checkpoint holds, leftovers taken out.
        source: what the message calls the checkpoint.
        hint: what may explain a difference, shown below the table.

    Raises:
        ValueError: when a tensor is missing, unexpected or of another shape.

    """
    missing = [(name, _show(expected[name]), "missing") for name in expected if name not in found]
    unexpected = [(name, "unexpected", _show(found[name])) for name in found if name not in expected]
    reshaped = [
        (name, _show(expected[name]), _show(found[name]))
        for name in expected
        if name in found and tuple(expected[name]) != tuple(found[name])
    ]
    if missing or unexpected or reshaped:
        counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(reshaped)} reshaped tensors"
        rows = [("tensor", "model", "checkpoint"), *missing, *unexpected, *reshaped]
        below = [] if hint is None else [hint]
        raise ValueError("\n".join([f"{source} doesn't fit the model: {counts}", *_columns(rows), *below]))


def _show(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
