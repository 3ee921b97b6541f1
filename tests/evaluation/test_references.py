from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from star.evaluation.context import Context
from star.evaluation.pictures import Picture
from star.evaluation.references import Fit, Reference, pictures_of_shards, read_arrays
from star.metrics.fid import FrechetDistance

Settings = Callable[..., dict[str, Any]]


class Pixels(nn.Module):
    name, width = "pixels", 3

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)).double() if len(images) else torch.zeros(0, 3).double()

    def facts(self) -> dict[str, Any]:
        return {"features": "pixels"}


def metric() -> FrechetDistance:
    return FrechetDistance(features=Pixels())  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "real"
    path.mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path / f"{i}.png")
    return path


@pytest.mark.parametrize("size", [(30, 20), (20, 30), (16, 16), (200, 40)])
def test_fit_is_torchvisions_resize_and_crop(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = CenterCrop(16)(Resize(16, InterpolationMode.BILINEAR)(image))
    assert np.array_equal(np.asarray(Fit()(image, (16, 16))), np.asarray(expected))


def test_fit_words() -> None:
    assert Fit(size=None).sized(30, 20) is None
    assert Fit().sized(30, 20) == (30, 20)
    assert Fit(size=256).sized(30, 20) == (256, 256)
    assert Fit(crop="random")(Image.new("RGB", (40, 20)), (10, 10)).size == (10, 10)
    for wrong in ({"filter": "cubic"}, {"crop": "left"}, {"size": "huge"}):
        with pytest.raises(ValueError, match="filter is one of|size is a number"):
            Fit(**wrong)


def test_reference_is_read_once_and_kept(folder: Path, tmp_path: Path, settings: Settings) -> None:
    context = Context(settings())
    reference = Reference(source=str(folder), fit=Fit(size=None), cache=tmp_path / "cache")
    drawn = Picture(str(folder / "0.png"))
    first, second = metric(), metric()
    reference.show(first, context, drawn)
    (kept,) = (tmp_path / "cache").iterdir()
    reference.show(second, context, drawn)
    assert int(second.reference_count.sum()) == 0
    for mine, theirs in zip(first.moments("reference"), second.moments("reference"), strict=True):
        assert torch.allclose(mine, theirs)
    Image.new("RGB", (30, 20)).save(folder / "6.png")
    reference.show(metric(), context, drawn)
    assert len(list(kept.parent.iterdir())) == 2


def test_statistics_and_shards_are_references(shapes_shards: Path, tmp_path: Path, settings: Settings) -> None:
    context = Context(settings())
    np.savez(tmp_path / "known.npz", mu=np.zeros(3), sigma=np.eye(3))
    ours = metric()
    Reference(source=str(tmp_path / "known.npz")).show(ours, context, Picture("nothing"))
    assert torch.equal(ours.moments("reference")[1], torch.eye(3).double())
    reference = Reference(source=str(shapes_shards), fit=Fit(size=None))
    assert reference.has_captions
    pictures = list(reference.pictures(context))
    assert len(pictures) == 24
    assert pictures[0].record["prompt"]
    assert pictures[0].open().size == (32, 32)
    assert len(list(pictures_of_shards(f"{shapes_shards}/*.tar", 5))) == 5


def test_what_is_missing_is_told(tmp_path: Path, settings: Settings) -> None:
    context = Context(settings())
    assert "set reference=DIR" in next(Reference().missing(context))
    assert "reference=" in next(Reference(source=str(tmp_path / "absent.tar")).missing(context))
    assert list(Reference(source=str(tmp_path)).missing(context)) == []
    assert "isn't there: give a folder" in next(Reference(source=str(tmp_path / "absent")).missing(context))
    (tmp_path / "damaged.npz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"damaged\.npz is no file of arrays"):
        read_arrays(tmp_path / "damaged.npz")
