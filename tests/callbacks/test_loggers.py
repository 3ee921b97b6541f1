from __future__ import annotations

import csv
from pathlib import Path

import pytest

from star.callbacks.loggers import ResumableCSVLogger, has_key, wandb_logger


def rows(folder: Path) -> list[tuple[int, float]]:
    with (folder / "metrics.csv").open() as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def test_a_resumed_run_continues_its_file(tmp_path: Path) -> None:
    first = ResumableCSVLogger(str(tmp_path))
    for step in range(4):
        first.log_metrics({"loss": float(step)}, step)
    first.save()
    second = ResumableCSVLogger(str(tmp_path))  # its checkpoint was of step 2
    assert second.experiment is not None
    for step in range(2, 5):
        second.log_metrics({"loss": 10.0 + step, "other": 1.0}, step)
    second.save()
    assert rows(tmp_path) == [(0, 0.0), (1, 1.0), (2, 12.0), (3, 13.0), (4, 14.0)]


def test_nothing_is_lost_before_something_is_written(tmp_path: Path) -> None:
    """By a finished run that is started again, or one that is killed before its first flush."""
    first = ResumableCSVLogger(str(tmp_path))
    first.log_metrics({"loss": 1.0}, 0)
    first.save()
    second = ResumableCSVLogger(str(tmp_path))
    assert second.experiment is not None
    second.save()
    assert rows(tmp_path) == [(0, 1.0)]
    second.log_metrics({"loss": 2.0, "other": 1.0}, 1)
    assert rows(tmp_path) == [(0, 1.0)]
    second.after_save_checkpoint(None)  # type: ignore[arg-type]
    second.log_metrics({"loss": 3.0, "third": 1.0}, 2)
    second.save()
    assert rows(tmp_path) == [(0, 1.0), (1, 2.0), (2, 3.0)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_wandb_works_offline_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not has_key()
    logger = wandb_logger(save_dir=str(tmp_path / "run"), project="star")
    assert logger._offline
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert has_key()
