from __future__ import annotations

import pytest
import torch

from star.sampling.filters import draw, filter_logits, narrow, race

SETTINGS = [(0, 0.0), (0, 0.8), (7, 0.5), (5, 0.0), (1, 0.9), (40, 0.95), (39, 0.99), (60, 0.3)]


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_top_k_keeps_ties_and_top_p_keeps_the_best() -> None:
    logits = torch.tensor([[3.0, 2.0, 2.0, 1.0, 0.0]])
    assert filter_logits(logits, 2).isfinite().sum() == 3
    assert filter_logits(logits, 0, 1e-6).isfinite().sum() == 1
    assert filter_logits(logits, 0, 0.0).isfinite().all()
    assert filter_logits(logits, 9).isfinite().all()


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.8), (7, 0.5), (5, 0.0), (40, 0.95)])
def test_filters_agree_with_their_definition(top_k: int, top_p: float) -> None:
    logits = torch.randn(4, 40) * 3
    kept = filter_logits(logits, top_k, top_p).isfinite()
    for row, mask in zip(logits.tolist(), kept, strict=True):
        order = sorted(range(40), key=lambda i: -row[i])
        candidates = order[: top_k or 40]
        weights = torch.tensor([row[i] for i in candidates]).softmax(0)
        # a candidate goes if it and all less likely ones add up to at most 1 - p
        expected = {i for n, i in enumerate(candidates) if n == 0 or top_p == 0 or float(weights[n:].sum()) > 1 - top_p}
        assert set(mask.nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize(("top_k", "top_p"), SETTINGS)
def test_candidates_are_what_the_filters_keep(top_k: int, top_p: float) -> None:
    logits = torch.randn(3, 9, 40) * 3
    values, codes, tied = narrow(logits, top_k, top_p)
    assert not tied.any()
    if codes is not None:
        assert values.shape[-1] == top_k + 1
        values = torch.full_like(logits, float("-inf")).scatter(-1, codes, values)
    assert torch.equal(values, filter_logits(logits, top_k, top_p))


@pytest.mark.parametrize(("top_k", "top_p"), SETTINGS)
@pytest.mark.parametrize("steps", [None, 0.5, 100.0])
def test_the_candidates_race_as_the_whole_codebook_does(top_k: int, top_p: float, steps: float | None) -> None:
    """To the bit, also where (in coarse steps) many or all logits are equal; and so the generators go on alike."""
    logits = torch.randn(3, 25, 40) * 3
    if steps is not None:
        logits = (logits / steps).round() * steps
    ours, plain = generators(3), generators(3)
    filtered = filter_logits(logits, top_k, top_p)
    expected = race(filtered, plain)
    codes, probability = draw(logits, ours, top_k=top_k, top_p=top_p)
    assert torch.equal(codes, expected)
    torch.testing.assert_close(probability, filtered.softmax(-1).gather(-1, expected[..., None])[..., 0])
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(ours, plain, strict=True))


def test_an_images_codes_dont_depend_on_its_batch() -> None:
    logits = torch.randn(3, 10, 40)
    together, _ = draw(logits, generators(3), top_k=7, top_p=0.9)
    for row in range(3):
        assert torch.equal(
            draw(logits[row : row + 1], generators(3)[row : row + 1], top_k=7, top_p=0.9)[0], together[row : row + 1]
        )


def test_forbidden_codes_are_never_drawn() -> None:
    logits = torch.randn(1, 200, 40)
    logits[..., 3:] = float("-inf")
    assert draw(logits, generators(1), top_k=7, top_p=0.9)[0].max() <= 2


@pytest.mark.parametrize("top_k", [0, 3])
def test_the_race_draws_from_the_softmax(top_k: int) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, float("-inf"), -40.0]).expand(1, 20000, -1)
    codes, _ = draw(logits, generators(1), top_k=top_k)
    shares = codes.flatten().bincount(minlength=5) / 20000
    torch.testing.assert_close(shares, logits[0, 0].softmax(0), atol=0.015, rtol=0)
    assert shares[3] == 0
