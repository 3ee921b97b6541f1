from __future__ import annotations

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
