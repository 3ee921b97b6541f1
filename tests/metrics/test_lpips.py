from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from star.metrics.lpips import PerceptualDistance, build_lpips

EVAL = Path(__file__).parents[1] / "golden" / "eval"
FACTS = json.loads((EVAL / "GOLD.json").read_text())["recon.npz"]
GOLDEN = np.load(EVAL / "recon.npz")
# torchvision's AlexNet: the slices that LPIPS cuts it into have the same convolutions in the same order
SHAPES = {
    "slice1.0": (64, 3, 11, 11),
    "slice2.3": (192, 64, 5, 5),
    "slice3.6": (384, 192, 3, 3),
    "slice4.8": (256, 384, 3, 3),
    "slice5.10": (256, 256, 3, 3),
}
pytestmark = pytest.mark.filterwarnings("ignore")


def backbone() -> dict[str, torch.Tensor]:
    """The golden file's seeded weights, under torchvision's names."""
    state = {}
    for name, shape in SHAPES.items():
        for part, size in (("weight", shape), ("bias", shape[:1])):
            values = np.random.default_rng(zlib.crc32(f"{name}.{part}".encode())).standard_normal(size)
            scale = math.sqrt(2 / math.prod(size[1:])) if len(size) > 1 else 0.01
            state[f"features.{name.split('.')[1]}.{part}"] = torch.from_numpy(values.astype(np.float32)) * scale
    return state


@pytest.fixture
def metric(tmp_path: Path) -> PerceptualDistance:
    torch.save(backbone(), tmp_path / "alexnet.pth")
    return PerceptualDistance(weights=tmp_path / "alexnet.pth", verify_hash=False)


def test_distances_are_those_of_the_published_package(metric: PerceptualDistance) -> None:
    images, target = (torch.from_numpy(GOLDEN[name]).float() / 255 for name in ("recon", "target"))
    for part in (slice(0, 1), slice(1, None)):
        metric.update(images[part], target[part])
    metric.update(torch.zeros(0, 3, 1, 1), torch.zeros(0, 3, 1, 1))
    key = next(name for name in GOLDEN.files if "lpips" in name)
    np.testing.assert_allclose(torch.cat(metric.distances).numpy(), GOLDEN[key], rtol=0, atol=FACTS["lpips_atol"])
    assert metric.compute()["num_images"] == len(images)


def test_small_pictures_and_other_files_are_refused(metric: PerceptualDistance) -> None:
    with pytest.raises(ValueError, match="needs 32 pixels a side"):
        metric.update(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="file is not torchvision's alex network"):
        build_lpips("alex", [("features.0.weight", torch.zeros(1))], source="file")
    with pytest.raises(ValueError, match="LPIPS is computed with alex or vgg"):
        PerceptualDistance(network="squeeze")
