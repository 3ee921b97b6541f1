from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from star.metrics.assets import AssetFile
from star.metrics.features import (
    CHOICES,
    OFFLINE,
    ClipFeatures,
    EffNetFeatures,
    FeatureNetwork,
    InceptionFeatures,
    choose,
)


class Fake(InceptionFeatures):
    """The real preparation before a network that averages."""

    def load(self, path: Path) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def file(tmp_path: Path) -> AssetFile:
    path = tmp_path / "weights.pth"
    torch.save({"Mixed_7c.branch_pool.conv.weight": torch.zeros(1)}, path)
    return AssetFile("inception_fid", path, verify_hash=False)


def test_features_are_float64_and_weights_wait_until_needed(file: AssetFile) -> None:
    features = Fake("pytorch_fid", file)
    assert not features._loaded
    assert features(torch.rand(2, 3, 16, 16)).dtype == torch.float64
    assert features._loaded
    assert features(torch.zeros(0, 3, 1, 1)).shape == (0, 2048)
    assert not features.state_dict()


def test_other_features_or_weights_are_deviations(file: AssetFile) -> None:
    network = choose("pytorch_fid", choice="torch_fidelity", weights=file.given, verify_hash=False)
    assert network.name == "torch_fidelity"
    assert [text.split(" ")[0] for text in network.deviations()] == ["torch_fidelity", "weights.pth"]
    assert network.facts()["weights_verified"] is False


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_says_what_it_needs(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("STAR_ASSETS", raising=False)
    network = choose("pytorch_fid", choice=name, needed_by="metric=x")
    kinds = (InceptionFeatures, EffNetFeatures, ClipFeatures)
    assert isinstance(network, kinds)
    messages = list(network.iterate_missing())
    assert messages == [] or "metric=x" in messages[0]


def test_no_substitute_is_offered_where_none_would_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("STAR_ASSETS", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    offers = [OFFLINE in next(choose("torch_fidelity", hint=hint).iterate_missing()) for hint in (None, "")]
    assert offers == [True, False]


def test_unknown_choice() -> None:
    with pytest.raises(ValueError, match="metric.features is one of pytorch_fid"):
        choose("resnet")


def test_effnet_input_is_antialiased_only_downwards(file: AssetFile) -> None:
    features = EffNetFeatures("effnet_lite0_b320@128", file)
    same = torch.rand(1, 3, 128, 128).mul(255).round().div(255)
    assert torch.allclose(features.prepare(same), same * 2 - 1, atol=1e-6)
    for side in (64, 256):
        prepared: Tensor = features.prepare(torch.rand(1, 3, side, side))
        assert prepared.shape == (1, 3, 128, 128)


def test_base_class_knows_no_network(file: AssetFile) -> None:
    network = FeatureNetwork("none", 4, file)
    with pytest.raises(NotImplementedError):
        network(torch.rand(1, 3, 4, 4))
