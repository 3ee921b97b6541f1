"""The order in which a picture is drawn: token maps, coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScaleSchedule:
    """The token maps a picture is drawn in, coarse to fine (STAR section 3.1).

    Args:
        sizes: (height, width) of every token map; an int `s` stands for the square `(s, s)`.
        levels: which level embedding each map uses; 0, 1, 2, ... unless the schedule is part of a longer one.

    Raises:
        ValueError: for an empty schedule, a size below 1, or as many levels as there are not maps.

    """

    sizes: tuple[tuple[int, int], ...]
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Normalise YAML's lists and ints, then validate."""
        try:
            sizes = tuple(
                (size, size) if isinstance(size, int) else (int(size[0]), int(size[1])) for size in self.sizes
            )
        except (TypeError, IndexError, ValueError) as error:
            raise ValueError(f"a schedule needs sides or (height, width) pairs, got {self.sizes!r}") from error
        if not sizes or min(min(size) for size in sizes) < 1:
            raise ValueError(f"a schedule needs positive (height, width) pairs, got {self.sizes!r}")
        levels = tuple(self.levels) or tuple(range(len(sizes)))
        if len(levels) != len(sizes):
            raise ValueError(f"a schedule of {len(sizes)} token maps needs as many levels, got {levels}")
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "levels", levels)

    @classmethod
    def square(cls, *sides: int) -> ScaleSchedule:
        """`ScaleSchedule.square(1, 2, 3)` has the maps 1x1, 2x2 and 3x3."""
        return cls(tuple((side, side) for side in sides))

    def only(self, *ks: int) -> ScaleSchedule:
        """The schedule of the scales `ks` alone, each keeping its own level."""
        return ScaleSchedule(tuple(self.sizes[k] for k in ks), tuple(self.levels[k] for k in ks))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each scale, `L_k`."""
        return tuple(height * width for height, width in self.sizes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each scale begins, and last where the sequence ends: K + 1 numbers."""
        return (0, *accumulate(self.lengths))

    @property
    def total(self) -> int:
        """All tokens, `L`."""
        return self.offsets[-1]

    def slice(self, k: int) -> slice:
        """Where scale `k` lies in the sequence of all `L` tokens."""
        return slice(self.offsets[k], self.offsets[k + 1])

    def place(self, k: int, what: str) -> int:
        """Scale `k`, counted from the end where it is negative; `what` is what messages call it.

        Raises:
            ValueError: when there is no such scale.

        """
        if not isinstance(k, int) or not -len(self) <= k < len(self):
            raise ValueError(f"{what} {k} isn't one of the {len(self)} scales of '{self}'")
        return k % len(self)

    def scale_ids(self) -> Tensor:
        """The scale of every token, (L,) long: 0, 1, ..., K - 1."""
        return torch.repeat_interleave(torch.arange(len(self)), torch.tensor(self.lengths))

    def level_ids(self) -> Tensor:
        """The level embedding of every token, (L,) long; differs from `scale_ids` in a part of a schedule."""
        return torch.tensor(self.levels)[self.scale_ids()]

    def split(self, sequence: Tensor) -> list[Tensor]:
        """Cut a sequence (B, L, ...) into its scales, each (B, L_k, ...)."""
        if sequence.shape[1] != self.total:
            raise ValueError(f"the schedule has {self.total} tokens, the sequence {sequence.shape[1]}")
        return list(sequence.split(list(self.lengths), dim=1))

    def __len__(self) -> int:
        """How many scales, `K`."""
        return len(self.sizes)

    def __str__(self) -> str:
        """Short form for messages: `1 2 3 4x6`."""
        return " ".join(str(h) if h == w else f"{h}x{w}" for h, w in self.sizes)


def concatenate(codes: Sequence[Tensor]) -> Tensor:
    """Codes by scale, each (B, L_k), as one sequence (B, L)."""
    return torch.cat(list(codes), dim=1)
