from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from star.models.flops import (
    BACKWARD,
    decode_flops,
    encode_flops,
    encoder_flops,
    sampling_flops,
    transformer_flops,
)
from star.models.tokenizer.autoencoder import Decoder, Encoder
from star.models.tokenizer.patches import PatchEncoder
from star.models.tokenizer.pyramid import PyramidEncoder
from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.tokenizer.residual_conv import ResidualConv
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.masks import ScaleMask
from star.sampling.decoder import ScaleWiseDecoder
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.samplers import Greedy
from star.schedule import ScaleSchedule
from star.types import Condition

Counted = Callable[[Callable[[], object]], int]


def inputs(model: STARTransformer, schedule: ScaleSchedule, condition: Condition) -> torch.Tensor:
    return torch.randn(len(condition), schedule.total - schedule.lengths[0], model.embed.in_features)


@pytest.mark.parametrize("changes", [{}, {"qk_norm": False}, {"mlp_ratio": 2.0}, {"mask": ScaleMask(1)}])
def test_the_generator_forward_and_backward(
    build_transformer: Callable[..., STARTransformer],
    schedule: ScaleSchedule,
    condition: Condition,
    changes: dict[str, object],
    counted: Counted,
) -> None:
    model = build_transformer(**changes, backend="prefix").train()
    x_in = inputs(model, schedule, condition)
    expected = len(condition) * transformer_flops(model, schedule, text_tokens=5)
    assert counted(lambda: model(x_in, condition, schedule)) == expected
    x_in.requires_grad_()
    with_text = Condition(condition.pooled.requires_grad_(), condition.context.requires_grad_(), condition.context_mask)
    assert counted(lambda: model(x_in, with_text, schedule).sum().backward()) == (1 + BACKWARD) * expected


@pytest.mark.parametrize("adaptive", ["own", "shared"])
def test_adaptive_norms(
    build_transformer: Callable[..., STARTransformer], schedule: ScaleSchedule, adaptive: str, counted: Counted
) -> None:
    model = build_transformer(pooled_width=32, context_width=None, adaptive_norm=adaptive, backend="prefix")
    condition = Condition(torch.randn(2, 32))
    expected = 2 * transformer_flops(model, schedule, text_tokens=0)
    assert counted(lambda: model(inputs(model, schedule, condition), condition, schedule)) == expected


def test_fewer_trained_tokens(
    build_transformer: Callable[..., STARTransformer], schedule: ScaleSchedule, condition: Condition, counted: Counted
) -> None:
    """Teacher-forcing input is embedded for all of them."""
    model = build_transformer(backend="prefix")
    kept = torch.tensor([0, 1, 2, 3, 4, 6, 8, 9, 12, 15, 20])
    expected = len(condition) * transformer_flops(model, schedule, text_tokens=5, counts=(1, 4, 3, 3))
    assert counted(lambda: model(inputs(model, schedule, condition), condition, schedule, kept)) == expected


def test_drawing_takes_twice_the_forward_pass(
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    counted: Counted,
) -> None:
    model = build_transformer(backend="prefix")
    draw = ScaleWiseDecoder(model, tokenizer, schedule, sampler=Greedy(), guidance=ClassifierFreeGuidance(scale=2.0))
    empty = condition.select(torch.tensor([0]))
    found = counted(lambda: draw(condition, empty, [0, 1, 2]))
    expected = len(condition) * sampling_flops(model, schedule, text_tokens=5)
    smoothing = found - expected
    assert 0 <= smoothing < 0.1 * expected  # phi's convolutions


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_the_tokenizer(schedule: ScaleSchedule, attention: bool, patch_size: int, counted: Counted) -> None:
    sizes = {"channels": 8, "multipliers": (1, 2, 2), "num_res_blocks": 2, "code_width": 8, "groups": 4}
    sizes |= {"attention": attention, "patch_size": patch_size}
    tokenizer = MultiScaleTokenizer(
        encoder=Encoder(**sizes), decoder=Decoder(**sizes), quantizer=MultiScaleVQ(32, 8, phi=ResidualConv(8))
    ).eval()
    side = 4 * tokenizer.factor
    images = torch.rand(2, 3, side, side)
    assert counted(lambda: tokenizer.encode(images, schedule)) == 2 * encode_flops(tokenizer, schedule)
    f_hat = torch.rand(2, 8, 4, 4)
    assert counted(lambda: tokenizer.decode(f_hat)) == 2 * decode_flops(tokenizer, schedule)


def test_an_encoder_of_patches(counted: Counted) -> None:
    encoder = PatchEncoder(width=12, depth=3, code_width=8, patch_size=4).eval()
    images = torch.rand(2, 3, 12, 20)
    assert counted(lambda: encoder(images)) == 2 * encoder_flops(encoder, (3, 5))


def test_an_encoder_for_each_scale(counted: Counted) -> None:
    encoder = PyramidEncoder(width=12, depth=2, code_width=8, patch_sizes=[8, 4]).eval()
    images = torch.rand(2, 3, 16, 24)
    assert counted(lambda: encoder(images)) == 2 * encoder_flops(encoder, (4, 6))
