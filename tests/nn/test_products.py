from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from star.nn import products
from star.nn.products import faster, product
from star.nn.recipe import Recipe, linear

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")), reason="no oneDNN"
)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_wide_fp32", lambda: True)


@pytest.mark.parametrize("shape", [(7, 12), (2, 7, 12), (1, 1, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_product(shape: tuple[int, ...], bias: bool) -> None:
    x, weight, b = torch.randn(shape), torch.randn(5, 12), torch.randn(5) if bias else None
    assert faster(x, weight)
    torch.testing.assert_close(product(x, weight, b), F.linear(x, weight, b), atol=1e-5, rtol=1e-5)
    turned = torch.randn(12, 5).t()
    torch.testing.assert_close(product(x, turned, b), F.linear(x, turned, b), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("as_recipe", [True, False])
def test_gradients_are_those_of_the_plain_product(as_recipe: bool) -> None:
    inputs = [torch.randn(2, 7, 12), torch.randn(5, 12), torch.randn(5)]
    found = []
    for ours in (True, False):
        x, weight, bias = (part.clone().requires_grad_() for part in inputs)
        given = Recipe(torch.tanh, x) if as_recipe else x.tanh()
        y = linear(given, weight, bias) if ours else F.linear(x.tanh(), weight, bias)
        assert ("_Linear" in type(y.grad_fn).__name__) == ours
        y.square().sum().backward()
        found.append([y, x.grad, weight.grad, bias.grad])
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-5)


def test_a_gradient_that_is_one_number_repeated_is_read_right() -> None:
    x, weight = torch.randn(2, 7, 12, requires_grad=True), torch.randn(5, 12, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.detach().sum(0).expand(2, 7, 12), atol=1e-5, rtol=1e-5)


def test_only_plain_fp32_on_a_cpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(x: Tensor, weight: Tensor) -> bool:
        return faster(x, weight)

    x, weight = torch.randn(3, 4), nn.Parameter(torch.randn(5, 4))
    assert taken(x, weight)
    assert not taken(x.bfloat16(), weight.bfloat16())
    assert not taken(x.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not taken(x, weight)
    with FlopCounterMode(display=False) as counter:
        assert not taken(x, weight)
        linear(x.requires_grad_(), weight).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 3 * 4 * 5
    monkeypatch.setattr(products, "has_wide_fp32", lambda: False)
    assert not taken(x, weight)
