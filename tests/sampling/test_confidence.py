from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.sampling.confidence import Confidence, WithConfidence, confidence_picture
from star.sampling.decoder import ScaleWiseDecoder
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.samplers import Greedy, TopKTopP
from star.schedule import ScaleSchedule
from star.types import Condition


def test_noting_changes_no_picture_and_greedy_is_surest(
    schedule: ScaleSchedule,
    tokenizer: MultiScaleTokenizer,
    build_transformer: Callable[..., STARTransformer],
    condition: Condition,
    empty: Condition,
) -> None:
    model = build_transformer()
    states = {}
    for name, sampler in {
        "plain": TopKTopP(16, 0.9),
        "noted": WithConfidence(TopKTopP(16, 0.9)),
        "greedy": WithConfidence(Greedy()),
    }.items():
        decoder = ScaleWiseDecoder(model, tokenizer, schedule, sampler=sampler, guidance=ClassifierFreeGuidance(2.0))
        states[name] = decoder(condition, empty, [1, 2, 3])
    for plain, noted in zip(states["plain"].codes, states["noted"].codes, strict=True):
        assert torch.equal(plain, noted)
    assert states["plain"].traces == [None] * len(schedule)
    assert [trace.certainty.shape for trace in states["noted"].traces] == [(3, n) for n in schedule.lengths]
    assert ((states["noted"].traces[0].certainty > 0) & (states["noted"].traces[0].certainty <= 1)).all()
    # the first scale is drawn from the same distribution by both
    assert (states["greedy"].traces[0].certainty >= states["noted"].traces[0].certainty).all()


def test_a_trace_follows_its_images() -> None:
    trace = Confidence(torch.tensor([[0.1], [0.2]]))
    assert trace.select(torch.tensor([1, 1, 0])).certainty[:, 0].tolist() == pytest.approx([0.2, 0.2, 0.1])
    assert trace.stack(trace).certainty.shape == (4, 1)


def test_the_picture_has_a_map_for_each_traced_scale(schedule: ScaleSchedule) -> None:
    traces = [Confidence(torch.rand(1, length)) for length in schedule.lengths]
    assert confidence_picture(traces, schedule, side=6).shape == (3, 6, 6 + 4 + 6 + 4 + 9 + 4 + 6)
    with pytest.raises(ValueError, match="no scale was traced"):
        confidence_picture([None] * 4, schedule)
