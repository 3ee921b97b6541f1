from __future__ import annotations

import pytest
import torch

from star.models.tokenizer.autoencoder import Decoder, Encoder
from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.tokenizer.residual_conv import ResidualConv
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.schedule import ScaleSchedule

PUBLISHED = {"channels": 160, "multipliers": (1, 1, 2, 2, 4), "num_res_blocks": 2, "code_width": 32}


def test_decoding_codes_is_the_training_pass_clamped(tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule) -> None:
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    codes = tokenizer.encode(images, schedule)
    painted, quantized = tokenizer(images, schedule)
    assert all(torch.equal(a, b) for a, b in zip(codes, quantized.codes, strict=True))
    torch.testing.assert_close(tokenizer.decode_codes(codes, schedule), painted.clamp(-1, 1))


def test_a_prefix_of_the_scales_decodes_too(tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule) -> None:
    codes = tokenizer.encode(torch.randn(2, 3, 8, 8), schedule)
    for count in range(1, len(schedule) + 1):
        assert tokenizer.decode_codes(codes[:count], schedule).shape == (2, 3, 8, 8)


def test_pictures_need_not_be_square(tokenizer: MultiScaleTokenizer) -> None:
    schedule = ScaleSchedule(((1, 2), (2, 3), (3, 5)))
    images = torch.randn(2, 3, 6, 10)
    assert tokenizer.decode_codes(tokenizer.encode(images, schedule), schedule).shape == images.shape


def test_permuting_the_batch_permutes_the_codes(tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule) -> None:
    images, order = torch.randn(4, 3, 8, 8), torch.tensor([2, 0, 3, 1])
    straight, permuted = tokenizer.encode(images, schedule), tokenizer.encode(images[order], schedule)
    assert all(torch.equal(a[order], b) for a, b in zip(straight, permuted, strict=True))


def test_a_resolution_that_does_not_fit_the_schedule_is_refused(
    tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule
) -> None:
    with pytest.raises(ValueError, match="change the stage"):
        tokenizer.encode(torch.randn(1, 3, 16, 16), schedule)


def test_parts_that_do_not_fit_are_refused() -> None:
    sizes = {"channels": 8, "multipliers": (1, 2), "num_res_blocks": 1, "groups": 4}
    with pytest.raises(ValueError, match="code width"):
        MultiScaleTokenizer(
            encoder=Encoder(**sizes, code_width=6),
            decoder=Decoder(**sizes, code_width=6),
            quantizer=MultiScaleVQ(8, 4, phi=ResidualConv(4)),
        )


def test_zero_init_reaches_every_residual_block() -> None:
    sizes = {"channels": 8, "multipliers": (1, 2), "num_res_blocks": 1, "code_width": 4, "groups": 4}
    parts = {"encoder": Encoder(**sizes), "decoder": Decoder(**sizes)}
    tokenizer = MultiScaleTokenizer(**parts, quantizer=MultiScaleVQ(8, 4, phi=ResidualConv(4)), zero_init=True)
    seconds = [value for name, value in tokenizer.named_parameters() if name.endswith("conv2.weight")]
    assert seconds
    assert all(not value.any() for value in seconds)


def test_the_published_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        tokenizer = MultiScaleTokenizer(
            encoder=Encoder(**PUBLISHED),
            decoder=Decoder(**PUBLISHED),
            quantizer=MultiScaleVQ(4096, 32, phi=ResidualConv(32)),
        )
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 108_948_355
