from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from star.training.steps import StepLog, ends_step, total_steps


def trainer(**changes: Any) -> Any:
    settings = {"accumulate_grad_batches": 2, "is_last_batch": False, "world_size": 1, "global_step": 0}
    return SimpleNamespace(**(settings | {"log_every_n_steps": 1} | changes))


class Listener(SimpleNamespace):
    def log_dict(self, named: dict[str, Tensor], *, batch_size: int) -> None:
        self.logged.append({name: float(value) for name, value in named.items()})


def test_the_mean_of_accumulated_batches_is_logged_once() -> None:
    module: Any = Listener(trainer=trainer(), logged=[])
    steps = StepLog()
    for number, loss in enumerate([1.0, 3.0, 5.0, 5.0]):
        steps.add(module, {"loss": torch.tensor(loss)}, batch_size=2, batch_idx=number)
    assert module.logged == [{"loss": 2.0}, {"loss": 5.0}]


@pytest.mark.parametrize(("step", "expected"), [(1, 5.0), (0, 1.0)])
def test_processes_are_asked_when_it_is_shown(step: int, expected: float) -> None:
    strategy = SimpleNamespace(reduce=lambda value, reduce_op: value + 4)
    settings = {"world_size": 2, "accumulate_grad_batches": 1, "log_every_n_steps": 2, "strategy": strategy}
    module: Any = Listener(trainer=trainer(global_step=step, **settings), logged=[])
    StepLog().add(module, {"loss": torch.tensor(1.0)}, batch_size=2, batch_idx=3)
    assert module.logged == [{"loss": expected}]


def test_a_step_ends_with_its_last_batch_or_with_the_epoch() -> None:
    assert [ends_step(trainer(), number) for number in range(4)] == [False, True, False, True]
    assert ends_step(trainer(is_last_batch=True), 0)


def test_a_training_that_only_the_clock_ends_has_no_schedule() -> None:
    assert total_steps(trainer(estimated_stepping_batches=8)) == 8
    with pytest.raises(ValueError, match=r"set trainer\.max_steps"):
        total_steps(trainer(estimated_stepping_batches=float("inf")))
