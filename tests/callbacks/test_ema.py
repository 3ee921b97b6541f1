from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from star.callbacks.ema import EMA

DATA = DataLoader(torch.arange(1.0, 9.0), batch_size=2)  # type: ignore[arg-type]


class Line(LightningModule):
    """One trained weight and one frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.frozen = torch.nn.Linear(2, 2).requires_grad_(False)
        self.history: list[float] = []
        self.validated: list[float] = []

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        return (self.weight * batch - 1).square().mean()

    def on_train_batch_end(self, *_: Any) -> None:
        self.history.append(float(self.weight.detach()))

    def validation_step(self, batch: torch.Tensor, _: int) -> None:
        self.validated.append(float(self.weight.detach()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(module: Line, ema: EMA, tmp_path: Any, **settings: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[ema],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        **settings,
    )
    trainer.fit(module, DATA, DATA)
    return trainer


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*fewer than the logging interval.*"),
]


def test_the_average_is_the_recursion_and_validation_sees_it(tmp_path: Any) -> None:
    module, ema = Line(), EMA(0.5)
    fit(module, ema, tmp_path, max_steps=8, val_check_interval=4)
    average = 0.0
    for number, value in enumerate(module.history):
        decay = min(0.5, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * value
    assert float(ema.weights["weight"]) == pytest.approx(average, rel=1e-5)
    assert module.validated[-1] == pytest.approx(average, rel=1e-5)
    assert float(module.weight.detach()) == pytest.approx(module.history[-1])  # and training went on with its own
    assert set(ema.weights) == {"weight"}


def test_accumulated_batches_move_it_once(tmp_path: Any) -> None:
    ema = EMA(0.5)
    fit(Line(), ema, tmp_path, max_steps=4, accumulate_grad_batches=2, limit_val_batches=0)
    assert ema.updates == 4


def test_a_checkpoint_in_the_middle_of_a_validation_has_both_weights_right(tmp_path: Any) -> None:
    module, ema = Line(), EMA(0.5)
    trainer = fit(module, ema, tmp_path, max_steps=4, limit_val_batches=0)
    last, average = float(module.weight.detach()), float(ema.weights["weight"])
    for swapped in (False, True):
        if swapped:
            ema.on_validation_start(trainer, module)
        checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
        ema.on_save_checkpoint(trainer, module, checkpoint)
        assert float(checkpoint["state_dict"]["weight"]) == pytest.approx(last)
        assert float(checkpoint["averaged"]["weights"]["weight"]) == pytest.approx(average)


def test_a_swap_is_undone_even_after_an_error() -> None:
    module, ema = Line(), EMA(0.5)
    ema.weights = {"weight": torch.ones(1)}

    def fail() -> None:
        with ema.swapped(module):
            assert float(module.weight.detach()) == 1.0
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert float(module.weight.detach()) == 0.0
    with pytest.raises(ValueError, match=r"1\.5"):
        EMA(1.5)
