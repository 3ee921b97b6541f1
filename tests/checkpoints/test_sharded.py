from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from star.checkpoints.sharded import is_sharded, named, numbered


def test_parameters_by_name_and_by_number_are_the_same_state() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    by_name = dict(model.named_parameters())
    order = ["1.weight", "0.weight", "0.bias", "1.bias"]  # an optimiser's groups need not follow the model
    groups = [{"params": [by_name[name] for name in order[:2]]}, {"params": [by_name[name] for name in order[2:]]}]
    optimizer = torch.optim.AdamW(groups)
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    translated = named(copy.deepcopy(state), order)
    assert set(translated["state"]) == set(order)
    assert translated["state"]["0.bias"]["exp_avg"].shape == (3,)
    back = numbered(translated)
    assert back["param_groups"] == state["param_groups"]
    assert all(torch.equal(back["state"][i]["exp_avg"], state["state"][i]["exp_avg"]) for i in state["state"])
    with pytest.raises(ValueError, match="4 parameters, this run's 3"):
        named(state, order[:3])


def test_only_a_complete_folder_counts(tmp_path: Path) -> None:
    (tmp_path / ".metadata").touch()
    assert not is_sharded(tmp_path)
    (tmp_path / "meta.pt").touch()
    assert is_sharded(tmp_path)
    assert not is_sharded(tmp_path / "meta.pt")
