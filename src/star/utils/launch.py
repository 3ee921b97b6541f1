"""How the processes of a training come to be: alone, by Lightning, torchrun, srun or submitit."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Any

from hydra.types import RunMode

_PORTS = range(20000, 40000)


def prepare_launch(hydra_config: Any, trainer: Any, environment: MutableMapping[str, str] = os.environ) -> None:
    """Make submitit's tasks known as ranks, and refuse launches whose processes wouldn't find each other.

    Args:
        hydra_config: Hydra's own configuration of this job.
        trainer: the configuration's `trainer` node.
        environment: of this process; submitit's ranks are written into it.

    Raises:
        ValueError: for ranks without a common run directory, or a sweep whose jobs would start ranks of their own.

    """
    join_submitit(environment)
    from_outside = started_from_outside(environment)
    sweep = hydra_config.mode == RunMode.MULTIRUN
    named = any(override.startswith("paths.run_dir=") for override in hydra_config.overrides.task)
    if from_outside and not sweep and not named:
        raise ValueError(
            "several processes were started from outside (torchrun, srun): tell them all where the run is, "
            "paths.run_dir=DIR"
        )
    if sweep and not from_outside and trainer.devices != 1:
        raise ValueError(
            f"a sweep runs trainings of one process, or of tasks that its launcher starts, but trainer.devices is "
            f"{trainer.devices}: set hydra/launcher=submitit_local (or slurm) and "
            f"hydra.launcher.tasks_per_node={trainer.devices}"
        )


def join_submitit(environment: MutableMapping[str, str]) -> None:
    """Give the tasks of a local submitit job the variables that ranks are known by; under SLURM, srun's are there."""
    if environment.get("SUBMITIT_EXECUTOR") != "local" or int(environment.get("SUBMITIT_LOCAL_NTASKS", "1")) == 1:
        return
    job = int(environment["SUBMITIT_LOCAL_JOB_ID"])  # the number of a process of this machine
    environment.setdefault("MASTER_ADDR", "127.0.0.1")
    environment.setdefault("MASTER_PORT", str(_PORTS[job % len(_PORTS)]))
    environment["WORLD_SIZE"] = environment["SUBMITIT_LOCAL_NTASKS"]
    environment["RANK"] = environment["SUBMITIT_LOCAL_GLOBALID"]
    environment["LOCAL_RANK"] = environment["SUBMITIT_LOCAL_LOCALID"]


def started_from_outside(environment: MutableMapping[str, str]) -> bool:
    """Whether this is one of several processes that another program started; not those that Lightning starts."""
    if environment.get("SUBMITIT_EXECUTOR") == "local":
        return int(environment.get("SUBMITIT_LOCAL_NTASKS", "1")) > 1
    if "TORCHELASTIC_RUN_ID" in environment:
        return int(environment.get("WORLD_SIZE", "1")) > 1
    interactive = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return not interactive and int(environment.get("SLURM_NTASKS", "1")) > 1
