"""A small pipeline behind the page, which a test can stop between two scales."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from star.models.conditioning.word_transformer import WordTransformer
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.page.limits import Limits
from star.page.presets import OWN, Presets
from star.page.studio import Studio
from star.pipeline import STARPipeline
from star.pipeline_call import preset_of
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.samplers import Greedy, TopKTopP
from star.schedule import ScaleSchedule


class Gated(STARPipeline):
    """Waits before every scale while the gate is shut."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.gate = threading.Event()
        self.gate.set()
        self.begun = 0

    def scales(self, *args: Any, **settings: Any) -> Iterator[Any]:
        self.begun += 1
        for state in super().scales(*args, **settings):
            self.gate.wait(20)
            yield state


@pytest.fixture
def pipeline(
    schedule: ScaleSchedule, tokenizer: MultiScaleTokenizer, build_transformer: Callable[..., STARTransformer]
) -> Gated:
    return Gated(
        text_encoder=WordTransformer(width=8, depth=1, num_heads=2, vocabulary_size=50),
        transformer=build_transformer(pooled_width=8, context_width=8),
        tokenizer=tokenizer,
        schedule=schedule,
        decoder={"guidance": ClassifierFreeGuidance(2.0), "sampler": TopKTopP(16, 0.9)},
        identity="0123456789ab",
    )


@pytest.fixture
def studio(pipeline: Gated) -> Studio:
    own = preset_of(pipeline.decoder)
    greedy = {**own, "sampler": {"_target_": f"{Greedy.__module__}.Greedy"}}
    strong = {**own, "guidance": {**own["guidance"], "scale": 9.0}}
    return Studio(pipeline, Presets({OWN: own, "greedy": greedy, "strong": strong}), Limits(images=3, history=50))
