from __future__ import annotations

from pathlib import Path

import pytest
import torch

from star.checkpoints import consolidate as command
from star.checkpoints.consolidate import consolidate, parse


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose last checkpoint is in parts that hold one tensor."""
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.mkdir(parents=True)
    for name in (".metadata", "meta.pt"):
        (last / name).touch()
    whole = {
        "state_dict": {"a": torch.zeros(2)},
        "averaged": {"weights": {"a": torch.ones(2)}, "updates": 1},
        "optimizer_states": [],
        "config": {"task": "generator"},
        "global_step": 3,
    }
    monkeypatch.setattr(command, "read_sharded", lambda path: whole if path == last else None)
    return tmp_path / "run"


def test_the_file_is_whole_or_slim(folder: Path, tmp_path: Path) -> None:
    consolidate(folder, tmp_path / "a.ckpt")
    whole = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert set(whole) == {"state_dict", "averaged", "optimizer_states", "config", "global_step"}
    command.main([str(folder), f"out={tmp_path / 'b.ckpt'}", "slim=true"])
    slim = torch.load(tmp_path / "b.ckpt", weights_only=True)
    assert torch.equal(slim["state_dict"]["a"], torch.ones(2))
    assert set(slim) == {"state_dict", "config", "global_step"}


def test_nothing_is_overwritten_and_files_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    file.touch()
    with pytest.raises(FileExistsError, match="choose another out="):
        consolidate(folder, file)
    with pytest.raises(ValueError, match="in one piece already"):
        consolidate(file, tmp_path / "b.ckpt")


@pytest.mark.parametrize("words", [["a"], ["out=b"], ["a", "b", "out=c"], ["a", "out=b", "slim=1"], ["a", "oat=b"]])
def test_what_cannot_be_understood_is_said(words: list[str]) -> None:
    with pytest.raises(ValueError, match="expected DIR out=FILE"):
        parse(words)
    assert parse(["RUN", "out=f=1.ckpt", "slim=true"]) == ("RUN", "f=1.ckpt", True)
