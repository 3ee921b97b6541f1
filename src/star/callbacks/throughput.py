"""How fast training is and how well it uses the device, how much memory it takes, and what the data lost."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import distributed

from star.callbacks.work import WorkMeter
from star.types import Batch
from star.utils.devices import GIB, peak_memory, this_device

log = logging.getLogger(__name__)


class Throughput(Callback):
    """Logs speed and use of the hardware every `log_every_n_steps`; counts skipped samples by cause.

    images_per_second, tokens_per_second: over all devices; tokens are those that are trained.
    tflops_per_device: what the trained model computes, see `WorkMeter`.
    mfu: that, as a share of the device's peak.
    data_wait: share of the time spent waiting for a batch.
    memory_gib: the process's peak on this device: allocated on a GPU, else resident.
    skipped_samples: how many so far.

    Validation doesn't count as time. The first numbers after a start include whatever starting took.

    Args:
        peak_tflops: of the device, what `mfu` is a share of; None takes the data sheet's number at the precision of the
            training, or measures a matrix product where there is none.

    Raises:
        ValueError: for a peak that isn't positive.

    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        if peak_tflops is not None and peak_tflops <= 0:
            raise ValueError(f"callbacks.throughput.peak_tflops is a positive number, got {peak_tflops}")
        self.peak_tflops = peak_tflops
        self.skipped: Counter[str] = Counter()
        self.images = 0
        self.work = WorkMeter()
        self._logged = self._paused = time.monotonic()
        self._waited = 0.0
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.work.attach(pl_module)
        self._logged, self._step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count, and log when it is time."""
        self.skipped.update(batch.skipped)
        self.images += len(batch)
        self.work.images(len(batch))
        self._waited += batch.waited
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        # with accumulated gradients several batches end in one step
        if step != self._step and step % every == 0:
            self._step = step
            self._log(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on as if validation had taken no time."""
        self._logged += time.monotonic() - self._paused

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch no longer."""
        self.work.detach()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was lost and why, on all devices together."""
        skipped = everyone(self.skipped)
        if skipped and trainer.is_global_zero:
            causes = ", ".join(f"{cause} {count}" for cause, count in skipped.most_common())
            log.warning("%d samples were skipped: %s", skipped.total(), causes)

    def state_dict(self) -> dict[str, Any]:
        """The counts so far."""
        return {"skipped": dict(self.skipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped = Counter(state_dict["skipped"])

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = time.monotonic()
        passed = max(now - self._logged, 1e-9)
        device = trainer.strategy.root_device
        tokens, flops = self.work.take()
        named = {
            "images_per_second": self.images * trainer.world_size / passed,
            "data_wait": self._waited / passed,
            "memory_gib": peak_memory(device) / GIB,
        }
        if flops:
            reached = flops / passed / 1e12
            named |= {"tokens_per_second": tokens * trainer.world_size / passed, "tflops_per_device": reached}
            named["mfu"] = reached / self._peak(trainer, device)
        if self.skipped:
            named["skipped_samples"] = float(self.skipped.total())
        for name, value in named.items():
            pl_module.log(name, value)
        self.images, self._waited, self._logged = 0, 0.0, now

    def _peak(self, trainer: Trainer, device: torch.device) -> float:
        if self.peak_tflops is None:
            half = str(trainer.precision).startswith(("16", "bf16"))
            found = this_device(device)
            self.peak_tflops = found.peak(half=half)
            log.info("mfu is a share of %.4g TFLOP/s (%s)", self.peak_tflops, found.name)
        return self.peak_tflops


def everyone(counts: Counter[str]) -> Counter[str]:
    """The sum over all processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return counts
    gathered: list[Counter[str]] = [Counter() for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(gathered, counts)
    return sum(gathered, Counter())
