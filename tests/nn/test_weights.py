from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from star.nn.weights import HeldWeight, hold


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 64, bias=False), nn.GELU(), nn.Linear(64, 32)).eval()


@pytest.mark.parametrize("kind", ["as_is", "cast", "packed", "auto"])
@torch.no_grad()
def test_in_16_bits_held_weights_give_what_autocast_gives(kind: str) -> None:
    model, x, dtype = layers(), torch.randn(2, 5, 32), torch.bfloat16
    if kind == "packed" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        with pytest.raises(ValueError, match="that has AVX-512"):
            hold(model, kind, dtype)
        return
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        hold(model, kind, dtype)
        found = model(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


@torch.no_grad()
def test_packed_fp32_weights_differ_by_rounding_and_don_t_see_the_batch() -> None:
    model, x = layers(), torch.randn(7, 5, 32)
    expected = model(x)
    hold(model, "packed", torch.float32)
    found = model(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(x[3:4, 1:2]), found[3:4, 1:2])


@pytest.mark.parametrize("kind", ["packed"])
@torch.no_grad()
def test_a_weight_may_be_used_apart_from_its_layer(kind: str) -> None:
    """Attention does: its biases are put together from parts."""
    model, x, bias = layers(), torch.randn(3, 32), torch.randn(64)
    expected = F.linear(x, model[0].weight, bias)  # type: ignore[arg-type]
    hold(model, kind, torch.float32)
    weight: Any = model[0].weight
    torch.testing.assert_close(F.linear(x, weight, bias), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(F.linear(input=x, weight=weight, bias=bias), expected, atol=1e-5, rtol=1e-5)
    assert (weight.shape, weight.dtype, weight.device.type) == ((64, 32), torch.float32, "cpu")


def test_a_packed_weight_is_neither_saved_nor_moved_nor_packed_twice() -> None:
    model = layers()
    hold(model, "packed", torch.float32)
    held = model[0].weight
    hold(model, "packed", torch.float32)
    assert model[0].weight is held
    for change in (lambda: held.contiguous().clone(), lambda: model.double(), lambda: held + 1):
        with pytest.raises(ValueError, match="speed.weights=as_is"):
            change()


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao isn't installed")
@torch.no_grad()
def test_int8_weights_are_near_in_a_quarter_of_the_memory() -> None:
    model, x = layers(), torch.randn(2, 5, 32)
    expected = model(x)
    hold(model, "int8", torch.float32)
    assert isinstance(model[0].weight, HeldWeight)
    torch.testing.assert_close(model(x), expected, atol=0.02, rtol=0.02)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="torchao is installed")
def test_int8_without_torchao_says_what_to_install() -> None:
    with pytest.raises(ModuleNotFoundError, match="pip install torchao"):
        hold(layers(), "int8", torch.float32)


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'int4'"):
        hold(layers(), "int4", torch.float32)
