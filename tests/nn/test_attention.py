from __future__ import annotations

import math

import pytest
import torch

from star.nn.attention import CrossAttention, QKNorm, SelfAttention, attend
from star.nn.masks import ScaleMask
from star.schedule import ScaleSchedule


@pytest.mark.parametrize("order", [None, 0, 1])
@pytest.mark.parametrize("backend", ["prefix", "matmul", "auto"])
def test_backends_agree_with_dense_masked_attention(schedule: ScaleSchedule, backend: str, order: int | None) -> None:
    q, k, v = (torch.randn(2, 3, schedule.total, 8, requires_grad=True) for _ in range(3))
    visibility = ScaleMask(order).visibility(schedule)
    ours = attend(q, k, v, visibility, backend=backend)
    reference = attend(q, k, v, visibility, backend="dense")
    torch.testing.assert_close(ours, reference)
    mine, theirs = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (ours, reference))
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_bf16_on_a_cpu_stays_close_to_fp32(schedule: ScaleSchedule) -> None:
    q, k, v = (torch.randn(2, 3, schedule.total, 8) for _ in range(3))
    visibility = ScaleMask().visibility(schedule)
    half = attend(*(x.bfloat16() for x in (q, k, v)), visibility)
    torch.testing.assert_close(half.float(), attend(q, k, v, visibility), atol=0.05, rtol=0.05)


def test_queries_and_keys_are_units_times_a_clamped_temperature() -> None:
    norm = QKNorm(2, 8)
    assert norm.log_scale is not None
    norm.log_scale.data[1] = 4.8  # beyond log 100
    q, k = norm(torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8))
    torch.testing.assert_close(k.norm(dim=-1), torch.ones(1, 2, 5))
    torch.testing.assert_close(q.norm(dim=-1)[0, 0], torch.full((5,), 4.0))
    torch.testing.assert_close(q.norm(dim=-1)[0, 1], torch.full((5,), 100.0))
    plain = QKNorm(2, 16, enabled=False)
    x = torch.randn(1, 2, 5, 16)
    torch.testing.assert_close(plain.queries(x), x * 0.25 / math.sqrt(16))
    assert plain.keys(x) is x


def test_keys_have_no_bias_and_queries_and_values_do() -> None:
    names = {name for name, _ in SelfAttention(8, num_heads=2).named_parameters()}
    assert {"q_bias", "v_bias", "qkv.weight"} < names
    assert "qkv.bias" not in names


def test_padding_says_nothing() -> None:
    cross = CrossAttention(8, 6, num_heads=2)
    x, context = torch.randn(1, 4, 8), torch.randn(1, 5, 6)
    bias = torch.tensor([0.0, 0.0, 0.0, -math.inf, -math.inf]).view(1, 1, 1, 5)
    changed = context.clone()
    changed[:, 3:] = 100.0
    torch.testing.assert_close(
        cross(x, cross.keys_and_values(context), bias), cross(x, cross.keys_and_values(changed), bias)
    )
    torch.testing.assert_close(
        cross(x, cross.keys_and_values(context), bias), cross(x, cross.keys_and_values(context[:, :3]), None)
    )


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 10"):
        SelfAttention(10, num_heads=4)
    with pytest.raises(ValueError, match="'flash'"):
        SelfAttention(8, num_heads=4, backend="flash")
