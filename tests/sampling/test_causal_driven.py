from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from star.models.refiner import Refiner
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.position import Rotary2D
from star.sampling.causal_driven import CausalDriven
from star.sampling.decoder import DecodeState, ScaleWiseDecoder
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.reveal import SHAPES
from star.sampling.samplers import Greedy, TopKTopP
from star.schedule import ScaleSchedule, concatenate
from star.types import Condition

Build = Callable[..., ScaleWiseDecoder]


class Spy:
    """A refiner of fixed or given opinions that remembers what it was shown."""

    def __init__(self, says: Callable[..., Tensor] | None = None) -> None:
        self.says = says
        self.shown: list[tuple[int, Tensor, Tensor]] = []

    def step(
        self, hidden: Tensor, embeddings: Tensor, known: Tensor, condition: Condition, schedule: ScaleSchedule, k: int
    ) -> Tensor:
        self.shown.append((k, embeddings.clone(), known.clone()))
        if self.says is not None:
            return self.says(hidden, embeddings, known, condition, schedule, k)
        logits = torch.randn(schedule.lengths[k], 32, generator=torch.Generator().manual_seed(k))
        return logits.expand(hidden.shape[0], -1, -1)


@pytest.fixture
def refiner(schedule: ScaleSchedule) -> Refiner:
    model = Refiner(
        width=32,
        num_heads=4,
        codebook_size=32,
        code_width=8,
        pooled_width=12,
        num_levels=len(schedule),
        position=Rotary2D(),
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def build(
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    refiner: Refiner,
) -> Build:
    def decoder(first_sample_text: bool = False, **changes: Any) -> ScaleWiseDecoder:
        settings = {"guidance": ClassifierFreeGuidance(1.5), "refiner": refiner} | changes
        torch.manual_seed(0)  # the same transformer every time
        return ScaleWiseDecoder(build_transformer(first_sample_text=first_sample_text), tokenizer, schedule, **settings)

    return decoder


def sampler(**settings: Any) -> CausalDriven:
    base = {"steps": 5, "first_scale": 2, "top_k": 20, "top_p": 0.9, "return_trace": True}
    return CausalDriven(**base | settings)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"steps": [3, 7], "shape": "cosine", "temperature": 0.7},
    {"random_steps": 0, "constant_guidance": False},
    {"random_steps": 2, "generator_steps": 3},
    {"random_steps": 2, "generator_steps": 4, "double_reveal": True, "generator_until": 4 - 1},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("random_steps", [None, 0, 2])
def test_many_steps_of_a_refiner_that_ignores_what_it_sees_are_one(
    build: Build, condition: Condition, empty: Condition, shape: str, random_steps: int | None
) -> None:
    def codes(steps: int) -> Tensor:
        settings = sampler(steps=steps, shape=shape, random_steps=random_steps, top_k=1, coarse=Greedy())
        return concatenate(build(sampler=settings, refiner=Spy())(condition, empty, [1, 2, 3]).codes)

    assert torch.equal(codes(1), codes(6))
    assert torch.equal(codes(1), codes(40))


def test_in_random_order_its_tokens_are_distributed_as_in_one_step(build: Build, condition: Condition) -> None:
    many = condition.select(torch.zeros(300, dtype=torch.long))
    shares = []
    for steps in (1, 8):
        draw = build(sampler=sampler(steps=steps, top_k=0, top_p=0.0, first_scale=3), refiner=Spy(), guidance=None)
        codes = draw(many, None, list(range(300))).codes[3]
        shares.append(torch.nn.functional.one_hot(codes, 32).float().mean(0))
    assert (shares[0] - shares[1]).abs().max() < 0.14  # 4.5 standard deviations of a share of 300


@pytest.mark.parametrize("settings", VARIANTS)
def test_known_tokens_never_change_and_each_is_revealed_once(
    build: Build, condition: Condition, empty: Condition, refiner: Refiner, settings: dict[str, Any]
) -> None:
    spy = Spy(refiner.step)
    draw = build(sampler=sampler(**settings), refiner=spy)
    state = draw(condition, empty, [1, 2, 3])
    for k, embeddings, known in spy.shown:
        final = state.codebook[state.codes[k]]
        assert torch.equal(embeddings[known], final[known])
    for k, trace in enumerate(state.traces):
        assert (trace is None) == (k < 2)
        if trace is not None:
            assert torch.equal(trace.revealed.sum(1), torch.ones_like(state.codes[k]))


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("first_sample_text", [False, True])
def test_a_picture_depends_on_its_prompt_and_seed_alone(
    build: Build, condition: Condition, empty: Condition, settings: dict[str, Any], first_sample_text: bool
) -> None:
    draw = build(first_sample_text, sampler=sampler(**settings))
    rows, seeds = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), [5, 6, 7, 8, 9, 10, 11, 6]
    batch = draw(condition.select(rows), empty, seeds)
    for place in (0, 1, 6):
        alone = draw(condition.select(rows[place : place + 1]), empty, seeds[place : place + 1])
        assert torch.equal(concatenate(alone.codes)[0], concatenate(batch.codes)[place])
        for one, of_batch in zip(alone.traces[2:], batch.traces[2:], strict=True):
            assert torch.equal(one.order[0], of_batch.order[place])
    assert torch.equal(concatenate(batch.codes)[1], concatenate(batch.codes)[7])


def test_pictures_that_are_done_early_go_on_as_if_alone(build: Build, condition: Condition, empty: Condition) -> None:
    """Revealing twice, a batch's pictures need different numbers of steps; what comes after mustn't know."""
    draw = build(sampler=sampler(steps=8, generator_steps=5, double_reveal=True, random_steps=5, first_scale=1))
    rows = torch.zeros(24, dtype=torch.long)
    batch = draw(condition.select(rows), empty, list(range(24)))
    needed = [trace.order.amax(1) for trace in batch.traces[1:3]]
    assert any(len(steps.unique()) > 1 for steps in needed)
    for place in (0, 7, 23):
        alone = draw(condition.select(rows[:1]), empty, [place])
        assert torch.equal(concatenate(alone.codes)[0], concatenate(batch.codes)[place])


def test_each_step_sees_the_tokens_of_those_before(build: Build, condition: Condition, empty: Condition) -> None:
    spy = Spy()
    build(sampler=sampler(steps=4), refiner=spy)(condition, empty, [1, 2, 3])
    for k in (2, 3):
        counts = [known.sum(1).tolist() for scale, _, known in spy.shown if scale == k]
        assert counts[0] == [0, 0, 0]
        assert all(len(set(count)) == 1 for count in counts)
        assert counts == sorted(counts)
        assert len(counts) == 4


def test_larger_scales_may_take_more_steps(build: Build, condition: Condition, empty: Condition) -> None:
    spy = Spy()
    build(sampler=sampler(steps=[2, 3, 6], first_scale=0), refiner=spy)(condition, empty, [1, 2, 3])
    steps = [sum(scale == k for scale, _, _ in spy.shown) for k in range(4)]
    assert steps == [1, 2, 3, 6]  # a scale of one token has one step


def test_later_scales_may_be_drawn_at_once(build: Build, condition: Condition, empty: Condition) -> None:
    spy = Spy()
    state = build(sampler=sampler(first_scale=1, last_scale=-3), refiner=spy)(condition, empty, [1, 2, 3])
    assert {scale for scale, _, _ in spy.shown} == {1}
    plain = build(sampler=sampler(first_scale=1, last_scale=-3, coarse=Greedy()), refiner=spy)
    greedy = plain(condition, empty, [1, 2, 3])
    assert [trace is not None for trace in state.traces] == [False, True, False, False]
    assert not torch.equal(concatenate(state.codes[2:]), concatenate(greedy.codes[2:]))


def test_the_most_confident_positions_come_first(build: Build, condition: Condition, empty: Condition) -> None:
    state = build(sampler=sampler(random_steps=0), refiner=Spy())(condition, empty, [1, 2, 3])
    trace = state.traces[3]
    for step in range(len(trace.by_refiner)):
        unknown = ~trace.revealed[:, :step].any(1)
        taken = trace.confidence[:, step].masked_fill(~trace.revealed[:, step], 2.0).amin(1)
        left = trace.confidence[:, step].masked_fill(trace.revealed[:, step] | ~unknown, -1.0).amax(1)
        assert (taken >= left).all()


def test_the_generator_may_answer_the_first_steps(build: Build, condition: Condition, empty: Condition) -> None:
    state = build(sampler=sampler(steps=5, generator_steps=3), refiner=Spy())(condition, empty, [1, 2, 3])
    assert state.traces[2].by_refiner == (False, False, False, True, True)
    assert state.traces[3].by_refiner == (True,) * 5  # never the last scale's


@pytest.mark.parametrize(("until", "scales"), [(4, {2, 3}), (3, {2}), (-1, {2}), (-2, set()), (0, set())])
def test_up_to_which_scale_the_generator_may_answer(
    build: Build, condition: Condition, empty: Condition, until: int, scales: set[int]
) -> None:
    steps = sampler(generator_steps=9, generator_until=until)
    state = build(sampler=steps, refiner=Spy())(condition, empty, [1, 2, 3])
    assert {k for k in (2, 3) if not any(state.traces[k].by_refiner)} == scales


@pytest.mark.parametrize("settings", [{"top_p": 1e-4}, {"temperature": 1e-4, "top_p": 0.0}, {"top_k": 1}])
def test_refined_scales_have_filters_and_a_temperature_of_their_own(
    build: Build, condition: Condition, empty: Condition, settings: dict[str, Any]
) -> None:
    """Each of them alone may leave nothing but the likeliest code, on the refined scales and on no other."""
    spy, coarse = Spy(), TopKTopP(20, 0.9)
    state, loose = (
        build(sampler=sampler(coarse=coarse, **each), refiner=spy)(condition, empty, [1, 2, 3])
        for each in (settings, {})
    )
    for k in (2, 3):
        likeliest = torch.randn(state.schedule.lengths[k], 32, generator=torch.Generator().manual_seed(k)).argmax(-1)
        assert torch.equal(state.codes[k], likeliest.expand(3, -1))
        assert not torch.equal(loose.codes[k], state.codes[k])
    assert torch.equal(concatenate(state.codes[:2]), concatenate(loose.codes[:2]))


def test_if_the_generator_answers_every_step_there_is_no_need_to_see(
    build: Build, condition: Condition, empty: Condition
) -> None:
    """Greedy, its steps are the plain sampler."""
    steps = sampler(top_k=1, generator_steps=9, generator_until=4 - 1, first_scale=2, coarse=Greedy())
    plain = build(sampler=Greedy())(condition, empty, [1, 2, 3])
    refined = build(sampler=steps)(condition, empty, [1, 2, 3])
    assert torch.equal(plain.codes[2], refined.codes[2])


@pytest.mark.parametrize(("constant", "off_after", "expected"), [(True, None, 3.0), (False, None, 2.0), (True, 2, 2.0)])
def test_guidance_of_the_refiner(
    build: Build, condition: Condition, empty: Condition, constant: bool, off_after: int | None, expected: float
) -> None:
    """At scale 2 of 4 the ramp is at two thirds."""
    seen: list[float] = []

    class Listening(ClassifierFreeGuidance):
        def __call__(self, conditional: Tensor, unconditional: Tensor, k: int, schedule: ScaleSchedule) -> Tensor:
            seen.append(self.strength(k, schedule))
            return super().__call__(conditional, unconditional, k, schedule)

    guidance = Listening(3.0, off_after=off_after)
    draw = build(sampler=sampler(steps=2, constant_guidance=constant), guidance=guidance)
    draw(condition, empty, [1, 2, 3])
    assert seen[1:3] == [expected] * 2  # the first scale has no guidance, so that nothing is asked there
    assert seen[3:] == ([] if off_after else [3.0] * len(seen[3:]))


class Forgetful:
    """A cache policy that keeps every other key."""

    def keep(self, layer: int, scale: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys[:, :, ::2], values[:, :, ::2]


def test_any_cache_policy_and_search_go_with_it(build: Build, condition: Condition, empty: Condition) -> None:
    rows = torch.tensor([2, 0, 0])
    seen: list[DecodeState] = []

    def search(state: DecodeState, k: int) -> DecodeState:
        seen.append(state)
        return state.select(rows) if k == 2 else state

    state = build(sampler=sampler(), cache_policy=Forgetful(), search=search)(condition, empty, [1, 2, 3])
    assert torch.equal(state.traces[2].order, seen[2].traces[2].order[rows])
    assert torch.equal(state.codes[2], seen[2].codes[2][rows])
    assert not torch.equal(state.traces[3].order[1], state.traces[3].order[2])  # doubled, then on its own way


def test_pictures_drawn_one_by_one_are_a_batch_that_can_be_selected_from(
    build: Build, condition: Condition, empty: Condition
) -> None:
    state = build(True, sampler=sampler())(condition, empty, [1, 2, 3])
    assert len(state.condition) == 6
    assert torch.equal(state.condition.pooled[:3], condition.pooled)
    assert torch.equal(state.condition.pooled[3:], empty.pooled.expand(3, -1))
    rows = torch.tensor([2, 0])
    few = state.select(rows)
    assert torch.equal(few.condition.pooled[:2], condition.pooled[rows])
    assert torch.equal(concatenate(few.codes), concatenate(state.codes)[rows])
    assert torch.equal(few.traces[3].order, state.traces[3].order[rows])
    assert few.cache.tokens() == 0


def test_every_step_is_told(build: Build, condition: Condition, empty: Condition) -> None:
    told: list[tuple[int, int, int]] = []
    draw = build(sampler=sampler(steps=3))
    list(draw.scales(condition, empty, [1, 2, 3], lambda *step: told.append(step)))
    refined = [(k, step, 3) for k in (2, 3) for step in (1, 2, 3)]
    assert [step for step in told if step[2] > 1] == refined
    assert [step[0] for step in told if step[2] == 1] == [0, 1, 2, 3]


def test_without_a_refiner_nothing_is_drawn(build: Build) -> None:
    with pytest.raises(ValueError, match=r"needs a refiner: train one .*task=sampler.*sampling=topk600"):
        build(sampler=sampler(), refiner=None)


def test_more_than_the_codebook_is_clamped_and_said_once(
    build: Build, condition: Condition, empty: Condition, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        build(sampler=sampler(top_k=4096))(condition, empty, [1, 2, 3])
    assert [record.getMessage() for record in caplog.records] == [
        "top_k 4096 is more than the codebook's 32 entries and keeps all of them"
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": []}, "steps"),
        ({"steps": 0}, "needs steps"),
        ({"steps": None}, "got steps None"),
        ({"steps": "8"}, "got steps 8"),
        ({"steps": [8, 1.5]}, r"got steps \[8, 1.5\]"),
        ({"generator_steps": -1}, "generator_steps -1"),
        ({"generator_steps": None}, "generator_steps None"),
        ({"random_steps": 2.5}, "random_steps 2.5"),
        ({"random_steps": -2}, "random_steps -2"),
        ({"shape": "sine"}, "sine"),
        ({"top_p": 1.5}, "1.5"),
    ],
)
def test_nonsense_is_refused_with_the_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CausalDriven(**settings)


def test_a_scale_that_is_not_there_is_refused(build: Build, condition: Condition, empty: Condition) -> None:
    for name, wrong in (("first_scale", 9), ("first_scale", "x"), ("generator_until", 9), ("generator_until", None)):
        with pytest.raises(ValueError, match=f"{name} {wrong} isn't one of the 4 scales"):
            build(sampler=sampler(**{name: wrong}))(condition, empty, [1, 2, 3])
