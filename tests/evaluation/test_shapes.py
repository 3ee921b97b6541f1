from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star.evaluation import shapes
from star.evaluation.context import Context
from star.evaluation.shapes import ShapesItem
from star.metrics.shapes import TASKS, load_suite, render_suite
from star.utils.png import write_png as save

Settings = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def short_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts of every task, so that a test takes a second."""

    def short(name: str) -> list[dict[str, Any]]:
        suite = load_suite(name)
        chosen = [record for task in TASKS for record in [r for r in suite if r["tag"] == task][:2]]
        return [{**record, "index": i} for i, record in enumerate(chosen)]

    monkeypatch.setattr(shapes, "load_suite", short)


def test_true_pictures_are_right_and_shuffled_captions_wrong(tmp_path: Path, settings: Settings) -> None:
    folder = tmp_path / "true"
    item = ShapesItem(num_images=2, ceiling=False)
    for images, record in render_suite([*item.suite, *item.extra], num_images=2, size=64):
        for j, image in enumerate(images):
            save(image, folder / f"{record['index'] * 2 + j:05d}.png", {})
    result = item.run(Context(settings(f"images={folder}")))
    assert result.value == result.results["renders"]["value"] == 1.0
    assert result.results["seen"]["value"] == 1.0
    assert set(result.results["tasks"]) == set(TASKS)
    assert result.results["shuffled"]["value"] < 0.4
    assert result.interval == [1.0, 1.0]
    assert result.count == 24
    assert "ceiling" not in result.results


def test_model_draws_once_and_the_ceiling_is_judged(tiny_checkpoint: Path, settings: Settings) -> None:
    context = Context(settings(f"ckpt={tiny_checkpoint}", "batch=16"))
    item = ShapesItem(num_images=2)
    assert list(item.missing(context)) == []
    first = item.run(context)
    files = sorted(Path(first.facts["pictures"]).glob("*.png"))
    # colours and color_attr alone differ between the suites
    assert len(files) == (12 + 4) * 2
    times = [file.stat().st_mtime_ns for file in files]
    second = ShapesItem(num_images=2).run(Context(settings(f"ckpt={tiny_checkpoint}", "batch=16")))
    assert second.results == first.results
    assert [file.stat().st_mtime_ns for file in files] == times
    assert first.results["ceiling"]["num_images"] == 24


def test_without_a_model_or_pictures_it_says_so(settings: Settings) -> None:
    assert "set ckpt=RUN_OR_FILE" in next(ShapesItem().missing(Context(settings())))
