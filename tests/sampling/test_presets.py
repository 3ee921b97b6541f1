"""The presets of conf/sampling draw at any length of schedule and with any codebook."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from star.models.refiner import Refiner, first_refined
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.position import Rotary2D
from star.sampling.decoder import ScaleWiseDecoder, needs_refiner
from star.schedule import ScaleSchedule
from star.types import Condition
from star.utils.cli import compose, plain
from star.utils.instantiate import instantiate

PRESETS = ("topk600", "topk4096", "smooth", "causal_driven", "causal_driven_confidence", "release_1024", "demo_refined")
PUBLISHED = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CONF", str(Path(__file__).parents[2] / "conf"))


def preset(name: str) -> Any:
    return instantiate(plain(compose("sample", [f"sampling={name}"]))["sampling"])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("sides", [(1,), (1, 2), (1, 2, 3, 4), (1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4)])
def test_every_preset_draws(
    name: str,
    sides: tuple[int, ...],
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    condition: Condition,
    empty: Condition,
) -> None:
    schedule = ScaleSchedule.square(*sides)
    sizes = {"width": 32, "num_heads": 4, "codebook_size": 32, "code_width": 8, "pooled_width": 12}
    refiner = Refiner(**sizes, num_levels=len(schedule), position=Rotary2D())  # type: ignore[arg-type]
    built = preset(name)
    extra = {"refiner": refiner.eval()} if needs_refiner(built.keywords["sampler"]) else {}
    decoder: ScaleWiseDecoder = built(build_transformer(num_levels=len(schedule)), tokenizer, schedule, **extra)
    state = decoder(condition, empty, [0, 1, 2])
    assert [tuple(codes.shape) for codes in state.codes] == [(3, length) for length in schedule.lengths]
    assert torch.cat(state.codes, 1).max() < 32


def test_the_release_at_1024() -> None:
    """The last five of fourteen scales: 8 steps each, 15 for the last, which never asks the generator."""
    sampler, schedule = preset("release_1024").keywords["sampler"], ScaleSchedule.square(*PUBLISHED)
    first = first_refined(schedule, sampler.first_scale)
    assert [schedule.sizes[k][0] for k in range(first, 14)] == [21, 27, 36, 48, 64]
    assert [sampler.reveal(k, schedule).steps for k in range(first, 14)] == [8, 8, 8, 8, 15]
    assert sampler.generator_until % 14 == 13
    assert (sampler.generator_steps, sampler.random_steps) == (5, 5)
    assert sampler.double_reveal
    assert sampler.constant_guidance
