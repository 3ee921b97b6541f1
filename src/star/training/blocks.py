"""How the blocks of a transformer run in training: recomputed to save memory, compiled to save time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from star.training.distributed import blocks_of, trained_parts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockExecution:
    """What happens to blocks; weights, their names and results stay the same.

    Attributes:
        activation_checkpointing: `none`; `full`: every block keeps only its input and is computed again in the backward
            pass; a number n: every n-th block is.
        compile: `blocks`: `torch.compile` on each block, in training alone; False: not.
        compiler: what `torch.compile` hands a block's graph to.

    Raises:
        ValueError: for anything else.

    """

    activation_checkpointing: str | int = "none"
    compile: str | bool = False
    compiler: str = "inductor"

    def __post_init__(self) -> None:
        """Check the values."""
        given: Any = self.activation_checkpointing
        number = isinstance(given, int) and not isinstance(given, bool) and given >= 1
        if not number and given not in ("none", "full"):
            raise ValueError(f"activation_checkpointing is none, full, or a number n (every n-th block), got {given!r}")
        if self.compile not in (False, "blocks"):
            raise ValueError(f"compile is false or blocks, got {self.compile!r}")

    @property
    def every(self) -> int:
        """Every how many blocks one is recomputed; 0 for none."""
        given = self.activation_checkpointing
        return given if isinstance(given, int) else {"none": 0, "full": 1}[given]

    def apply(self, module: nn.Module) -> None:
        """Change the blocks of the module's trained parts, before they are sharded.

        Raises:
            ValueError: when something is asked for and no trained part has blocks.

        """
        if not self.every and not self.compile:
            return
        found = [blocks for part in trained_parts(module) if (blocks := blocks_of(part))]
        if not found:
            raise ValueError(
                "activation_checkpointing and compile=blocks are for transformers, and this task trains none: "
                "leave them out"
            )
        for blocks in found:
            for number, block in enumerate(blocks, 1):
                recompute = bool(self.every) and number % self.every == 0
                self._wrap(block, recompute=recompute)
        log.info("blocks: activation_checkpointing=%s compile=%s", self.activation_checkpointing, self.compile)

    def _wrap(self, block: nn.Module, *, recompute: bool) -> None:
        plain: Callable[..., Any] = block.forward
        compiled: Any = torch.compile(plain, backend=self.compiler) if self.compile else plain

        def forward(*args: Any, **kwargs: Any) -> Any:
            # Sampling, with its cache and a new length at every scale, is neither recomputed nor worth compiling.
            if not (block.training and torch.is_grad_enabled()):
                return plain(*args, **kwargs)
            if recompute:
                return checkpoint(compiled, *args, use_reentrant=False, **kwargs)
            return compiled(*args, **kwargs)

        # The call alone is replaced: a wrapping module would rename every weight in checkpoints.
        block.forward = forward
