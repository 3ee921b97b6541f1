from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from star.sampling.noise import exponential
from star.sampling.samplers import Gumbel, TopKTopP


def test_nonsense_is_refused_with_the_value() -> None:
    with pytest.raises(ValueError, match="-1"):
        TopKTopP(-1)
    with pytest.raises(ValueError, match=r"1\.5"):
        TopKTopP(1, 1.5)
    nan = float("nan")
    for wrong in ({"top_k": None}, {"top_k": 2.5}, {"top_p": None}, {"temperature": None}, {"temperature": nan}):
        with pytest.raises(ValueError, match=f"got .*{next(iter(wrong.values()))}"):
            TopKTopP(**wrong)  # type: ignore[arg-type]
    for wrong in (0.0, -0.5, nan, "low"):
        with pytest.raises(ValueError, match=f"positive: got .*{wrong}"):
            TopKTopP(last_temperature=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"0\.0"):
        Gumbel(0.0)
    for unset in (None, nan):
        with pytest.raises(ValueError, match=f"positive, got {unset}"):
            Gumbel(unset)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="-3"):
        Gumbel(top_k=-3)
    with pytest.raises(ValueError, match=r"1\.5"):
        Gumbel(top_p=1.5)


@pytest.mark.parametrize("sampler", [TopKTopP(4096, 0.9), Gumbel(top_k=4096)], ids=["top-k", "gumbel"])
def test_more_than_the_codebook_is_clamped_and_said_once(sampler: Any, caplog: pytest.LogCaptureFixture) -> None:
    state = SimpleNamespace(
        schedule=range(3), generators=[torch.Generator().manual_seed(0)], codebook=torch.randn(8, 2)
    )
    with caplog.at_level(logging.INFO):
        for k in range(3):
            assert sampler(torch.randn(1, 4, 8), lambda x: x, lambda x, _: x, k, state).codes.max() < 8
    assert [record.getMessage() for record in caplog.records] == [
        "top_k 4096 is more than the codebook's 8 entries and keeps all of them"
    ]


def test_the_last_scale_may_have_a_temperature_of_its_own() -> None:
    logits = torch.randn(2, 5, 8)

    def draw(k: int, **settings: Any) -> torch.Tensor:
        state: Any = SimpleNamespace(schedule=range(4), generators=[torch.Generator().manual_seed(i) for i in (1, 2)])
        return TopKTopP(0, 0.0, **settings)(logits, lambda x: x, lambda x, _: x, k, state).codes

    cold = {"temperature": 1.5, "last_temperature": 1e-4}
    assert torch.equal(draw(3, **cold), logits.argmax(-1))
    for k in range(3):
        assert torch.equal(draw(k, **cold), draw(k, temperature=1.5))
        assert not torch.equal(draw(k, **cold), logits.argmax(-1))


@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_smooth_mixture_is_vars(k: int) -> None:
    """VAR's more_smooth: logits grow to twice themselves over the scales, the temperature falls to 5 %."""
    logits, codebook = torch.randn(2, 5, 8), torch.randn(8, 3)
    state = SimpleNamespace(
        schedule=range(4), generators=[torch.Generator().manual_seed(i) for i in (1, 2)], codebook=codebook
    )
    drawn = Gumbel(0.27)(logits, lambda x: x, lambda x, _: x, k, state)  # type: ignore[arg-type]
    noise = exponential(logits.shape, [torch.Generator().manual_seed(i) for i in (1, 2)], logits.device)
    ratio = k / 3
    mixture = ((logits * (1 + ratio) - noise.log()) / max(0.27 * (1 - ratio * 0.95), 0.005)).softmax(-1)
    torch.testing.assert_close(drawn.embeddings, mixture @ codebook)
    assert torch.equal(drawn.codes, mixture.argmax(-1))
