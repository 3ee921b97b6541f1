"""Loggers that need more than a constructor call."""

from __future__ import annotations

import csv
import netrc
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only


class ResumableCSVLogger(CSVLogger):
    """`metrics.csv` in the run directory, which a resumed run continues: Lightning's own logger would delete it.

    Rows of steps that the interrupted run had reached after its last checkpoint are replaced as they are done again.

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
        """Lightning's writer; it deletes the file that is there, whose rows are held here."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Experiment logs directory")
            return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row; the first one is preceded by the rows of earlier steps."""
        if self.held:
            self.experiment.metrics += [row for row in self.held if step is None or row["step"] < step]
            self.held = []
        super().log_metrics(dict(metrics), step)


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
