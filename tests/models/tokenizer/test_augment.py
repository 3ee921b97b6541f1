from __future__ import annotations

import pytest
import torch

from star.models.tokenizer.augment import DiffAugment

ALONE = {"brightness": 0.0, "saturation": 0.0, "contrast": 0.0, "shift": 0.0, "cutout": 0.0}


def images(size: tuple[int, int] = (16, 24)) -> torch.Tensor:
    return torch.rand(6, 3, *size) + 0.5


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_nothing_changes_without_strength_or_probability() -> None:
    x = images()
    torch.testing.assert_close(DiffAugment(**ALONE)(x, seeded()), x)
    assert torch.equal(DiffAugment(probability=0.0)(x, seeded()), x)


def test_it_is_differentiable_and_keeps_the_shape() -> None:
    x = images().requires_grad_()
    changed = DiffAugment()(x, seeded())
    assert changed.shape == x.shape
    changed.square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_shift_moves_pixels_and_brings_in_zeros() -> None:
    x = images()
    moved = DiffAugment(**ALONE | {"shift": 0.25})(x, seeded())
    assert (moved == 0).any()
    for before, after in zip(x, moved, strict=True):
        kept = after[after != 0]
        assert torch.isin(kept, before).all()
        assert len(kept) >= before.numel() * 0.75**2 * 0.9


def test_a_cutout_is_a_square_of_zeros() -> None:
    x = images((32, 32))
    hole = DiffAugment(**ALONE | {"cutout": 0.25})(x, seeded()) == 0
    assert hole.any((1, 2, 3)).all()
    assert torch.equal(hole.all(1), hole.any(1))
    for one in hole[:, 0]:
        rows, columns = one.any(1).sum(), one.any(0).sum()
        assert one.sum() == rows * columns
        assert max(rows, columns) <= 9


def test_saturation_keeps_the_grey_and_contrast_the_mean() -> None:
    x = images()
    coloured = DiffAugment(**ALONE | {"saturation": 1.0})(x, seeded())
    torch.testing.assert_close(coloured.mean(1), x.mean(1))
    assert not torch.allclose(coloured, x)
    contrasted = DiffAugment(**ALONE | {"contrast": 0.5})(x, seeded())
    torch.testing.assert_close(contrasted.mean((1, 2, 3)), x.mean((1, 2, 3)))
    assert not torch.allclose(contrasted, x)


def test_the_generator_decides() -> None:
    x = images()
    assert torch.equal(DiffAugment()(x, seeded()), DiffAugment()(x, seeded()))


def test_impossible_strengths_are_refused() -> None:
    with pytest.raises(ValueError, match="cutout"):
        DiffAugment(cutout=1.5)


def test_brightness_moves_all_of_an_image_by_one_amount() -> None:
    x = images()
    moved = DiffAugment(**ALONE | {"brightness": 0.5})(x, seeded()) - x
    each = moved.mean((1, 2, 3))
    torch.testing.assert_close(moved, each.view(-1, 1, 1, 1).expand_as(moved), atol=1e-5, rtol=0)
    assert 0.1 < each.abs().max() <= 0.5
    assert each.min() < 0 < each.max()


def test_a_share_of_the_images_is_changed() -> None:
    x = torch.rand(2000, 3, 4, 4) + 0.5
    changed = (DiffAugment(**ALONE | {"probability": 0.25, "contrast": 1.0})(x, seeded()) != x).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(0.25, abs=0.04)
