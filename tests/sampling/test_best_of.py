from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.sampling.best_of import BestOf, fit
from star.sampling.decoder import DecodeState, ScaleWiseDecoder
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.samplers import TopKTopP
from star.schedule import ScaleSchedule, concatenate
from star.types import Condition

SEEDS = [5, 6, 7]
Build = Callable[..., ScaleWiseDecoder]


@pytest.fixture
def build(
    build_transformer: Callable[..., STARTransformer], tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule
) -> Build:
    model = build_transformer()

    def build(count: int | None, *, guided: bool = True, **changes: Any) -> ScaleWiseDecoder:
        return ScaleWiseDecoder(
            changes.pop("model", model),
            tokenizer,
            schedule,
            sampler=TopKTopP(20, 0.9),
            guidance=ClassifierFreeGuidance(2.0) if guided else None,
            **{"best_of": None if count is None else BestOf(count), **changes},
        )

    return build


def codes(state: DecodeState) -> Tensor:
    return concatenate(state.codes)


def fits_of(decode: ScaleWiseDecoder, state: DecodeState, condition: Condition, empty: Condition) -> Tensor:
    rows = torch.arange(len(condition)).split(1)
    pictures = decode.images(state) * 2 - 1
    return torch.cat([fit(decode, pictures[row], condition.select(row), empty) for row in rows]).float()


@pytest.mark.parametrize("logits", [1, 2**25])
def test_how_many_are_judged_together_changes_nothing(
    build: Build, condition: Condition, empty: Condition, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = build(None)
    pictures = decode.images(decode(condition, empty, SEEDS)) * 2 - 1
    text = condition.select(torch.tensor([1]))
    alone = torch.cat([fit(decode, picture[None], text, empty) for picture in pictures])
    monkeypatch.setattr("star.sampling.best_of.LOGITS", logits)
    torch.testing.assert_close(fit(decode, pictures, text, empty), alone, atol=1e-4, rtol=1e-5)


def test_one_candidate_is_the_plain_picture(build: Build, condition: Condition, empty: Condition) -> None:
    plain, one = build(None)(condition, empty, SEEDS), build(1)(condition, empty, SEEDS)
    assert torch.equal(codes(plain), codes(one))


@pytest.mark.parametrize("guided", [True, False])
def test_the_candidate_that_fits_best_is_kept(
    build: Build, condition: Condition, empty: Condition, guided: bool
) -> None:
    decode = build(4, guided=guided)
    streams = zip(*(BestOf(4).seeds(seed) for seed in SEEDS), strict=True)
    drawn = [build(None, guided=guided)(condition, empty, own) for own in streams]
    fits = torch.stack([fits_of(decode, state, condition, empty) for state in drawn])
    best = fits.argmax(0).tolist()
    assert best != [0, 0, 0]  # the comparison can fail
    kept = decode(condition, empty, SEEDS)
    for place, number in enumerate(best):
        assert torch.equal(codes(kept)[place], codes(drawn[number])[place])
        assert torch.equal(kept.f_hat[place], drawn[number].f_hat[place])


def test_fit_is_the_gain_in_likelihood_of_the_codes_of_the_picture(
    build: Build, condition: Condition, empty: Condition, schedule: ScaleSchedule
) -> None:
    decode = build(None)
    state = decode(condition, empty, SEEDS)
    again = decode.tokenizer.encode(decode.images(state) * 2 - 1, schedule)
    x_in = decode.tokenizer.quantizer.teacher_forcing(again, schedule)
    target = concatenate(again)[..., None]
    own, other = (
        decode.transformer(x_in, text, schedule).log_softmax(2).gather(2, target).sum((1, 2))
        for text in (condition, empty.repeat(3))
    )
    torch.testing.assert_close(fits_of(decode, state, condition, empty), own - other, atol=1e-3, rtol=1e-4)


def test_a_picture_depends_on_its_prompt_and_seed_alone(build: Build, condition: Condition, empty: Condition) -> None:
    decode = build(3)
    batch = decode(condition, empty, SEEDS)
    for place in range(3):
        alone = decode(condition.select(torch.tensor([place])), empty, SEEDS[place : place + 1])
        assert torch.equal(codes(alone)[0], codes(batch)[place])
        assert torch.equal(alone.f_hat[0], batch.f_hat[place])


def test_states_are_those_of_the_kept_candidates(build: Build, condition: Condition, empty: Condition) -> None:
    *early, last = build(3).scales(condition, empty, SEEDS)
    assert [len(state.codes) for state in early] == list(range(1, len(early) + 1))
    for k, state in enumerate(early):
        assert torch.equal(state.codes[k], last.codes[k])


def test_more_candidates_contain_the_fewer() -> None:
    assert BestOf(5).seeds(3)[:3] == BestOf(3).seeds(3)
    assert BestOf(3).seeds(3)[0] == 3
    assert len(set(BestOf(5).seeds(3)) | set(BestOf(5).seeds(4))) == 10


def test_whoever_watches_never_sees_steps_back(build: Build, condition: Condition, empty: Condition) -> None:
    told: list[float] = []
    list(build(3).scales(condition, empty, SEEDS, lambda k, step, steps: told.append(k + step / steps)))
    assert told == sorted(told)
    assert told[-1] == pytest.approx(len(build(3).schedule))


def test_a_model_that_gives_all_pictures_the_first_text(
    build: Build, build_transformer: Callable[..., STARTransformer], condition: Condition, empty: Condition
) -> None:
    decode = build(2, model=build_transformer(first_sample_text=True))
    batch = decode(condition, empty, SEEDS)
    alone = decode(condition.select(torch.tensor([2])), empty, SEEDS[2:])
    assert torch.equal(codes(alone)[0], codes(batch)[2])


def test_what_cannot_be_is_refused(build: Build, condition: Condition) -> None:
    with pytest.raises(ValueError, match=r"best_of\.count .* got 0"):
        BestOf(0)
    with pytest.raises(ValueError, match="choose one"):
        build(2, search=lambda state, k: state)
    build(1, search=lambda state, k: state)
    with pytest.raises(ValueError, match=r"best_of\.count=4.* got 4"):
        build(None, best_of=4)
    with pytest.raises(ValueError, match="empty one"):
        build(2, guided=False)(condition, None, SEEDS)
