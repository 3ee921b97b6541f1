from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from star.metrics.kid import KernelDistance, kernel_distance, subset_distances

EVAL = Path(__file__).parents[1] / "golden" / "eval"
EXPECTED = json.loads((EVAL / "GOLD.json").read_text())["fid_kid.npz"]["expected"]["kid"]
REAL, FAKE = (torch.from_numpy(np.load(EVAL / "fid_kid.npz")[f"kid_{side}"]) for side in ("real", "fake"))


class Pixels(nn.Module):
    name, width = "pixels", 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double() if len(images) else torch.zeros(0, 12).double()


def test_one_estimate_is_the_reference() -> None:
    assert kernel_distance(FAKE, REAL) == pytest.approx(EXPECTED["full_unbiased_f64"], rel=1e-9)
    assert kernel_distance(FAKE, REAL) == pytest.approx(EXPECTED["torch_fidelity_full"], rel=1e-5)


def test_subsets_are_torch_fidelitys() -> None:
    values = torch.tensor(subset_distances(FAKE, REAL, 100, 10))
    expected = EXPECTED["torch_fidelity_subsets10_size100"]
    assert float(values.mean()) == pytest.approx(expected["kernel_inception_distance_mean"], abs=2e-6)
    assert float(values.std(correction=0)) == pytest.approx(expected["kernel_inception_distance_std"], abs=2e-6)


def test_metric_keeps_both_sides_and_wants_enough_pictures() -> None:
    images, real = torch.rand(12, 3, 2, 2), torch.rand(14, 3, 2, 2)
    whole = KernelDistance(features=Pixels(), subset_size=None)  # type: ignore[arg-type]
    whole.update_reference(real, [{}] * 14)
    for part in images.split(5):
        whole.update(part, [{}] * len(part))
    assert whole.compute()["value"] == pytest.approx(kernel_distance(images.flatten(1), real.flatten(1)))
    kept = KernelDistance(features=Pixels(), subset_size=20)  # type: ignore[arg-type]
    kept.set_reference_arrays(whole.reference_arrays())
    kept.update(images, [{}] * 12)
    with pytest.raises(ValueError, match=r"at least 20 pictures on each side, got 12 and 14: .*subset_size=null"):
        kept.compute()


def test_subsets_do_not_depend_on_how_ranks_share_the_pictures() -> None:
    images, real = torch.rand(12, 3, 2, 2), torch.rand(14, 3, 2, 2)
    values = []
    for world in (1, 2):
        # what the processes of a command see, one after the other, is how their states are gathered
        metric = KernelDistance(features=Pixels(), subset_size=4, subsets=5)  # type: ignore[arg-type]
        for rank in range(world):
            metric.update(images[rank::world], [{"index": i} for i in range(rank, 12, world)])
            metric.update_reference(real[rank::world], [{"index": i} for i in range(rank, 14, world)])
        kept = KernelDistance(features=Pixels(), subset_size=4, subsets=5)  # type: ignore[arg-type]
        kept.set_reference_arrays(metric.reference_arrays())
        kept.update(images, [{"index": i} for i in range(12)])
        values += [metric.compute()["value"], kept.compute()["value"]]
    assert values == pytest.approx([values[0]] * 4, rel=1e-12)


def test_subsets_that_say_nothing_are_refused() -> None:
    for settings in ({"subset_size": 1}, {"subset_size": 0}, {"subsets": 0}):
        with pytest.raises(ValueError, match="KID needs subsets of at least 2 pictures"):
            KernelDistance(features=Pixels(), **settings)  # type: ignore[arg-type]
