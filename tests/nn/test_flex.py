from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from star.nn import flex
from star.nn.attention import attend
from star.nn.flex import BLOCK, block_mask, flex_attend
from star.nn.masks import ScaleMask, Visibility
from star.schedule import ScaleSchedule
from star.studies.memory import AllocationWatch

CPU = torch.device("cpu")
SCHEDULES = [
    ScaleSchedule.square(1, 2, 3, 4, 6, 9, 13),  # 316 tokens: the last block isn't full
    ScaleSchedule.square(16, 16),  # scales that end where blocks do
    ScaleSchedule(((1, 1), (2, 3), (4, 6), (12, 16))),
]


VISIBILITIES = [ScaleMask(order).visibility(schedule) for schedule in SCHEDULES for order in (None, 0, 1)] + [
    ScaleMask().visibility(SCHEDULES[0], (1, 4, 9, 0, 36, 40, 100))  # thinned
]


@pytest.mark.parametrize("visibility", VISIBILITIES, ids=str)
def test_blocks_are_those_of_the_dense_mask(visibility: Visibility) -> None:
    """What PyTorch finds by looking at every element of the L x L mask."""
    ours = block_mask(visibility, CPU)
    length = visibility.offsets[-1]
    seen = visibility.bias() == 0
    theirs = create_block_mask(lambda b, h, q, kv: seen[q, kv], None, None, length, length, device="cpu")
    assert ours.shape == theirs.shape
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    query, key = torch.arange(length)[:, None], torch.arange(length)
    assert torch.equal(ours.mask_mod(torch.tensor(0), torch.tensor(0), query, key), seen)


@pytest.mark.parametrize("visibility", VISIBILITIES, ids=str)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_gives_what_dense_masked_attention_gives(visibility: Visibility) -> None:
    q, k, v = (torch.randn(2, 2, visibility.offsets[-1], 16) for _ in range(3))
    ours = flex_attention(q, k, v, block_mask=block_mask(visibility, CPU), scale=1.0)
    torch.testing.assert_close(ours, attend(q, k, v, visibility, backend="dense"))


@pytest.mark.slow
@torch.no_grad()
def test_the_compiled_kernel_does_too() -> None:
    visibility = ScaleMask().visibility(SCHEDULES[0])
    q, k, v = (torch.randn(2, 2, visibility.offsets[-1], 16) for _ in range(3))
    ours = attend(q, k, v, visibility, backend="flex")
    torch.testing.assert_close(ours, attend(q, k, v, visibility, backend="dense"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("visibility", VISIBILITIES, ids=str)
def test_on_cuda_gradients_are_those_of_dense_masked_attention(visibility: Visibility) -> None:
    q, k, v = (
        torch.randn(2, 2, visibility.offsets[-1], 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    ours, theirs = (attend(q, k, v, visibility, backend=backend) for backend in ("flex", "dense"))
    torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.05)
    mine, reference = (torch.autograd.grad(x.float().square().sum(), (q, k, v)) for x in (ours, theirs))
    torch.testing.assert_close(mine, reference, atol=0.2, rtol=0.1)


def test_the_mask_is_made_without_an_l_by_l_tensor() -> None:
    schedule = ScaleSchedule.square(1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
    with AllocationWatch() as watch:
        mask = ScaleMask().block_mask(schedule)
    assert mask.shape == (1, 1, 9451, 9451)
    assert watch.largest <= 9451
    assert (-(-9451 // BLOCK)) ** 2 < 9451  # the blocks alone are fewer than that


def test_training_on_a_cpu_is_refused() -> None:
    visibility = ScaleMask().visibility(SCHEDULES[0])
    q = torch.randn(1, 2, visibility.offsets[-1], 16, requires_grad=True)
    with pytest.raises(ValueError, match="no backward pass on a CPU"):
        attend(q, q, q, visibility, backend="flex")


def test_other_masks_are_refused() -> None:
    @dataclass(frozen=True)
    class Chosen(Visibility):
        def spans(self) -> Iterator[tuple[slice, slice | Tensor]]:
            yield slice(0, 2), torch.tensor([0, 1])

    q = torch.randn(1, 2, 2, 16)
    with pytest.raises(ValueError, match="choose backend"):
        flex_attend(q, q, q, Chosen((0, 2), (0,)))
    with pytest.raises(ValueError, match="move forward"):
        block_mask(Visibility((0, 1, 2, 3), (0, 1, 0)), CPU)


def test_a_training_can_use_masks_that_a_validation_asked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: dict[object, BlockMask] = {}
    monkeypatch.setattr(flex, "_masks", masks)
    monkeypatch.setattr(flex, "_kernel", lambda q, k, v, *, block_mask, scale: q)
    visibility = ScaleMask().visibility(SCHEDULES[0])
    q = torch.zeros(1, 1, visibility.offsets[-1], 16)
    with torch.inference_mode():
        flex_attend(q, q, q, visibility)
    (mask,) = masks.values()
    assert not mask.kv_indices.is_inference()
