from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from star.callbacks.checkpoint import Checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than the logging interval.*")


class Line(LightningModule):
    """One trained weight; remembers the batches of every saved checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches = 0
        self.saved: list[tuple[int, int]] = []

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        self.batches += 1
        return (self.weight * batch - 1).square().mean()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.saved.append((checkpoint["global_step"], self.batches))
        checkpoint["batches"] = self.batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches = checkpoint["batches"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(module: Line, tmp_path: Path, *callbacks: Checkpoint, ckpt_path: Path | None = None, **settings: Any) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    data = DataLoader(torch.arange(1.0, 41.0), batch_size=2)  # type: ignore[arg-type]
    trainer = Trainer(accelerator="cpu", callbacks=list(callbacks), default_root_dir=tmp_path, **quiet, **settings)
    trainer.fit(module, data, ckpt_path=ckpt_path)


def checkpoint(tmp_path: Path, **settings: Any) -> Checkpoint:
    return Checkpoint(tmp_path, save_last=True, save_on_train_epoch_end=False, enable_version_counter=False, **settings)


@pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*")
@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable.*")
def test_none_is_written_while_gradients_accumulate_not_even_after_resuming(tmp_path: Path) -> None:
    module = Line()
    fit(module, tmp_path, checkpoint(tmp_path, every_n_train_steps=1), max_steps=2, accumulate_grad_batches=3)
    assert set(module.saved) == {(1, 3), (2, 6)}
    resumed = Line()
    fit(
        resumed,
        tmp_path,
        checkpoint(tmp_path, every_n_train_steps=1),
        ckpt_path=tmp_path / "last.ckpt",
        max_steps=4,
        accumulate_grad_batches=3,
    )
    assert set(resumed.saved) == {(3, 9), (4, 12)}


def test_by_steps_and_by_time_together(tmp_path: Path) -> None:
    by_steps = checkpoint(tmp_path, every_n_train_steps=4, save_top_k=2, monitor="step", mode="max", filename="{step}")
    by_time = checkpoint(tmp_path, train_time_interval=timedelta(0), save_top_k=0)
    module = Line()
    fit(module, tmp_path, by_steps, by_time, max_steps=14)
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"last.ckpt", "step=12.ckpt", "step=14.ckpt"}
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 14


def test_the_last_step_is_saved_whatever_ends_the_training(tmp_path: Path) -> None:
    every_four = {"every_n_train_steps": 4, "save_top_k": 1, "monitor": "step", "mode": "max", "filename": "{step}"}
    fit(Line(), tmp_path / "steps", checkpoint(tmp_path / "steps", **every_four), max_steps=6)
    fit(Line(), tmp_path / "epochs", checkpoint(tmp_path / "epochs", **every_four), max_epochs=1, limit_train_batches=5)
    for run, steps, epoch in (("steps", 6, 0), ("epochs", 5, 1)):
        assert {path.name for path in (tmp_path / run).glob("*.ckpt")} == {"last.ckpt", f"step={steps}.ckpt"}
        held = torch.load(tmp_path / run / "last.ckpt", weights_only=True)
        assert (held["global_step"], held["epoch"]) == (steps, epoch)  # steps: as in the middle of a longer training
