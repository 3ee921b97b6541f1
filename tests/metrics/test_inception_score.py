from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from star.metrics.inception_score import InceptionScore, inception_scores

EVAL = Path(__file__).parents[1] / "golden" / "eval"
EXPECTED = json.loads((EVAL / "GOLD.json").read_text())["inception_score.npz"]["expected"]
LOGITS = torch.from_numpy(np.load(EVAL / "inception_score.npz")["logits"])


@pytest.mark.parametrize(
    ("arguments", "case"),
    [({}, "torch_fidelity_splits10_shuffle2020"), ({"shuffle_seed": None}, "torch_fidelity_splits10_noshuffle")],
)
def test_scores_are_torch_fidelitys(arguments: dict[str, None], case: str) -> None:
    scores = inception_scores(LOGITS, **arguments)
    assert float(scores.mean()) == pytest.approx(EXPECTED[case]["inception_score_mean"], rel=1e-9)
    assert float(scores.std(correction=0)) == pytest.approx(EXPECTED[case]["inception_score_std"], rel=1e-9)


def test_chunks_are_adms() -> None:
    scores = inception_scores(LOGITS, split_size=100, shuffle_seed=None)
    assert float(scores.mean()) == pytest.approx(EXPECTED["adm_split_size_100_mean"], abs=1e-6)


class Classifier(nn.Module):
    name = "pixels"

    def logits(self, images: Tensor) -> Tensor:
        return images.flatten(1).double() * 5 if len(images) else torch.zeros(0, 12).double()


def test_pictures_keep_their_places_however_they_arrive() -> None:
    images = torch.rand(30, 3, 2, 2)
    values = []
    for order in (range(30), [*range(0, 30, 2), *range(1, 30, 2)]):
        metric = InceptionScore(features=Classifier(), splits=3)  # type: ignore[arg-type]
        for i in order:
            metric.update(images[i : i + 1], [{"place": i}])
        metric.update(torch.zeros(0, 3, 1, 1), [])
        values.append(metric.compute()["value"])
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_too_few_pictures() -> None:
    metric = InceptionScore(features=Classifier())  # type: ignore[arg-type]
    metric.update(torch.rand(4, 3, 2, 2), [{}] * 4)
    with pytest.raises(ValueError, match="10 splits needs as many pictures, got 4"):
        metric.compute()


def test_splits_that_say_nothing_are_refused() -> None:
    for settings in ({"splits": 0}, {"split_size": 0}):
        with pytest.raises(ValueError, match="at least one split of one picture"):
            InceptionScore(features=Classifier(), **settings)  # type: ignore[arg-type]
