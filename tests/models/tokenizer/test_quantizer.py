from __future__ import annotations

import pytest
import torch

from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.tokenizer.residual_conv import ResidualConv
from star.schedule import ScaleSchedule

WIDE = ScaleSchedule(((1, 1), (1, 2), (2, 3), (3, 5)))
SQUARE = ScaleSchedule.square(1, 2, 4)


def build(composition: str = "residual", count: int = 4) -> MultiScaleVQ:
    quantizer = MultiScaleVQ(24, 6, phi=ResidualConv(6, count=count), composition=composition)
    torch.nn.init.normal_(quantizer.codebook.weight)
    return quantizer


def features(schedule: ScaleSchedule, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 6, *schedule.sizes[-1])


@pytest.mark.parametrize("composition", ["residual", "independent"])
@pytest.mark.parametrize("schedule", [SQUARE, WIDE], ids=str)
def test_codes_decode_to_the_f_hat_of_training(schedule: ScaleSchedule, composition: str) -> None:
    quantizer, f = build(composition), features(schedule)
    codes = quantizer.encode(f, schedule)
    assert [tuple(drawn.shape) for drawn in codes] == [(3, length) for length in schedule.lengths]
    torch.testing.assert_close(quantizer.decode(codes, schedule), quantizer.quantize(f, schedule).f_hat)


def test_f_hat_is_the_sum_of_all_scales() -> None:
    quantizer, zero = build(), build().start(3, WIDE)
    codes = quantizer.encode(features(WIDE), WIDE)
    maps = [quantizer.accumulate(zero, drawn, k, WIDE) for k, drawn in enumerate(codes)]
    torch.testing.assert_close(quantizer.decode(codes, WIDE), torch.stack(maps).sum(0))


def test_independent_maps_replace_each_other() -> None:
    quantizer = build("independent")
    codes = quantizer.encode(features(WIDE), WIDE)
    alone = quantizer.accumulate(quantizer.start(3, WIDE), codes[-1], 3, WIDE)
    assert torch.equal(quantizer.decode(codes, WIDE), alone)


def test_every_scale_takes_the_closest_entries_of_what_is_left() -> None:
    quantizer, f = build(), features(WIDE)
    codes = quantizer.encode(f, WIDE)
    f_hat = quantizer.start(3, WIDE)
    for k, (drawn, vectors) in enumerate(zip(codes, quantizer.targets(f, WIDE), strict=True)):
        torch.testing.assert_close(vectors, quantizer.target(f, f_hat, k, WIDE))
        distances = torch.cdist(vectors, quantizer.codebook.weight)
        torch.testing.assert_close(distances.gather(1, drawn.reshape(-1, 1))[:, 0], distances.min(1).values)
        f_hat = quantizer.accumulate(f_hat, drawn, k, WIDE)


def test_exact_targets_leave_nothing_at_the_last_scale_but_what_phi_changed() -> None:
    quantizer = MultiScaleVQ(24, 6, phi=ResidualConv(6, ratio=0.0))
    f = features(SQUARE)
    f_hat = quantizer.start(3, SQUARE)
    for k, vectors in enumerate(quantizer.targets(f, SQUARE, exact=True)):
        f_hat = quantizer.accumulate(f_hat, vectors.unflatten(0, (3, -1)), k, SQUARE)
    torch.testing.assert_close(f_hat, f)


@pytest.mark.parametrize("composition", ["residual", "independent"])
@pytest.mark.parametrize("schedule", [SQUARE, WIDE], ids=str)
def test_teacher_forcing_is_the_next_input_of_every_scale(schedule: ScaleSchedule, composition: str) -> None:
    quantizer = build(composition)
    codes = quantizer.encode(features(schedule), schedule)
    forced = quantizer.teacher_forcing(codes, schedule)
    assert forced.shape == (3, schedule.total - schedule.lengths[0], 6)
    f_hat, start = quantizer.start(3, schedule), 0
    for k in range(1, len(schedule)):
        f_hat = quantizer.accumulate(f_hat, codes[k - 1], k - 1, schedule)
        expected = quantizer.next_input(f_hat, k, schedule)
        torch.testing.assert_close(forced[:, start : start + schedule.lengths[k]], expected)
        start += schedule.lengths[k]


def test_codes_and_their_embeddings_accumulate_alike() -> None:
    quantizer = build()
    drawn = torch.randint(24, (3, 6))
    start = quantizer.start(3, WIDE)
    by_code = quantizer.accumulate(start, drawn, 2, WIDE)
    assert torch.equal(by_code, quantizer.accumulate(start, quantizer.lookup(drawn), 2, WIDE))


def test_gradients_pass_straight_through_to_the_features() -> None:
    quantizer, f = build(), features(WIDE).requires_grad_()
    weights = torch.randn(3, 6, 3, 5)
    (quantizer.quantize(f, WIDE).f_hat * weights).sum().backward()
    assert f.grad is not None
    assert torch.equal(f.grad, weights)
    assert quantizer.codebook.weight.grad is None


def test_each_loss_moves_its_own_side() -> None:
    quantizer, f = build(), features(WIDE).requires_grad_()
    quantized = quantizer.quantize(f, WIDE)
    (commitment,) = torch.autograd.grad(quantized.commitment, f, retain_graph=True)
    assert commitment.abs().sum() > 0
    quantized.codebook.backward()
    assert f.grad is None
    assert quantizer.codebook.weight.grad.abs().sum() > 0
    assert all(conv.weight.grad is not None for conv in quantizer.phi.convs)


def test_the_losses_are_means_over_scales() -> None:
    quantizer, f = build(), features(WIDE)
    f_hat, errors = quantizer.start(3, WIDE), []
    for k, drawn in enumerate(quantizer.encode(f, WIDE)):
        f_hat = quantizer.accumulate(f_hat, drawn, k, WIDE)
        errors.append((f_hat - f).square().mean())
    quantized = quantizer.quantize(f, WIDE)
    torch.testing.assert_close(quantized.codebook, torch.stack(errors).mean())
    torch.testing.assert_close(quantized.commitment, quantized.codebook)


def test_hidden_scales_are_missing_from_f_hat_alone() -> None:
    quantizer, f = build(), features(WIDE)
    kept = torch.tensor([1, 3, 4])
    full, some = quantizer.quantize(f, WIDE), quantizer.quantize(f, WIDE, kept)
    for row, count in enumerate(kept.tolist()):
        expected = quantizer.decode([drawn[row : row + 1] for drawn in full.codes[:count]], WIDE)
        torch.testing.assert_close(some.f_hat[row : row + 1], expected)
    assert torch.equal(full.codebook, some.codebook)
    assert all(torch.equal(a, b) for a, b in zip(full.codes, some.codes, strict=True))


def test_codes_are_found_in_full_precision_under_autocast() -> None:
    quantizer = MultiScaleVQ(2048, 6, phi=ResidualConv(6))  # so many that in bf16 others would be the closest
    torch.nn.init.normal_(quantizer.codebook.weight)
    f = features(WIDE, batch=32)
    plain = quantizer.quantize(f, WIDE)
    with torch.autocast("cpu", torch.bfloat16):
        half = quantizer.quantize(f, WIDE)
    assert all(torch.equal(a, b) for a, b in zip(plain.codes, half.codes, strict=True))
    assert torch.equal(plain.f_hat, half.f_hat)


def test_a_batch_is_coded_as_its_images_alone() -> None:
    quantizer, f = build(), features(WIDE)
    together = quantizer.encode(f, WIDE)
    for row in range(3):
        alone = quantizer.encode(f[row : row + 1], WIDE)
        assert all(torch.equal(a[row : row + 1], b) for a, b in zip(together, alone, strict=True))


def test_features_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="last scale"):
        build().quantize(features(SQUARE), WIDE)


def test_another_composition_is_refused() -> None:
    with pytest.raises(ValueError, match="composition"):
        build("sum")


def test_a_phi_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="width 8, these have 6"):
        MultiScaleVQ(24, 6, phi=ResidualConv(8))
