"""Every switch draws what the plain path draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.masks import ScaleMask
from star.sampling.decoder import DecodeState, ScaleWiseDecoder
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.samplers import TopKTopP
from star.sampling.speed import Speed
from star.schedule import ScaleSchedule, concatenate
from star.types import Condition, Draw

Draws = Callable[..., DecodeState]


class Tracing(TopKTopP):
    """Keeps the guided logits."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: list[Tensor] = []

    def __call__(self, hidden: Tensor, head: Any, guide: Any, k: int, state: DecodeState) -> Draw:
        self.seen.append(guide(head(hidden), k))
        return super().__call__(hidden, head, guide, k, state)


@pytest.fixture
def draws(
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    empty: Condition,
) -> Draws:
    """Draws three pictures; the same model every time."""

    def draw(
        speed: Speed | None = None,
        seeds: Sequence[int] = (1, 2, 3),
        changes: dict[str, Any] | None = None,
        **settings: Any,
    ) -> DecodeState:
        torch.manual_seed(5)
        model = build_transformer(drop_path=0.1, **(changes or {}))
        if speed is not None:
            speed.hold(model, torch.float32)
        arguments: dict[str, Any] = {"sampler": TopKTopP(16, 0.9), "guidance": ClassifierFreeGuidance(2.0)}
        decoder = ScaleWiseDecoder(model, tokenizer, schedule, speed=speed, **(arguments | settings))
        return decoder(condition, empty, list(seeds))

    return draw


def agree(one: DecodeState, other: DecodeState) -> None:
    assert torch.equal(concatenate(one.codes), concatenate(other.codes))
    torch.testing.assert_close(one.f_hat, other.f_hat, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "switches",
    [
        {"skip_guidance": False},
        {"cache_text": False},
        {"trim_text": False},
        {"cache_text": False, "sequential_guidance": True},
        {"sequential_guidance": True},
        {"sequential_guidance": True, "skip_guidance": False},
        {"weights": "cast"},
        {"weights": "packed"},
    ],
    ids=str,
)
@pytest.mark.parametrize("off_after", [None, 1, 0])
@pytest.mark.parametrize("order", [None, 1])
def test_the_codes_are_those_of_the_plain_path(
    draws: Draws, switches: dict[str, Any], off_after: int | None, order: int | None
) -> None:
    guidance = ClassifierFreeGuidance(2.0, off_after=off_after)
    changes = {"mask": ScaleMask(order)}
    plain = draws(Speed(skip_guidance=False), guidance=guidance, changes=changes)
    agree(draws(Speed(**switches), guidance=guidance, changes=changes), plain)


@pytest.mark.parametrize("speed", [Speed(), Speed(sequential_guidance=True)])
def test_what_no_later_scale_needs_is_not_computed(
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    empty: Condition,
    speed: Speed,
) -> None:
    """Guidance at scale 1 alone: logits of one half at the others, keys of two halves up to there."""
    model = build_transformer()
    rows: dict[str, list[int]] = {"block": [], "head": []}
    model.blocks[1].register_forward_pre_hook(lambda block, given: rows["block"].append(len(given[0])))
    model.head.register_forward_pre_hook(lambda head, given: rows["head"].append(len(given[0])))
    guidance = ClassifierFreeGuidance(2.0, off_after=1)
    decoder = ScaleWiseDecoder(model, tokenizer, schedule, sampler=TopKTopP(), guidance=guidance, speed=speed)
    state = decoder(condition, empty, [1, 2, 3])
    assert rows["block"] == ([3, 3, 3, 3, 3, 3] if speed.sequential_guidance else [6, 6, 3, 3])
    assert rows["head"] == [3, 6, 3, 3]
    assert len(state.condition) == 3


def test_a_constant_guidance_is_needed_at_once(draws: Draws) -> None:
    guidance = ClassifierFreeGuidance(2.0, ramp="constant")
    agree(draws(Speed(), guidance=guidance), draws(Speed(skip_guidance=False), guidance=guidance))


@pytest.mark.parametrize("speed", [Speed(), Speed(sequential_guidance=True)])
def test_search_moves_whatever_cache_there_is(draws: Draws, speed: Speed) -> None:
    rows = torch.tensor([2, 0, 0])
    search = lambda state, k: state.select(rows) if k in (1, 2) else state  # noqa: E731
    guidance = ClassifierFreeGuidance(2.0, off_after=2)
    plain = draws(Speed(skip_guidance=False), guidance=guidance, search=search)
    agree(draws(speed, guidance=guidance, search=search), plain)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"weights": "fp4"}, "speed.weights is one of as_is, auto, cast, packed, int8, got 'fp4'"),
        ({"compile": "all"}, "speed.compile is one of none, blocks, graphs, got 'all'"),
        ({"compile": "blocks", "weights": "packed"}, "sees no packed weights"),
        ({"compile": "graphs", "sequential_guidance": True}, "one cache in place"),
    ],
)
def test_nonsense_is_refused_with_the_value(switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Speed(**switches)


def test_what_does_not_fit_the_other_settings_is_refused(draws: Draws) -> None:
    with pytest.raises(ValueError, match="no Markov mask"):
        draws(Speed(compile="blocks"), changes={"mask": ScaleMask(1)})
    with pytest.raises(ValueError, match="which a search rearranges"):
        draws(Speed(compile="graphs"), search=lambda state, k: state)
    with pytest.raises(ValueError, match="the conditional one's text"):
        draws(Speed(sequential_guidance=True), changes={"first_sample_text": True})
