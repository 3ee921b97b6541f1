from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from star.callbacks.codebook_usage import CodebookUsage, count_codes, perplexity, usage


def test_usage_and_perplexity_of_known_counts() -> None:
    counts = torch.tensor([[4, 4, 4, 4], [8, 0, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0]])
    assert usage(counts).tolist() == [1.0, 0.25, 0.5, 0.0]
    torch.testing.assert_close(perplexity(counts), torch.tensor([4.0, 1.0, 2.0, 1.0]))
    uneven = torch.tensor([3, 1])
    assert perplexity(uneven).item() == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_codes_are_counted_per_scale() -> None:
    codes = [torch.tensor([[1], [1]]), torch.tensor([[0, 2], [2, 2]])]
    assert count_codes(codes, 4).tolist() == [[0, 2, 0, 0], [1, 0, 3, 0]]


class Module:
    """What the callback needs of a module: its tokenizer's codebook size, and a place to log."""

    def __init__(self) -> None:
        self.tokenizer = SimpleNamespace(quantizer=SimpleNamespace(codebook_size=4))
        self.logged: list[dict[str, Any]] = []

    def log_dict(self, named: dict[str, Any]) -> None:
        self.logged.append({name: float(value) for name, value in named.items()})


def trainer(step: int) -> Any:
    return SimpleNamespace(global_step=step, strategy=SimpleNamespace(reduce=lambda counts, reduce_op: counts))


CODES = [torch.tensor([[0]]), torch.tensor([[0, 1, 2, 3]])]


def test_training_logs_a_window_of_steps_once() -> None:
    callback, module = CodebookUsage(every_n_steps=2), Module()
    for step in (1, 2, 2, 3):  # the second 2: gradients are accumulated
        callback.on_train_batch_end(trainer(step), module, {"codes": CODES}, None, 0)
    (logged,) = module.logged
    assert logged["train/usage/scale_00"] == 0.25
    assert logged["train/usage/scale_01"] == 1.0
    assert logged["train/perplexity/scale_01"] == pytest.approx(4.0)
    assert logged["train/usage/pooled"] == 1.0
    assert logged["train/perplexity/pooled"] < 4.0


def test_validation_logs_all_batches_and_starts_anew() -> None:
    callback, module = CodebookUsage(), Module()
    for code in (0, 1):
        callback.on_validation_batch_end(trainer(1), module, {"codes": [torch.tensor([[code]])]}, None, 0)
    callback.on_validation_epoch_end(trainer(1), module)
    callback.on_validation_batch_end(trainer(1), module, {"codes": [torch.tensor([[0]])]}, None, 0)
    callback.on_validation_epoch_end(trainer(1), module)
    assert [logged["val/usage/scale_00"] for logged in module.logged] == [0.5, 0.25]


def test_steps_that_do_not_quantise_are_not_counted() -> None:
    callback, module = CodebookUsage(every_n_steps=1), Module()
    callback.on_train_batch_end(trainer(1), module, {"codes": None}, None, 0)
    callback.on_train_batch_end(trainer(2), module, None, None, 0)
    assert module.logged == []


def test_a_window_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        CodebookUsage(0)
