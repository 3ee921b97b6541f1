from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from star.metrics import cmmd as module
from star.metrics.cmmd import CMMD, cmmd

EVAL = Path(__file__).parents[1] / "golden" / "eval"
FACTS = json.loads((EVAL / "GOLD.json").read_text())["cmmd.npz"]
REFERENCE, DRAWN = (torch.from_numpy(np.load(EVAL / "cmmd.npz")[side]) for side in ("ref", "eval"))


class Pixels(nn.Module):
    name, width = "pixels", 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double() if len(images) else torch.zeros(0, 12).double()


def test_value_is_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    value = cmmd(REFERENCE, DRAWN)
    assert value == pytest.approx(FACTS["expected"]["reference_float64"], abs=FACTS["atol_f64"])
    assert value == pytest.approx(FACTS["expected"]["reference_float32"], abs=FACTS["atol_f32"])
    monkeypatch.setattr(module, "_ROWS", 7)
    assert cmmd(REFERENCE, DRAWN) == pytest.approx(value, abs=1e-9)


def test_set_with_itself_is_zero_and_sides_are_needed() -> None:
    images = torch.rand(9, 3, 2, 2)
    metric = CMMD(features=Pixels())  # type: ignore[arg-type]
    metric.update(images, [{}] * 9)
    metric.update_reference(torch.zeros(0, 3, 1, 1), [])
    with pytest.raises(ValueError, match="cmmd needs pictures on both sides, got 9 and 0"):
        metric.compute()
    metric.update_reference(images, [{}] * 9)
    assert metric.compute()["value"] == pytest.approx(0, abs=1e-9)


def test_statistics_of_a_fid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs the reference's features.*got the arrays mu"):
        CMMD(features=Pixels()).set_reference_arrays({"mu": np.zeros(3)})  # type: ignore[arg-type]
