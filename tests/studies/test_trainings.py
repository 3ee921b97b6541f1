from __future__ import annotations

import os
from pathlib import Path

import pytest

from star.studies.positions import compare
from star.studies.trainings import curve, reached, train


def write(run: Path, losses: list[float]) -> Path:
    run.mkdir()
    rows = "".join(f"{10 * (i + 1) - 1},{loss},{1 / loss}\n" for i, loss in enumerate(losses))
    (run / "metrics.csv").write_text("step,val/loss,val/accuracy\n" + rows)
    return run


def test_curves_count_steps_from_one(tmp_path: Path) -> None:
    values = curve(write(tmp_path / "run", [4.0, 2.0]), "val/loss")
    assert values == [(10, 4.0), (20, 2.0)]
    assert reached(values, 2.5) == 20
    assert reached(values, 1.0) is None


def test_what_was_not_logged_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has logged no 'val/psnr'"):
        curve(write(tmp_path / "run", [1.0]), "val/psnr")


def test_trainings_run_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no train\.py"):
        train("x", [], out=tmp_path, steps=1, every=1)


def test_a_training_of_another_tokenizer_is_done_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make demo FRESH=1` writes another tokenizer to the same place; what was learned from the old one is stale."""
    tokenizer, ran = tmp_path / "tokenizer.ckpt", []
    tokenizer.touch()
    os.utime(tokenizer, (1, 1))

    def pretend(command: list[str], **_: object) -> int:
        ran.append(sorted(path.name for path in (tmp_path / "run").glob("*")))
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "weights").touch()
        return 0

    monkeypatch.setattr("star.demo.steps.run_to_its_end", pretend)
    words = [f"paths.tokenizer={tokenizer}", "stage=64"]
    for _ in range(2):
        train("run", words, out=tmp_path, steps=1, every=1)
    assert ran == [[]]
    later = (tmp_path / "run.json").stat().st_mtime + 10
    os.utime(tokenizer, (later, later))
    train("run", words, out=tmp_path, steps=1, every=1)
    assert ran == [[], []]


def test_speed_is_to_the_loss_at_which_the_slowest_ends(tmp_path: Path) -> None:
    fast, slow = write(tmp_path / "fast", [3.0, 2.0, 1.0]), write(tmp_path / "slow", [4.0, 3.0, 2.0])
    rows = {row["position"]: row for row in compare({"normalized": [fast], "absolute": [slow]})}
    assert rows["normalized"]["steps to the slowest's loss"] == 20
    assert rows["absolute"]["steps to the slowest's loss"] == 30
    assert rows["normalized"]["accuracy"] == 1.0
    both = compare({"normalized": [fast, slow]})
    assert both[0]["loss"] == 1.5
