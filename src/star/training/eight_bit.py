"""AdamW with its moments in 8 bits: a quarter of the optimiser's memory, through torchao or bitsandbytes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from star.training.optim import AdamW, Named, groups

LIBRARIES = ("torchao", "bitsandbytes")


class AdamW8bit(AdamW):
    """`AdamW` whose moments of large weights are quantised block by block (Dettmers et al., arXiv 2110.02861).

    Args:
        lr, betas, weight_decay, schedule: as for `AdamW`.
        library: `torchao` (any device) or `bitsandbytes` (GPUs); None takes the first that is installed.

    Raises:
        ValueError: for another library.

    """

    def __init__(
        self,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        schedule: Callable[[int, int], float] | None = None,
        library: str | None = None,
    ) -> None:
        super().__init__(lr, betas=betas, weight_decay=weight_decay, schedule=schedule)
        if library not in (None, *LIBRARIES):
            raise ValueError(f"8-bit AdamW comes from {' or '.join(LIBRARIES)}, got library={library!r}")
        self.library = library

    def build(self, named: Named, total_steps: int) -> tuple[Optimizer, LambdaLR]:
        """The optimiser of named parameters, and its schedule over `total_steps` optimiser steps.

        Raises:
            ModuleNotFoundError: when the library isn't installed.
            ValueError: for parameters that are spread over processes.

        """
        split = groups(named, self.weight_decay)
        if any(isinstance(parameter, DTensor) for group in split for parameter in group["params"]):
            raise ValueError("8-bit AdamW can't be sharded: take optim=adamw with trainer=fsdp, or trainer=ddp")
        library = self.library or next((name for name in LIBRARIES if find_spec(name)), None)
        if library is None or find_spec(library) is None:
            raise ModuleNotFoundError(
                f"optim=adamw8bit needs {self.library or ' or '.join(LIBRARIES)}, which isn't installed: "
                f"pip install {self.library or LIBRARIES[0]}"
            )
        factory = torchao_adamw() if library == "torchao" else importlib.import_module("bitsandbytes").optim.AdamW8bit
        optimizer: Optimizer = factory(split, lr=self.lr, betas=self.betas)
        return optimizer, LambdaLR(optimizer, lambda step: self.schedule(step, total_steps))


def torchao_adamw() -> Callable[..., Optimizer]:
    """The optimiser of torchao, with a state of plain tensors, which needs no library to be opened."""
    library: Any = importlib.import_module("torchao.optim")
    quantised = importlib.import_module("torchao.optim.subclass_8bit").OptimState8bit

    class PlainAdamW8bit(library.AdamW8bit):
        def state_dict(self) -> dict[str, Any]:
            state = super().state_dict()
            return {**state, "state": _each(state["state"], unpack)}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            state = _each(state_dict["state"], lambda value: pack(value, quantised))
            super().load_state_dict({**state_dict, "state": state})

    return PlainAdamW8bit


def unpack(value: Any) -> Any:
    """A quantised tensor as a mapping of its plain ones; anything else as it is."""
    if type(value) is Tensor or not hasattr(value, "__tensor_flatten__"):
        return value
    names, attributes = value.__tensor_flatten__()
    return {"tensors": {name: getattr(value, name) for name in names}, "attributes": list(attributes)}


def pack(value: Any, kind: Any) -> Any:
    """The quantised tensor of `unpack`; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    return kind.__tensor_unflatten__(dict(value["tensors"]), value["attributes"])


def _each(state: Mapping[Any, Mapping[str, Any]], change: Callable[[Any], Any]) -> dict[Any, dict[str, Any]]:
    return {key: {name: change(value) for name, value in entry.items()} for key, entry in state.items()}
