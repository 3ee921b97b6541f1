from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from star.metrics.given_scores import GivenScores


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"a_0.png": 1.0, "a_1.png": 3.0, "b_0.png": 6.0}))
    return path


@pytest.mark.parametrize(("by_prompt", "value"), [(False, 10 / 3), (True, 4.0)])
def test_mean_over_pictures_or_prompts(file: Path, by_prompt: bool, value: float) -> None:
    metric = GivenScores(file=file, name="image_reward", by_prompt=by_prompt)
    prompts = [{"file": "a_0.png", "index": 0}, {"file": "a_1.png", "index": 0}, {"file": "b_0.png", "index": 1}]
    metric.update(torch.zeros(2, 3, 4, 4), prompts[:2])
    metric.update(torch.zeros(1, 3, 4, 4), prompts[2:])
    found = metric.compute()
    assert found["value"] == pytest.approx(value)
    assert found["interval"] == ([2.0, 6.0] if by_prompt else pytest.approx([1.0, 6.0], abs=1.0))


def test_missing_scores_are_named(file: Path) -> None:
    metric = GivenScores(file=file, name="image_reward")
    with pytest.raises(ValueError, match="has no score of c.png"):
        metric.update(torch.zeros(1, 3, 4, 4), [{"file": "c.png", "index": 0}])
    assert "by its own package: do it" in next(GivenScores(file=None, name="x", hint="do it").iterate_missing())
    assert "no file" in next(GivenScores(file="absent.json", name="x").iterate_missing())
    file.write_text("[1]")
    with pytest.raises(ValueError, match="is no JSON object of path and score"):
        GivenScores(file=file, name="x").scores_of_file()
