from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from star.metrics.fid import FrechetDistance, frechet_distance

EVAL = Path(__file__).parents[1] / "golden" / "eval"
GOLDEN = np.load(EVAL / "fid_kid.npz")
EXPECTED = json.loads((EVAL / "GOLD.json").read_text())["fid_kid.npz"]["expected"]


class Pixels(nn.Module):
    """The features are the pictures themselves."""

    name = "pixels"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : self.width].double() if len(images) else torch.zeros(0, self.width).double()


def metric(**arguments: Any) -> FrechetDistance:
    return FrechetDistance(features=Pixels(arguments.pop("width", 6)), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["full", "deficient"])
def test_arithmetic_is_pytorch_fids(case: str) -> None:
    real, fake = (torch.from_numpy(GOLDEN[f"{case}_{side}"]) for side in ("real", "fake"))
    ours = metric(width=real.shape[1])
    for name, features in (("reference", real), ("images", fake)):
        for part in features.split(17):
            ours.update_features(name, part)
    value = frechet_distance(ours.moments("images"), ours.moments("reference"))
    assert value == pytest.approx(EXPECTED[case]["fid_pytorch_fid"], rel=EXPECTED[case]["rtol"])
    assert value == pytest.approx(EXPECTED[case]["fid_torchmetrics_f64"], rel=EXPECTED[case]["rtol"])


@pytest.mark.filterwarnings("ignore")
def test_set_with_itself_is_zero_and_order_and_batches_do_not_matter() -> None:
    images, real = torch.rand(40, 3, 2, 2), torch.rand(50, 3, 2, 2)
    same, forwards, backwards = metric(), metric(), metric()
    for ours, reference, rows, size in (
        (same, images, range(40), 40),
        (forwards, real, range(40), 40),
        (backwards, real, range(39, -1, -1), 7),
    ):
        ours.update_reference(reference, [{}] * len(reference))
        order = list(rows)
        for part in (order[i : i + size] for i in range(0, 40, size)):
            ours.update(images[part], [{}] * len(part))
        ours.update(torch.zeros(0, 3, 1, 1), [])
    assert same.compute()["value"] == pytest.approx(0, abs=1e-9)
    assert forwards.compute()["value"] == pytest.approx(backwards.compute()["value"], rel=1e-10)
    assert forwards.compute()["num_reference"] == 50


@pytest.mark.filterwarnings("ignore")
def test_categories_add_up_to_the_whole() -> None:
    images, real = torch.rand(60, 3, 2, 2), torch.rand(60, 3, 2, 2)
    prompts = [{"category": "abc"[i % 3]} for i in range(60)]
    by_category, whole = metric(categories=("a", "b", "c")), metric()
    for ours in (by_category, whole):
        ours.update_reference(real, prompts)
        ours.update(images, prompts)
    found = by_category.compute()
    assert found["value"] == pytest.approx(whole.compute()["value"], rel=1e-9)
    assert int(by_category.images_count.sum()) == found["num_images"] == 60
    alone = metric()
    alone.update_reference(real[0::3], [{}] * 20)
    alone.update(images[0::3], [{}] * 20)
    assert found["categories"]["a"] == pytest.approx(alone.compute()["value"], rel=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_kept_statistics_give_the_same_value() -> None:
    prompts = [{"category": "ab"[i % 2]} for i in range(30)]
    images, real = torch.rand(30, 3, 2, 2), torch.rand(30, 3, 2, 2)
    first, second = metric(categories=("a", "b")), metric(categories=("a", "b"))
    first.update_reference(real, prompts)
    second.set_reference_arrays(first.reference_arrays())
    for ours in (first, second):
        ours.update(images, prompts)
    found, expected = first.compute(), second.compute()
    assert found.pop("categories") == pytest.approx(expected.pop("categories"))
    assert found == pytest.approx(expected)


def test_statistics_of_other_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"width 4 don't belong to pixels features, whose width is 6"):
        metric().set_reference_arrays({"mu": np.zeros(4), "sigma": np.eye(4)})
    with pytest.raises(ValueError, match="need the arrays mu and sigma, got a"):
        metric().set_reference_arrays({"a": np.zeros(4)})


def test_one_picture_is_not_enough() -> None:
    ours = metric()
    ours.update_reference(torch.rand(5, 3, 2, 2), [{}] * 5)
    ours.update(torch.rand(1, 3, 2, 2), [{}])
    with pytest.raises(ValueError, match="at least two pictures on each side, images has 1"):
        ours.compute()
