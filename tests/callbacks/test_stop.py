from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from star.callbacks.ema import EMA
from star.callbacks.stop import StopOnSignal, requeue, slurm_job

DATA = DataLoader(torch.arange(1.0, 9.0), batch_size=2)  # type: ignore[arg-type]
Start = Callable[..., list[Any]]


class Line(LightningModule):
    """Sends itself a signal in the middle of a step, or of a validation."""

    def __init__(
        self, number: int, *, at: int = 3, validating: bool = False, rank: int = 0, again: bool = False
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.number, self.at, self.validating, self.rank, self.again = number, at, validating, rank, again

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        loss = (self.weight * batch - 1).square().mean()
        if self.global_step == self.at and not self.validating and self.global_rank == self.rank:
            for _ in range(2 if self.again else 1):
                os.kill(os.getpid(), self.number)
        return loss

    def validation_step(self, batch: torch.Tensor, _: int) -> None:
        if self.global_step >= self.at and self.validating:
            os.kill(os.getpid(), self.number)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(folder: Path, module: Line, callback: StopOnSignal | None = None, **settings: Any) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[EMA(0.5), callback or StopOnSignal(folder)],
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        max_steps=20,
        check_val_every_n_epoch=None,
        val_check_interval=2,
        **quiet,
        **settings,
    )
    trainer.fit(module, DATA, DATA)


def codes(processes: list[Any]) -> list[int]:
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


@pytest.mark.parametrize(
    ("number", "validating"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, False)]
)
def test_the_step_is_finished_saved_and_the_code_is_the_signal_s(
    tmp_path: Path, start: Start, number: int, validating: bool
) -> None:
    assert codes(start(lambda: fit(tmp_path, Line(number, validating=validating)))) == [128 + number]
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert held["global_step"] == 4
    assert held["averaged"]["updates"] == 4
    assert not torch.equal(held["averaged"]["weights"]["weight"], held["state_dict"]["weight"])


def test_a_validation_between_accumulated_batches_waits_for_the_step(tmp_path: Path, start: Start) -> None:
    """A checkpoint written there, after the second of three batches, would lack their gradient."""
    module = Line(signal.SIGTERM, at=0, validating=True)
    assert codes(start(lambda: fit(tmp_path, module, accumulate_grad_batches=3))) == [143]
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert held["global_step"] == 1
    assert held["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 3


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, start: Start) -> None:
    assert codes(start(lambda: fit(tmp_path, Line(signal.SIGINT, again=True)))) == [1]
    assert not (tmp_path / "last.ckpt").exists()


def test_slurm_puts_the_job_back_into_the_queue(tmp_path: Path, start: Start) -> None:
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\nls {tmp_path}/last.ckpt && echo "$@" >> {tmp_path}/asked\n')
    fake.chmod(0o755)
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "42", "SLURM_JOB_NAME": "star", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    processes = start(lambda: fit(tmp_path, Line(signal.SIGUSR1)), **slurm)
    assert codes(processes) == [128 + signal.SIGUSR1]
    assert (tmp_path / "asked").read_text() == "requeue 42\n"  # and only once the checkpoint was there
    assert not list(tmp_path.glob("hpc_ckpt*"))


def test_all_processes_stop_at_the_step_of_the_one_that_hears(tmp_path: Path, start: Start) -> None:
    def rank() -> None:
        fit(tmp_path, Line(signal.SIGTERM, rank=1), devices=2, strategy=DDPStrategy(process_group_backend="gloo"))

    assert codes(start(rank, count=2)) == [143, 0]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


def test_who_handled_the_signal_before_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As submitit does: called once all is saved; when it returns, training goes on."""
    saved: list[bool] = []
    before = signal.signal(signal.SIGUSR2, lambda *_: saved.append((tmp_path / "last.ckpt").exists()))
    try:
        fit(tmp_path, Line(signal.SIGUSR2))
        assert saved == [True]
        assert signal.getsignal(signal.SIGUSR2) is not before
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_jobs_are_named_as_scontrol_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slurm_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert slurm_job() == "7"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert slurm_job() == "5_2"
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert slurm_job() is None


def test_a_queue_that_refuses_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise subprocess.CalledProcessError(1, "scontrol", stderr="Requested operation is presently disabled")

    requeue("7", refuse)
    assert "presently disabled): submit it again" in caplog.text
