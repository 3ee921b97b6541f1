from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from star.training.optim import JointOptimizer
from star.training.rivals import RivalOptimizer, RivalSchedules


def build() -> tuple[list[nn.Parameter], RivalOptimizer, RivalSchedules]:
    """Three parameters: two under an optimiser that is itself joint, one under the rival's, which begins at step 2."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(3)) for _ in range(3)]
    joint = JointOptimizer(
        torch.optim.SGD(parameters[:1], lr=0.1, momentum=0.9), torch.optim.Adam(parameters[1:2], lr=0.1)
    )
    rival = torch.optim.Adam(parameters[2:], lr=0.2)
    schedules = [LambdaLR(optimizer, lambda step: 1 / (step + 1)) for optimizer in (joint, rival)]
    both = RivalOptimizer(joint, rival)
    return parameters, both, RivalSchedules(both, schedules, (0, 2))


def step(parameters: list[nn.Parameter], optimizer: RivalOptimizer, schedules: RivalSchedules) -> None:
    optimizer.zero_grad()
    sum((parameter - 1).square().sum() for parameter in parameters).backward()
    optimizer.step()
    schedules.step()


def test_each_is_stepped_as_if_alone() -> None:
    parameters, both, schedules = build()
    alone = nn.Parameter(parameters[2].detach().clone())
    optimizer = torch.optim.Adam([alone], lr=0.2)
    for rate in (0.2, 0.2, 0.2, 0.1, 0.2 / 3):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        (alone - 1).square().sum().backward()
        optimizer.step()
        step(parameters, both, schedules)
    torch.testing.assert_close(parameters[2], alone)


def test_a_late_schedule_waits_at_its_first_rate() -> None:
    parameters, both, schedules = build()
    rates = []
    for _ in range(4):
        rates.append([group["lr"] for group in both.param_groups])
        step(parameters, both, schedules)
    assert [first for first, *_ in rates] == pytest.approx([0.1, 0.1 / 2, 0.1 / 3, 0.1 / 4])
    assert [last for *_, last in rates] == pytest.approx([0.2, 0.2, 0.2, 0.1])
    assert schedules.get_last_lr() == pytest.approx([group["lr"] for group in both.param_groups])


@pytest.mark.parametrize("stop", [1, 3])
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened(stop: int) -> None:
    whole, first, second = build(), build(), build()
    for _ in range(6):
        step(*whole)
    for _ in range(stop):
        step(*first)
    for new, old in zip(second[0], first[0], strict=True):
        new.data.copy_(old)
    second[1].load_state_dict(deepcopy(first[1].state_dict()))
    second[2].load_state_dict(deepcopy(first[2].state_dict()))
    for _ in range(6 - stop):
        step(*second)
    for a, b in zip(whole[0], second[0], strict=True):
        assert torch.equal(a, b)
