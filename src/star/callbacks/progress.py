"""A progress bar over the whole training, in steps."""

from __future__ import annotations

import logging
import sys
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


class ProgressBar(Callback):
    """One bar from the first to the last step, with the loss; on anything but a terminal, a line now and then.

    Lightning's own bars count the batches of an epoch; shards have no epochs worth counting.

    Args:
        refresh_rate: steps between two updates.

    """

    def __init__(self, refresh_rate: int = 10) -> None:
        self.refresh_rate = refresh_rate
        self._bar: Progress | None = None
        self._task: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        if not trainer.is_global_zero:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        self._bar = Progress(*columns, disable=not sys.stderr.isatty())
        self._bar.start()
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._task = self._bar.add_task("training", total=total, completed=trainer.global_step, loss="")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Move it."""
        step = trainer.global_step
        if self._bar is None or step % self.refresh_rate:
            return
        loss = trainer.callback_metrics.get("train/loss")
        text = "" if loss is None else f"loss {float(loss):.4f}"
        self._bar.update(self._task, completed=step, loss=text)
        if self._bar.disable and step % self.line_every(trainer) == 0:
            log.info("step %d of %s %s", step, trainer.max_steps if trainer.max_steps > 0 else "?", text)

    def line_every(self, trainer: Trainer) -> int:
        """Steps between two lines where there is no terminal: twenty lines per training."""
        twentieth = trainer.max_steps // 20 if trainer.max_steps > 0 else 1000
        return max(twentieth // self.refresh_rate, 1) * self.refresh_rate

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar."""
        self._stop(trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._stop(trainer.global_step)

    def _stop(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
            self._bar.stop()
            self._bar = None
