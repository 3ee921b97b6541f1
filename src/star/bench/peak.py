"""What this machine's matrix products can do, alone, in the shapes that the blocks have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from star.bench.products import layers_of
from star.bench.stopwatch import stamp
from star.models.flops import block_flops
from star.models.transformer import STARTransformer
from star.nn.block import Block
from star.sampling.precision import PRECISIONS, autocast
from star.schedule import ScaleSchedule

LARGE = (512, 2048)
PATIENCE = 0.02  # seconds for the smaller ones: less than 13 GFLOP/s
LAYERS = 4  # enough for weights to come from memory, as in the model


class Peak:
    """Products alone, with the weights of a model's first layers.

    Args:
        model: whose blocks.
        dtype: `fp32`, `bf16`, `fp16`.
        device: where the model is.
        repeats: the best of so many counts.

    """

    def __init__(self, model: STARTransformer, dtype: str, device: torch.device, *, repeats: int = 2) -> None:
        self.model = model
        self.dtype = dtype
        self.device = device
        self.repeats = repeats
        self.blocks = [block for block in model.blocks if isinstance(block, Block)][:LAYERS]

    @torch.no_grad()
    def large(self) -> float:
        """GFLOP/s of a product of large square matrices.

        Where the smaller ones already take long, as on a CPU without instructions for the type, they are the answer:
        the larger ones would take 64 times as long.
        """
        kind, rate = PRECISIONS[self.dtype], 0.0
        for side in LARGE:
            a, b = (torch.randn(side, side, device=self.device).to(kind) for _ in range(2))
            seconds = self._seconds(lambda a=a, b=b: a @ b)  # type: ignore[misc]
            rate = 2 * side**3 / seconds / 1e9
            if seconds > PATIENCE:
                break
        return rate

    @torch.no_grad()
    def scale(self, rows: int) -> float:
        """GFLOP/s of the blocks' linear layers, those for the text left out, on `rows` rows."""
        kind = PRECISIONS[self.dtype]
        inputs: dict[int, Tensor] = {}
        flops = 0
        calls: list[tuple[Tensor, Any]] = []
        for block in self.blocks:
            for layer in layers_of(block):
                x = inputs.setdefault(
                    layer.in_features, torch.randn(rows, layer.in_features, device=self.device).to(kind)
                )
                flops += 2 * rows * layer.in_features * layer.out_features
                calls.append((x, layer.weight))

        def work() -> None:
            for x, weight in calls:
                F.linear(x, weight)

        with autocast(self.dtype, self.device):
            return flops / self._seconds(work) / 1e9

    def _seconds(self, work: Callable[[], Any]) -> float:
        work()
        found = []
        for _ in range(self.repeats):
            start = stamp(self.device)
            work()
            end = stamp(self.device)
            # CPU seconds of all threads, where nothing else can get in between; of a GPU, the wall's
            cpu = (end[0] - start[0]) / torch.get_num_threads()
            found.append(cpu if self.device.type == "cpu" else end[1] - start[1])
        return min(found)


def scale_flops(model: STARTransformer, schedule: ScaleSchedule, k: int, text_tokens: int) -> int:
    """Operations of one picture's (one half's) blocks at scale `k`; the text's keys and values belong to the first."""
    seen = schedule.offsets[k + 1] - schedule.offsets[model.mask.first_visible(k)]
    length = schedule.lengths[k]
    total = 0
    for block in model.blocks:
        assert isinstance(block, Block)
        total += block_flops(block, tokens=length, pairs=length * seen, text_tokens=text_tokens)
        if k > 0 and block.cross_attention is not None:
            kv = block.cross_attention.kv
            total -= 2 * text_tokens * kv.in_features * kv.out_features
    return total
