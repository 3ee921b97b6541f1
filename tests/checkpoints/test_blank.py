from __future__ import annotations

import torch
from torch import nn

from star.checkpoints.blank import blank


def test_modules_take_no_memory_until_they_are_filled() -> None:
    real = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    with blank():
        model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    assert all(parameter.is_meta for parameter in model.parameters())
    model.load_state_dict(real.state_dict(), assign=True)
    indices = torch.arange(3)
    assert torch.equal(model(indices), real(indices))


def test_afterwards_modules_are_initialised_again() -> None:
    with blank():
        nn.Linear(2, 2)
    assert nn.Linear(2, 2).weight.any()
