from __future__ import annotations

import pytest
import torch

from star.models.tokenizer.autoencoder import Decoder, Encoder, fade_in


def sizes(**changes: object) -> dict:
    return {"channels": 8, "multipliers": (1, 2), "num_res_blocks": 1, "code_width": 6, "groups": 4} | changes


@pytest.mark.parametrize(
    ("changes", "factor"),
    [({}, 2), ({"multipliers": (1, 1, 2)}, 4), ({"patch_size": 4}, 8), ({"multipliers": (1,), "patch_size": 2}, 2)],
)
def test_the_multipliers_and_the_patch_set_the_factor(changes: dict, factor: int) -> None:
    encoder, decoder = Encoder(**sizes(**changes)), Decoder(**sizes(**changes))
    images = torch.randn(2, 3, 16, 24)
    f = encoder(images)
    assert encoder.factor == decoder.factor == factor
    assert f.shape == (2, 6, 16 // factor, 24 // factor)
    assert decoder(f).shape == images.shape


def test_the_last_layer_is_the_one_that_makes_pixels() -> None:
    decoder = Decoder(**sizes())
    (gradient,) = torch.autograd.grad(decoder(torch.randn(1, 6, 4, 4)).sum(), decoder.last_layer)
    assert gradient.shape[0] == 3
    assert gradient.abs().sum() > 0


def test_faded_blocks_are_shortcuts() -> None:
    encoder = Encoder(**sizes(attention=False))
    fade_in(encoder)
    block, x = encoder.middle[0], torch.randn(2, 16, 3, 3)
    assert torch.equal(block(x), x + block.conv2.bias.view(1, -1, 1, 1))


def test_channels_that_do_not_fit_the_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="groups"):
        Encoder(**sizes(groups=3))
