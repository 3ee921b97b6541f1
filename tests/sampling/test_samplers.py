from __future__ import annotations

import pytest
import torch

from star.sampling.samplers import Gumbel, TopKTopP, exponential, filter_logits, race


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


def test_the_race_draws_from_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, float("-inf")]).expand(1, 20000, -1)
    codes = race(logits, [torch.Generator().manual_seed(0)])
    shares = codes.flatten().bincount(minlength=4) / 20000
    torch.testing.assert_close(shares, logits[0, 0].softmax(0), atol=0.015, rtol=0)
    assert shares[3] == 0


def test_noise_of_a_row_comes_from_its_generator_alone() -> None:
    def noise(*seeds: int) -> torch.Tensor:
        return exponential(
            (len(seeds), 3, 5), [torch.Generator().manual_seed(seed) for seed in seeds], torch.device("cpu")
        )

    assert torch.equal(noise(1, 2, 3)[1], noise(2)[0])


def test_nonsense_is_refused_with_the_value() -> None:
    with pytest.raises(ValueError, match="-1"):
        TopKTopP(-1)
    with pytest.raises(ValueError, match=r"1\.5"):
        TopKTopP(1, 1.5)
    with pytest.raises(ValueError, match="0"):
        Gumbel(0.0)
