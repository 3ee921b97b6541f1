from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star.evaluation.context import Context
from star.evaluation.latency import PARTS, LatencyItem

Settings = Callable[..., dict[str, Any]]


def test_parts_add_up_and_the_sampler_is_put_back(tiny_checkpoint: Path, settings: Settings) -> None:
    context = Context(settings(f"ckpt={tiny_checkpoint}"))
    result = LatencyItem(batches=(1, 3), warmup=1, runs=3).run(context)
    batch = result.results["batch"]
    assert set(batch) == {"1", "3"}
    assert result.value == batch["1"]["total"]["median"]
    assert result.results["cold"]["total"] > 0
    for parts in batch.values():
        assert all(parts[part]["p10"] <= parts[part]["median"] <= parts[part]["p90"] for part in PARTS)
    assert batch["3"]["pictures_per_second"] == pytest.approx(3 / batch["3"]["total"]["median"])
    assert type(context.pipeline.decoder.sampler).__name__ == "TopKTopP"
    assert not {"forward", "to"} & set(vars(context.pipeline.text_encoder))


def test_a_text_encoder_that_comes_and_goes_is_timed(tiny_checkpoint: Path, settings: Settings) -> None:
    context = Context(settings(f"ckpt={tiny_checkpoint}", "speed.offload_text_encoder=true"))
    parts = LatencyItem(batches=(1,), warmup=0, runs=1).run(context).results["parts"]
    assert 0 < parts["text_encoder"] < parts["total"]


def test_a_text_encoder_that_is_moved_about_is_timed(tiny_checkpoint: Path, settings: Settings) -> None:
    context = Context(settings(f"ckpt={tiny_checkpoint}", "speed=small_card", "speed.decoder_dtype=null"))
    encoder = context.pipeline.text_encoder
    result = LatencyItem(batches=(1,), warmup=0, runs=1).run(context)
    assert result.results["parts"]["text_encoder"] > 0
    assert context.pipeline.text_encoder is encoder


def test_refusals() -> None:
    with pytest.raises(ValueError, match="latency needs batch sizes"):
        LatencyItem(batches=())
    with pytest.raises(ValueError, match="at least one run"):
        LatencyItem(runs=0)
