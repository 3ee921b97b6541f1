"""Loggers that need more than a constructor call."""

from __future__ import annotations

import netrc
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


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
