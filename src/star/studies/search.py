"""`python -m star.studies.search hparams_search=optuna [out=FOLDER] [any override of train.py]`.

Searches hyperparameters: each trial is a training in a folder of its own, whose settings Optuna proposes from how the
trials before went. What is searched, how long and how, says `search` in conf/hparams_search/optuna.yaml;
`search.trials=40` and the like change it. The same command again goes on where it stopped, with the settings of a trial
that was cut off first. For every combination of a few values take `python train.py hparams_search=grid`, which needs
nothing more. (Hydra has a sweeper for Optuna, too, but its last release holds Optuna at version 2.)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star.studies import command
from star.utils.cli import compose, plain

if TYPE_CHECKING:
    import optuna

HELP = f"""{__doc__}
  out=outputs/search   journal.log, search.json and a folder for each trial
"""
OWN: dict[str, Callable[[str], Any]] = {"out": Path}
METHODS = ("tpe", "random")
DIRECTIONS = ("minimize", "maximize")
Train = Callable[[dict[str, Any], Path], float | None]

log = logging.getLogger("studies")


@dataclass(frozen=True)
class Dimension:
    """The values that one setting may have.

    Args:
        key: of the setting, as on a command line.
        low: smallest value of a range; whole numbers at both ends, and no log, mean whole numbers between.
        high: largest.
        log: whether a range is drawn evenly in its logarithm.
        step: of a range.
        choices: instead of a range.

    Raises:
        ValueError: for neither or both, or an empty range.

    """

    key: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: Sequence[Any] = ()

    def __post_init__(self) -> None:
        """Validate."""
        ranged = self.low is not None and self.high is not None
        if ranged == bool(self.choices):
            raise ValueError(f"search.space of {self.key} needs either low and high or choices")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"search.space of {self.key}: low {self.low} isn't below high {self.high}")
        if self.log and (self.step is not None or not self.low or self.low < 0):
            raise ValueError(f"search.space of {self.key}: a log range begins above 0 and has no step")

    def suggest(self, trial: optuna.Trial) -> Any:
        """A trial's value."""
        if self.choices:
            return trial.suggest_categorical(self.key, list(self.choices))
        assert self.low is not None
        assert self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int):
            step = None if self.step is None else int(self.step)
            return trial.suggest_int(self.key, self.low, self.high, log=self.log, step=step or 1)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log, step=self.step)


@dataclass(frozen=True)
class Plan:
    """What `search` in the configuration says.

    Args:
        space: what is searched.
        trials: how many finished trials end the search.
        method: `tpe` or `random`.
        direction: `minimize` or `maximize`.
        seed: of the method.

    Raises:
        ValueError: for other words, no space or no trials.

    """

    space: tuple[Dimension, ...]
    trials: int = 20
    method: str = "tpe"
    direction: str = "minimize"
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        for name, known in (("method", METHODS), ("direction", DIRECTIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"search.{name} is one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not self.space or self.trials < 1:
            raise ValueError("search.space needs a setting and search.trials at least 1")


def read_plan(config: Mapping[str, Any]) -> Plan:
    """The plan of a composed configuration.

    Raises:
        ValueError: when it has none, or a value in it can't be.

    """
    if config.get("search") is None:
        raise ValueError("nothing says what is searched: set hparams_search=optuna, or a file of your own beside it")
    settings = dict(config["search"])
    space = settings.pop("space", None) or {}
    try:
        return Plan(tuple(Dimension(key, **bounds) for key, bounds in space.items()), **settings)
    except TypeError as error:
        raise ValueError(f"search can't be read: {error}") from error


def search(plan: Plan, out: Path, overrides: Sequence[str], train: Train) -> optuna.Study:
    """Run trials until enough are finished.

    Args:
        plan: what, how and how long.
        out: the folder; with a journal, the search goes on.
        overrides: of every trial.
        train: trains a resolved configuration in a folder and returns the value that counts.

    Raises:
        ModuleNotFoundError: without optuna.

    """
    optuna = _optuna()
    out.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(out / "journal.log"))
    methods = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    study = optuna.create_study(
        study_name="star",
        storage=optuna.storages.JournalStorage(backend),
        direction=plan.direction,
        # the trials so far move the seed on, so that a resumed search doesn't propose what it proposed before
        sampler=methods[plan.method](seed=plan.seed + _journaled(optuna, backend)),
        load_if_exists=True,
    )
    states = optuna.trial.TrialState
    for cut in study.get_trials(states=(states.RUNNING,)):
        study.tell(cut.number, state=states.FAIL)
        study.enqueue_trial(cut.params)
    while len(study.get_trials(states=(states.COMPLETE,))) < plan.trials:
        trial = study.ask()
        values = [f"{dimension.key}={dimension.suggest(trial)}" for dimension in plan.space]
        folder = out / f"trial_{trial.number:03d}"
        log.info("trial %d: %s", trial.number, " ".join(values))
        value = train(plain(compose("train", [*overrides, *values, f"paths.run_dir={folder}"])), folder)
        finite = value is not None and math.isfinite(value)
        study.tell(trial, value if finite else None, state=states.COMPLETE if finite else states.FAIL)
        _give_up(study, plan, states)
    return study


def _give_up(study: optuna.Study, plan: Plan, states: Any) -> None:
    """Raise a ValueError when trials fail and none succeeds, which more of them won't mend."""
    failed, done = (len(study.get_trials(states=(state,))) for state in (states.FAIL, states.COMPLETE))
    if failed > plan.trials and not done:
        raise ValueError(
            f"{failed} trials gave no value and none did: is optimized_metric measured, are the ranges sane?"
        )


def _journaled(optuna: Any, backend: Any) -> int:
    """How many trials a journal has."""
    summaries = optuna.get_all_study_summaries(optuna.storages.JournalStorage(backend))
    return sum(summary.n_trials for summary in summaries)


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("searching needs optuna: pip install -e '.[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _train(config: dict[str, Any], folder: Path) -> float | None:
    from star.training.run import Run

    return Run(config, folder).fit()


def study(arguments: Sequence[str]) -> None:
    """Search, and show all trials, the best first."""
    given, overrides = command.split_arguments(arguments, OWN)
    out: Path = given.get("out", Path("outputs/search"))
    plan = read_plan(plain(compose("train", [*overrides, f"paths.run_dir={out}"])))
    found = search(plan, out, overrides, _train)
    done = [trial for trial in found.trials if trial.value is not None]
    done.sort(key=lambda trial: trial.value or 0.0, reverse=plan.direction == "maximize")
    rows = [{"trial": trial.number, "value": trial.value, **trial.params} for trial in done]
    command.present("trials, the best first", rows, out / "search.json", {"plan": plan})
    best = " ".join(f"{key}={value}" for key, value in done[0].params.items())
    kept = " ".join(word for word in overrides if not word.startswith(("hparams_search=", "search.")))
    log.info("the best: python train.py %s %s", kept, best)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    command.run(HELP, study, arguments)


if __name__ == "__main__":
    main()
