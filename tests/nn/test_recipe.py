from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from star.nn import products
from star.nn.recipe import Recipe, call, linear


def scaled(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    normed = F.layer_norm(x, x.shape[-1:]) * (1 + scale)
    return normed if shift is None else normed + shift


@pytest.fixture(autouse=True)
def one_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_wide_fp32", lambda: False)  # see test_products


def tensors(*, shift: bool = True) -> list[Tensor | None]:
    made: list[Tensor | None] = [torch.randn(2, 5, 8), torch.randn(2, 1, 8), torch.randn(2, 1, 8) if shift else None]
    return [None if x is None else x.requires_grad_() for x in made]


def gradients(result: Tensor, *of: Tensor | None) -> tuple[Tensor, ...]:
    return torch.autograd.grad(result.sin().sum(), [x for x in of if x is not None])


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_of_a_recipe_is_the_product_of_what_it_makes(shift: bool, bias: bool) -> None:
    inputs = tensors(shift=shift)
    weight = torch.randn(6, 8, requires_grad=True)
    b = torch.randn(6, requires_grad=True) if bias else None
    ours, plain = linear(Recipe(scaled, *inputs), weight, b), F.linear(scaled(*inputs), weight, b)  # type: ignore[arg-type]
    assert torch.equal(ours, plain)
    torch.testing.assert_close(gradients(ours, weight, b, *inputs), gradients(plain, weight, b, *inputs))


def test_only_what_needs_a_gradient_gets_one() -> None:
    x, scale, shift = tensors()
    assert x is not None
    assert scale is not None
    weight = torch.randn(6, 8, requires_grad=True)
    made = linear(Recipe(scaled, x.detach(), scale, shift), weight)
    torch.testing.assert_close(
        gradients(made, weight, scale), gradients(F.linear(scaled(x.detach(), scale, shift), weight), weight, scale)
    )


def test_a_frozen_weight_passes_gradients_on() -> None:
    inputs, weight = tensors(), torch.randn(6, 8)
    plain = F.linear(scaled(*inputs), weight)  # type: ignore[arg-type]
    torch.testing.assert_close(gradients(linear(Recipe(scaled, *inputs), weight), *inputs), gradients(plain, *inputs))


def test_under_autocast_it_is_what_autocast_gives() -> None:
    inputs, weight = tensors(), torch.randn(6, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = linear(Recipe(scaled, *inputs), weight), F.linear(scaled(*inputs), weight)  # type: ignore[arg-type]
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, plain)
    torch.testing.assert_close(gradients(ours, weight, *inputs), gradients(plain, weight, *inputs))


def test_values_of_a_recipe_and_their_gradients() -> None:
    def split(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return (x * scale).tanh(), x[..., :3]

    x, scale, _ = tensors()
    assert x is not None
    assert scale is not None
    recipe = Recipe(split, x, scale)
    ours, plain = (torch.cat([part.flatten() for part in values]) for values in (recipe.value(), recipe()))
    assert torch.equal(ours, plain)
    torch.testing.assert_close(gradients(ours, x, scale), gradients(plain, x, scale))


def test_what_is_made_is_not_kept() -> None:
    kept: list[tuple[int, ...]] = []

    def note(value: Tensor) -> Tensor:
        kept.append(tuple(value.shape))
        return value

    x, weight = torch.randn(7, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        linear(Recipe(partial(F.gelu, approximate="tanh"), x), weight)
    assert sorted(kept) == [(6, 8), (7, 8)]


def test_inside_of_a_recomputed_block() -> None:
    inputs, weight = tensors(), torch.randn(6, 8, requires_grad=True)
    plain = F.linear(scaled(*inputs), weight)  # type: ignore[arg-type]
    again = checkpoint(lambda *given: linear(Recipe(scaled, *given), weight), *inputs, use_reentrant=False)
    torch.testing.assert_close(gradients(again, weight, *inputs), gradients(plain, weight, *inputs))


def test_a_layer_that_is_watched_or_wrapped_is_called() -> None:
    """Adapters (LoRA) replace layers, and tools hook them: neither may be passed over in silence."""
    x, layer = torch.randn(2, 3, 4), nn.Linear(4, 5)
    expected = layer(torch.relu(x))
    torch.testing.assert_close(call(layer, Recipe(torch.relu, x)), expected)
    seen: list[Any] = []
    handle = layer.register_forward_hook(lambda module, given, made: seen.append(made))
    torch.testing.assert_close(call(layer, Recipe(torch.relu, x)), expected)
    assert len(seen) == 1
    handle.remove()

    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    adapted = Adapted(4, 5)
    adapted.load_state_dict(layer.state_dict())
    torch.testing.assert_close(call(adapted, Recipe(torch.relu, x)), expected + 1)
    torch.testing.assert_close(call(adapted, torch.relu(x)), expected + 1)
