from __future__ import annotations

import torch

from star.sampling.noise import clocks, draw_bits, exponential

CPU = torch.device("cpu")


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_noise_of_a_row_comes_from_its_generator_alone() -> None:
    assert torch.equal(exponential((3, 3, 5), seeded(1, 2, 3), CPU)[1], exponential((1, 3, 5), seeded(2), CPU)[0])


def test_it_is_exponential() -> None:
    noise = exponential((1, 200_000), seeded(0), CPU)[0]
    for threshold in (0.001, 0.1, 1.0, 3.0):
        share = (noise <= threshold).float().mean()
        expected = 1 - torch.tensor(-threshold).exp()
        assert abs(share - expected) < 4 * (expected * (1 - expected) / 200_000).sqrt()


def test_only_some_clocks_may_be_looked_at() -> None:
    bits = draw_bits((2, 4, 30), seeded(1, 2), CPU)
    at = torch.randint(30, (2, 4, 7))
    torch.testing.assert_close(clocks(bits.gather(-1, at)), exponential((2, 4, 30), seeded(1, 2), CPU).gather(-1, at))


def test_the_ends_are_safe() -> None:
    """No clock rings at once, whatever the code's weight; one may never ring."""
    ends = clocks(torch.tensor([0, 2**31 - 1], dtype=torch.int32))
    assert 0 < ends[0] < 1e-9
    assert ends[1] > 20
