from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from star.studies import window_training

WORDS = ["tokenizer=tokenizer.ckpt", "data=data", "steps_window=6", "steps_after=3", "model.depth=1"]
TOY = ["model.width=32", "model.num_heads=2", "length.generator.batch=2"]


def write(run: Path, steps: int) -> Path:
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text(f"step,val/loss\n{steps // 2},2.0\n")  # validated before its end
    (run / "checkpoints").mkdir()
    torch.save({"state_dict": {}, "global_step": steps}, run / "checkpoints" / "last.ckpt")
    return run


def test_time_is_that_of_the_steps_that_were_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: dict[str, list[str]] = {}
    shown: list[dict[str, Any]] = []

    def train(name: str, overrides: Sequence[str], *, out: Path, steps: int, every: int) -> Path:
        trained[name] = list(overrides)
        return write(out / name, steps)

    monkeypatch.setattr(window_training, "train", train)
    monkeypatch.setattr(window_training, "score", lambda run, count: {"value": 0.25, "interval": [0.2, 0.3]})
    monkeypatch.setattr(window_training, "seconds_of", lambda *_: {"all": 2.0, "window": 0.5})
    monkeypatch.setattr(window_training.command, "present", lambda title, rows, out, facts: shown.extend(rows))
    full = write(tmp_path / "full", 10)
    words = [*WORDS, "steps_short=4", f"full={full}", f"runs={tmp_path}", "train_tokens.windows=[[3,4],[5,8]]"]
    window_training.study(words)
    assert [row["seconds"] for row in shown] == [20.0, 3.0, 9.0, 8.0]
    assert shown[2]["share of the time"] == pytest.approx(0.45)
    assert {"train_tokens=local_window", "train_tokens.windows=[[3,4],[5,8]]"} <= set(trained["tokens_window"])
    assert f"init_from={tmp_path / 'tokens_window'}" in trained["tokens_after"]
    for name in ("tokens_after", "tokens_short"):
        assert not any("train_tokens" in word for word in trained[name])


def test_a_step_of_each_kind_is_timed() -> None:
    seconds = window_training.seconds_of(["paths.tokenizer=x", "paths.data=x", "model.depth=1", *TOY], [], 1)
    assert set(seconds) == {"all", "window"}
    assert min(seconds.values()) > 0


def test_what_is_needed_is_named() -> None:
    with pytest.raises(ValueError, match="set data="):
        window_training.study(["tokenizer=x"])
