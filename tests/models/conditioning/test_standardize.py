from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from star.models.conditioning.standardize import CAPTIONS, Standardizer, captions_digest, captions_from


def encode(caption: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(caption))
    hidden = 5 + 3 * torch.randn(1, 4 + len(caption) % 7, 6, generator=generator)
    hidden[..., 0] = 100.0  # a dimension that says nothing
    return hidden.mean(1), hidden


def test_the_measured_captions_get_mean_0_and_deviation_1() -> None:
    standardizer = Standardizer.measure(encode, CAPTIONS)
    pairs = [standardizer(*encode(caption)) for caption in CAPTIONS]
    for features in (torch.cat([pooled for pooled, _ in pairs]), torch.cat([hidden[0] for _, hidden in pairs])):
        torch.testing.assert_close(features.mean(0), torch.zeros(6), rtol=0, atol=1e-4)
        torch.testing.assert_close(features[:, 1:].std(0), torch.ones(5), rtol=0, atol=1e-4)
        assert features[:, 0].abs().max() < 1e-2


def test_measuring_is_deterministic() -> None:
    first, second = (Standardizer.measure(encode, CAPTIONS) for _ in range(2))
    assert torch.equal(first.hidden_mean, second.hidden_mean)
    assert torch.equal(first.pooled_deviation, second.pooled_deviation)


def test_one_caption_is_no_statistics() -> None:
    with pytest.raises(ValueError, match="at least two"):
        Standardizer.measure(encode, ["a"])


def test_the_built_in_captions_are_the_ones_that_models_were_trained_with() -> None:
    assert len(set(CAPTIONS)) == len(CAPTIONS)
    assert captions_digest(CAPTIONS) == "0c7c31e7"


def test_captions_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("a cat\n\ncaf\u00e9\n", encoding="utf-8")
    assert captions_from(file) == ("a cat", "", "caf\u00e9")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        captions_from(file)
    with pytest.raises(FileNotFoundError, match="standardize"):
        captions_from(tmp_path / "none.txt")
