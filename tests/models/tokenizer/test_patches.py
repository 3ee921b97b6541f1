from __future__ import annotations

import pytest
import torch

from star.models.tokenizer.autoencoder import Decoder, fade_in
from star.models.tokenizer.patches import PatchEncoder
from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.tokenizer.residual_conv import ResidualConv
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.schedule import ScaleSchedule


@pytest.fixture
def encoder() -> PatchEncoder:
    torch.manual_seed(0)
    return PatchEncoder(width=16, depth=2, code_width=6, patch_size=4)


def test_shapes(encoder: PatchEncoder) -> None:
    assert encoder(torch.randn(2, 3, 8, 12)).shape == (2, 6, 2, 3)
    assert (encoder.factor, encoder.code_width) == (4, 6)


def test_a_feature_depends_on_its_patch_alone(encoder: PatchEncoder) -> None:
    images = torch.randn(1, 3, 12, 12)
    other = images.clone()
    other[..., :4, 4:8] = torch.randn(1, 3, 4, 4)
    changed = (encoder(images) - encoder(other)).abs().sum(1)[0] > 0
    assert changed.tolist() == [[False, True, False], [False, False, False], [False, False, False]]


def test_equal_patches_have_equal_features_wherever_they_lie(encoder: PatchEncoder) -> None:
    patch = torch.randn(1, 3, 4, 4)
    f = encoder(patch.repeat(1, 1, 3, 2))
    assert torch.equal(f, f[..., :1, :1].expand_as(f))


def test_a_large_patch_can_be_looked_at_small() -> None:
    """Its pixels count by their averages alone; a patch that is small enough is seen whole."""
    torch.manual_seed(0)
    small = PatchEncoder(width=16, depth=1, code_width=6, patch_size=8, seen_size=4)
    assert small.stem.in_features == 3 * 4 * 4
    images = torch.randn(1, 3, 16, 8)
    averages = images.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    f = small(images)
    assert f.shape == (1, 6, 2, 1)
    torch.testing.assert_close(f, small(averages.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    whole = PatchEncoder(width=16, depth=1, code_width=6, patch_size=4, seen_size=8)
    assert whole.stem.in_features == 3 * 4 * 4
    with pytest.raises(ValueError, match="image of 17x8 has no whole patches of 8"):
        small(torch.randn(1, 3, 17, 8))
    for size in (3, 0):
        with pytest.raises(ValueError, match=f"patch of 8 pixels a side can't be averaged to {size}: .*seen_size"):
            PatchEncoder(width=16, depth=1, code_width=6, patch_size=8, seen_size=size)


def test_faded_blocks_are_shortcuts(encoder: PatchEncoder) -> None:
    fade_in(encoder)
    block, x = encoder.blocks[0], torch.randn(2, 3, 16)
    assert torch.equal(block(x), x + block.linear2.bias)


def test_with_a_convolutional_decoder_it_is_a_tokenizer(encoder: PatchEncoder) -> None:
    decoder = Decoder(channels=8, multipliers=(1, 2), num_res_blocks=1, code_width=6, patch_size=2, groups=4)
    quantizer = MultiScaleVQ(8, 6, phi=ResidualConv(6), composition="independent")
    tokenizer = MultiScaleTokenizer(encoder=encoder, decoder=decoder, quantizer=quantizer)
    schedule = ScaleSchedule.square(1, 2)
    images = torch.randn(2, 3, 8, 8)
    assert [codes.shape for codes in tokenizer.encode(images, schedule)] == [(2, 1), (2, 4)]
    assert tokenizer(images, schedule)[0].shape == images.shape
