from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from star.studies.search import Dimension, Plan, read_plan, search
from star.utils.cli import compose, plain

CONF = Path(__file__).parents[2] / "conf"
SPACE = (Dimension("optim.lr", 1e-4, 1e-1, log=True), Dimension("batch_size", choices=(4, 8)))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CONF", str(CONF))


@pytest.fixture
def optuna() -> Any:
    return pytest.importorskip("optuna", reason="searching needs optuna (pip install -e '.[search]')")


class Training:
    """Best at a learning rate of 0.01, and with large batches; remembers what it was asked for."""

    def __init__(self, *, fails: tuple[int, ...] = ()) -> None:
        self.asked: list[tuple[float, int]] = []
        self.fails = fails

    def __call__(self, config: dict[str, Any], folder: Path) -> float | None:
        assert config["paths"]["run_dir"] == str(folder)
        self.asked.append((config["optim"]["lr"], config["batch_size"]))
        if len(self.asked) in self.fails:
            return float("nan")
        return abs(config["optim"]["lr"] - 0.01) + 1 / config["batch_size"]


def test_trials_come_close_to_the_best_and_stay_in_the_space(optuna: Any, tmp_path: Path) -> None:
    training = Training(fails=(2,))
    study = search(Plan(SPACE, trials=12), tmp_path, ["experiment=resume_check"], training)
    assert len(training.asked) == 13
    assert all(1e-4 <= rate <= 1e-1 and size in (4, 8) for rate, size in training.asked)
    assert study.best_params["batch_size"] == 8
    assert study.best_value < 0.14


def test_a_search_goes_on_where_it_was_cut_off(optuna: Any, tmp_path: Path) -> None:
    class Killed(Training):
        def __call__(self, config: dict[str, Any], folder: Path) -> float | None:
            value = super().__call__(config, folder)
            if len(self.asked) == 3:
                raise KeyboardInterrupt
            return value

    killed, resumed = Killed(), Training()
    with pytest.raises(KeyboardInterrupt):
        search(Plan(SPACE, trials=5), tmp_path, [], killed)
    study = search(Plan(SPACE, trials=5), tmp_path, [], resumed)
    assert len(resumed.asked) == 3
    assert resumed.asked[0] == killed.asked[2]
    assert len({rate for rate, _ in killed.asked + resumed.asked}) == 5
    assert search(Plan(SPACE, trials=5), tmp_path, [], resumed).best_value == study.best_value
    assert len(resumed.asked) == 3


def test_a_search_in_which_everything_fails_ends(optuna: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is optimized_metric measured"):
        search(Plan(SPACE, trials=2), tmp_path, [], lambda config, folder: None)


def test_the_configuration_is_a_plan() -> None:
    plan = read_plan(plain(compose("train", ["hparams_search=optuna", "search.trials=3", "paths.run_dir=x"])))
    assert plan.trials == 3
    assert {dimension.key for dimension in plan.space} >= {"optim.lr", "batch_size"}
    with pytest.raises(ValueError, match="set hparams_search=optuna"):
        read_plan(plain(compose("train", ["paths.run_dir=x"])))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"space": {}}, "needs a setting"),
        ({"space": {"a": {"low": 1}}}, "either low and high or choices"),
        ({"space": {"a": {"low": 1, "high": 2, "choices": [3]}}}, "either low and high or choices"),
        ({"space": {"a": {"low": 2, "high": 1}}}, "isn't below"),
        ({"space": {"a": {"low": 0, "high": 1, "log": True}}}, "begins above 0"),
        ({"space": {"a": {"lo": 1}}}, "search can't be read"),
        ({"method": "grid"}, "search.method is one of tpe, random"),
        ({"trials": 0}, "at least 1"),
    ],
)
def test_plans_that_can_not_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_plan({"search": {"space": {"optim.lr": {"low": 0.1, "high": 0.2}}} | wrong})
