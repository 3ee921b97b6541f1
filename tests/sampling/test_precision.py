from __future__ import annotations

import pytest
import torch

from star.sampling.precision import autocast, check_precision, chosen_precision, precision_of, warn_of_slow


def test_16_bits_on_a_cpu_without_instructions_for_them_are_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for fast, warnings in ((True, 0), (False, 1)):
        warn_of_slow.cache_clear()
        caplog.clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda fast=fast: {"avx512_bf16": fast})
        for precision in ("fp32", "bf16", "bf16"):
            autocast(precision, torch.device("cpu"))
        assert caplog.text.count("precision=bf16 is far slower") == warnings


def test_products_are_computed_in_the_precision() -> None:
    x = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(precision, torch.device("cpu")):
            assert (x @ x).dtype == dtype
    with pytest.raises(ValueError, match="got 'int8'"):
        check_precision("int8")


def test_stored_weights_say_theirs() -> None:
    assert precision_of({"a": torch.zeros(1), "b": torch.zeros(1, dtype=torch.bfloat16)}) == "bf16"
    assert precision_of({"a": torch.zeros(1)}) == "fp32"


def test_auto_is_what_the_device_is_fast_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_bf16, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("star.utils.devices.cpu_has_bf16", lambda has=has_bf16: has)
        assert chosen_precision("auto", "cpu") == expected
        assert chosen_precision("fp16", "cpu") == "fp16"
    with pytest.raises(ValueError, match="auto, fp32, bf16, fp16, got 'int8'"):
        chosen_precision("int8", "cpu")
