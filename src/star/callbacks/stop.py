"""Stopping when asked to: by a terminal, a scheduler, or whoever sends a signal."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import distributed

from star.training.steps import ends_step

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
REQUEUEING = (signal.SIGUSR1, signal.SIGUSR2)


class StopOnSignal(Callback):
    """Ctrl-C, SIGTERM, SIGUSR1 or SIGUSR2: training finishes its step, writes `last.ckpt`, and ends with 128 + signal.

    What is written continues exactly. With several processes it is enough that one hears the signal: after each step
    they agree, and all stop at the same one. A single process also stops in the middle of a validation, unless that
    lies between batches accumulated for one step. A second ctrl-C stops at once and writes nothing.

    Under SLURM, SIGUSR1 and SIGUSR2 (`#SBATCH --signal=USR1@120`) also put the job back into the queue; its command
    has to name its `paths.run_dir` and `resume_from=auto`. Where another program handled the signal before, as
    submitit does, its handler is called once the checkpoint is written, and decides what happens.

    Place this callback behind those whose state belongs into the checkpoint, such as the EMA.

    Args:
        directory: where `last.ckpt` goes.
        requeue: put SLURM jobs back into the queue.

    """

    def __init__(self, directory: str | Path, *, requeue: bool = True) -> None:
        self.directory = Path(directory)
        self.requeue = requeue
        # Lightning's own handlers come later; they save in the middle of a step, or end with code 0.
        self._others = {number: signal.getsignal(number) for number in SIGNALS}
        self._received = 0
        self._in_step = False
        self._group: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, in place of Lightning; Lightning puts everything back afterwards."""
        if trainer.world_size > 1:
            self._group = distributed.new_group(backend="gloo")  # so that agreeing never waits for a GPU
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._hear)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if asked to, where a step has ended."""
        self._in_step = not ends_step(trainer, batch_idx)
        if not self._in_step and (number := self._agreed()):
            self._stop(trainer, number)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Stop if asked to; processes that validate different numbers of batches could not agree here."""
        here = trainer.world_size == 1 and not trainer.sanity_checking and not self._in_step
        if self._received and here:
            self._stop(trainer, self._received)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._received:
            again = "; once more, and it stops at once without a checkpoint" if number == signal.SIGINT else ""
            log.warning("%s: training stops after this step%s", signal.Signals(number).name, again)
        self._received = number

    def _agreed(self) -> int:
        """The signal that any process has heard, or 0."""
        if self._group is None:
            return self._received
        heard = torch.tensor(self._received)
        distributed.all_reduce(heard, distributed.ReduceOp.MAX, group=self._group)
        return int(heard)

    def _stop(self, trainer: Trainer, number: int) -> None:
        path = self.directory / "last.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            log.warning("step %d is saved in %s", trainer.global_step, path)
        self._received = 0
        other = self._others[signal.Signals(number)]
        if callable(other) and other is not signal.default_int_handler:
            other(number, None)
            return
        if number in REQUEUEING and self.requeue and trainer.is_global_zero and (job := slurm_job()) is not None:
            requeue(job)
        # Lightning kills the first process of a node once another one of it ends with an error.
        raise SystemExit(128 + number if trainer.local_rank == 0 else 0)


def slurm_job() -> str | None:
    """The SLURM job that this process belongs to, as scontrol names it; None outside of SLURM and in its shells."""
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    return job if job is not None and re.fullmatch("[0-9_]+", job) else None


def requeue(job: str, run: Callable[..., Any] = subprocess.run) -> None:
    """Put a SLURM job back into the queue; a failure is reported and changes nothing, since all is saved."""
    try:
        run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        log.error("job %s could not be put back into the queue (%s): submit it again", job, said)
    else:
        log.warning("job %s is back in the queue", job)
