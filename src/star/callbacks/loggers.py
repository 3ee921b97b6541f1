"""Loggers that need more than a constructor call."""

from __future__ import annotations

import csv
import netrc
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from star.utils.files import write_atomically


class ResumableCSVLogger(CSVLogger):
    """`metrics.csv` in the run directory, which a resumed run continues: Lightning's own logger would delete it.

    Rows of steps that the interrupted run had reached after its last checkpoint are replaced as they are done again.
    The old file is there until the new one is, so a run that logs nothing more, or dies before, takes nothing away.

    Args:
        save_dir: the run directory.
        flush_every: steps between two writes.

    """

    def __init__(self, save_dir: str, *, flush_every: int = 50) -> None:
        self.held = _read(Path(save_dir) / "metrics.csv")
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=flush_every)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's writer, but for how it begins."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row; the first one is preceded by the rows of earlier steps."""
        if self.held:
            self.experiment.metrics += [row for row in self.held if step is None or row["step"] < step]
            self.held = []
        super().log_metrics(dict(metrics), step)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Write what a run that goes on from the checkpoint will not log again."""
        self.save()


class _Writer(ExperimentWriter):
    """Puts its first file in the place of the old one, whose rows it has, and deletes nothing before."""

    def _check_log_dir_exists(self) -> None:
        """Leave the old file."""
        self._begun = False

    def save(self) -> None:
        """Write the rows that came since the last time."""
        if self._begun or not self.metrics:
            super().save()
            return
        path, self._begun = self.metrics_file_path, True

        def write(partial: Path) -> None:
            self.metrics_file_path = str(partial)
            super(_Writer, self).save()

        try:
            write_atomically(Path(path), write)
        finally:
            self.metrics_file_path = path


def _read(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if name and value} for row in csv.DictReader(file)]
    return [row | {"step": int(row["step"])} for row in rows if "step" in row]


def wandb_logger(*, save_dir: str, offline: bool | None = None, **arguments: Any) -> Any:
    """A Weights & Biases logger that works offline where no key is set up.

    Args:
        save_dir: the run directory.
        offline: None decides by whether there is a key, in `WANDB_API_KEY` or in a netrc file.
        arguments: as for Lightning's WandbLogger.

    """
    from lightning.pytorch.loggers import WandbLogger

    Path(save_dir).mkdir(parents=True, exist_ok=True)
    return WandbLogger(save_dir=save_dir, offline=not has_key() if offline is None else offline, **arguments)


def has_key() -> bool:
    """Whether wandb could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc().authenticators(host) is not None
    return False
