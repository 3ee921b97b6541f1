from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

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


class Counted(LightningModule):
    """Remembers of which step each batch was."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.steps: list[int] = []

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        self.steps.append(self.global_step)
        return (self.weight * batch - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(module: Counted, folder: Path, *, accumulate: int, steps: int, resume: Path | None = None) -> list[int]:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[StepSeed(0)],
        enable_checkpointing=False,
        default_root_dir=folder,
        accumulate_grad_batches=accumulate,
        max_steps=steps,
        **quiet,  # type: ignore[arg-type]
    )
    data = DataLoader(torch.arange(1.0, 15.0), batch_size=2)  # type: ignore[arg-type]
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return module.steps


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable")
def test_a_resumed_step_is_whole_whatever_was_accumulated_before(tmp_path: Path) -> None:
    assert fit(Counted(), tmp_path, accumulate=1, steps=3) == [0, 1, 2]
    # an epoch has seven batches; three and the one that was passed over leave three of them
    resumed = fit(Counted(), tmp_path, accumulate=2, steps=6, resume=tmp_path / "3.ckpt")
    assert resumed == [3, 3, 4, 5, 5]
    assert fit(Counted(), tmp_path, accumulate=2, steps=7, resume=tmp_path / "6.ckpt") == [6, 6]
