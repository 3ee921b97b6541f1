from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from star.checkpoints import io
from star.studies import resume
from star.studies.resume import Bomb, differences, draw_data, kill_and_resume, saved_step
from star.training.run import Run
from star.utils.cli import compose, plain


@pytest.mark.slow
def test_a_training_that_is_killed_ends_with_the_same_bits(tmp_path: Path, start: Callable[..., list[Any]]) -> None:
    """In a step, in a validation, while a checkpoint is written: see the command for many more moments."""
    data = draw_data(tmp_path / "data")
    overrides = [
        f"paths.data={data}",
        "experiment=resume_check",
        "trainer.max_steps=14",
        "trainer.val_check_interval=4",
    ]

    def train(run: Path, overrides: list[str], *, expected: tuple[int, ...] = (0,)) -> int:
        config = plain(compose("train", [*overrides, f"paths.run_dir={run}"]))
        (process,) = start(lambda: Run(config, run).fit())
        process.join(120)
        assert process.exitcode in expected
        return process.exitcode

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(straight, overrides)
    reached = 0
    for phase, occurrence in (("step", 5), ("validation", 2), ("checkpoint", 3)):
        bomb = f"{{_target_: star.studies.resume.Bomb, phase: {phase}, occurrence: {occurrence}, delay: 0.005}}"
        train(killed, [*overrides, f"+callbacks.bomb={bomb}"], expected=(-signal.SIGKILL,))
        assert reached < saved_step(killed) < 14
        reached = saved_step(killed)
    train(killed, overrides)
    assert list(differences(io.read(straight), io.read(killed))) == []
    assert saved_step(straight) == 14


def test_a_row_says_when_it_was_killed_and_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(run: Path, overrides: list[str], *, expected: tuple[int, ...] = (0,)) -> int:
        bombed = any("Bomb" in word for word in overrides)
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        checkpoint = {"state_dict": {"a": torch.zeros(1)}, "global_step": 3 if bombed else 6, "config": {}}
        torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
        return -signal.SIGKILL if bombed else 0

    monkeypatch.setattr(resume, "train", train)
    train(tmp_path / "straight", [])
    row = kill_and_resume(tmp_path / "killed_01", tmp_path / "straight", [], random.Random(0), 1)
    assert (row["run"], row["killed in"], row["resumed at"], row["differences"]) == ("killed_01", "validation", 3, "")


def test_a_bomb_waits_for_its_moment(start: Callable[..., list[Any]]) -> None:
    def explode(times: int) -> None:
        bomb = Bomb("validation", occurrence=2, delay=0.0)
        nothing: Any = None
        bomb.on_train_batch_start(nothing, nothing, nothing, 0)
        for _ in range(times):
            bomb.on_validation_start(nothing, nothing)
        if times > 1:
            signal.pause()
        sys.exit(0)

    (patient,), (gone,) = start(lambda: explode(1)), start(lambda: explode(2))
    for process in (patient, gone):
        process.join(20)
    assert patient.exitcode == 0
    assert gone.exitcode == -signal.SIGKILL
    with pytest.raises(ValueError, match="lunch"):
        Bomb("lunch", occurrence=1, delay=0.0)


def test_differences_are_named_to_the_bit() -> None:
    one = {
        "global_step": 3,
        "state_dict": {"a": torch.zeros(2)},
        "lr_schedulers": [{"x": (1, 2.0)}],
        "config": {"n": 1},
    }
    assert list(differences(one, one | {"config": {"n": 2}})) == []
    tiny = one | {"state_dict": {"a": torch.tensor([0.0, 1e-45])}}
    assert list(differences(one, tiny)) == ["state_dict.a"]
    other = one | {"global_step": 4, "lr_schedulers": [{"x": (1, 2.5)}], "averaged": {"updates": 1}}
    assert list(differences(one, other)) == ["global_step", "averaged", "lr_schedulers.0.x.1"]
