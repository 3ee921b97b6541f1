from __future__ import annotations

import pytest
import torch

from star.nn.block import Block, DropPath, FeedForward
from star.nn.init import init_weights, shrink_residuals


def std_of(layer: torch.nn.Linear) -> float:
    return float(layer.weight.detach().std())


def test_drop_path_keeps_the_mean_and_is_off_in_evaluation() -> None:
    drop = DropPath(0.25)
    x = torch.ones(4000, 3)
    dropped = drop(x)
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.05)
    assert ((dropped == 0).all(1) | (dropped != 0).all(1)).all()  # whole samples
    assert drop.eval()(x) is x
    with pytest.raises(ValueError, match=r"1\.0"):
        DropPath(1.0)


def test_the_released_text_branch_is_row_0s_for_all() -> None:
    torch.manual_seed(0)
    block = Block(8, num_heads=2, context_width=6)
    x, context = torch.randn(3, 4, 8), torch.randn(3, 5, 6)
    own = block.text(x, context, None, None, 0)
    block.first_sample_text = True
    first = block.text(x, context, None, None, 0)
    assert isinstance(own, torch.Tensor)
    assert isinstance(first, torch.Tensor)
    assert first.shape[0] == 1
    torch.testing.assert_close(first[0], own[0])


def test_initialisation_follows_the_published_sizes() -> None:
    torch.manual_seed(0)
    width, depth = 192, 8
    block = Block(width, num_heads=3, context_width=64)
    init_weights(block, width=width)
    std = (1 / width / 3) ** 0.5
    before = std_of(block.attention.out)
    shrink_residuals([block], depth=depth)
    assert std_of(block.attention.qkv) == pytest.approx(std, rel=0.05)
    assert std_of(block.attention.out) == pytest.approx(before / (2 * depth) ** 0.5, rel=1e-4)
    assert std_of(block.feed_forward.out) == pytest.approx(std / (2 * depth) ** 0.5, rel=0.05)
    assert block.cross_attention is not None
    assert std_of(block.cross_attention.out) == pytest.approx(std, rel=0.05)  # the text branch isn't shrunk
    assert bool((block.feed_forward.inner.bias == 0).all())


def test_feed_forward_uses_tanh_gelu() -> None:
    layer = FeedForward(4)
    x = torch.randn(2, 4)
    torch.testing.assert_close(layer(x), layer.out(torch.nn.functional.gelu(layer.inner(x), approximate="tanh")))


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_an_adaptive_block_with_a_zero_gate_changes_nothing(kind: str) -> None:
    block = Block(8, num_heads=2, context_width=None, adaptive_norm=kind)
    assert block.modulation is not None
    modulation = torch.randn(2, 8)
    if block.modulation.linear is not None:
        torch.nn.init.zeros_(block.modulation.linear.weight)
        torch.nn.init.zeros_(block.modulation.linear.bias)
    else:
        assert block.modulation.offsets is not None
        torch.nn.init.zeros_(block.modulation.offsets)
        modulation = torch.zeros(2, 48)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(block(x, modulation=modulation), x)
    with pytest.raises(ValueError, match="'both'"):
        Block(8, num_heads=2, context_width=None, adaptive_norm="both")
