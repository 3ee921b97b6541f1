from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from star.demo.__main__ import parse, steps_of
from star.demo.figures import captioned_grid, curves, growing, read_series
from star.demo.recipes import RECIPES
from star.demo.report import write
from star.demo.steps import Steps
from star.schedule import ScaleSchedule


def metrics(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "metrics.csv"
    file.write_text("epoch,step,train/loss,val/psnr\n0,1,3.0,\n0,2,2.0,\n0,2,,25.5\n0,3,1.0,\n")
    return file


def test_curves_are_read_by_step(tmp_path: Path) -> None:
    file = metrics(tmp_path)
    assert read_series(file) == {"train/loss": [(1, 3.0), (2, 2.0), (3, 1.0)], "val/psnr": [(2, 25.5)]}
    curves(file, {"loss": ["train/*"], "quality": ["val/psnr"]}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_report_says_what_was_measured(tmp_path: Path) -> None:
    recipe = RECIPES["shapes"](tmp_path)
    metrics(recipe.tokenizer_run)
    metrics(recipe.generator_run)
    (metrics(recipe.refiner_run)).write_text(
        "step,val/accuracy,val/generator_accuracy,val/accuracy/scale_00\n1,0.5,0.4,nan\n"
    )
    scores = {"value": 0.75, "tasks": {"colors": 0.5}, "strict": 0.7, "images": 0.6, "num_images": 8}
    recipe.evaluation.mkdir()
    (recipe.evaluation / "card.json").write_text(
        json.dumps({"value": scores.pop("value"), "results": {**scores, "shuffled": {**scores, "value": 0.031}}})
    )
    recipe.understanding.mkdir()
    asked = {"kinds": {"binding": 0.53}, "nats": {"binding": 0.02}, "nats_per_scale": {"binding": [0.02]}}
    (recipe.understanding / "card.json").write_text(json.dumps({"value": 0.77, "results": asked}))
    images = [np.full((8, 8, 3), value, np.uint8) for value in (0, 128)]
    captioned_grid(["a <b>", "c"], {"drawn": images, "real": images}, tmp_path / "samples.png", per_row=2)
    steps = Steps(tmp_path / "steps.json", {"tokenizer": {"seconds": 61.0, "finished": True, "peak_memory_gib": 1.5}})
    write(recipe, steps, figures=[("Samples", tmp_path / "samples.png"), ("Absent", tmp_path / "absent.png")])
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["alignment"]["drawn"]["value"] == 0.75
    assert facts["alignment"]["shuffled"]["value"] == 0.031
    assert facts["alignment"]["candidates"] == 8
    assert facts["understanding"]["kinds"] == {"binding": 0.53}
    assert facts["tokenizer"] == {"psnr": 25.5}
    assert facts["refiner"] == {"accuracy": 0.5, "generator_accuracy": 0.4}
    assert facts["seconds"]["total"] == 61.0
    page = (tmp_path / "report.html").read_text()
    assert "0.031" in page
    assert "<td>binding</td><td>0.530</td><td>0.020</td>" in page
    assert "half of the tokens known" in page
    assert "data:image/png;base64," in page
    assert "Absent" not in page


def test_a_training_whose_folder_is_gone_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = RECIPES["shapes"](tmp_path)
    metrics(recipe.tokenizer_run)
    steps = Steps(tmp_path / "steps.json", {"tokenizer": {"seconds": 61.0, "finished": True}})
    write(recipe, steps, figures=[])
    assert json.loads((tmp_path / "report.json").read_text())["generator"] == {}
    page = (tmp_path / "report.html").read_text()
    assert "Tokenizer, held-out images" in page
    assert "Generator, held-out pairs" not in page
    curves(recipe.generator_run / "metrics.csv", {"loss": ["train/*"]}, tmp_path / "curves.png")
    assert "metrics.csv is gone" in caplog.text
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("argument", ["recipe=cats", "fresh=maybe", "colour=red", "length=0", "length=half"])
def test_arguments_that_are_not_understood_are_named(argument: str) -> None:
    with pytest.raises(ValueError, match=argument.split("=")[0]):
        parse([argument])


def test_recipes_go_to_their_own_folders() -> None:
    assert parse([])[0].out == Path("outputs/demo")
    assert parse(["recipe=emoji", "fresh=true"]) == (RECIPES["emoji"](Path("outputs/emoji")), True)
    assert parse(["length=0.5"])[0].out == Path("outputs/demo_0.5")  # never over a whole one
    assert parse(["length=0.5", "out=here"])[0].out == Path("here")


def test_the_refiner_follows_the_generator_it_refines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STAR_CONF", str(Path(__file__).parents[2] / "conf"))
    names = [step.name for step in steps_of(RECIPES["shapes"](tmp_path))]
    assert names.index("star.ckpt") < names.index("refiner") < names.index("refiner.ckpt") < names.index("scores")
    sampler = next(step for step in steps_of(RECIPES["shapes"](tmp_path)) if step.name == "refiner")
    assert f"init_from={tmp_path / 'star.ckpt'}" in sampler.command
    assert sampler.recipe["sampling"]["sampler"]["_target_"].endswith("CausalDriven")
    assert sampler.recipe["module"]["objective"]["first_scale"] is None
    assert not any("refiner" in step.name for step in steps_of(RECIPES["emoji"](tmp_path)))


def test_pictures_grow_whatever_they_are_computed_in(tmp_path: Path) -> None:
    """NumPy knows no bfloat16, and no tensor of a GPU."""

    class Pipeline:
        schedule = ScaleSchedule.square(1, 2)

        def scales(self, captions: Sequence[str], seeds: Sequence[int]) -> Iterator[int]:
            return iter(range(len(self.schedule)))

        def paint(self, state: int) -> Tensor:
            return torch.full((2, 3, 8, 8), 0.5, dtype=torch.bfloat16)

    growing(Pipeline(), ["a", "b"], [0, 1], tmp_path / "scales.png")  # type: ignore[arg-type]
    assert (tmp_path / "scales.png").stat().st_size > 1000
