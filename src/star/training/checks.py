"""What can be said about a training's settings before anything is read or built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

SHARDED = "star.training.distributed.ShardedStrategy"


def check_trainer(config: Mapping[str, Any]) -> None:
    """Check what strategy and precision ask of the rest of the configuration.

    Raises:
        ValueError: for fp16 without a GPU, or what a model that is spread over processes can't do.

    """
    trainer = config["trainer"]
    accelerator = trainer["accelerator"]
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if on_cpu and str(trainer["precision"]) == "16-mixed":
        raise ValueError("trainer.precision=16-mixed needs a GPU: on a CPU take bf16-mixed or 32-true")
    strategy = trainer["strategy"]
    if not isinstance(strategy, Mapping) or strategy.get("_target_") != SHARDED:
        return
    if config["task"] == "tokenizer":
        raise ValueError("trainer=fsdp spreads transformers over processes; a tokenizer is trained with trainer=ddp")
    data = config["data"]
    if data.get("validation_sources") and trainer["limit_val_batches"] != 0 and data.get("validation_size") is None:
        raise ValueError(
            "with trainer=fsdp all processes have to validate equally many batches: set data.validation_size to a "
            "number of samples, or trainer.limit_val_batches=0"
        )
