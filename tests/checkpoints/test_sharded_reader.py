from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint as dcp

from star.checkpoints import io
from star.checkpoints.sharded_reader import read_sharded


class Stranger:
    """What runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def write(folder: Path, state: dict[str, Any], meta: dict[str, Any]) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(state, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    torch.save(meta, folder / "meta.pt")
    return folder


@pytest.fixture
def state() -> dict[str, Any]:
    group = {"lr": 0.5, "betas": (0.9, 0.99), "params": ["b", "a"]}
    return {
        "state_dict": {"a": torch.randn(3, 2), "b": torch.randn(4).bfloat16(), "tokenizer.n": torch.arange(3)},
        "averaged": {"a": torch.randn(3, 2), "b": torch.randn(4)},
        "optimizer_0": {"state": {"a": {"step": torch.tensor(3.0)}, "b": {}}, "param_groups": [group]},
    }


def test_the_parts_become_the_checkpoint_of_one_process(tmp_path: Path, state: dict[str, Any]) -> None:
    meta = {"config": {"task": "generator"}, "averaged": {"updates": 7}, "global_step": 9}
    checkpoint = io.read(write(tmp_path / "c", state, meta))
    assert {name: value.dtype for name, value in checkpoint["state_dict"].items()} == {
        "a": torch.float32,
        "b": torch.bfloat16,
        "tokenizer.n": torch.int64,
    }
    for name, value in state["state_dict"].items():
        assert torch.equal(checkpoint["state_dict"][name], value)
    assert checkpoint["averaged"]["updates"] == 7
    assert torch.equal(io.weights(checkpoint)["a"], state["averaged"]["a"])
    assert checkpoint["config"] == {"task": "generator"}
    (optimizer,) = checkpoint["optimizer_states"]
    assert optimizer["param_groups"] == [{"lr": 0.5, "betas": (0.9, 0.99), "params": [0, 1]}]
    assert optimizer["state"][1]["step"] == 3


def test_a_folder_runs_nobody_s_code(tmp_path: Path, state: dict[str, Any]) -> None:
    folder, trap = write(tmp_path / "c", state, {}), tmp_path / "trap"
    (folder / ".metadata").write_bytes(pickle.dumps(Stranger(trap)))
    with pytest.raises(ValueError, match="can't be read: it names"):
        read_sharded(folder)
    state["optimizer_0"]["param_groups"][0]["lr"] = Stranger(trap)
    folder = write(tmp_path / "d", state, {})
    with pytest.raises(ValueError, match="more than plain containers"):
        read_sharded(folder)
    assert not trap.exists()


def test_half_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only a part of one"):
        read_sharded(tmp_path)
