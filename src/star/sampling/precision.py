"""What pictures are computed in."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from star.utils.devices import cpu_has_bf16, fast_precision

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> None:
    """Raise a ValueError for an unknown precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, got {precision!r}")


def chosen_precision(name: str, device: str) -> str:
    """The precision that a setting names; `auto` is what the device is fast in.

    Args:
        name: `auto`, or one of `PRECISIONS`.
        device: where pictures are drawn: `cpu`, `cuda`, ...

    Raises:
        ValueError: for another word.

    """
    if name in PRECISIONS:
        return name
    if name != "auto":
        raise ValueError(f"precision is one of auto, {', '.join(PRECISIONS)}, got {name!r}")
    fast, why = fast_precision(torch.device(device).type)
    chosen = {"32-true": "fp32", "16-mixed": "fp16", "bf16-mixed": "bf16"}[fast]
    log.info("precision=auto: %s, as %s", chosen, why)
    return chosen


def precision_of(state: Mapping[str, Tensor]) -> str:
    """The precision that weights are stored in."""
    held = {value.dtype for value in state.values()}
    return next((name for name in ("fp16", "bf16") if PRECISIONS[name] in held), "fp32")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Where it is on, products are computed in `precision`."""
    if precision == "fp32":
        return nullcontext()
    if device.type == "cpu" and not cpu_has_bf16():
        warn_of_slow(precision)
    return torch.autocast(device.type, dtype=PRECISIONS[precision])


@cache
def warn_of_slow(precision: str) -> None:
    """Say, once, that this CPU computes in 16 bits without instructions for it."""
    log.warning(
        "this CPU has no instructions for 16-bit products: precision=%s is far slower here than fp32", precision
    )
