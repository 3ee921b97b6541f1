"""Modules without memory, to be filled with tensors that exist already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_IN_PLACE = (Tensor.normal_, Tensor.uniform_, Tensor.mul_, Tensor.div_)
_INITIALISING = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, *_IN_PLACE)


class _NoInitialising(TorchFunctionMode):
    """Initialisation does nothing: of tensors without memory it would only import PyTorch's compiler, 150 MB."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _INITIALISING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def blank() -> Iterator[None]:
    """Build modules without memory or initial values; `load_state_dict(..., assign=True)` makes them real."""
    with torch.device("meta"), _NoInitialising():
        yield
