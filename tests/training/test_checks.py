from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from star.training.checks import SHARDED, check_trainer, check_validation, choose_precision, device_kind, in_batches
from star.utils import devices


def config(task: str = "generator", optim: str = "star.training.optim.AdamW", **trainer: Any) -> dict[str, Any]:
    defaults = {"accelerator": "cpu", "precision": "32-true", "strategy": "auto", "limit_val_batches": 1.0}
    return {"task": task, "optim": {"_target_": optim}, "trainer": defaults | trainer}


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


def test_a_spread_model_validates_in_step() -> None:
    """Whatever the data are: a cache has its validation shards from its header, not from the configuration."""
    strategy, stream = {"_target_": SHARDED}, SimpleNamespace(sources=("a",))
    data = SimpleNamespace(validation_stream=stream, validation_size=None)
    with pytest.raises(ValueError, match=r"data\.validation_size"):
        check_validation(data, config(strategy=strategy))
    check_validation(SimpleNamespace(validation_stream=stream, validation_size=8), config(strategy=strategy))
    check_validation(data, config(strategy=strategy, limit_val_batches=0))
    check_validation(data, config(strategy={"_target_": "lightning.pytorch.strategies.DDPStrategy"}))
    stream.sources = ()
    check_validation(data, config(strategy=strategy))


def test_what_cannot_be_spread_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    strategy = {"_target_": SHARDED}
    with pytest.raises(ValueError, match="tokenizer is trained with trainer=ddp"):
        check_trainer(config("tokenizer", strategy=strategy))
    with pytest.raises(ValueError, match="no gradient scaler"):
        check_trainer(config(accelerator="gpu", precision="16-mixed", strategy=strategy))
    eight = "star.training.eight_bit.AdamW8bit"
    with pytest.raises(ValueError, match="8-bit AdamW can't be sharded"):
        check_trainer(config(optim=eight, strategy=strategy))
    check_trainer(config(strategy=strategy))
    check_trainer(config("tokenizer", optim=eight, accelerator="gpu", precision="16-mixed"))


@pytest.mark.parametrize(("every", "epochs", "expected"), [(6, None, 24), (6, 1, 6), (0.5, None, 0.5)])
def test_validation_is_counted_in_steps(every: float, epochs: int | None, expected: float) -> None:
    trainer = {"val_check_interval": every, "check_val_every_n_epoch": epochs, "accumulate_grad_batches": 4}
    assert in_batches(trainer) == trainer | {"val_check_interval": expected}
