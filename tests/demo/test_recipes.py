from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from star.demo.recipes import RECIPES, configuration
from star.utils.cli import compose, plain


@pytest.mark.parametrize("experiment", ["demo", "emoji"])
@pytest.mark.parametrize("task", ["tokenizer", "generator", "sampler"])
def test_the_report_shows_the_weights_that_are_kept(experiment: str, task: str) -> None:
    words = [f"experiment={experiment}", f"task={task}", "paths.tokenizer=x", "init_from=x"]
    trainer = plain(compose("train", words))["trainer"]
    assert trainer["max_steps"] % trainer["val_check_interval"] == 0  # validated after the last step


def test_the_demo_is_scored_with_the_guidance_that_it_was_trained_with(tmp_path: Path) -> None:
    recipe = RECIPES["shapes"](tmp_path)
    trained = configuration(recipe.training("generator"))["sampling"]["guidance"]
    assert plain(compose("sample", ["ckpt=x", *recipe.preset]))["sampling"]["guidance"] == trained


@pytest.mark.parametrize("task", ["tokenizer", "generator", "sampler"])
@pytest.mark.parametrize("length", [1e-9, 0.3, 1.0, 2.0])
def test_every_training_takes_the_share_of_steps_that_is_asked_for(task: str, length: float, tmp_path: Path) -> None:
    whole = RECIPES["shapes"](tmp_path)
    configs = [configuration(recipe.training(task)) for recipe in (whole, replace(whole, length=length))]
    steps, taken = (config["trainer"]["max_steps"] for config in configs)
    assert taken == pytest.approx(max(length * steps, 4), abs=2)
    assert taken % configs[1]["trainer"]["val_check_interval"] == 0
    if length == 1:
        assert configs[0] == configs[1]


def test_a_training_may_go_once_its_model_is_kept(tmp_path: Path) -> None:
    recipe = RECIPES["shapes"](tmp_path)
    (last,) = recipe.training_step("generator", "learns").makes
    assert last == tmp_path / "generator" / "checkpoints" / "last.ckpt"
    recipe.generator_checkpoint.touch()
    assert not recipe.training_step("generator", "learns").makes
