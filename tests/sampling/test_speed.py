"""Every switch draws what the plain path draws."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.masks import ScaleMask
from star.nn.weights import HeldWeight
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
@pytest.mark.parametrize("limits", [{}, {"off_after": 1}, {"off_after": 0}, {"on_from": 2}], ids=str)
@pytest.mark.parametrize("order", [None, 1])
def test_the_codes_are_those_of_the_plain_path(
    draws: Draws, switches: dict[str, Any], limits: dict[str, int], order: int | None
) -> None:
    guidance = ClassifierFreeGuidance(2.0, **limits)
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


@pytest.mark.parametrize(("cached", "times"), [(True, 1), (False, 4)])
@pytest.mark.parametrize(("trimmed", "length"), [(True, 5), (False, 9)])
def test_texts_are_cut_and_remembered_where_asked_for(
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    cached: bool,
    times: int,
    trimmed: bool,
    length: int,
) -> None:
    """The longest of the texts has 5 of 9 tokens; there are 4 scales."""
    assert condition.context is not None
    assert condition.context_mask is not None
    padded = Condition(condition.pooled, pad(condition.context, (0, 0, 0, 4)), pad(condition.context_mask, (0, 4)))
    model = build_transformer()
    cross: Any = model.blocks[1].cross_attention
    compute, seen = cross.keys_and_values, []
    cross.keys_and_values = lambda context: seen.append(context.shape[1]) or compute(context)
    speed = Speed(cache_text=cached, trim_text=trimmed)
    found = ScaleWiseDecoder(model, tokenizer, schedule, sampler=TopKTopP(16, 0.9), speed=speed)(
        padded, None, [1, 2, 3]
    )
    assert seen == [length] * times
    agree(found, ScaleWiseDecoder(model, tokenizer, schedule, sampler=TopKTopP(16, 0.9))(condition, None, [1, 2, 3]))


def test_switches_reach_what_they_switch(
    build_transformer: Callable[..., STARTransformer], tokenizer: MultiScaleTokenizer
) -> None:
    switches: dict[str, Any] = {"channels_last": True, "fold_upsampling": True, "strips_above": 4}
    for given in (switches, {name: Speed.__dataclass_fields__[name].default for name in switches}):
        painter = Speed(**given, weights="cast", decoder_dtype="bf16").painter(tokenizer)
        assert {name: getattr(painter, name) for name in switches} == given
        assert (painter.dtype, painter.hold_weights) == ("bf16", True)
    assert not Speed().painter(tokenizer).hold_weights
    for speed, held in ((Speed(weights="packed"), True), (Speed(weights="auto", compile="blocks"), False)):
        model = build_transformer()
        speed.hold(model, torch.float32)
        linear: Any = [model.blocks[1].feed_forward.inner, model.blocks[0].attention.qkv, model.head.logits]  # type: ignore[union-attr]
        assert [isinstance(layer.weight, HeldWeight) for layer in linear] == [held] * 3


def test_a_copy_of_a_decoder_may_have_another_cache_policy(
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
) -> None:
    class FirstOnly:
        def keep(self, layer: int, scale: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            return keys[:, :, :1], values[:, :, :1]

    decoder = ScaleWiseDecoder(build_transformer(), tokenizer, schedule, sampler=TopKTopP())
    other = copy.copy(decoder)
    other.cache_policy = FirstOnly()
    for each, tokens in ((decoder, [11, 11, 11, 0]), (other, [1, 2, 3, 0])):
        assert [state.cache.tokens() for state in each.scales(condition, None, [1, 2, 3])] == tokens


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"weights": "fp4"}, "speed.weights is one of as_is, auto, cast, packed, int8, got 'fp4'"),
        ({"compile": "all"}, "speed.compile is one of none, blocks, graphs, got 'all'"),
        ({"compile": "blocks", "weights": "packed"}, "sees no packed weights"),
        ({"compile": "graphs", "sequential_guidance": True}, "one cache in place"),
        ({"trim_text": "off"}, "speed.trim_text is true or false, got 'off'"),
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
