from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

from star.metrics.detectors import Instance, Mask2FormerDetector, color_of, instances, network_input
from star.metrics.geneval import COLORS
from star.metrics.geneval_rules import Detection

pytestmark = pytest.mark.filterwarnings("ignore")


class ColorReader:
    """A stand-in for CLIP: a picture's embedding says which colour most of it has, a text's which it names."""

    PALETTE: ClassVar = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0)}

    def embed_texts(self, texts: list[str], device: torch.device) -> torch.Tensor:
        rows = [[float(color in text) for color in COLORS] for text in texts]
        return torch.tensor(rows, dtype=torch.float64)

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((2, 3))
        rows = [[float(mean[0] @ torch.tensor(self.PALETTE.get(color, (0.0, 0.0, 0.0)))) for color in COLORS]]
        return torch.tensor(rows, dtype=torch.float64)


def test_input_has_the_short_side_of_800_and_is_padded() -> None:
    pixels, size = network_input(Image.new("RGB", (200, 100)))
    assert size == (667, 1333)
    assert pixels.shape == (1, 3, 672, 1344)
    assert network_input(Image.new("RGB", (100, 100)))[0].shape == (1, 3, 800, 800)


def test_boxes_come_from_masks_and_scores_from_class_and_mask() -> None:
    classes = torch.full((2, 81), -20.0)
    classes[0, 16], classes[1, 80] = 20.0, 20.0  # a dog, and nothing
    masks = torch.full((2, 8, 8), -30.0)
    masks[0, 2:6, 1:5] = 30.0
    found = instances(classes, masks, padded=(32, 32), resized=(32, 32), original=(16, 16))
    best = max(found, key=lambda one: one.detection.score)
    assert best.detection.label == "dog"
    assert best.detection.score > 0.9
    assert best.detection.box == pytest.approx((2, 4, 10, 12), abs=1)


def test_color_is_read_from_the_object_alone() -> None:
    image = Image.new("RGB", (20, 20), "red")
    image.paste("blue", (5, 5, 10, 10))
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[5:10, 5:10] = True
    clip: Any = ColorReader()
    inside = Instance(Detection("bus", (5, 5, 10, 10), 0.9), mask)
    assert color_of(image, inside, clip, torch.device("cpu")) == "blue"
    assert color_of(image, Instance(Detection("bus", (0, 0, 5, 5), 0.9), ~mask), clip, torch.device("cpu")) == "red"


def test_missing_weights_are_told(tmp_path: Path) -> None:
    from star.metrics.assets import AssetFile
    from star.metrics.clip import ClipModel

    clip = ClipModel({"embed_dim": 4, "vision_cfg": {"image_size": 32}}, AssetFile("clip_vit_l_14", tmp_path / "x"))
    messages = list(Mask2FormerDetector(weights=tmp_path, clip=clip).iterate_missing())
    assert "mask2former-swin-small-coco-instance" in messages[0]
    assert "ViT-L-14.pt" in messages[1]
