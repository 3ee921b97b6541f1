from __future__ import annotations

import pytest
import torch

from star.models.tokenizer.residual_conv import ResidualConv

KNOWN = {
    3: [0, 2, 3],
    4: [0, 1, 2, 3],
    8: [0, 0, 1, 1, 2, 2, 3, 3],
    10: [0, 0, 1, 1, 1, 2, 2, 3, 3, 3],
    12: [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3],
    14: [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3],
}


@pytest.mark.parametrize("num_scales", KNOWN)
def test_partial_sharing_follows_the_published_table(num_scales: int) -> None:
    phi = ResidualConv(2, count=4)
    assert [phi.index(k, num_scales) for k in range(num_scales)] == KNOWN[num_scales]


@pytest.mark.parametrize("num_scales", [1, 2, 5, 10])
def test_one_convolution_serves_all_and_enough_serve_one_scale_each(num_scales: int) -> None:
    shared, own = ResidualConv(2, count=1), ResidualConv(2, count=num_scales)
    assert [shared.index(k, num_scales) for k in range(num_scales)] == [0] * num_scales
    assert [own.index(k, num_scales) for k in range(num_scales)] == list(range(num_scales))


def test_phi_mixes_the_map_with_its_convolution() -> None:
    phi, h = ResidualConv(3, count=2, ratio=0.25), torch.randn(2, 3, 4, 5)
    expected = 0.75 * h + 0.25 * phi.convs[1](h)
    torch.testing.assert_close(phi(h, 1, 2), expected)


def test_ratio_zero_leaves_the_map_alone() -> None:
    h = torch.randn(2, 3, 4, 5)
    assert torch.equal(ResidualConv(3, ratio=0.0)(h, 0, 4), h)


def test_zero_init_starts_as_a_scaling() -> None:
    h = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(ResidualConv(3, zero_init=True)(h, 2, 4), 0.5 * h)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"ratio": -0.1}, {"ratio": 1.1}])
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="phi needs"):
        ResidualConv(3, **wrong)
