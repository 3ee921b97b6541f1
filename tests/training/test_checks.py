from __future__ import annotations

from typing import Any

import pytest
import torch

from star.training.checks import SHARDED, check_trainer, choose_precision, device_kind
from star.utils import devices


def config(task: str = "generator", data: dict[str, Any] | None = None, **trainer: Any) -> dict[str, Any]:
    defaults = {"accelerator": "cpu", "precision": "32-true", "strategy": "auto", "limit_val_batches": 1.0}
    return {"task": task, "data": data or {}, "trainer": defaults | trainer}


def test_fp16_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for accelerator in ("cpu", "auto"):
        with pytest.raises(ValueError, match="take bf16-mixed"):
            check_trainer(config(accelerator=accelerator, precision="16-mixed"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    check_trainer(config(accelerator="auto", precision="16-mixed"))
    check_trainer(config(precision="bf16-mixed"))


@pytest.mark.parametrize(
    ("accelerator", "cpu", "gpu", "chosen"),
    [
        ("cpu", {"avx512_bf16": True}, None, "bf16-mixed"),
        ("cpu", {"amx_bf16": True}, None, "bf16-mixed"),
        ("cpu", {"avx2": True, "avx512_bf16": False}, None, "32-true"),
        ("auto", {"avx2": True}, None, "32-true"),
        ("auto", {"avx2": True}, True, "bf16-mixed"),
        ("gpu", {"avx2": True}, False, "16-mixed"),
        ("cpu", {"avx2": True}, True, "32-true"),
    ],
)
def test_the_precision_is_what_the_device_is_fast_in(
    accelerator: str,
    cpu: dict[str, bool],
    gpu: bool | None,  # has bf16; None: there is none
    chosen: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    asked = config(accelerator=accelerator, precision="auto")
    with caplog.at_level("INFO"):
        choose_precision(asked)
    assert asked["trainer"]["precision"] == chosen
    assert chosen in caplog.text
    assert devices.fast_precision(device_kind(accelerator))[0] == chosen


def test_a_given_precision_stays_with_a_warning_where_it_is_slow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for fast in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda fast=fast: {"avx512_bf16": fast})
        asked = config(precision="bf16-mixed")
        choose_precision(asked)
        assert asked["trainer"]["precision"] == "bf16-mixed"
        assert ("will be slow" in caplog.text) == (not fast)


def test_a_spread_model_validates_in_step_and_is_a_transformer() -> None:
    sources = {"validation_sources": {"a": {}}}
    strategy = {"_target_": SHARDED}
    with pytest.raises(ValueError, match=r"data\.validation_size"):
        check_trainer(config(data=sources, strategy=strategy))
    check_trainer(config(data=sources | {"validation_size": 8}, strategy=strategy))
    check_trainer(config(data=sources, strategy=strategy, limit_val_batches=0))
    check_trainer(config(data={"validation_sources": None}, strategy=strategy))
    check_trainer(config(data=sources, strategy={"_target_": "lightning.pytorch.strategies.DDPStrategy"}))
    with pytest.raises(ValueError, match="trainer=ddp"):
        check_trainer(config("tokenizer", strategy=strategy))
