from __future__ import annotations

from typing import Any

import pytest
import torch

from star.training.checks import SHARDED, check_trainer


def config(task: str = "generator", data: dict[str, Any] | None = None, **trainer: Any) -> dict[str, Any]:
    defaults = {"accelerator": "cpu", "precision": "32-true", "strategy": "auto", "limit_val_batches": 1.0}
    return {"task": task, "data": data or {}, "trainer": defaults | trainer}


def test_fp16_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for accelerator in ("cpu", "auto"):
        with pytest.raises(ValueError, match="take bf16-mixed"):
            check_trainer(config(accelerator=accelerator, precision="16-mixed"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    check_trainer(config(accelerator="auto", precision="16-mixed"))
    check_trainer(config(precision="bf16-mixed"))


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
