from __future__ import annotations

from collections.abc import Callable

import torch

from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.sampling.decoder import ScaleWiseDecoder
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.rows import fork, merge
from star.sampling.samplers import TopKTopP
from star.schedule import ScaleSchedule, concatenate
from star.types import Condition


def test_copies_of_pictures_and_of_copies_draw_from_streams_of_their_own() -> None:
    """A scale is drawn after each selection."""
    generators = [torch.Generator().manual_seed(0)]
    for rows in ([0, 0], [0, 0, 0, 1, 1], [4, 4, 3, 2, 1, 0, 0]):
        before = generators[rows[0]].get_state()
        generators = fork([generators[row] for row in rows])
        assert torch.equal(generators[0].get_state(), before)
        noise = [tuple(torch.rand(4, generator=generator).tolist()) for generator in generators]
        assert len(set(noise)) == len(rows)


def test_merged_pictures_stay_what_they_were(
    build_transformer: Callable[..., STARTransformer],
    tokenizer: MultiScaleTokenizer,
    schedule: ScaleSchedule,
    condition: Condition,
    empty: Condition,
) -> None:
    decode = ScaleWiseDecoder(
        build_transformer(), tokenizer, schedule, sampler=TopKTopP(20, 0.9), guidance=ClassifierFreeGuidance(2.0)
    )
    parts = [decode(condition, empty, [1, 2, 3]), decode(condition, empty, [4, 5, 6])]
    merged = merge(parts, decode.no_cache())
    assert torch.equal(concatenate(merged.codes), torch.cat([concatenate(part.codes) for part in parts]))
    assert torch.equal(merged.f_hat, torch.cat([part.f_hat for part in parts]))
    assert len(merged.generators) == 6
    # conditional rows first, then the unconditional ones, as of a batch that was drawn together
    one = parts[0].condition.pooled
    assert torch.equal(merged.condition.pooled, torch.cat([one[:3], one[:3], one[3:], one[3:]]))
    chosen = merged.select(torch.tensor([5, 0]))
    assert torch.equal(concatenate(chosen.codes)[0], concatenate(parts[1].codes)[2])
    assert torch.equal(chosen.condition.pooled, torch.stack([one[2], one[0], one[5], one[3]]))
