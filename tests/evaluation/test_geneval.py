from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from star.evaluation import geneval
from star.evaluation.context import Context
from star.evaluation.geneval import GenEvalItem
from star.metrics.geneval import build_prompts, read_results, result_line
from star.metrics.geneval_rules import Detection

Settings = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.filterwarnings("ignore:.*")


class Oracle:
    """Finds in every picture what its prompt asks for, except in the second of each prompt."""

    name = "oracle"

    def __call__(self, image: Image.Image, metadata: Mapping[str, Any]) -> list[Detection]:
        if metadata["image"] == 1:
            return []
        return [
            Detection(clause["class"], (10.0 * i, 0.0, 10.0 * i + 5, 5.0), 0.95, clause.get("color"))
            for i, clause in enumerate(metadata["include"])
        ]

    def iterate_missing(self) -> Iterator[str]:
        return iter(())

    def facts(self) -> dict[str, Any]:
        return {"detector": "oracle"}


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geneval, "build_prompts", lambda: build_prompts()[:3])


def test_export_makes_the_official_folders(tiny_checkpoint: Path, settings: Settings) -> None:
    context = Context(settings(f"ckpt={tiny_checkpoint}"))
    item = GenEvalItem(export=True, num_images=2)
    assert list(item.missing(context)) == []
    result = item.run(context)
    folder = Path(result.facts["pictures"])
    assert result.value is None
    assert json.loads((folder / "00002" / "metadata.jsonl").read_text()) == build_prompts()[2]
    assert sorted(path.name for path in (folder / "00002" / "samples").iterdir()) == ["00000.png", "00001.png"]


def test_detector_is_judged_by_the_rules(tiny_checkpoint: Path, tmp_path: Path, settings: Settings) -> None:
    context = Context(settings(f"ckpt={tiny_checkpoint}"))
    result = GenEvalItem(detector=Oracle(), num_images=2).run(context)
    assert result.value == 0.5
    assert result.results["prompts"] == 1.0
    assert result.interval == [0.5, 0.5]  # every prompt has one right picture of two
    assert result.label == "geneval/oracle"
    assert len(read_results(tmp_path / "out" / "geneval_results.jsonl")) == 6


def test_result_file_is_summarised_without_a_model(tmp_path: Path, settings: Settings) -> None:
    entries = [entry for entry in build_prompts() if entry["tag"] in ("colors", "counting")]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(result_line("x.png", entry, entry["tag"] == "colors", "") for entry in entries))
    item = GenEvalItem(results=str(path))
    context = Context(settings())
    assert list(item.missing(context)) == []
    result = item.run(context)
    assert result.value == 0.5
    assert result.results["tasks"] == {"colors": 1.0, "counting": 0.0}
    assert result.deviations == [f"{len(entries)} pictures instead of 2212"]


def test_what_is_missing_is_told(tmp_path: Path, settings: Settings) -> None:
    assert "GenEval needs a detector" in list(GenEvalItem().missing(Context(settings())))[1]
    assert "no result file" in next(GenEvalItem(results=str(tmp_path / "absent")).missing(Context(settings())))
