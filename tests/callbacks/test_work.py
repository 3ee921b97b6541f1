from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from star.callbacks.work import WorkMeter
from star.models.flops import transformer_flops
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.objectives.teacher_forcing import TeacherForcing
from star.schedule import ScaleSchedule
from star.types import Condition


class Module(nn.Module):
    def __init__(self, schedule: ScaleSchedule, **parts: nn.Module) -> None:
        super().__init__()
        self.schedule = schedule
        for name, part in parts.items():
            self.add_module(name, part)


@pytest.fixture
def module(
    build_transformer: Callable[..., STARTransformer], tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule
) -> Module:
    return Module(schedule, transformer=build_transformer(backend="prefix").train(), tokenizer=tokenizer)


def train(module: Any, condition: Condition, **settings: Any) -> None:
    codes = module.tokenizer.encode(torch.rand(3, 3, 8, 8), module.schedule)
    objective = TeacherForcing(**settings)
    objective(module.transformer, module.tokenizer, codes, condition, module.schedule).total.backward()


def test_a_training_step_is_counted_with_its_tokens(module: Any, condition: Condition) -> None:
    meter = WorkMeter()
    meter.attach(module)
    train(module, condition)
    forward = transformer_flops(module.transformer, module.schedule, text_tokens=5)
    assert meter.take() == (3 * module.schedule.total, 3 * 3 * forward)
    assert meter.take() == (0, 0)
    train(module, condition)
    meter.images(3)
    assert meter.take()[0] == 3 * module.schedule.total
    meter.detach()
    train(module, condition)
    assert meter.take() == (0, 0)


def test_the_count_is_that_of_the_flop_counter(
    module: Any, condition: Condition, counted: Callable[[Callable[[], object]], int]
) -> None:
    """But for the gradients of text and teacher-forcing input, which nobody needs, and the tokenizer's own work."""
    meter = WorkMeter()
    meter.attach(module)
    codes = module.tokenizer.encode(torch.rand(3, 3, 8, 8), module.schedule)
    x_in = module.tokenizer.quantizer.teacher_forcing(codes, module.schedule)
    found = counted(lambda: module.transformer(x_in, condition, module.schedule).sum().backward())
    assert 0.95 * meter.flops < found <= meter.flops


def test_trained_tokens_alone_are_counted(module: Any, condition: Condition) -> None:
    meter = WorkMeter()
    meter.attach(module)
    kept = torch.tensor([0, 1, 2, 3, 4, 6, 8, 9, 12, 15, 20]).expand(3, -1)
    train(module, condition, train_tokens=lambda schedule, batch: kept)
    forward = transformer_flops(module.transformer, module.schedule, text_tokens=5, counts=(1, 4, 3, 3))
    assert meter.take() == (33, 9 * forward)


def test_what_is_not_trained_is_no_work(module: Any, condition: Condition) -> None:
    meter = WorkMeter()
    meter.attach(module)
    x_in = torch.zeros(3, module.schedule.total - 1, 8)
    with torch.no_grad():
        module.transformer(x_in, condition, module.schedule)
    module.eval()
    module.transformer(x_in, condition, module.schedule)
    assert meter.take() == (0, 0)
    meter.attach(nn.Linear(2, 2))
    meter.images(5)
    assert meter.take() == (0, 0)


def test_a_tokenizer_counts_by_pictures(tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule) -> None:
    meter = WorkMeter()
    tokenizer.requires_grad_(True)
    meter.attach(Module(schedule, tokenizer=tokenizer))
    meter.images(2)
    tokens, whole = meter.take()
    assert tokens == 2 * schedule.total
    tokenizer.encoder.requires_grad_(False)
    meter.attach(Module(schedule, tokenizer=tokenizer))
    meter.images(2)
    assert 0 < meter.take()[1] < whole
