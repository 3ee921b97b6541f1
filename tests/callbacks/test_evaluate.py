from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from star.callbacks.evaluate import Evaluate
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.sampling.decoder import ScaleWiseDecoder
from star.sampling.samplers import TopKTopP
from star.schedule import ScaleSchedule
from star.types import Condition


class Brightness:
    """Mean brightness; remembers what it saw."""

    missing: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seen: list[tuple[str, float]] = []

    def update(self, images: Tensor, prompts: Sequence[Mapping[str, Any]]) -> None:
        pairs = zip(prompts, images.mean((1, 2, 3)).tolist(), strict=True)
        self.seen += [(prompt["prompt"], mean) for prompt, mean in pairs]

    def compute(self) -> dict[str, Any]:
        values = [value for _, value in self.seen]
        return {"value": sum(values) / len(values), "most": max(values), "num_images": len(values)}

    def iterate_missing(self) -> Any:
        return iter(self.missing)


@pytest.fixture
def module(
    build_transformer: Callable[..., STARTransformer], tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule
) -> SimpleNamespace:
    """What the callback needs of a generator module; a caption's condition depends on the caption alone."""

    def encode(captions: Sequence[str]) -> Condition:
        generators = [torch.Generator().manual_seed(len(caption)) for caption in captions]
        pooled = torch.stack([torch.randn(12, generator=generator) for generator in generators])
        context = torch.stack([torch.randn(2, 10, generator=generator) for generator in generators])
        return Condition(pooled, context, torch.ones(len(captions), 2, dtype=torch.bool))

    return SimpleNamespace(
        transformer=build_transformer(),
        tokenizer=tokenizer,
        schedule=schedule,
        text_encoder=encode,
        decoder=partial(ScaleWiseDecoder, sampler=TopKTopP()),
    )


PROMPTS = [{"prompt": "x" * (i + 1)} for i in range(10)]


def callback(**arguments: Any) -> Evaluate:
    base = {"every_n_steps": 5, "metric": Brightness(), "prompts": PROMPTS, "name": "bright", "num_prompts": 4}
    return Evaluate(**base | arguments)


def test_results_are_named_and_do_not_depend_on_the_batch(module: SimpleNamespace) -> None:
    results = [callback(batch=batch).score(module) for batch in (1, 4)]
    assert set(results[0]) == {"eval/bright", "eval/bright/most"}
    assert results[0] == pytest.approx(results[1], abs=1e-5)


def test_prompts_are_spread_and_shared_by_ranks(module: SimpleNamespace) -> None:
    whole, parts = callback(), [callback(), callback()]
    assert [len(record["prompt"]) for record in whole.prompts] == [1, 3, 6, 8]
    whole.score(module)
    for rank, part in enumerate(parts):
        part.score(module, rank, 2)
    seen = sorted(pair for part in parts for pair in part.metric.seen)  # type: ignore[attr-defined]
    for (prompt, mean), (other, expected) in zip(seen, sorted(whole.metric.seen), strict=True):  # type: ignore[attr-defined]
        assert prompt == other
        assert mean == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("num_prompts", "batch"), [(5, 1), (5, 2), (1, 4)])
def test_every_rank_draws_as_often_even_without_prompts_of_its_own(
    module: SimpleNamespace, num_prompts: int, batch: int
) -> None:
    """A model that is spread over ranks computes only when all of them take part."""
    drawn, counted = [], 0
    for rank in (0, 1):
        calls: list[int] = []
        module.decoder = lambda *parts, calls=calls: counting(ScaleWiseDecoder(*parts, sampler=TopKTopP()), calls)
        part = callback(num_prompts=num_prompts, batch=batch, metric=Lenient())
        part.score(module, rank, 2)
        drawn.append(len(calls))
        counted += len(part.metric.seen)  # type: ignore[attr-defined]
    assert drawn[0] == drawn[1]
    assert counted == num_prompts


class Lenient(Brightness):
    """Takes no pictures at all for an answer, as metrics that gather over ranks do."""

    def compute(self) -> dict[str, Any]:
        return super().compute() if self.seen else {"value": 0.0}


def counting(decoder: ScaleWiseDecoder, calls: list[int]) -> Any:
    def draw(condition: Condition, empty: Condition, seeds: list[int]) -> Any:
        calls.append(len(seeds))
        return decoder(condition, empty, seeds)

    return Counted(draw, decoder.images)


class Counted:
    """A decoder whose calls are counted."""

    def __init__(self, draw: Callable[..., Any], images: Callable[..., Tensor]) -> None:
        self.draw, self.images = draw, images

    def __call__(self, *arguments: Any) -> Any:
        return self.draw(*arguments)


def test_it_runs_when_it_is_time_and_tells_the_loggers(module: SimpleNamespace) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    logger = SimpleNamespace(log_metrics=lambda results, step: logged.append((step, results)))
    trainer: Any = SimpleNamespace(
        loggers=[logger],
        callbacks=[],
        callback_metrics={},
        precision_plugin=SimpleNamespace(val_step_context=nullcontext),
        global_rank=0,
        world_size=1,
    )
    module.training = True
    module.eval = lambda: None
    module.train = lambda mode: setattr(module, "training", mode)
    ours = callback()
    for trainer.global_step in (4, 5, 5, 7, 10):
        ours.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
    assert [step for step, _ in logged] == [5, 10]
    assert logged[0][1] == logged[1][1]
    assert float(trainer.callback_metrics["eval/bright"]) == pytest.approx(logged[1][1]["eval/bright"])
    assert module.training


def test_a_metric_of_torchmetrics_goes_where_the_pictures_are(module: SimpleNamespace) -> None:
    class Counter(MeanMetric):
        moved: torch.device | None = None

        def to(self, device: Any) -> Any:
            self.moved = device
            return super().to(device)

        def update(self, images: Tensor, prompts: Sequence[Mapping[str, Any]]) -> None:
            super().update(images.mean())

        def compute(self) -> dict[str, Any]:  # type: ignore[override]
            return {"value": float(super().compute())}

    ours = callback(metric=Counter())
    ours.score(module)
    assert ours.metric.moved == torch.device("cpu")  # type: ignore[attr-defined]


def test_it_fails_at_the_start_rather_than_after_an_hour(module: SimpleNamespace) -> None:
    lacking = Brightness()
    lacking.missing = ("no weights",)
    with pytest.raises(FileNotFoundError, match="no weights"):
        callback(metric=lacking).on_fit_start(SimpleNamespace(), module)  # type: ignore[arg-type]
    module.decoder = None
    with pytest.raises(ValueError, match="has no decoder"):
        callback().on_fit_start(SimpleNamespace(), module)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs prompts"):
        callback(prompts=[])
