from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from star.callbacks.progress import ProgressBar


def test_without_a_terminal_there_are_twenty_lines(caplog: pytest.LogCaptureFixture) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=True, max_steps=400, global_step=0, callback_metrics={})
    bar = ProgressBar(refresh_rate=10)
    with caplog.at_level(logging.INFO):
        bar.on_train_start(trainer, trainer)
        for step in range(1, 401):
            trainer.global_step = step
            trainer.callback_metrics = {"train/loss": torch.tensor(1.0 / step)}
            bar.on_train_batch_end(trainer, trainer, None)
        bar.on_train_end(trainer, trainer)
    lines = [record.message for record in caplog.records]
    assert len(lines) == 20
    assert lines[-1] == "step 400 of 400 loss 0.0025"
