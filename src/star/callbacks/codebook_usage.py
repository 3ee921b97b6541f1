"""How much of the codebook each scale uses: the number that tells a collapsed tokenizer from a healthy one."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from star.types import Batch


class CodebookUsage(Callback):
    """Logs usage (share of the codes that occur) and perplexity, for every scale and for all together.

    The module's steps return `codes`, each scale's (B, L_k), or None while it doesn't quantise.

    Args:
        every_n_steps: training steps that are counted together.

    Raises:
        ValueError: for less than one step.

    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise ValueError(f"codebook usage is counted over at least one step, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._counts: dict[str, Tensor] = {}
        self._logged = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count, and log when it is time."""
        self._count("train", pl_module, outputs)
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self._logged:
            self._logged = trainer.global_step
            self._log("train", trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count."""
        self._count("val", pl_module, outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the whole validation set."""
        self._log("val", trainer, pl_module)

    def _count(self, prefix: str, pl_module: LightningModule, outputs: Any) -> None:
        codes = outputs.get("codes") if isinstance(outputs, dict) else None
        if codes is None:
            return
        tokenizer: Any = pl_module.tokenizer
        counts = count_codes(codes, tokenizer.quantizer.codebook_size)
        self._counts[prefix] = self._counts[prefix] + counts if prefix in self._counts else counts

    def _log(self, prefix: str, trainer: Trainer, pl_module: LightningModule) -> None:
        counts = self._counts.pop(prefix, None)
        # Whether a step quantises depends on its number alone, so all processes have counts or none has.
        if counts is None:
            return
        counts = trainer.strategy.reduce(counts, reduce_op="sum")
        named: dict[str, Tensor] = {}
        for name, values in (("usage", usage(counts)), ("perplexity", perplexity(counts))):
            named |= {f"{prefix}/{name}/scale_{k:02d}": value for k, value in enumerate(values)}
        pooled = counts.sum(0)
        named |= {f"{prefix}/usage/pooled": usage(pooled), f"{prefix}/perplexity/pooled": perplexity(pooled)}
        pl_module.log_dict(named)


def count_codes(codes: list[Tensor], size: int) -> Tensor:
    """How often each of `size` codes occurs in each scale, (K, V), in codes (B, L_k) long per scale."""
    return torch.stack([drawn.flatten().bincount(minlength=size) for drawn in codes])


def usage(counts: Tensor) -> Tensor:
    """Share of the codes that occur at all, (...), of counts (..., V)."""
    return (counts > 0).float().mean(-1)


def perplexity(counts: Tensor) -> Tensor:
    """How many equally frequent codes would carry as much, (...), of counts (..., V)."""
    shares = counts.float() / counts.sum(-1, keepdim=True).clamp(min=1)
    return torch.special.entr(shares).sum(-1).exp()
