from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.masks import ScaleMask
from star.nn.position import AbsolutePosition
from star.sampling.decoder import DecodeState, ScaleWiseDecoder
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.samplers import Greedy, Gumbel, TopKTopP
from star.schedule import ScaleSchedule, concatenate
from star.types import Condition, Draw

Build = Callable[..., STARTransformer]


class Recorder:
    """Draws at random, so that every position has a different past, and keeps the guided logits it was shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, hidden: Tensor, head: Any, guide: Any, k: int, state: DecodeState) -> Draw:
        logits = guide(head(hidden), k)
        self.seen.append(logits)
        return Draw(
            torch.stack([torch.randint(logits.shape[2], (logits.shape[1],), generator=g) for g in state.generators])
        )


@torch.no_grad()
def replay(
    model: STARTransformer, tokenizer: MultiScaleTokenizer, state: DecodeState, schedule: ScaleSchedule, strength: float
) -> Tensor:
    """The same logits by teacher forcing the codes that were drawn."""
    x = tokenizer.quantizer.teacher_forcing(state.codes, schedule)
    conditional, unconditional = model(x.repeat(2, 1, 1), state.condition, schedule).chunk(2)
    return (1 + strength) * conditional - strength * unconditional


@pytest.mark.parametrize("order", [None, 0, 1, 2])
@pytest.mark.parametrize("absolute", [False, True])
def test_cached_decoding_is_teacher_forcing(
    build_transformer: Build,
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    empty: Condition,
    order: int | None,
    absolute: bool,
) -> None:
    changes = {"position": AbsolutePosition(32, schedule=schedule)} if absolute else {}
    model = build_transformer(mask=ScaleMask(order), **changes)
    recorder = Recorder()
    decode = ScaleWiseDecoder(
        model, tokenizer, schedule, sampler=recorder, guidance=ClassifierFreeGuidance(1.5, ramp="constant")
    )
    state = decode(condition, empty, [1, 2, 3])
    seen = torch.cat(recorder.seen, 1)
    torch.testing.assert_close(seen, replay(model, tokenizer, state, schedule, 1.5), atol=1e-4, rtol=1e-4)
    model.mask = ScaleMask(0 if order != 0 else 1)  # the comparison can fail
    assert not torch.allclose(seen, replay(model, tokenizer, state, schedule, 1.5), atol=1e-2)


@pytest.mark.parametrize("sampler", [TopKTopP(20, 0.9), Gumbel(), Greedy()])
def test_a_picture_depends_on_its_prompt_and_seed_alone(
    build_transformer: Build,
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    empty: Condition,
    sampler: Any,
) -> None:
    """Alone, or anywhere in a batch of 8: the same codes, and pixels, to the bit, in fp32."""
    decode = ScaleWiseDecoder(
        build_transformer(), tokenizer, schedule, sampler=sampler, guidance=ClassifierFreeGuidance(2.0)
    )
    rows, seeds = torch.tensor([0, 1, 2, 0, 1, 2, 1, 0]), [5, 6, 7, 8, 9, 10, 6, 11]
    batch = decode(condition.select(rows), empty, seeds)
    for place in (0, 3, 4, 7):
        alone = decode(condition.select(rows[place : place + 1]), empty, seeds[place : place + 1])
        assert torch.equal(concatenate(alone.codes)[0], concatenate(batch.codes)[place])
        if not isinstance(sampler, Gumbel):  # mixes entries by probabilities, whose last digits the batch may change
            assert torch.equal(alone.f_hat[0], batch.f_hat[place])
            assert torch.equal(decode.images(alone)[0], decode.images(batch)[place])
    assert torch.equal(concatenate(batch.codes)[1], concatenate(batch.codes)[6])  # same prompt, same seed
    if not isinstance(sampler, Greedy):
        assert not torch.equal(concatenate(batch.codes)[0], concatenate(batch.codes)[3])  # same prompt, other seed


@torch.no_grad()
def test_f_hat_and_images_are_those_of_the_codes(
    build_transformer: Build, tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule, condition: Condition
) -> None:
    decode = ScaleWiseDecoder(build_transformer(), tokenizer, schedule, sampler=TopKTopP(0, 0.0))
    state = decode(condition, None, [1, 2, 3])
    torch.testing.assert_close(state.f_hat, tokenizer.quantizer.decode(state.codes, schedule))
    images = decode.images(state)
    assert images.shape == (3, 3, 8, 8)
    assert images.min() >= 0
    assert images.max() <= 1


def test_search_may_reorder_and_double_pictures_on_their_way(
    build_transformer: Build,
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    empty: Condition,
) -> None:
    """After a selection the next logits are those of the chosen rows: cache, text, f_hat and both halves moved."""
    rows = torch.tensor([2, 0, 0])
    plain, searched = Recorder(), Recorder()
    parts = (build_transformer(), tokenizer, schedule)
    guidance = ClassifierFreeGuidance(1.5)
    ScaleWiseDecoder(*parts, sampler=plain, guidance=guidance)(condition, empty, [1, 2, 3])
    ScaleWiseDecoder(
        *parts, sampler=searched, guidance=guidance, search=lambda state, k: state.select(rows) if k == 1 else state
    )(condition, empty, [1, 2, 3])
    torch.testing.assert_close(searched.seen[2], plain.seen[2][rows], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(searched.seen[2], plain.seen[2], atol=1e-2)


def test_doubled_pictures_go_different_ways(
    build_transformer: Build, tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule, condition: Condition
) -> None:
    twice = torch.tensor([0, 0])
    decode = ScaleWiseDecoder(
        build_transformer(),
        tokenizer,
        schedule,
        sampler=TopKTopP(0, 0.0),
        search=lambda state, k: state.select(twice) if k == 0 else state,
    )
    state = decode(condition, None, [1, 2, 3])
    assert torch.equal(state.codes[0][0], state.codes[0][1])
    assert not torch.equal(concatenate(state.codes)[0], concatenate(state.codes)[1])


def test_a_constraint_reproduces_its_source(
    build_transformer: Build, tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule, condition: Condition
) -> None:
    source = tokenizer.encode(torch.rand(3, 3, 8, 8) * 2 - 1, schedule)
    decode = ScaleWiseDecoder(
        build_transformer(), tokenizer, schedule, sampler=Greedy(), constraint=lambda draw, k, state: Draw(source[k])
    )
    state = decode(condition, None, [1, 2, 3])
    torch.testing.assert_close(decode.images(state), tokenizer.decode_codes(source, schedule).add(1).div(2))


def test_first_sample_text_draws_one_prompt_at_a_time(
    build_transformer: Build,
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    empty: Condition,
) -> None:
    """Even with the release's behaviour a picture doesn't depend on its batch mates."""
    model = build_transformer(first_sample_text=True)
    decode = ScaleWiseDecoder(
        model, tokenizer, schedule, sampler=TopKTopP(0, 0.0), guidance=ClassifierFreeGuidance(2.0)
    )
    batch = decode(condition, empty, [1, 2, 3])
    for row in range(3):
        alone = decode(condition.select(torch.tensor([row])), empty, [row + 1])
        assert torch.equal(concatenate(alone.codes)[0], concatenate(batch.codes)[row])
        torch.testing.assert_close(alone.f_hat[0], batch.f_hat[row])


def test_first_sample_text_refuses_what_makes_a_batch_of_one_picture(
    build_transformer: Build, tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule, condition: Condition
) -> None:
    model = build_transformer(first_sample_text=True)
    doubling = ScaleWiseDecoder(
        model, tokenizer, schedule, sampler=Greedy(), search=lambda state, k: state.select(torch.tensor([0, 0]))
    )
    with pytest.raises(ValueError, match="first_sample_text draws one by one"):
        doubling(condition.select(torch.tensor([0])), None, [1])
    with pytest.raises(ValueError, match="3 texts need as many seeds, got 2"):
        ScaleWiseDecoder(model, tokenizer, schedule, sampler=Greedy())(condition, None, [1, 2])


def test_what_is_missing_is_named(
    build_transformer: Build, tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule, condition: Condition
) -> None:
    decode = ScaleWiseDecoder(
        build_transformer(), tokenizer, schedule, sampler=Greedy(), guidance=ClassifierFreeGuidance()
    )
    with pytest.raises(ValueError, match="empty text"):
        decode(condition, None, [1, 2, 3])
    with pytest.raises(ValueError, match="3 texts need as many seeds, got 1"):
        decode(condition, condition, [1])
