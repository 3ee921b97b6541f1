from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from star.checkpoints.official import load_tokenizer
from star.models.tokenizer.residual_conv import ResidualConv
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.schedule import ScaleSchedule, concatenate

Case = tuple[dict[str, Tensor], ScaleSchedule, MultiScaleTokenizer]


@pytest.fixture(params=["vqvae_tiny_256", "vqvae_tiny_64"])
def case(request: pytest.FixtureRequest, golden: Any) -> Case:
    schedule = ScaleSchedule.square(*golden.facts(request.param)["v_patch_nums"])
    return golden(request.param), schedule, load_tokenizer(golden("vqvae_tiny.weights"), schedule=schedule)


def test_features_and_codes(case: Case, golden: Any) -> None:
    recorded, schedule, tokenizer = case
    with torch.no_grad():
        golden.close(tokenizer.features(recorded["image"]), recorded["f"], 5e-5)
    assert torch.equal(concatenate(tokenizer.encode(recorded["image"], schedule)), recorded["idx"])
    assert torch.equal(concatenate(tokenizer.quantizer.encode(recorded["f"], schedule)), recorded["idx"])


def test_every_scale_of_f_hat_and_what_comes_next(case: Case, golden: Any) -> None:
    recorded, schedule, tokenizer = case
    quantizer, codes = tokenizer.quantizer, schedule.split(recorded["idx"])
    f_hat = quantizer.start(len(recorded["idx"]), schedule)
    with torch.no_grad():
        for k, drawn in enumerate(codes):
            f_hat = quantizer.accumulate(f_hat, drawn, k, schedule)
            golden.close(f_hat, recorded["fhat_per_scale"][k], 5e-6)
            if k + 1 < len(schedule) and f"next_ar_input.{k}" in recorded:
                expected = recorded[f"next_ar_input.{k}"].flatten(2).transpose(1, 2)
                golden.close(quantizer.next_input(f_hat, k + 1, schedule), expected, 5e-6)
        golden.close(quantizer.teacher_forcing(codes, schedule), recorded["var_input"], 5e-6)


def test_reconstruction(case: Case, golden: Any) -> None:
    recorded, schedule, tokenizer = case
    golden.close(tokenizer.decode_codes(schedule.split(recorded["idx"]), schedule), recorded["recon"], 3e-5)
    with torch.no_grad():
        reconstructed, quantized = tokenizer(recorded["image"], schedule)
    golden.close(reconstructed.clamp(-1, 1), recorded["recon"], 3e-5)
    assert torch.equal(concatenate(quantized.codes), recorded["idx"])


def test_which_phi_a_scale_takes(golden: Any) -> None:
    phi = ResidualConv(2, count=4)
    for num_scales, expected in golden.facts("phi_selection")["phi_index_by_num_scales"].items():
        assert [phi.index(k, int(num_scales)) for k in range(int(num_scales))] == expected
