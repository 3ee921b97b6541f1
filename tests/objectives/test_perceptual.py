from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchmetrics.functional.image.lpips import _LPIPS

from star.objectives.perceptual import BACKBONES, LPIPS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random AlexNet features under the published name; the classifier, which nobody needs, is a stub."""
    folder = tmp_path_factory.mktemp("weights")
    state = _features("alexnet").state_dict()
    torch.save({f"features.{name}": value for name, value in state.items()}, folder / BACKBONES["alexnet"].file)
    return folder


def _features(network: str) -> nn.Sequential:
    with torch.device("meta"):
        features = getattr(torchvision.models, network)(weights=None).features
    features = features.to_empty(device="cpu")
    for parameter in features.parameters():
        nn.init.normal_(parameter, std=0.05)
    return features


def test_it_is_the_published_distance(folder: Path) -> None:
    ours = LPIPS(folder, network="alexnet")
    with torch.device("meta"):
        backbone = torchvision.models.alexnet(weights=None)
    theirs = _LPIPS.__new__(_LPIPS)
    original = torchvision.models.alexnet
    try:  # the reference builds a whole AlexNet, classifier and all: hand it the features alone
        torchvision.models.alexnet = lambda weights: backbone
        backbone.features = _features("alexnet")
        theirs.__init__(net="alex", pnet_rand=True)
    finally:
        torchvision.models.alexnet = original
    state = torch.load(folder / BACKBONES["alexnet"].file, weights_only=True)
    for name in theirs.net.state_dict():
        _, layer, kind = name.split(".")
        dict(theirs.net.named_parameters())[name].data.copy_(state[f"features.{layer}.{kind}"])
    images, others = (torch.rand(2, 3, 64, 64) * 2 - 1 for _ in range(2))
    torch.testing.assert_close(ours(images, others), theirs(images, others).flatten())


def test_images_are_no_distance_from_themselves_and_gradients_reach_both(folder: Path) -> None:
    lpips = LPIPS(folder, network="alexnet")
    images = torch.rand(1, 3, 48, 48) * 2 - 1
    assert lpips(images, images).item() == 0
    others = (images + 0.1 * torch.randn_like(images)).requires_grad_()
    lpips(images, others).sum().backward()
    assert others.grad.abs().sum() > 0


def test_it_is_neither_trained_nor_saved(folder: Path) -> None:
    lpips = LPIPS(folder, network="alexnet")
    assert not list(lpips.parameters())
    assert not lpips.state_dict()


def test_missing_weights_are_named_with_source_and_key(tmp_path: Path) -> None:
    message = (
        r"vgg16-397923af.pth from https://download.pytorch.org/.* set tokenizer_training.objective.perceptual.weights"
    )
    with pytest.raises(FileNotFoundError, match=message):
        LPIPS(tmp_path)


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="alexnet"):
        LPIPS(folder, network="resnet")
    with pytest.raises(ValueError, match="48 pixels"):
        LPIPS(folder, network="alexnet")(*torch.zeros(2, 1, 3, 47, 64))
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / BACKBONES["alexnet"].file)
    with pytest.raises(ValueError, match="torchvision's weights of alexnet"):
        LPIPS(tmp_path, network="alexnet")


def test_vgg_is_compared_before_each_pooling() -> None:
    """relu1_2, 2_2, 3_3, 4_3 and 5_3 of the paper."""
    with torch.device("meta"):
        layers = list(torchvision.models.vgg16(weights=None).features)
    before = [i for i, layer in enumerate(layers[1:]) if isinstance(layer, nn.MaxPool2d)]
    assert BACKBONES["vgg16"].taps == tuple(before)
    assert all(isinstance(layers[tap], nn.ReLU) for tap in before)
