from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.cache import KVCache
from star.nn.masks import ScaleMask
from star.sampling.compiled import CompiledBlocks
from star.sampling.decoder import ScaleWiseDecoder
from star.sampling.graphs import GraphedBlocks
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.samplers import TopKTopP
from star.sampling.speed import Speed
from star.schedule import ScaleSchedule, concatenate
from star.types import Condition

Build = Callable[..., STARTransformer]


def capture(work: Callable[[], Tensor], cache: KVCache, device: torch.device) -> tuple[Tensor, Callable[[], None]]:
    """A graph for machines without CUDA: the work is done again, on the memory that it had, and all stays in place."""
    known = cache.knows_text()
    result = work()
    whole, text = dict(cache._whole), dict(cache._text)

    def replay() -> None:
        later = cache._whole, cache._text
        cache._whole, cache._text = dict(whole), dict(text) if known else {}
        result.copy_(work())
        for layer, places in text.items():
            for place, found in zip(places, cache._text[layer], strict=True):
                place.copy_(found)
        cache._whole, cache._text = later

    return result, replay


def inputs(schedule: ScaleSchedule, rows: int) -> list[Tensor | None]:
    return [None, *(torch.randn(rows, length, 8) for length in schedule.lengths[1:])]


@pytest.mark.parametrize("changes", [{}, {"context_width": None}, {"drop_path": 0.2}], ids=str)
@torch.no_grad()
def test_one_compiled_block_a_scale_serves_all_layers(
    build_transformer: Build, schedule: ScaleSchedule, condition: Condition, changes: dict[str, Any]
) -> None:
    """Traced whole (`fullgraph`) and run by the interpreter: what is compiled is what is written, up to rotations."""
    torch._dynamo.reset()
    model = build_transformer(**changes)
    if "context_width" in changes:
        condition = Condition(condition.pooled)
    counted: list[Any] = []
    run = CompiledBlocks(model, backend=lambda graph, examples: counted.append(graph) or graph.forward)  # type: ignore[arg-type]
    plain, compiled = KVCache(schedule), KVCache(schedule)
    for k, x in enumerate(inputs(schedule, 3)):
        expected = model.step(x, condition, schedule, k, plain)
        torch.testing.assert_close(model.step(x, condition, schedule, k, compiled, run), expected, atol=1e-4, rtol=1e-5)
    assert len(counted) == len(schedule)


@torch.no_grad()
def test_many_batch_sizes_may_be_compiled(build_transformer: Build, schedule: ScaleSchedule) -> None:
    """Beyond PyTorch's limits `fullgraph` fails; 14 scales of 5 batch sizes were too many once."""
    torch._dynamo.reset()
    limits: list[int] = []

    def backend(graph: Any, examples: Any) -> Any:
        limits.extend([torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit])
        return graph.forward

    model = build_transformer(depth=1, context_width=None)
    run = CompiledBlocks(model, backend=backend)  # type: ignore[arg-type]
    model.step(None, Condition(torch.randn(1, 12)), schedule, 0, KVCache(schedule), run)
    assert min(limits) >= 14 * 2 * 64


@pytest.mark.slow
@torch.no_grad()
def test_compiled_kernels_agree(build_transformer: Build, condition: Condition) -> None:
    schedule = ScaleSchedule(((1, 1), (2, 2)))
    model = build_transformer()
    run = CompiledBlocks(model)
    plain, compiled = KVCache(schedule), KVCache(schedule)
    for k, x in enumerate(inputs(schedule, 3)):
        expected = model.step(x, condition, schedule, k, plain)
        torch.testing.assert_close(model.step(x, condition, schedule, k, compiled, run), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_recorded_scales_draw_the_same_pictures(
    build_transformer: Build,
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    empty: Condition,
    precision: torch.dtype,
) -> None:
    """Picture after picture, with other texts, other numbers of rows, and guidance that ends on the way."""
    model = build_transformer()
    settings: dict[str, Any] = {"sampler": TopKTopP(16, 0.9), "guidance": ClassifierFreeGuidance(2.0, off_after=1)}
    plain = ScaleWiseDecoder(model, tokenizer, schedule, **settings)
    recorded = ScaleWiseDecoder(model, tokenizer, schedule, **settings)
    graphs = recorded.step.run = GraphedBlocks(model.run_blocks, capture=capture)
    for rows in ([0, 1], [2, 0], [1], [2], [0, 1]):
        texts = condition.select(torch.tensor(rows))
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            expected, found = plain(texts, empty, rows), recorded(texts, empty, rows)
        assert torch.equal(concatenate(found.codes), concatenate(expected.codes))
    assert len(graphs._recordings) == 2 * len(schedule)


def test_two_batches_in_turns_are_refused(
    build_transformer: Build, tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule, condition: Condition
) -> None:
    model = build_transformer()
    decoder = ScaleWiseDecoder(model, tokenizer, schedule, sampler=TopKTopP())
    decoder.step.run = GraphedBlocks(model.run_blocks, capture=capture)
    one, other = decoder.scales(condition, None, [1, 2, 3]), decoder.scales(condition, None, [4, 5, 6])
    next(one)
    next(other)
    next(other)
    with pytest.raises(ValueError, match="one batch after another"):
        next(one)


@pytest.mark.parametrize("there", [True, False])
def test_graphs_off_a_gpu_say_so(
    build_transformer: Build,
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    there: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether the machine has one or not: what runs on its CPU a graph doesn't record."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    decoder = ScaleWiseDecoder(
        build_transformer(), tokenizer, schedule, sampler=TopKTopP(), speed=Speed(compile="graphs")
    )
    with pytest.raises(ValueError, match="CUDA graphs need a GPU"):
        decoder(condition, None, [1, 2, 3])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["blocks", "graphs"])
def test_on_a_gpu_too(
    build_transformer: Build,
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    empty: Condition,
    kind: str,
) -> None:
    model, tokenizer = build_transformer().cuda(), tokenizer.cuda()
    settings: dict[str, Any] = {"sampler": TopKTopP(16, 0.9), "guidance": ClassifierFreeGuidance(2.0, off_after=1)}
    plain = ScaleWiseDecoder(model, tokenizer, schedule, **settings)
    fast = ScaleWiseDecoder(model, tokenizer, schedule, **settings, speed=Speed(compile=kind))
    for rows in ([0, 1], [2, 0]):
        texts = condition.select(torch.tensor(rows)).to("cuda")
        expected, found = plain(texts, empty.to("cuda"), rows), fast(texts, empty.to("cuda"), rows)
        assert torch.equal(concatenate(found.codes), concatenate(expected.codes))


def test_a_cache_that_forgets_has_no_room(schedule: ScaleSchedule) -> None:
    with pytest.raises(ValueError, match="no Markov mask"):
        KVCache(schedule, ScaleMask(1)).room(0, 0, torch.zeros(1, 2, 0, 4))
