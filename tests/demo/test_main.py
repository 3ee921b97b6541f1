from __future__ import annotations

from pathlib import Path

import pytest

from star.demo import __main__ as demo
from star.demo.recipes import RECIPES


def test_starting_over_removes_a_demo_and_nothing_else(tmp_path: Path) -> None:
    mine, demos = tmp_path / "mine", tmp_path / "demo"
    for folder, name in ((mine, "thesis.txt"), (demos, "steps.json")):
        folder.mkdir()
        (folder / name).touch()
    with pytest.raises(ValueError, match="holds something, but no demo"):
        demo.start_over(mine)
    assert (mine / "thesis.txt").is_file()
    for folder in (demos, tmp_path / "nothing"):
        demo.start_over(folder)
        assert not folder.exists()


def test_a_failing_step_ends_the_demo_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = demo.Step("x", "fails", ["-c", "raise SystemExit(3)"])
    monkeypatch.setattr(demo, "steps_of", lambda recipe: [step])
    with pytest.raises(SystemExit) as ended:
        demo.main([f"out={tmp_path / 'out'}"])
    assert ended.value.code == 1


@pytest.mark.parametrize(
    ("device", "cores", "expected"),
    [
        ("cpu", 1, (1, None)),
        ("cpu", 2, (2, 1)),
        ("cpu", 6, (3, 2)),
        ("cpu", 7, (1, 7)),
        ("cpu", 16, (4, 4)),
        ("cuda", 16, (1, None)),
    ],
)
def test_cores_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, device: str, cores: int, expected: tuple[int, int | None]
) -> None:
    monkeypatch.setattr("star.utils.devices.choose_device", lambda name: device)
    monkeypatch.setattr("torch.get_num_threads", lambda: cores)
    assert demo.helpers() == expected


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_step_says_what_it_makes_and_only_trainings_differ_the_second_time(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name](tmp_path)
    steps = demo.steps_of(recipe)
    assert all(step.makes for step in steps)
    assert all(tmp_path in path.parents for step in steps for path in step.makes)
    runs = {"tokenizer", "generator"} | ({"refiner"} if recipe.refined else set())
    assert {step.name for step in steps if not step.repeatable} == runs
