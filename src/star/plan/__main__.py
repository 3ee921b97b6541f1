"""`python -m star.plan stage=1024 model=d30 trainer=fsdp devices=64 gpu=a100`, from the project's root."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from star.plan.estimate import estimate
from star.plan.memory import Spread
from star.plan.models import build
from star.plan.request import HELP, Request, composed, parse
from star.plan.table import show
from star.training.blocks import BlockExecution
from star.training.checks import check_spread
from star.utils.command import run_command
from star.utils.devices import DEVICES, Device, fast_precision, this_device


def plan(request: Request) -> dict[str, Any]:
    """Everything that is known beforehand, by name.

    Raises:
        ValueError: for a configuration that can't be.

    """
    config = composed(request)
    device = device_of(request.gpu)
    if config["trainer"]["precision"] == "auto":
        config["trainer"]["precision"] = device.precision if request.gpu != "cpu" else fast_precision("cpu")[0]
    check(config, images=request.number("images"))
    spread = spread_of(config, request.number("devices") or 1)
    found = estimate(build(config), config, spread, device, mfu=float(request.mfu), images=request.number("images"))
    asked = {"stage": config["stage"], "gpu": device.name, "devices": spread.devices, "strategy": str(spread)}
    return asked | {"precision": config["trainer"]["precision"]} | found


def check(config: dict[str, Any], *, images: int | None) -> None:
    """Check what a training would refuse, too, as far as a plan depends on it.

    Raises:
        ValueError: for counts below 1, and what can't be recomputed or spread.

    """
    trainer = config["trainer"]
    counts = {
        "batch_size": config["batch_size"],
        "trainer.accumulate_grad_batches": trainer["accumulate_grad_batches"],
        "trainer.max_steps": trainer["max_steps"] if images is None else 1,
    }
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is a whole number of at least 1, got {value!r}")
    BlockExecution(config["activation_checkpointing"])
    check_spread(config)


def device_of(name: str) -> Device:
    """A device by its name; `cpu` is this machine's."""
    return this_device(torch.device("cpu")) if name == "cpu" else DEVICES[name]


def spread_of(config: dict[str, Any], devices: int) -> Spread:
    """How the trainer's strategy spreads the model.

    Raises:
        ValueError: when the devices can't be divided into its groups.

    """
    strategy = config["trainer"]["strategy"]
    target = str(strategy.get("_target_", "") if isinstance(strategy, dict) else strategy)
    name = target.rpartition(".")[2].lower()
    if "shard" in name or "fsdp" in name:
        replicas = int(strategy.get("replicas", 1)) if isinstance(strategy, dict) else 1
        if devices % replicas:
            raise ValueError(f"{devices} devices can't be divided into {replicas} equal groups")
        return Spread("fsdp", devices, devices // replicas)
    if devices == 1:
        return Spread("single", 1)
    views = isinstance(strategy, dict) and bool(strategy.get("gradient_as_bucket_view"))
    return Spread("ddp", devices, buckets=not views)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    run_command(HELP, _run, arguments, bare=True)


def _run(given: Sequence[str]) -> None:
    request = parse(given)
    found = plan(request)
    if request.format == "json":
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        show(found)


if __name__ == "__main__":
    main()
