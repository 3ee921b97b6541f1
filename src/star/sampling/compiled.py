"""One scale through compiled blocks, and as one CUDA graph: the same numbers with less overhead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from star.models.transformer import STARTransformer
from star.nn.block import Block, DropPath
from star.nn.cache import KVCache
from star.nn.position import Rotation
from star.types import Condition

# a block is compiled once per scale and number of rows; PyTorch gives up behind 8, and behind 256 of all functions
SHAPES = 4096


@dataclass
class _Layer:
    """The cache of one layer as a compiled block sees it: buffers it writes into, and the text it was given."""

    keys: Tensor
    values: Tensor
    said: tuple[Tensor, Tensor] | None
    start: int

    def append(self, layer: int, scale: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `KVCache.append`."""
        stop = self.start + k.shape[2]
        self.keys[:, :, self.start : stop] = k
        self.values[:, :, self.start : stop] = v
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def text(self, layer: int, compute: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """See `KVCache.text`."""
        assert self.said is not None
        return self.said


def _step(block: Block, x: Tensor, keys: Tensor, values: Tensor, said: Any, start: int, **inputs: Any) -> Tensor:
    """A block's forward with nothing but tensors and plain numbers coming in."""
    layer: Any = _Layer(keys, values, said, start)
    return block(x, cache=layer, layer=0, scale=0, **inputs)


class CompiledBlocks:
    """`STARTransformer.run_blocks` with each block compiled, once for every shape that a scale has.

    All blocks share what is compiled: an image's first scales take minutes the first time, and nothing afterwards.

    Args:
        transformer: whose blocks run; in evaluation mode.
        backend: of `torch.compile`; `inductor` writes kernels, `eager` only checks that the blocks can be traced.

    """

    def __init__(self, transformer: STARTransformer, *, backend: str = "inductor") -> None:
        self.transformer = transformer
        self.step = torch.compile(_step, backend=backend, dynamic=False, fullgraph=True)
        self.blocks = [partial(self._run, _without_drop_path(block)) for block in transformer.blocks]

    def __call__(
        self, x: Tensor, condition: Condition, *, rotation: Rotation | None, cache: KVCache, scale: int
    ) -> Tensor:
        """Tokens (R, L_k, C) of a scale through all blocks."""
        with torch._dynamo.config.patch(recompile_limit=SHAPES, accumulated_recompile_limit=SHAPES):
            return self.transformer.run_blocks(
                x, condition, rotation=rotation, cache=cache, scale=scale, blocks=self.blocks
            )

    def _run(self, block: Block, x: Tensor, *, cache: KVCache, layer: int, scale: int, **inputs: Any) -> Tensor:
        attention, cross, context = block.attention, block.cross_attention, inputs["context"]
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        heads = attention.num_heads
        keys, values = cache.room(layer, scale, x.new_empty(x.shape[0], heads, 0, x.shape[2] // heads, dtype=dtype))
        said = None
        if cross is not None and context is not None:
            said = cache.text(layer, lambda: cross.keys_and_values(context))
        return self.step(block, x, keys, values, said, cache.schedule.offsets[scale], **inputs)


def _without_drop_path(block: nn.Module) -> Block:
    """The same block, weights shared, whose drop path does nothing: rates differ, and would be compiled in."""
    assert isinstance(block, Block)
    twin = Block.__new__(Block)
    twin.__dict__ = {**block.__dict__, "_modules": {**block._modules, "drop_path": DropPath(0.0)}}
    return twin
