from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from star.callbacks import throughput
from star.callbacks.throughput import Throughput, everyone
from star.types import Batch


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


@pytest.fixture
def trainer() -> Any:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        global_step=0, log_every_n_steps=2, world_size=4, is_global_zero=True, strategy=strategy, precision="bf16-mixed"
    )


@pytest.fixture
def module() -> Any:
    logged: dict[str, list[float]] = {}
    return SimpleNamespace(logged=logged, log=lambda name, value: logged.setdefault(name, []).append(value))


def step(callback: Throughput, trainer: Any, module: Any, *, waited: float = 0.0, **skipped: int) -> None:
    batch = Batch(torch.zeros(3, 3, 2, 2), ["a"] * 3, skipped=skipped, waited=waited)
    callback.on_train_batch_end(trainer, module, None, batch, 0)


def test_numbers_per_second_over_all_devices(clock: Clock, trainer: Any, module: Any) -> None:
    callback = Throughput(peak_tflops=2.0)
    callback.on_train_start(trainer, module)
    for trainer.global_step in (1, 2):
        clock.now += 3.0
        callback.work.tokens += 10
        callback.work.flops += int(6e12)
        step(callback, trainer, module, waited=0.75)
    logged = {name: values[0] for name, values in module.logged.items()}
    assert logged.pop("memory_gib") > 0
    assert logged == pytest.approx(
        {
            "images_per_second": 4 * 6 / 6.0,
            "tokens_per_second": 4 * 20 / 6.0,
            "tflops_per_device": 2.0,
            "mfu": 1.0,
            "data_wait": 0.25,
        }
    )


def test_validation_takes_no_time_and_accumulated_batches_are_one_step(clock: Clock, trainer: Any, module: Any) -> None:
    callback = Throughput()
    callback.on_train_start(trainer, module)
    for trainer.global_step in (1, 1, 2, 2, 3):  # a step ends with its last batch
        clock.now += 1.0
        step(callback, trainer, module)
        callback.on_validation_start(trainer, module)
        clock.now += 50.0
        callback.on_validation_end(trainer, module)
    assert module.logged["images_per_second"] == pytest.approx([4 * 9 / 3.0])
    assert "mfu" not in module.logged


def test_the_peak_is_asked_for_once_and_at_the_training_precision(
    trainer: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def peak(half: bool) -> float:
        asked.append(half)
        return 5.0

    monkeypatch.setattr(throughput, "this_device", lambda device: SimpleNamespace(name="x", peak=peak))
    callback = Throughput()
    for trainer.global_step in (2, 4):
        callback.work.flops = 1
        step(callback, trainer, module)
    assert asked == [True]
    assert all(value > 0 for value in module.logged["mfu"])


def test_skipped_samples_are_counted_by_cause_and_resumed(
    trainer: Any, module: Any, caplog: pytest.LogCaptureFixture
) -> None:
    callback = Throughput()
    callback.on_train_start(trainer, module)
    for trainer.global_step, skipped in ((1, {"decode: x": 2}), (2, {"decode: x": 1, "filter: y": 4})):
        step(callback, trainer, module, **skipped)
    assert module.logged["skipped_samples"] == [7]
    again = Throughput()
    again.load_state_dict(callback.state_dict())
    with caplog.at_level(logging.WARNING):
        again.on_fit_end(trainer, module)
    assert "7 samples were skipped: filter: y 4, decode: x 3" in caplog.text


def test_all_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(found: list[Any], own: Any) -> None:
        found[:] = [own, own, own]

    monkeypatch.setattr(throughput.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(throughput.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(throughput.distributed, "all_gather_object", gather)
    assert everyone(throughput.Counter({"a": 2})) == {"a": 6}


def test_a_peak_is_positive() -> None:
    with pytest.raises(ValueError, match=r"callbacks\.throughput\.peak_tflops.*got 0"):
        Throughput(peak_tflops=0)
