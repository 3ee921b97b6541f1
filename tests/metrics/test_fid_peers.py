"""The whole path from picture files to a distance, beside the packages whose numbers papers quote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from star.evaluation.pictures import Picture, batches
from star.metrics.assets import AssetFile
from star.metrics.features import InceptionFeatures
from star.metrics.fid import FrechetDistance, frechet_distance
from star.metrics.inception import Inception

pytorch_fid = pytest.importorskip("pytorch_fid.fid_score")
torch_fidelity = pytest.importorskip("torch_fidelity")

# pytorch-fid calls a square root in a way that SciPy will drop, and of matrices that are singular by design here
pytestmark = pytest.mark.filterwarnings("ignore:The `disp` argument", "ignore:Matrix is singular")

WIDTH = 256  # of 2,048: a matrix root of all of them takes half a minute


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like the published one, with random numbers that keep features apart."""
    torch.manual_seed(0)
    network = Inception()
    for name, parameter in network.named_parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
        elif "bn" in name:
            nn.init.uniform_(parameter, 0.5, 1.5) if name.endswith("weight") else nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Two sets of pictures, smooth with some grain, wider than high."""
    random = np.random.default_rng(0)
    sets = []
    for name, spread in (("drawn", 255), ("real", 160)):
        folder = tmp_path_factory.mktemp(name)
        for i in range(10):
            coarse = Image.fromarray(random.integers(0, spread, (7, 9, 3), dtype=np.uint8)).resize((96, 72))
            grain = random.integers(-9, 10, (72, 96, 3))
            Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        sets.append(sorted(str(file) for file in folder.iterdir()))
    return sets


class Given(nn.Module):
    """Stands for a network whose features are known."""

    name, width = "given", WIDTH


def ours(protocol: str, weights: Path, files: list[str]) -> np.ndarray:
    features = InceptionFeatures(protocol, AssetFile("inception_fid", str(weights), False))
    return torch.cat([features(images) for images, _ in batches([Picture(Path(f)) for f in files], 8)]).numpy()


def distance(drawn: np.ndarray, real: np.ndarray) -> float:
    metric = FrechetDistance(features=Given())  # type: ignore[arg-type]
    for name, features in (("images", drawn), ("reference", real)):
        metric.update_features(name, torch.from_numpy(features[:, :WIDTH]))
    return float(frechet_distance(metric.moments("images"), metric.moments("reference")))


def of_pytorch_fid(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], np.ndarray]:
    from pytorch_fid import inception

    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: torch.load(weights))
    model = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
    return lambda files: pytorch_fid.get_activations(files, model, batch_size=5, num_workers=0)


def of_torch_fidelity(weights: Path) -> Callable[[list[str]], np.ndarray]:
    from torch_fidelity.datasets import ImagesPathDataset
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    model = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(weights)).eval()

    @torch.no_grad()
    def features(files: list[str]) -> np.ndarray:
        return model(torch.stack(list(ImagesPathDataset(files))))[0].numpy()

    return features


def test_pytorch_fid(weights: Path, folders: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, real = map(of_pytorch_fid(weights, monkeypatch), folders)
    statistics = [(part.mean(0), np.cov(part, rowvar=False)) for part in (drawn[:, :WIDTH], real[:, :WIDTH])]
    expected = pytorch_fid.calculate_frechet_distance(*statistics[0], *statistics[1])
    found = [ours("pytorch_fid", weights, files) for files in folders]
    assert np.allclose(found[0], drawn, rtol=1e-3, atol=1e-4 * np.abs(drawn).max())
    assert distance(*found) == pytest.approx(expected, rel=1e-3)
    other = [ours("torch_fidelity", weights, files) for files in folders]
    assert distance(*other) != pytest.approx(expected, rel=1e-3)  # a protocol is more than a name


def test_torch_fidelity(weights: Path, folders: list[list[str]]) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    drawn, real = map(of_torch_fidelity(weights), folders)
    statistics = [fid_features_to_statistics(torch.from_numpy(part[:, :WIDTH])) for part in (drawn, real)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    found = [ours("torch_fidelity", weights, files) for files in folders]
    assert np.allclose(found[0], drawn, rtol=1e-3, atol=1e-4 * np.abs(drawn).max())
    assert distance(*found) == pytest.approx(expected, rel=1e-3)
