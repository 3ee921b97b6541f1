"""Modules around tensors that exist already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from star.checkpoints import io
from star.checkpoints.blank import blank
from star.checkpoints.report import compare
from star.utils.instantiate import instantiate_trusted, targets

# Whose classes hold no other tensors than parameters and buffers.
_BLANK = ("star.models.tokenizer.", "star.models.transformer.", "star.models.refiner.", "star.nn.", "star.schedule.")


def build(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    what: str,
    precision: torch.dtype | None = None,
    trusted: Sequence[str] = (),
) -> nn.Module:
    """A module in evaluation mode that takes its tensors over without a copy where it can.

    Args:
        config: names the class and its arguments; only classes of this package, or of one that is trusted by name.
        state: its tensors. Those of a mapped file stay mapped: the file has to stay as it is while the module lives.
        what: what messages call it.
        precision: what the module will compute in. For fp32 all weights become fp32; for 16 bits those that are 16-bit
            become that kind, and fp32 weights stay, which autocast narrows. None leaves everything as it is.
        trusted: packages of the user's whose classes the configuration may name.

    Raises:
        ValueError: when the configuration names foreign code, or the tensors don't fit, in one table.

    """
    state = {name: _held(value, precision) for name, value in state.items()}
    module = _blank(config, trusted)
    if module is None:
        module = instantiate_trusted(config, packages=trusted)
        io.load(module, state, what=what)
    else:
        found = {name: tuple(value.shape) for name, value in state.items()}
        compare({name: tuple(value.shape) for name, value in module.state_dict().items()}, found, source=what)
        module.load_state_dict(state, assign=True)
    return module.eval()


def _blank(config: Mapping[str, Any], trusted: Sequence[str]) -> nn.Module | None:
    """The module without memory, or None where it holds tensors that no checkpoint has."""
    if not all(target.startswith(_BLANK) for target in targets(config)):
        return None
    with blank():
        module: nn.Module = instantiate_trusted(config, packages=trusted)
    return module if {name for name, _ in module.named_buffers()} <= module.state_dict().keys() else None


def _held(value: Tensor, precision: torch.dtype | None) -> Tensor:
    narrow = value.dtype in (torch.float16, torch.bfloat16)
    wanted = value.is_floating_point() and (precision == torch.float32 or narrow)
    return value.to(precision) if wanted and precision is not None else value
