from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from star.metrics.reconstruction import CodebookUse, Reconstruction, perplexity, psnr, ssim, usage

EVAL = Path(__file__).parents[1] / "golden" / "eval"
FACTS = json.loads((EVAL / "GOLD.json").read_text())
GOLDEN = np.load(EVAL / "recon.npz")
TARGET, REBUILT = (torch.from_numpy(GOLDEN[name]).double() / 255 for name in ("target", "recon"))


def test_psnr_and_ssim_are_scikit_images() -> None:
    atol = FACTS["recon.npz"]["atol"]
    np.testing.assert_allclose(psnr(REBUILT, TARGET).numpy(), GOLDEN["psnr"], rtol=0, atol=atol)
    np.testing.assert_allclose(ssim(REBUILT, TARGET).numpy(), GOLDEN["ssim_gauss"], rtol=0, atol=atol)


def test_metric_averages_over_pictures_whatever_the_batches() -> None:
    metric = Reconstruction()
    for rows in (slice(0, 1), slice(1, None)):
        metric.update(REBUILT[rows].float(), TARGET[rows].float())
    metric.update(torch.zeros(0, 3, 8, 8), torch.zeros(0, 3, 8, 8))
    result = metric.compute()
    assert result["value"] == result["psnr"] == pytest.approx(GOLDEN["psnr"].mean(), abs=1e-4)
    assert result["ssim"] == pytest.approx(GOLDEN["ssim_gauss"].mean(), abs=1e-5)
    assert result["num_images"] == len(TARGET)


def test_identical_pictures_are_finite() -> None:
    assert psnr(TARGET, TARGET).tolist() == pytest.approx([100.0] * len(TARGET))
    assert ssim(TARGET, TARGET).tolist() == pytest.approx([1.0] * len(TARGET))


def test_pictures_that_do_not_match_or_are_too_small() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        Reconstruction().update(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 8))
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_codebook_use_is_the_golden_one_and_counts_by_scale() -> None:
    codes = torch.from_numpy(np.load(EVAL / "codebook.npz")["indices"])
    expected = FACTS["codebook.npz"]["expected"]
    counts = torch.bincount(codes, minlength=256)
    assert usage(counts) == pytest.approx(expected["usage_any_hit"], abs=1e-12)
    assert usage(counts, 0.08) == pytest.approx(expected["usage_var_margin_0p08"], abs=1e-12)
    assert perplexity(counts) == pytest.approx(expected["perplexity"], rel=1e-9)
    metric = CodebookUse(codebook_size=256, num_scales=2)
    for part in codes.split(100):
        metric.update([part[None, :1], part[None]])
    result = metric.compute()
    assert result["perplexity_per_scale"][1] == pytest.approx(expected["perplexity"], rel=1e-9)
    assert result["codes_per_scale"][0] <= len(codes.split(100))
