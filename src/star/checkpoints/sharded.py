"""Checkpoints in pieces: a folder to which each process wrote its part of weights and optimiser states."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# Everything besides weights and optimiser states. Written last, and named as Lightning names it.
META = "meta.pt"


def is_sharded(path: str | Path) -> bool:
    """Whether a path is such a folder, and complete."""
    return (Path(path) / META).is_file() and (Path(path) / ".metadata").is_file()


def read_meta(folder: Path) -> dict[str, Any]:
    """Everything but weights and optimiser states: configuration, step, loops, ..."""
    held: dict[str, Any] = torch.load(folder / META, map_location="cpu", weights_only=True)
    return held


def numbered(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's state with parameters by number, as optimisers themselves write it, from one by name."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    return _renamed(state, numbers)


def named(state: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """An optimiser's state with parameters by name, from one by number.

    Args:
        state: groups in the order of `names`.
        names: of the optimiser's parameters, group after group.

    Raises:
        ValueError: when the state is of another number of parameters.

    """
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    if len(numbers) != len(names):
        raise ValueError(
            f"the checkpoint's optimiser has {len(numbers)} parameters, this run's {len(names)}: "
            "model or optimiser differ"
        )
    return _renamed(state, dict(zip(numbers, names, strict=True)))


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    groups = [{**group, "params": [names[key] for key in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[key]: value for key, value in state["state"].items()}, "param_groups": groups}
