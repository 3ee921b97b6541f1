"""What pictures are computed in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> None:
    """Raise a ValueError for an unknown precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, got {precision!r}")


def precision_of(state: Mapping[str, Tensor]) -> str:
    """The precision that weights are stored in."""
    held = {value.dtype for value in state.values()}
    return next((name for name in ("fp16", "bf16") if PRECISIONS[name] in held), "fp32")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Where it is on, products are computed in `precision`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])
