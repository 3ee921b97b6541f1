"""What can be said about a training's settings before anything is read or built."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from star.utils.devices import fast_precision

log = logging.getLogger(__name__)

SHARDED = "star.training.distributed.ShardedStrategy"


def check_trainer(config: Mapping[str, Any]) -> None:
    """Check what strategy and precision ask of the rest of the configuration.

    Raises:
        ValueError: for fp16 without a GPU, or what a model that is spread over processes can't do.

    """
    trainer = config["trainer"]
    if device_kind(trainer["accelerator"]) == "cpu" and str(trainer["precision"]) == "16-mixed":
        raise ValueError("trainer.precision=16-mixed needs a GPU: on a CPU take bf16-mixed or 32-true")
    check_spread(config)


def check_spread(config: Mapping[str, Any]) -> None:
    """Check what can't be spread over processes.

    Raises:
        ValueError: for trainer=fsdp with a tokenizer, fp16 or an optimiser in 8 bits.

    """
    if not is_spread(config):
        return
    if config["task"] == "tokenizer":
        raise ValueError("trainer=fsdp spreads transformers over processes; a tokenizer is trained with trainer=ddp")
    if str(config["trainer"]["precision"]) == "16-mixed":
        raise ValueError(
            "trainer=fsdp has no gradient scaler for trainer.precision=16-mixed: take 32-true, bf16-mixed on newer "
            "GPUs, or trainer=ddp"
        )
    if str(config["optim"]["_target_"]).endswith(".AdamW8bit"):
        raise ValueError("8-bit AdamW can't be sharded: take optim=adamw with trainer=fsdp, or trainer=ddp")


def check_validation(data: Any, config: Mapping[str, Any]) -> None:
    """Check that processes which share a model validate equally long.

    Args:
        data: the data module, pictures or a cache.
        config: resolved.

    Raises:
        ValueError: when they read their own shares of one pass, which may differ by a batch.

    """
    if not is_spread(config) or config["trainer"]["limit_val_batches"] == 0:
        return
    stream = getattr(data, "validation_stream", None)
    if stream is not None and stream.sources and data.validation_size is None:
        raise ValueError(
            "with trainer=fsdp all processes have to validate equally many batches: set data.validation_size to a "
            "number of samples, or trainer.limit_val_batches=0"
        )


def is_spread(config: Mapping[str, Any]) -> bool:
    """Whether trainer=fsdp is chosen."""
    strategy = config["trainer"]["strategy"]
    return isinstance(strategy, Mapping) and strategy.get("_target_") == SHARDED


def in_batches(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's settings with `val_check_interval` as Lightning counts it, in batches; ours counts steps."""
    every = trainer["val_check_interval"]
    if isinstance(every, int) and trainer["check_val_every_n_epoch"] is None:
        every *= trainer["accumulate_grad_batches"]
    return {**trainer, "val_check_interval": every}


def choose_precision(config: dict[str, Any]) -> None:
    """Replace `trainer.precision=auto` by what the device is fast in, and say so; warn of what it is slow in."""
    trainer = config["trainer"]
    fast, why = fast_precision(device_kind(trainer["accelerator"]))
    if trainer["precision"] == "auto":
        trainer["precision"] = fast
        log.info("trainer.precision=auto: %s, as %s", fast, why)
    elif fast == "32-true" and "16" in str(trainer["precision"]):
        log.warning("trainer.precision=%s will be slow: %s; auto takes %s", trainer["precision"], why, fast)


def device_kind(accelerator: str) -> str:
    """The kind of device that one of Lightning's accelerators means here: `cpu`, `cuda`, ..."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator == "auto":
        return "cpu" if found is None else found.type
    if accelerator == "gpu":
        return "cuda" if found is None else found.type
    return accelerator
