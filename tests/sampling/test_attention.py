from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.masks import ScaleMask
from star.sampling.attention import attention_maps, attention_picture, token_at
from star.schedule import ScaleSchedule
from star.types import Condition


def codes_of(schedule: ScaleSchedule) -> list[torch.Tensor]:
    return [torch.randint(32, (1, length)) for length in schedule.lengths]


@pytest.mark.parametrize("order", [None, 1])
def test_a_token_looks_where_its_mask_lets_it(
    order: int | None,
    schedule: ScaleSchedule,
    tokenizer: MultiScaleTokenizer,
    build_transformer: Callable[..., STARTransformer],
    condition: Condition,
) -> None:
    model, text = build_transformer(mask=ScaleMask(order)), condition.select(torch.tensor([0]))
    query = schedule.offsets[2] + 1
    maps = attention_maps(model, tokenizer.quantizer, codes_of(schedule), text, schedule, query=query)
    assert maps.shape == (2, schedule.total)
    assert torch.allclose(maps.sum(1), torch.ones(2))
    seen = slice(schedule.offsets[0 if order is None else 1], schedule.offsets[3])
    assert (maps[:, seen] > 0).all()
    maps[:, seen] = 0
    assert (maps == 0).all()
    assert not model.blocks[0].attention.norm._forward_hooks  # type: ignore[union-attr]


def test_the_maps_are_the_softmax_that_the_block_computes(
    schedule: ScaleSchedule,
    tokenizer: MultiScaleTokenizer,
    build_transformer: Callable[..., STARTransformer],
    condition: Condition,
) -> None:
    """With values that name their own token, a block's attention returns its map."""
    model, text = build_transformer(depth=1, num_heads=1), condition.select(torch.tensor([0]))
    query = schedule.total - 1
    seen: list[torch.Tensor] = []
    norm = model.blocks[0].attention.norm  # type: ignore[union-attr]
    handle = norm.register_forward_hook(lambda _, given, result: seen.extend(result))  # type: ignore[union-attr]
    codes = codes_of(schedule)
    maps = attention_maps(model, tokenizer.quantizer, codes, text, schedule, query=query)
    handle.remove()
    names = torch.eye(schedule.total)[None, None]
    mixed = torch.nn.functional.scaled_dot_product_attention(seen[0][:, :, query:], seen[1], names, scale=1.0)
    assert torch.allclose(maps[0], mixed[0, 0, 0], atol=1e-6)


def test_places_and_pictures(schedule: ScaleSchedule) -> None:
    first = schedule.offsets[-2]
    assert token_at(schedule, 0, 0) == first
    assert token_at(schedule, 1, 1) == schedule.total - 1
    assert token_at(schedule, 0.99, 0) == first + 3
    picture = attention_picture(torch.rand(schedule.total), schedule, side=8)
    assert picture.shape == (3, 8, 8 + 4 + 8 + 4 + 12 + 4 + 8)
    unseen = torch.zeros(schedule.total)
    assert (attention_picture(unseen, schedule, side=8)[:, :, :8] == 0.85).all()


def test_a_token_that_is_not_there_is_refused(
    schedule: ScaleSchedule,
    tokenizer: MultiScaleTokenizer,
    build_transformer: Callable[..., STARTransformer],
    condition: Condition,
) -> None:
    text = condition.select(torch.tensor([0]))
    with pytest.raises(ValueError, match="there is no token 27"):
        attention_maps(build_transformer(), tokenizer.quantizer, codes_of(schedule), text, schedule, query=27)
