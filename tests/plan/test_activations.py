"""The estimates beside what autograd keeps, counted by its own hooks."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from star.models.tokenizer.autoencoder import Encoder
from star.models.transformer import STARTransformer
from star.nn.masks import ScaleMask
from star.nn.position import Rotary2D
from star.plan.activations import Step, encoding_bytes, kept_bytes, passing_bytes
from star.schedule import ScaleSchedule
from star.training.blocks import BlockExecution
from star.types import Condition

SCHEDULE = ScaleSchedule.square(1, 2, 3, 5, 8)
TEXT = 9


def build(**changes: Any) -> STARTransformer:
    sizes: dict[str, Any] = {"depth": 3, "width": 64, "num_heads": 4, "codebook_size": 96, "code_width": 8}
    sizes |= {"pooled_width": 64, "context_width": 40, "num_levels": 5, "backend": "prefix"}
    return STARTransformer(position=Rotary2D(), mask=ScaleMask(), **(sizes | changes)).train()


def loss_of(model: STARTransformer, batch: int) -> Tensor:
    x_in = torch.randn(batch, SCHEDULE.total - 1, 8)
    condition = Condition(torch.randn(batch, 64))
    if model.blocks[0].cross_attention is not None:
        mask = torch.ones(batch, TEXT, dtype=torch.bool)
        condition = Condition(torch.randn(batch, 64), torch.randn(batch, TEXT, 40), mask)
    logits = model(x_in, condition, SCHEDULE)
    return F.cross_entropy(logits.flatten(0, 1), torch.zeros(batch * SCHEDULE.total, dtype=torch.long))


def kept(model: STARTransformer, batch: int, *, half: bool) -> int:
    """Bytes of all storages that autograd keeps."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, tuple[int, Tensor]] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in parameters:
            found[storage.data_ptr()] = (storage.nbytes(), value)
        return value

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        loss = loss_of(model, batch)
    del loss
    return sum(size for size, _ in found.values())


def step(**changes: Any) -> Step:
    return Step(**({"tokens": SCHEDULE.total, "text_tokens": TEXT, "half": True, "device": "cpu"} | changes))


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"depth": 1},
        {"width": 128, "num_heads": 2},
        {"qk_norm": False},
        {"mlp_ratio": 2.0},
        {"codebook_size": 1024},
        {"drop_path": 0.2},
        {"context_width": None},
        {"backend": "matmul"},
        {"backend": "auto"},
        {"context_width": None, "adaptive_norm": "own"},
    ],
    ids=str,
)
def test_what_a_picture_keeps(changes: dict[str, Any], half: bool) -> None:
    """The difference between two batches, so that copies of weights and tables don't count."""
    model = build(**changes)
    measured = kept(model, 3, half=half) - kept(model, 2, half=half)
    assert kept_bytes(model, step(half=half)) == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize("every", [1, 2])
def test_recomputed_blocks_keep_their_input(every: int) -> None:
    model = build(depth=4)
    module = torch.nn.ModuleDict({"transformer": model})
    BlockExecution("full" if every == 1 else every).apply(module)
    measured = kept(model, 3, half=True) - kept(model, 2, half=True)
    estimate = kept_bytes(model, step(recompute=every))
    assert estimate == pytest.approx(measured, rel=0.06)
    assert estimate < 0.7 * kept_bytes(model, step())


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._note, result)
        return result

    def _note(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def peak(run: Callable[[], object]) -> int:
    with Live() as live:
        run()
    return live.peak


@pytest.mark.parametrize("recompute", [0, 1])
@pytest.mark.parametrize("vocabulary", [96, 2048])
def test_the_peak_of_a_whole_step(recompute: int, vocabulary: int) -> None:
    """Everything that was ever alive at one time: kept and passing, from two batches again."""
    model = build(codebook_size=vocabulary)
    if recompute:
        BlockExecution("full").apply(torch.nn.ModuleDict({"transformer": model}))
    loss_of(model, 1).backward()  # gradients exist from here on

    def train(batch: int) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()

    measured = peak(lambda: train(9)) - peak(lambda: train(8))
    own = step(recompute=recompute)
    assert kept_bytes(model, own) + passing_bytes(model, own) == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_encoding(half: bool, patch_size: int) -> None:
    encoder = Encoder(
        channels=32, multipliers=(1, 1, 2, 2), num_res_blocks=2, code_width=8, groups=8, patch_size=patch_size
    ).eval()

    def encode(batch: int) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            encoder(torch.rand(batch, 3, 64 * patch_size, 64 * patch_size))

    measured = peak(lambda: encode(5)) - peak(lambda: encode(4))
    assert encoding_bytes(encoder, (8, 8), half=half) == pytest.approx(measured, rel=0.25)
