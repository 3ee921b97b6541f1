from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from star.evaluation.context import Context
from star.evaluation.dpg import DPGItem, grid

Settings = Callable[..., dict[str, Any]]


class Yes:
    """Answers every question with yes, but those about colour."""

    name = "yes"

    def __call__(self, image: Image.Image, question: str) -> str:
        return "no" if "black" in question else "yes"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "dpg_bench"
    (folder / "prompts").mkdir(parents=True)
    for item in ("cat.1", "dog"):
        (folder / "prompts" / f"{item}.txt").write_text(f"a black {item}\n")
    rows = [
        f"{item},,{n},{n - 1},entity,Is it {word}?"
        for item in ("cat.1", "dog")
        for n, word in ((1, "there"), (2, "black"))
    ]
    head = "item_id,text,proposition_id,dependency,category_broad,question_natural_language"
    (folder / "dpg_bench.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder


def test_grids_are_drawn_and_asked_about(root: Path, tiny_checkpoint: Path, tmp_path: Path, settings: Settings) -> None:
    context = Context(settings(f"ckpt={tiny_checkpoint}"))
    item = DPGItem(root=str(root), vqa=Yes(), mode="fixed")
    assert list(item.missing(context)) == []
    result = item.run(context)
    assert result.value == 50.0
    assert result.interval == [50.0, 50.0]
    with Image.open(tmp_path / "out" / "dpg_grids" / "cat.1.png") as picture:
        assert picture.size == (64, 64)
    assert result.deviations == ["2 prompts instead of 1065"]
    Image.new("RGB", (2, 2)).save(tmp_path / "out" / "dpg_grids" / "cat.1.png")
    item.run(context)  # another model's grid isn't kept
    with Image.open(tmp_path / "out" / "dpg_grids" / "cat.1.png") as picture:
        assert picture.size == (64, 64)


def test_a_prompt_that_the_official_scorer_loses_is_dropped(
    root: Path, tiny_checkpoint: Path, settings: Settings
) -> None:
    """It skips the table's first row, on which the other question of that prompt depends."""
    result = DPGItem(root=str(root), vqa=Yes()).run(Context(settings(f"ckpt={tiny_checkpoint}")))
    assert (result.value, result.results["dropped"]) == (50.0, ["cat.1"])


def test_answers_are_scored_without_a_model(root: Path, tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "answers.jsonl"
    rows = [
        {"item_id": "dog", "image_index": i, "proposition_id": n, "answer": "yes" if i or n == 1 else "no"}
        for i in range(4)
        for n in (1, 2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    context = Context(settings())
    item = DPGItem(root=str(root), answers=str(path))
    assert list(item.missing(context)) == []
    result = item.run(context)
    assert result.value == pytest.approx(100 * (0.5 + 3) / 4)
    assert result.results["dropped"] == ["cat.1"]


def test_what_is_missing_is_told(tmp_path: Path, settings: Settings) -> None:
    messages = " ".join(DPGItem(root=str(tmp_path)).missing(Context(settings())))
    for part in ("dpg_bench.csv", "prompts/*.txt", "paths.dpg=FOLDER", "no model", "VQA model"):
        assert part in messages


def test_grid_is_row_by_row() -> None:
    picture = grid([Image.new("RGB", (2, 2), (i, 0, 0)) for i in range(4)])
    assert [picture.getpixel(place)[0] for place in ((0, 0), (3, 0), (0, 3), (3, 3))] == [0, 1, 2, 3]  # type: ignore[index]
