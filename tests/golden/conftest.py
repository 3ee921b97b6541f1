from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from star.types import Condition

HERE = Path(__file__).parent


@lru_cache
def _tensors(name: str) -> dict[str, Tensor]:
    loaded = load_file(HERE / f"{name}.safetensors")
    return {key: value.float() if value.is_floating_point() else value for key, value in loaded.items()}


@lru_cache
def _facts(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text())


class Golden:
    """The recorded cases; README.md says what each holds."""

    def __call__(self, name: str) -> dict[str, Tensor]:
        """A case's tensors; weights are stored narrow and mean exactly these numbers in fp32."""
        return dict(_tensors(name))

    def path(self, name: str) -> Path:
        return HERE / name

    def facts(self, name: str) -> dict[str, Any]:
        """What its json says."""
        return _facts(name)

    def texts(self, case: dict[str, Tensor], rows: slice = slice(None)) -> Condition:
        """The condition that a case recorded, all rows or the given ones."""
        return Condition(case["text_pool"][rows], case["text_hidden"][rows], case["text_mask"][rows].bool())

    def close(self, actual: Tensor, expected: Tensor, atol: float) -> None:
        """Equal within an absolute tolerance, at every element."""
        torch.testing.assert_close(actual, expected, rtol=0.0, atol=atol)


@pytest.fixture
def golden() -> Golden:
    return Golden()
