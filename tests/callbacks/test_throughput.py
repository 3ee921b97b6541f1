from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from star.callbacks.throughput import Throughput
from star.types import Batch


def test_skipped_samples_are_counted_by_cause_and_resumed(caplog: pytest.LogCaptureFixture) -> None:
    logged: dict[str, float] = {}
    trainer: Any = SimpleNamespace(global_step=2, log_every_n_steps=2, world_size=1, is_global_zero=True)
    module: Any = SimpleNamespace(log=lambda name, value: logged.__setitem__(name, value))
    callback = Throughput()
    callback.on_train_start(trainer, module)
    for skipped in ({"decode: x": 2}, {"decode: x": 1, "filter: y": 4}):
        batch = Batch(torch.zeros(3, 3, 2, 2), ["a"] * 3, skipped=skipped)
        callback.on_train_batch_start(trainer, module, batch, 0)
        callback.on_train_batch_end(trainer, module, None, batch, 0)
    assert logged["images_per_second"] > 0
    assert 0 <= logged["data_wait"] <= 1
    assert logged["skipped_samples"] == 7
    again = Throughput()
    again.load_state_dict(callback.state_dict())
    with caplog.at_level(logging.WARNING):
        again.on_fit_end(trainer, module)
    assert "7 samples were skipped: filter: y 4, decode: x 3" in caplog.text
