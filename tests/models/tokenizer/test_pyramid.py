from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from star.models.tokenizer.autoencoder import Decoder
from star.models.tokenizer.patches import PatchEncoder
from star.models.tokenizer.pyramid import PyramidEncoder, PyramidVQ
from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.tokenizer.residual_conv import ResidualConv
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule.square(1, 2, 4)
WIDTH = 6


@pytest.fixture
def pyramid() -> MultiScaleTokenizer:
    torch.manual_seed(0)
    return build()


def build(conv_size: int = 0, patch_sizes: Sequence[int] = (16, 8, 4)) -> MultiScaleTokenizer:
    return MultiScaleTokenizer(
        encoder=PyramidEncoder(width=16, depth=1, code_width=WIDTH, patch_sizes=[16, 8, 4]),
        decoder=Decoder(channels=8, multipliers=(1, 2), num_res_blocks=1, code_width=WIDTH, patch_size=2, groups=4),
        quantizer=PyramidVQ(32, WIDTH, phi=ResidualConv(WIDTH), patch_sizes=list(patch_sizes)),
        conv_size=conv_size,
    )


def pictures(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 16, 16) * 2 - 1


def test_each_scale_has_features_of_its_own_patches_alone(pyramid: MultiScaleTokenizer) -> None:
    images = pictures(1)
    other = images.clone()
    other[..., 4:8, 8:12] = 0  # the finest map's row 1, column 2
    f, changed = pyramid.features(images), pyramid.features(other)
    assert f.shape == (1, 3 * WIDTH, 4, 4)
    for k, where in enumerate(([[0, 0]], [[0, 1]], [[1, 2]])):
        own, moved = (pyramid.quantizer.own(x, k, SCHEDULE) for x in (f, changed))  # type: ignore[operator]
        assert own.shape == (1, WIDTH, *SCHEDULE.sizes[k])
        assert ((own - moved).abs().sum(1)[0] > 0).nonzero().tolist() == where


def test_coarse_features_know_how_their_region_is_arranged(pyramid: MultiScaleTokenizer) -> None:
    images = pictures(1)
    swapped = images.clone()
    swapped[..., :4, :4], swapped[..., 4:8, 4:8] = images[..., 4:8, 4:8], images[..., :4, :4]
    average = PatchEncoder(width=16, depth=1, code_width=WIDTH, patch_size=4)
    plain = MultiScaleVQ(8, WIDTH, phi=ResidualConv(WIDTH), composition="independent")
    before, after = (plain.targets(average(x), SCHEDULE)[1] for x in (images, swapped))
    torch.testing.assert_close(before, after)
    before, after = (pyramid.quantizer.targets(pyramid.features(x), SCHEDULE)[1] for x in (images, swapped))
    assert (before - after)[0].abs().max() > 1e-3


def test_what_training_decodes_is_what_the_codes_decode_to(pyramid: MultiScaleTokenizer) -> None:
    images, quantizer = pictures(), pyramid.quantizer
    quantized = quantizer.quantize(pyramid.features(images), SCHEDULE)
    codes = pyramid.encode(images, SCHEDULE)
    assert [code.shape for code in codes] == [(2, 1), (2, 4), (2, 16)]
    assert all(torch.equal(a, b) for a, b in zip(codes, quantized.codes, strict=True))
    torch.testing.assert_close(quantized.f_hat, quantizer.decode(codes, SCHEDULE))
    fewer = quantizer.quantize(pyramid.features(images), SCHEDULE, torch.tensor([1, 3])).f_hat
    torch.testing.assert_close(fewer[0], quantizer.decode([codes[0]], SCHEDULE)[0])
    torch.testing.assert_close(fewer[1], quantized.f_hat[1])
    assert pyramid(images, SCHEDULE)[0].shape == images.shape


@pytest.mark.parametrize("quantized", [True, False])
def test_a_picture_of_a_coarse_map_trains_that_maps_encoder(pyramid: MultiScaleTokenizer, quantized: bool) -> None:
    for k in range(3):
        pyramid.zero_grad()
        f, kept = pyramid.features(pictures()), torch.full((2,), k + 1)
        if quantized:
            shown = pyramid.quantizer.quantize(f, SCHEDULE, kept).f_hat
        else:
            shown = pyramid.quantizer.unquantized(f, SCHEDULE, kept)
        pyramid.paint(shown).square().sum().backward()
        encoder: PyramidEncoder = pyramid.encoder  # type: ignore[assignment]
        moved = [any(p.grad is not None and p.grad.any() for p in part.parameters()) for part in encoder.parts]
        assert moved == [k == level for level in range(3)]


def test_what_doesn_t_fit_is_refused(pyramid: MultiScaleTokenizer) -> None:
    with pytest.raises(ValueError, match="8x8 has no whole patches of 16"):
        pyramid.features(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="each a multiple of the next"):
        PyramidEncoder(width=4, depth=1, code_width=4, patch_sizes=[16, 6])
    with pytest.raises(ValueError, match="patch of 16 pixels a side can't be averaged to 6"):
        PyramidEncoder(width=4, depth=1, code_width=4, patch_sizes=[16, 8], seen_size=6)
    with pytest.raises(ValueError, match="conv_size=0"):
        build(conv_size=1)
    with pytest.raises(ValueError, match=r"share patch_sizes, got \(16, 8, 4\) and \(16, 4\)"):
        build(patch_sizes=(16, 4))


def test_other_schedules_take_the_encoders_that_there_are(pyramid: MultiScaleTokenizer) -> None:
    level = pyramid.quantizer.level  # type: ignore[operator]
    larger = ScaleSchedule.square(1, 2, 4, 8)  # of 32 pixels: nobody codes a patch of 32
    assert [level(k, larger) for k in range(4)] == [0, 0, 1, 2]
    assert [level(k, ScaleSchedule.square(1, 3, 4)) for k in range(3)] == [0, 2, 2]
    images = torch.rand(1, 3, 32, 32)
    codes = pyramid.encode(images, larger)
    assert [code.shape[1] for code in codes] == [1, 4, 16, 64]
    assert torch.equal(codes[1][0, 3:], pyramid.encode(images[..., 16:, 16:], SCHEDULE)[0][0])


def test_codes_are_found_in_full_precision_under_autocast() -> None:
    quantizer = PyramidVQ(2048, WIDTH, phi=ResidualConv(WIDTH), patch_sizes=[16, 8, 4])
    torch.nn.init.normal_(quantizer.codebook.weight)
    f = torch.randn(32, 3 * WIDTH, 4, 4)
    plain = quantizer.quantize(f, SCHEDULE)
    with torch.autocast("cpu", torch.bfloat16):
        half = quantizer.quantize(f, SCHEDULE)
    assert all(torch.equal(a, b) for a, b in zip(plain.codes, half.codes, strict=True))
    assert torch.equal(plain.f_hat, half.f_hat)
