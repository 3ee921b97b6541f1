"""How fast training is, and what the data lost."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any

from lightning import Callback, LightningModule, Trainer

from star.types import Batch

log = logging.getLogger(__name__)


class Throughput(Callback):
    """Logs images per second and the share of the time spent waiting for data; counts skipped samples by cause."""

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.images = 0
        self._ended = self._logged = time.monotonic()
        self._waited = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        self._ended = self._logged = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """What passed since the batch before was waiting."""
        self._waited += time.monotonic() - self._ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count, and log every `log_every_n_steps`."""
        self.skipped.update(batch.skipped)
        self.images += len(batch) * trainer.world_size
        self._ended = time.monotonic()
        passed = self._ended - self._logged
        if trainer.global_step % trainer.log_every_n_steps == 0 and passed > 0:  # type: ignore[attr-defined]
            pl_module.log("images_per_second", self.images / passed)
            pl_module.log("data_wait", self._waited / passed)
            if self.skipped:
                pl_module.log("skipped_samples", float(sum(self.skipped.values())))
            self.images, self._waited, self._logged = 0, 0.0, self._ended

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was lost and why."""
        if self.skipped and trainer.is_global_zero:
            causes = ", ".join(f"{cause} {count}" for cause, count in self.skipped.most_common())
            log.warning("%d samples were skipped: %s", sum(self.skipped.values()), causes)

    def state_dict(self) -> dict[str, Any]:
        """The counts so far."""
        return {"skipped": dict(self.skipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped = Counter(state_dict["skipped"])
