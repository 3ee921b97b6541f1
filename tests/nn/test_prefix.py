from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from star.nn import prefix
from star.nn.attention import CrossAttention, SelfAttention, attend
from star.nn.masks import ScaleMask
from star.nn.prefix import EVERYTHING, attend_prefix, shares
from star.nn.recipe import Recipe
from star.schedule import ScaleSchedule


def split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    return q.tanh(), k.tanh(), v


def gradients(mixed: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(mixed.square().sum(), of)


@pytest.mark.parametrize("written_out", [False, True])
@pytest.mark.parametrize("order", [None, 0, 1])
def test_all_scales_at_once_agree_with_dense_masked_attention(
    schedule: ScaleSchedule, order: int | None, written_out: bool
) -> None:
    qkv = torch.randn(3, schedule.total, 48, requires_grad=True)
    visibility = ScaleMask(order).visibility(schedule)
    ours = attend_prefix(Recipe(split, qkv), tuple(visibility.spans()), written_out=written_out)
    dense = attend(*split(qkv), visibility, backend="dense").transpose(1, 2).flatten(2)
    torch.testing.assert_close(ours, dense)
    torch.testing.assert_close(gradients(ours, qkv), gradients(dense, qkv), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("written_out", [False, True])
def test_a_bias_hides_padding(written_out: bool) -> None:
    q, k, v = (torch.randn(3, 2, length, 8, requires_grad=True) for length in (6, 5, 5))
    bias = torch.zeros(3, 1, 1, 5)
    bias[0, ..., 3:] = bias[2, ..., 1:] = -math.inf
    ours = attend_prefix(Recipe(lambda *given: given, q, k, v), EVERYTHING, bias, written_out=written_out)
    dense = attend(q, k, v, bias=bias, backend="dense").transpose(1, 2).flatten(2)
    torch.testing.assert_close(ours, dense)
    torch.testing.assert_close(gradients(ours, q, k, v), gradients(dense, q, k, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("room", [1, 40])
def test_where_the_softmax_is_written_out_a_few_rows_are_held_at_a_time(
    schedule: ScaleSchedule, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    qkv = torch.randn(2, schedule.total, 48, requires_grad=True)
    spans = tuple(ScaleMask().visibility(schedule).spans())
    whole, held = attend_prefix(Recipe(split, qkv), spans, written_out=True), []
    expected = (whole, gradients(whole, qkv))
    monkeypatch.setattr(prefix, "ROOM", room)
    monkeypatch.setattr(prefix, "shares", lambda *given: held.append(shares(*given)) or held[-1])
    ours = attend_prefix(Recipe(split, qkv), spans, written_out=True)
    torch.testing.assert_close((ours, gradients(ours, qkv)), expected, atol=1e-5, rtol=1e-5)
    assert max(part.numel() for part in held) <= max(room, 2 * 2 * schedule.total)
    assert len(held) > 2 * len(spans)


def test_written_out_bf16_gradients_are_near_those_of_fp32(schedule: ScaleSchedule) -> None:
    qkv = torch.randn(2, schedule.total, 48)
    spans, found = tuple(ScaleMask().visibility(schedule).spans()), []
    for dtype in (torch.float32, torch.bfloat16):
        own = qkv.to(torch.bfloat16).to(dtype).requires_grad_()
        mixed = attend_prefix(Recipe(split, own), spans, written_out=True)
        found.append(torch.autograd.grad(mixed.float().sum(), own)[0].float())
    torch.testing.assert_close(found[1], found[0], atol=0.05, rtol=0.02)


def test_layers_train_alike_with_every_backend(schedule: ScaleSchedule) -> None:
    own, cross = SelfAttention(16, num_heads=2), CrossAttention(16, 6, num_heads=2)
    x, context = torch.randn(2, schedule.total, 16), torch.randn(2, 4, 6)
    visibility, found = ScaleMask().visibility(schedule), []
    for backend in ("prefix", "matmul", "dense"):
        own.backend = cross.backend = backend
        mixed = cross(own(x, None, visibility), cross.keys_and_values(context), None)
        found.append((mixed, *gradients(mixed, *own.parameters(), *cross.parameters())))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-4, rtol=1e-4)
