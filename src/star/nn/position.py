"""Where a token lies: rotations of queries and keys, or learned embeddings.

Both kinds answer the same two questions, so that a transformer needs to know neither: `rotation` (None for learned
positions) and `embedding` (None for rotary ones).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from star.schedule import ScaleSchedule

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (L, d/2) or (B, L, d/2)


class Rotary2D(nn.Module):
    """Two-dimensional rotary positions (STAR section 3.3): half of a head's channels turn with x, half with y.

    Args:
        coordinates: `normalized` maps the i-th of n rows to i / (n - 1) * extent and a single row to 0, so that both
            ends of every scale meet (what the released weights use); `normalized_length` is the paper's equation 2,
            i / n * extent with i = 1..n; `axial` takes i itself, without any normalisation.
        theta: base of the frequencies theta^(-4j/d), j < d/4.
        extent: H = W of equation 2.

    Raises:
        ValueError: for unknown coordinates, or a theta or extent that isn't positive.

    """

    def __init__(self, coordinates: str = "normalized", *, theta: float = 10000.0, extent: float = 64.0) -> None:
        super().__init__()
        if coordinates not in ("normalized", "normalized_length", "axial"):
            raise ValueError(f"coordinates are 'normalized', 'normalized_length' or 'axial', got {coordinates!r}")
        if theta <= 0 or extent <= 0:
            raise ValueError(f"theta and extent must be positive, got {theta} and {extent}")
        self.coordinates = coordinates
        self.theta = theta
        self.extent = extent
        self._tables: dict[tuple[ScaleSchedule, int, torch.device], Rotation] = {}

    def axis(self, count: int) -> Tensor:
        """Positions (count,) of the rows (or columns) of one token map."""
        steps = torch.arange(count, dtype=torch.float32)
        if self.coordinates == "axial":
            return steps
        if self.coordinates == "normalized_length":
            return (steps + 1) / count * self.extent
        return steps * (self.extent / (count - 1)) if count > 1 else steps

    def angles(self, schedule: ScaleSchedule, head_width: int) -> Tensor:
        """Angles (L, head_width / 2): the first half of the pairs turns with x, the second with y."""
        if head_width % 4:
            raise ValueError(f"two-dimensional rotary positions need a head width divisible by 4, got {head_width}")
        frequencies = self.theta ** (-torch.arange(0, head_width, 4, dtype=torch.float32) / head_width)
        rows = []
        for height, width in schedule.sizes:
            y, x = torch.meshgrid(self.axis(height), self.axis(width), indexing="ij")
            rows.append(torch.cat([x.reshape(-1, 1) * frequencies, y.reshape(-1, 1) * frequencies], 1))
        return torch.cat(rows)

    def rotation(self, schedule: ScaleSchedule, head_width: int, device: torch.device) -> Rotation | None:
        """Cosines and sines (L, head_width / 2), fp32; computed once per schedule and device."""
        key = (schedule, head_width, device)
        if key not in self._tables:
            with torch.inference_mode(False):  # a validation may ask first, and training keeps them for its gradients
                angles = self.angles(schedule, head_width)
                self._tables[key] = (angles.cos().to(device), angles.sin().to(device))
        return self._tables[key]

    def embedding(self, schedule: ScaleSchedule) -> Tensor | None:
        """Nothing is added to a token."""
        return None


class AbsolutePosition(nn.Module):
    """A learned vector per token (VAR).

    Args:
        width: channels `C` of the transformer.
        schedule: the scales it is learned for. A later schedule may take a part of them (`ScaleSchedule.only`).

    Raises:
        ValueError: when asked for a scale that it was not built for.

    """

    def __init__(self, width: int, *, schedule: ScaleSchedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.table = nn.Parameter(torch.empty(schedule.total, width))
        nn.init.trunc_normal_(self.table, std=math.sqrt(1 / width / 3))

    def rotation(self, schedule: ScaleSchedule, head_width: int, device: torch.device) -> Rotation | None:
        """Nothing turns."""
        return None

    def embedding(self, schedule: ScaleSchedule) -> Tensor | None:
        """What is added to the tokens of a schedule, (L, C)."""
        known = dict(
            zip(self.schedule.levels, zip(self.schedule.sizes, range(len(self.schedule)), strict=True), strict=True)
        )
        parts = []
        for level, size in zip(schedule.levels, schedule.sizes, strict=True):
            if level not in known or known[level][0] != size:
                raise ValueError(
                    f"absolute positions of the schedule '{self.schedule}' have no level {level} of size {size}"
                )
            parts.append(self.table[self.schedule.slice(known[level][1])])
        return torch.cat(parts)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn neighbouring channel pairs (2j, 2j + 1) of x (B, heads, L, d) by their angles, in fp32."""
    cos, sin = (part if part.dim() == 2 else part[:, None] for part in rotation)
    pairs = x.float().unflatten(-1, (-1, 2))  # (B, heads, L, d/2, 2)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # every other channel is slow to read there, a pair as a complex number is not: a twentieth of the time, and
        # another last digit in places; PyTorch's compiler knows no complex numbers
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin)).flatten(-2)
    even, odd = pairs.unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
