from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from star.checkpoints import io


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def test_a_run_directory_stands_for_its_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no checkpoint: .*last\.ckpt"):
        io.find(tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    torch.save({"state_dict": {}}, last)
    assert io.find(tmp_path) == io.find(last) == last
    with pytest.raises(FileNotFoundError, match="nowhere"):
        io.find(tmp_path / "nowhere")


def test_a_strangers_file_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "payload": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="was not opened"):
        io.read(tmp_path / "evil.ckpt")
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="is not a checkpoint"):
        io.read(tmp_path / "bare.ckpt")
    assert not (tmp_path / "pwned").exists()


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, tmp_path / "whole.ckpt")
    (tmp_path / "half.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:700])
    with pytest.raises(ValueError, match=r"half\.ckpt is not a checkpoint"):
        io.read(tmp_path / "half.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="no state_dict"):
        io.read(tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="no configuration"):
        io.config(io.read(tmp_path / "whole.ckpt"), "whole.ckpt")


def test_averages_replace_the_last_step(tmp_path: Path) -> None:
    checkpoint = {
        "state_dict": {"x.a": torch.zeros(1), "x.b": torch.zeros(1)},
        "averaged": {"weights": {"x.a": torch.ones(1)}},
        "config": {},
        "optimizer_states": [1],
    }
    assert io.part(io.weights(checkpoint), "x.") == {"a": torch.ones(1), "b": torch.zeros(1)}
    assert io.weights(checkpoint, averaged=False)["x.a"] == 0
    slim = io.export(checkpoint)
    assert slim["state_dict"]["x.a"] == 1
    assert "optimizer_states" not in slim


def test_a_checkpoint_of_another_shape_is_reported_whole() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    state = {
        "0.weight": torch.zeros(3, 5),
        "1.weight": torch.zeros(1, 3),
        "1.bias": torch.zeros(1),
        "extra": torch.zeros(2),
    }
    before = model[1].weight.clone()
    with pytest.raises(ValueError, match="the model.*1 missing, 1 unexpected, 1 reshaped") as caught:
        io.load(model, state, what="the model of x.ckpt")
    for part in ("0.bias", "extra", "3x2", "3x5"):
        assert part in str(caught.value)
    assert torch.equal(model[1].weight, before)
