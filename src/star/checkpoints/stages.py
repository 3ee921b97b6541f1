"""Weights of one stage as the beginning of the next: what a longer schedule needs more of grows (STAR section 4.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.checkpoints import io
from star.checkpoints.report import compare
from star.checkpoints.sharded import is_sharded
from star.nn.position import AbsolutePosition
from star.schedule import ScaleSchedule

RULES = ("position", "index")


@dataclass(frozen=True)
class Carried:
    """What became of a tensor, or of a part of it.

    Attributes:
        name: the tensor's, `transformer.level.weight`.
        numel: how many numbers the model has there.
        how: `copied` from the checkpoint; `grown` from its numbers; `fresh`, as initialised; or the run's `own`.
        detail: how it grew, or where it is from.

    """

    name: str
    numel: int
    how: str
    detail: str = ""


def carry_over(
    module: nn.Module, given: Mapping[str, Tensor], *, before: ScaleSchedule | None, rule: str = "position"
) -> tuple[dict[str, Tensor], list[Carried]]:
    """A checkpoint's tensors, with level embeddings and absolute positions made to fit another schedule.

    Which old scale a new one follows is the rule. `position`: the scale (or two scales, mixed linearly) at the same
    relative place k / (K - 1) between the first and the last. `index`: the scale of the same number; level embeddings
    beyond the last stay fresh, and positions take the last scale's. Positions of a map are then interpolated
    (bicubic, as pictures are resized). Rotary positions have no parameters and need nothing.

    Args:
        module: what the tensors are for; has the new sizes.
        given: the checkpoint's tensors, by the module's names. What doesn't depend on the schedule is passed on.
        before: the checkpoint's schedule; needed for absolute positions alone.
        rule: `position` or `index`.

    Returns:
        The tensors to load, and what became of each.

    Raises:
        ValueError: for an unknown rule, or absolute positions of an unknown schedule.

    """
    if rule not in RULES:
        raise ValueError(f"init_rule is one of {', '.join(RULES)}, got {rule!r}")
    own = module.state_dict()
    tables = {
        f"{name}.table": part.schedule for name, part in module.named_modules() if isinstance(part, AbsolutePosition)
    }
    state, rows = dict(given), []
    for name, value in given.items():
        there = own.get(name)
        if name in tables and there is not None and there.shape[1:] == value.shape[1:] and before != tables[name]:
            if before is None:
                raise ValueError(f"the checkpoint doesn't say which schedule {name} was learned for")
            state[name] = grow_positions(value, before, tables[name], rule=rule)
            rows.append(Carried(name, there.numel(), "grown", f"'{before}' to '{tables[name]}', interpolated"))
        elif _is_level(name) and there is not None and there.shape[1:] == value.shape[1:] and len(there) != len(value):
            state[name], changed = grow_levels(name, value, there, rule=rule)
            rows += changed
        else:
            rows.append(Carried(name, value.numel(), "copied"))
    return state, rows


def _is_level(name: str) -> bool:
    return name.endswith("level.weight")


def grow_levels(name: str, old: Tensor, fresh: Tensor, *, rule: str) -> tuple[Tensor, list[Carried]]:
    """Level embeddings (K', C) from those of K scales, (K, C); an index beyond the last keeps `fresh` (K', C)."""
    width = old.shape[1]
    if rule == "position":
        detail = f"{len(old)} to {len(fresh)} levels, by relative position"
        return _mix(old, len(fresh)), [Carried(name, fresh.numel(), "grown", detail)]
    kept = min(len(old), len(fresh))
    rows = [Carried(name, kept * width, "copied", f"levels 0 to {kept - 1}")]
    if len(fresh) > kept:
        rows.append(Carried(name, (len(fresh) - kept) * width, "fresh", f"levels {kept} to {len(fresh) - 1}"))
    return torch.cat([old[:kept], fresh[kept:].to(old)]), rows


def grow_positions(old: Tensor, before: ScaleSchedule, after: ScaleSchedule, *, rule: str) -> Tensor:
    """Absolute positions (L', C) of the schedule `after` from those of `before`, (L, C)."""
    maps = [part.T.unflatten(1, size) for part, size in zip(old.split(list(before.lengths)), before.sizes, strict=True)]
    grown = []
    for k, size in enumerate(after.sizes):
        resized = torch.stack([_resize(part, size).flatten(1).T for part in maps])  # (K, L'_k, C)
        if rule == "index":
            grown.append(resized[min(k, len(before) - 1)])
        else:
            grown.append(_mix(resized, len(after), only=k)[0])
    return torch.cat(grown)


def _mix(rows: Tensor, count: int, only: int | None = None) -> Tensor:
    """`count` rows, or one of them, at equal steps between the first and the last of (K, ...), mixed linearly."""
    wanted = torch.arange(count) if only is None else torch.tensor([only])
    place = wanted.double() * (len(rows) - 1) / max(count - 1, 1)
    low = place.floor().long().clamp(max=max(len(rows) - 2, 0))
    share = (place - low).to(rows.dtype).view(-1, *[1] * (rows.dim() - 1))
    return torch.lerp(rows[low], rows[(low + 1).clamp(max=len(rows) - 1)], share)


def _resize(part: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (C, h, w) at another size."""
    if tuple(part.shape[1:]) == size:
        return part
    return F.interpolate(part[None].float(), size, mode="bicubic")[0].to(part.dtype)


def schedule_of(checkpoint: Mapping[str, Any]) -> ScaleSchedule | None:
    """The schedule that a checkpoint was trained with, if its configuration says so."""
    config = checkpoint.get("config")
    found = config.get("module", {}).get("schedule") if isinstance(config, Mapping) else None
    return None if found is None else ScaleSchedule(tuple(found["sizes"]), tuple(found.get("levels") or ()))


def check_resumable(path: Path, module: nn.Module) -> None:
    """Raise a ValueError unless a checkpoint is one of this very training.

    Raises:
        ValueError: for finished weights, which have no optimiser, or tensors of other shapes, in a table; says that
            `init_from` is what begins a new training.

    """
    new = f"to begin a new training with its weights, of another stage, too, use init_from={path}"
    if is_sharded(path):
        from star.checkpoints.sharded_reader import SafeReader, weight_shapes

        found = weight_shapes(SafeReader(path).read_metadata())
    else:
        checkpoint = io.read(path, mmap=True)
        if "optimizer_states" not in checkpoint:
            raise ValueError(f"resume_from={path} has weights alone and no training that could go on: {new}")
        found = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    hint = f"resume_from goes on with the same training; {new}"
    compare(own, found, source=f"resume_from={path}", hint=hint)


def table(rows: Iterable[Carried]) -> str:
    """What was copied, grown and fresh, a line for each part of the model, drawn for a log."""
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    def key(row: Carried) -> tuple[str, str, str]:
        return ".".join(row.name.split(".")[:2]), row.how, row.detail

    shown = Table("part", "what", "tensors", "numbers", "how")
    for (part, how, detail), group in groupby(sorted(rows, key=key), key):
        held = list(group)
        shown.add_row(part, how, str(len(held)), f"{sum(row.numel for row in held):,}", detail)
    text = StringIO()
    Console(file=text, width=120).print(shown)
    return text.getvalue().rstrip()
