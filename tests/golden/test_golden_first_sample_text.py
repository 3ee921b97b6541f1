"""What docs/first_sample_text.md says about the released behaviour."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from star.checkpoints.official import load_transformer
from star.models.transformer import STARTransformer
from star.schedule import ScaleSchedule
from star.types import Condition

SCHEDULE = ScaleSchedule.square(1, 2, 3, 4)
Case = tuple[STARTransformer, Tensor, Condition]


def opened(golden: Any, *, first_sample_text: bool) -> Case:
    model = load_transformer(golden("star_tiny_rope.weights"), schedule=SCHEDULE, first_sample_text=first_sample_text)
    case = golden("star_tiny_rope_64")
    return model, case["x_wo_first"], golden.texts(case)


def changes(golden: Any, condition: Condition, *, first_sample_text: bool) -> list[float]:
    """How far each row's logits move, at most, when the texts are exchanged for these."""
    model, x_in, texts = opened(golden, first_sample_text=first_sample_text)
    with torch.no_grad():
        moved = model(x_in, condition, SCHEDULE) - model(x_in, texts, SCHEDULE)
    return moved.abs().amax((1, 2)).tolist()


def reading(texts: Condition, first: int, second: int) -> Condition:
    """The same pooled vectors with other hidden states."""
    other = texts.select(torch.tensor([first, second]))
    return replace(texts, context=other.context, context_mask=other.context_mask)


@pytest.mark.parametrize("first_sample_text", [True, False])
def test_in_a_batch_only_the_first_row_is_as_alone(first_sample_text: bool, golden: Any) -> None:
    model, x_in, texts = opened(golden, first_sample_text=first_sample_text)
    with torch.no_grad():
        batch = model(x_in, texts, SCHEDULE)
        alone = [model(x_in[row : row + 1], texts.select(torch.tensor([row])), SCHEDULE)[0] for row in (0, 1)]
    distances = [(batch[row] - alone[row]).abs().max().item() for row in (0, 1)]
    assert distances == pytest.approx([0, 4.349 if first_sample_text else 0], abs=1e-3)


@pytest.mark.parametrize(
    ("first_sample_text", "order", "expected"),
    [(True, (0, 0), [0, 0]), (False, (0, 0), [0, 4.348]), (True, (1, 1), [4.701, 4.316]), (False, (1, 1), [4.701, 0])],
)
def test_whose_text_a_row_reads(
    first_sample_text: bool, order: tuple[int, int], expected: list[float], golden: Any
) -> None:
    texts = opened(golden, first_sample_text=first_sample_text)[2]
    moved = changes(golden, reading(texts, *order), first_sample_text=first_sample_text)
    assert moved == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("first_sample_text", "expected"), [(True, [0.1957, 0]), (False, [0, 0.2949])])
def test_from_whose_text_the_second_row_learns(first_sample_text: bool, expected: list[float], golden: Any) -> None:
    model, x_in, texts = opened(golden, first_sample_text=first_sample_text)
    context = texts.context.clone().requires_grad_()
    logits = model(x_in, replace(texts, context=context), SCHEDULE)
    F.cross_entropy(logits[1], golden("star_tiny_rope_64")["gt_idx"][1]).backward()
    assert [row.norm().item() for row in context.grad] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("first_sample_text", "expected"), [(True, 0.0), (False, 5.316)])
def test_guidance_between_two_texts_with_one_pooled_vector(
    first_sample_text: bool, expected: float, golden: Any
) -> None:
    model, x_in, _ = opened(golden, first_sample_text=first_sample_text)
    texts = golden.texts(golden("star_tiny_greedy_64_B1"))  # a prompt, and the empty one
    texts = replace(texts, pooled=texts.pooled[:1].repeat(2, 1))
    with torch.no_grad():
        conditional, unconditional = model(x_in[:1].repeat(2, 1, 1), texts, SCHEDULE)
    assert (conditional - unconditional).abs().max().item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "different"),
    [
        ("star_tiny_greedy_256_B1", [676]),
        ("star_tiny_greedy_64_B1", [27]),
        ("star_tiny_greedy_64_B2", [27, 29]),
        ("star_tiny_greedy_64_B2_abs", [28, 30]),
    ],
)
def test_greedy_pictures_differ(name: str, different: list[int], golden: Any) -> None:
    case = golden(name)
    assert (case["official.idx"] != case["fixed.idx"]).sum(1).tolist() == different
