"""A text-conditional generator that begins with the weights of class-conditional VAR.

What both have is copied. The text branch is new: its output projection is zero, so that at first the generator says
what it says without text, and learns from there how much to listen. AdaLN, which tells VAR's blocks the class, has no
place in STAR's blocks and is dropped; start token and text projections begin fresh.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from star.checkpoints.describe import describe
from star.models.transformer import STARTransformer
from star.nn.position import AbsolutePosition, Rotary2D
from star.schedule import ScaleSchedule

FATES = ("copied", "partly copied", "zeroed", "fresh", "dropped")


@dataclass(frozen=True)
class Fate:
    """What became of one tensor.

    Attributes:
        name: what our models call it.
        shape: in the new model; of a dropped one, in VAR.
        fate: one of `FATES`.

    """

    name: str
    shape: tuple[int, ...]
    fate: str


@dataclass(frozen=True)
class TransferReport:
    """What became of every tensor of both models."""

    fates: tuple[Fate, ...]

    def names(self, fate: str) -> set[str]:
        """The tensors with this fate."""
        return {one.name for one in self.fates if one.fate == fate}

    def __str__(self) -> str:
        """A table; the blocks' tensors are counted in one line each."""
        grouped = Counter((one.fate, re.sub(r"blocks\.\d+\.", "blocks.*.", one.name), one.shape) for one in self.fates)
        numbers: Counter[str] = Counter()
        for one in self.fates:
            numbers[one.fate] += torch.Size(one.shape).numel()
        lines = [
            "from VAR to STAR: " + ", ".join(f"{numbers[fate]:,} numbers {fate}" for fate in FATES if numbers[fate])
        ]
        for fate in FATES:
            for (own, name, shape), count in grouped.items():
                if own == fate:
                    lines.append(
                        f"  {fate:13}  {name}  {'x'.join(map(str, shape))}"
                        + (f"  ({count} times)" if count > 1 else "")
                    )
        return "\n".join(lines)


def star_from_var(
    var: STARTransformer,
    *,
    schedule: ScaleSchedule,
    pooled_width: int,
    context_width: int,
    position: Rotary2D | AbsolutePosition | None = None,
    seed: int = 0,
) -> tuple[STARTransformer, TransferReport]:
    """A generator that reads texts, from one that reads class labels.

    Args:
        var: class-conditional VAR; its scales are the schedule's beginning as far as both go.
        schedule: the new generator's scales; it may have more or fewer than VAR's.
        pooled_width: channels of the pooled text.
        context_width: channels of the text's hidden states.
        position: where tokens lie; by default the rotary positions of STAR. Learned ones are copied if they fit.
        seed: of what begins fresh.

    Raises:
        ValueError: when the model isn't class-conditional.

    """
    if var.head.modulation is None:
        raise ValueError(
            "this generator isn't class-conditional VAR: it has no adaptive norms, and opens without conversion"
        )
    arguments = _arguments(var) | {
        "pooled_width": pooled_width,
        "context_width": context_width,
        "num_levels": len(schedule),
        "first_length": schedule.lengths[0],
        "position": position or Rotary2D(),
        "mask": var.mask,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        star = STARTransformer(**arguments)
    return star.eval(), TransferReport(tuple(_transfer(var, star, schedule)))


def _arguments(var: STARTransformer) -> dict[str, Any]:
    kept = (
        "depth",
        "width",
        "num_heads",
        "codebook_size",
        "code_width",
        "level_embedding",
        "mlp_ratio",
        "drop_path",
        "qk_norm",
    )
    described = describe(var)
    return {name: described[name] for name in (*kept, "backend")}


@torch.no_grad()
def _transfer(var: STARTransformer, star: STARTransformer, schedule: ScaleSchedule) -> list[Fate]:
    """Copy what both have, and say what became of each tensor."""
    old, new = var.state_dict(), star.state_dict()
    fates = []
    for name, target in new.items():
        rows = _rows(name, old, target, _common_tokens(var, schedule))
        if re.fullmatch(r"blocks\.\d+\.cross_attention\.out\.(weight|bias)", name):
            target.zero_()
            fate = "zeroed"
        elif rows == 0:
            fate = "fresh"
        else:
            target[:rows] = old[name][:rows]
            fate = "copied" if old[name].shape == target.shape and rows == len(target) else "partly copied"
        fates.append(Fate(name, tuple(target.shape), fate))
    return fates + [Fate(name, tuple(value.shape), "dropped") for name, value in old.items() if name not in new]


def _rows(name: str, old: Mapping[str, Tensor], target: Tensor, tokens: int) -> int:
    """How many rows of a tensor come from VAR."""
    if name not in old or old[name].shape[1:] != target.shape[1:]:
        return 0
    if name == "position.table":
        return tokens
    if name == "level.weight":  # by index, as the releases grow theirs
        return min(len(old[name]), len(target))
    return len(target) if old[name].shape == target.shape else 0


def _common_tokens(var: STARTransformer, schedule: ScaleSchedule) -> int:
    """Tokens of the scales with which both schedules begin."""
    if not isinstance(var.position, AbsolutePosition):
        return 0
    same = [one == other for one, other in zip(var.position.schedule.sizes, schedule.sizes, strict=False)]
    return schedule.offsets[(*same, False).index(False)]
