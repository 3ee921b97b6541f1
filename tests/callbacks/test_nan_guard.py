from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from star.callbacks.ema import EMA
from star.callbacks.nan_guard import NanGuard, finite, newest_checkpoint

BATCHES = torch.rand(64, 4, 2, generator=torch.Generator().manual_seed(0))


class Regression(lightning.LightningModule):
    """Learns a line; some of its batches make nan."""

    def __init__(self, *bad: int, decay: float = 0.9) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.bad, self.decay = bad, decay
        self.seen: list[int] = []
        self.weights: list[Tensor] = []
        self.rates: list[float] = []

    def training_step(self, batch: Tensor, number: int) -> Tensor:
        self.seen.append(number)
        self.weights.append(self.layer.weight.detach().clone())
        loss = (self.layer(batch) - 1).square().mean()
        return loss * float("nan") if number in self.bad else loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.decay**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(module: Regression, folder: Path, guard: NanGuard, *, every: int = 3, steps: int = 12) -> lightning.Trainer:
    checkpoint = ModelCheckpoint(dirpath=folder, every_n_train_steps=every, save_last=True, save_top_k=0)
    data = torch.utils.data.DataLoader(BATCHES, batch_size=None)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[EMA(0.5), guard, checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(module, data)
    return trainer


pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:.*treespec")


def test_training_stops_before_nan_reaches_weights_and_checkpoints(tmp_path: Path) -> None:
    module = Regression(7)
    with pytest.raises(FloatingPointError, match=r"step 8: the gradients are not finite.*action=rollback"):
        fit(module, tmp_path, NanGuard("stop"))
    assert module.seen == list(range(8))
    assert finite(module)
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert held["global_step"] == 6
    assert all(value.isfinite().all() for value in held["state_dict"].values())


def test_rolling_back_goes_on_from_the_last_checkpoint_with_later_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = Regression(7)
    with caplog.at_level(logging.WARNING):
        trainer = fit(module, tmp_path, NanGuard("rollback"))
    assert module.seen == list(range(12))
    assert trainer.global_step == 12
    assert torch.equal(module.weights[8], module.weights[6])  # what step 6 had learnt, saved at the end of it
    assert not torch.equal(module.weights[9], module.weights[8])
    assert module.rates == pytest.approx([0.1 * 0.9**step for step in range(12)])
    assert "back to the weights of step 6" in caplog.text
    assert "rollback 1 of 3" in caplog.text
    ema = next(one for one in trainer.callbacks if isinstance(one, EMA))  # type: ignore[attr-defined]
    assert all(value.isfinite().all() for value in ema.weights.values())


def test_what_follows_is_as_if_nothing_had_been_in_between(tmp_path: Path) -> None:
    """Optimiser states are those of the checkpoint, too: steps 1 to 6, then 9 to 12, give the same weights."""

    class Skipping(Regression):
        def training_step(self, batch: Tensor, number: int) -> Tensor:
            return super().training_step(BATCHES[number if number < 6 else number + 2], number)

    broken, straight = Regression(6, 7, decay=1.0), Skipping(decay=1.0)
    straight.load_state_dict(broken.state_dict())
    fit(broken, tmp_path / "a", NanGuard("rollback"))
    fit(straight, tmp_path / "b", NanGuard("stop"), steps=10)
    assert all(torch.equal(a, b) for a, b in zip(broken.weights[8:], straight.weights[6:], strict=True))


def test_a_hopeless_training_stops(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"after 2 rollbacks to .*last\.ckpt"):
        fit(Regression(*range(7, 12)), tmp_path, NanGuard("rollback", max_rollbacks=2))
    with pytest.raises(FloatingPointError, match="step 2: .* no checkpoint is there"):
        fit(Regression(1), tmp_path / "early", NanGuard("rollback"))


def test_a_checkpoint_of_weights_that_are_not_finite_is_not_written(tmp_path: Path) -> None:
    class Sabotaged(Regression):
        def on_train_batch_start(self, batch: Tensor, number: int) -> None:
            if number == 5:
                self.layer.weight.data.fill_(float("inf"))

        def training_step(self, batch: Tensor, number: int) -> Tensor:
            return self.layer.bias.square().sum()

    with pytest.raises(FloatingPointError, match="weights are not finite, so no checkpoint is written"):
        fit(Sabotaged(), tmp_path, NanGuard("stop"))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


@pytest.fixture
def scaled() -> Callable[..., tuple[NanGuard, Any, Any]]:
    def scaled(**settings: Any) -> tuple[NanGuard, Any, Any]:
        layer = torch.nn.Linear(2, 1)
        layer.weight.grad = torch.full((1, 2), float("inf"))
        trainer = SimpleNamespace(global_step=4, precision_plugin=SimpleNamespace(scaler=object()))
        return NanGuard(**settings), trainer, layer

    return scaled


def test_a_gradient_scaler_may_leave_some_steps_out(scaled: Callable[..., tuple[NanGuard, Any, Any]]) -> None:
    guard, trainer, layer = scaled(patience=2)
    for _ in range(5):
        for _ in range(2):
            guard.on_before_optimizer_step(trainer, layer, None)
        layer.weight.grad.fill_(1.0)
        guard.on_before_optimizer_step(trainer, layer, None)
        layer.weight.grad.fill_(float("nan"))
    for _ in range(2):
        guard.on_before_optimizer_step(trainer, layer, None)
    with pytest.raises(FloatingPointError):
        guard.on_before_optimizer_step(trainer, layer, None)


def test_the_newest_checkpoint_counts_and_unfinished_ones_do_not(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(checkpoint_callbacks=[SimpleNamespace(dirpath=str(tmp_path)), SimpleNamespace()])
    assert newest_checkpoint(trainer) is None
    for number, name in enumerate(("step_2.ckpt", "last.ckpt", "step_1.ckpt", ".last.ckpt.77.partial.ckpt")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (number, number))
    assert newest_checkpoint(trainer) == tmp_path / "step_1.ckpt"


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"action": "pray"}, "one of stop, rollback, got 'pray'"), ({"patience": -1}, "negative")],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NanGuard(**settings)
