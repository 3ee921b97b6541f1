from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from star.models.transformer import STARTransformer
from star.nn.init import follow_codebook
from star.nn.position import Rotary2D

WIDTH = 64
STD = math.sqrt(1 / WIDTH / 3)


def build(**changes: Any) -> STARTransformer:
    sizes = {"depth": 3, "width": WIDTH, "num_heads": 4, "codebook_size": 64, "code_width": 8, "num_levels": 3}
    return STARTransformer(**sizes | {"pooled_width": WIDTH, "context_width": 20, "position": Rotary2D()} | changes)


def spread(tensor: Tensor, expected: float) -> bool:
    return abs(float(tensor.detach().std()) / expected - 1) < 0.1


def test_residual_branches_shrink_with_depth_and_the_text_branch_does_not() -> None:
    block = build().blocks[1]
    assert spread(block.attention.qkv.weight, STD)
    assert spread(block.cross_attention.out.weight, STD)
    for layer in (block.attention.out, block.feed_forward.out):
        assert spread(layer.weight, STD / math.sqrt(6))
        assert not layer.bias.any()


def test_the_head_starts_almost_uniform() -> None:
    assert spread(build().head.logits.weight, 0.02 * STD)


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_adaptive_norms_start_close_to_plain_ones(kind: str) -> None:
    """VAR's: scales and shifts at half, gates at 1e-5, the head's scale and shift at half."""
    model = build(adaptive_norm=kind, context_width=None)
    assert spread(model.head.modulation.weight, STD / 2)
    assert not model.head.modulation.bias.any()
    for block in model.blocks:
        if kind == "own":
            six, expected = block.modulation.linear.weight.unflatten(0, (6, -1)), STD
            assert not block.modulation.linear.bias.any()
        else:
            six, expected = torch.stack([block.modulation.offsets for block in model.blocks], 1), WIDTH**-0.5
        assert spread(six[2:], expected / 2)
        assert spread(six[:2], expected * 1e-5)


def test_resetting_starts_over() -> None:
    model = build(adaptive_norm="shared", context_width=None)
    model.reset_parameters()
    six = torch.stack([block.modulation.offsets for block in model.blocks], 1)
    assert spread(six[2:], WIDTH**-0.5 / 2)
    assert spread(model.head.modulation.weight, STD / 2)


def test_a_start_from_the_codebook_embeds_visibly_and_gives_alike_codes_alike_logits() -> None:
    torch.manual_seed(0)
    codebook = 0.01 * torch.randn(64, 8)
    codebook[1] = codebook[0] + 1e-5
    model = build()
    follow_codebook(model.embed, model.head.logits, codebook)
    embedded = codebook @ model.embed.weight.detach().T
    assert embedded.std() == pytest.approx(1, rel=1e-3)
    logits = model.head(torch.randn(500, 1, WIDTH))[:, 0].detach()
    apart = (logits[:, :1] - logits).square().mean(0)
    assert apart[1] < 1e-3 * apart[2:].min()


def test_of_a_start_from_the_codebook_the_code_of_an_entry_is_the_likeliest_there() -> None:
    torch.manual_seed(0)
    codebook = torch.randn(64, 8)
    model = build()
    follow_codebook(model.embed, model.head.logits, codebook)
    entries = (codebook - codebook.mean(0)) / codebook.std(0)
    directions = torch.linalg.lstsq(entries, model.head.logits.weight.detach()).solution
    hidden = entries @ directions / directions[0].square().sum()
    logits = torch.nn.functional.linear(hidden, model.head.logits.weight, model.head.logits.bias)
    assert torch.equal(logits.argmax(1), torch.arange(64))
