from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch

from star.callbacks.step_seed import StepSeed


def drawn(*, step: int, rank: int = 0, batch: int = 0, seed: int = 0) -> tuple[float, float]:
    trainer: Any = SimpleNamespace(global_step=step, global_rank=rank, accumulate_grad_batches=2)
    StepSeed(seed).on_train_batch_start(trainer, trainer, None, batch)
    return float(torch.rand(())), random.random()


def test_a_batch_draws_the_same_whatever_came_before() -> None:
    first = drawn(step=7)
    torch.rand(100)
    assert drawn(step=7) == first
    assert drawn(step=7, batch=2) == first  # of two that are accumulated, it is the first again


def test_steps_batches_processes_and_seeds_draw_differently() -> None:
    others = [drawn(step=7), drawn(step=8), drawn(step=7, rank=1), drawn(step=7, batch=1), drawn(step=7, seed=1)]
    assert len(set(others)) == len(others)
