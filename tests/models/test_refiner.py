from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from star.models.refiner import PrefixVisibility, Refiner
from star.nn.position import Rotary2D
from star.schedule import ScaleSchedule
from star.types import Condition

SCHEDULE = ScaleSchedule(((1, 1), (2, 2), (2, 3), (4, 4), (5, 5)))
LATE = (2, 3, 4)


def refiner(**changes: Any) -> Refiner:
    torch.manual_seed(0)
    options = {"width": 32, "num_heads": 4, "codebook_size": 11, "code_width": 6, "pooled_width": 7, "num_levels": 5}
    model = Refiner(**options | {"position": Rotary2D()} | changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def inputs(batch: int = 2, scales: tuple[int, ...] = LATE) -> tuple[Tensor, Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(1)
    length = SCHEDULE.only(*scales).total
    hidden, embeddings, pooled = (
        torch.randn(batch, *shape, generator=generator) for shape in ((length, 32), (length, 6), (7,))
    )
    return hidden, embeddings, torch.rand(batch, length, generator=generator) < 0.5, Condition(pooled)


@torch.no_grad()
def test_the_three_backends_agree() -> None:
    expected = refiner(backend="dense")(*inputs(), SCHEDULE, LATE)
    for backend in ("auto", "prefix", "matmul"):
        torch.testing.assert_close(refiner(backend=backend)(*inputs(), SCHEDULE, LATE), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "prefix"])
def test_several_scales_are_trained_without_an_l_by_l_mask(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def bias(*_: Any) -> Tensor:
        raise AssertionError("a mask of all tokens by all tokens was asked for")

    monkeypatch.setattr(PrefixVisibility, "bias", bias)
    refiner(backend=backend)(*inputs(), SCHEDULE, LATE).sum().backward()
    with pytest.raises(AssertionError, match="all tokens by all tokens"):
        refiner(backend="dense")(*inputs(), SCHEDULE, LATE)


def test_scales_see_themselves_and_the_prefix_sees_all() -> None:
    seen = PrefixVisibility((0, 1, 3, 6), first=()).bias() == 0
    scales = torch.tensor([-1, 0, 0, 1, 1, 1])
    expected = (scales[:, None] == scales) | (scales[:, None] < 0) | (scales < 0)
    assert torch.equal(seen, expected)


@torch.no_grad()
@pytest.mark.parametrize("neighbourhood", [1, 3])
def test_a_step_is_the_pass_over_one_scale(neighbourhood: int) -> None:
    model = refiner(neighbourhood=neighbourhood)
    hidden, embeddings, known, condition = inputs(scales=(3,))
    expected = model(hidden, embeddings, known, condition, SCHEDULE, (3,))
    assert torch.equal(model.step(hidden, embeddings, known, condition, SCHEDULE, 3), expected)


@torch.no_grad()
def test_under_guidance_both_halves_see_the_same_codes() -> None:
    model = refiner()
    hidden, embeddings, known, condition = inputs(batch=4, scales=(3,))
    both = model.step(hidden, embeddings[:2], known[:2], condition, SCHEDULE, 3)
    for half in (slice(2), slice(2, 4)):
        alone = model.step(hidden[half], embeddings[:2], known[:2], Condition(condition.pooled[half]), SCHEDULE, 3)
        torch.testing.assert_close(both[half], alone, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("neighbourhood", [1, 3])
def test_unknown_tokens_show_nothing_and_known_ones_do(neighbourhood: int) -> None:
    model = refiner(neighbourhood=neighbourhood)
    hidden, embeddings, known, condition = inputs()
    expected = model(hidden, embeddings, known, condition, SCHEDULE, LATE)
    hidden_from_it = embeddings.masked_fill(~known[..., None], float("nan"))
    assert torch.equal(model(hidden, hidden_from_it, known, condition, SCHEDULE, LATE), expected)
    changed = embeddings + known[..., None]
    assert not torch.allclose(model(hidden, changed, known, condition, SCHEDULE, LATE), expected)


@torch.no_grad()
@pytest.mark.parametrize("neighbourhood", [1, 3])
def test_a_scale_hears_of_another_only_through_the_prefix(neighbourhood: int) -> None:
    model = refiner(depth=1, neighbourhood=neighbourhood)
    hidden, embeddings, known, condition = inputs()
    expected = model(hidden, embeddings, known, condition, SCHEDULE, LATE)
    other, codes = hidden.clone(), embeddings.clone()
    other[:, -25:] += 1
    codes[:, -25:] += 1
    logits = model(other, codes, known, condition, SCHEDULE, LATE)
    assert torch.equal(logits[:, :-25], expected[:, :-25])
    deeper = refiner(depth=2)
    one, two = (deeper(given, embeddings, known, condition, SCHEDULE, LATE) for given in (hidden, other))
    assert not torch.equal(one[:, :-25], two[:, :-25])


@torch.no_grad()
def test_permuting_the_batch_permutes_the_result() -> None:
    model, rows = refiner(), torch.tensor([2, 0, 1])
    hidden, embeddings, known, condition = inputs(batch=3)
    expected = model(hidden, embeddings, known, condition, SCHEDULE, LATE)[rows]
    logits = model(hidden[rows], embeddings[rows], known[rows], condition.select(rows), SCHEDULE, LATE)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("scale", "beside"), [(4, [6, 7, 8, 11, 12, 13, 16, 17, 18]), (2, [0, 1, 3, 4])])
def test_a_neighbourhood_hears_of_a_known_code_before_any_attention(scale: int, beside: list[int]) -> None:
    model = refiner(depth=0, neighbourhood=3)
    hidden, embeddings, known, condition = inputs(scales=(scale,))
    one = 12 if scale == 4 else 0  # the middle of 5 by 5, the corner of 2 by 3
    changed = embeddings.clone()
    changed[:, one] += 1
    known[:] = True
    before, after = (model(hidden, codes, known, condition, SCHEDULE, (scale,)) for codes in (embeddings, changed))
    assert (before != after).any(-1).any(0).nonzero().flatten().tolist() == beside
    known[:, one] = False
    before, after = (model(hidden, codes, known, condition, SCHEDULE, (scale,)) for codes in (embeddings, changed))
    assert torch.equal(before, after)


@pytest.mark.parametrize("neighbourhood", [0, 2, -1, 3.0, None])
def test_a_neighbourhood_has_a_middle(neighbourhood: Any) -> None:
    with pytest.raises(ValueError, match=f"1, 3, 5, ... tokens wide, got {neighbourhood}"):
        refiner(neighbourhood=neighbourhood)


@pytest.mark.parametrize("neighbourhood", [1, 3])
def test_every_parameter_is_trained(neighbourhood: int) -> None:
    model = refiner(neighbourhood=neighbourhood)
    model(*inputs(), SCHEDULE, LATE).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_parts_that_disagree_are_refused() -> None:
    hidden, embeddings, known, condition = inputs()
    with pytest.raises(ValueError, match=r"scales \(2, 3\) of 2 texts"):
        refiner()(hidden, embeddings, known, condition, SCHEDULE, (2, 3))


@torch.no_grad()
def test_half_precision_gives_fp32_logits() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = refiner()(*inputs(), SCHEDULE, LATE)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, refiner()(*inputs(), SCHEDULE, LATE), rtol=0.1, atol=0.5)
