from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from star.models.transformer import STARTransformer
from star.schedule import ScaleSchedule
from star.training.blocks import BlockExecution
from star.types import Condition


@pytest.fixture
def inputs(schedule: ScaleSchedule, condition: Condition) -> tuple[Any, ...]:
    return torch.randn(3, schedule.total - schedule.lengths[0], 8), condition, schedule


def gradients(model: STARTransformer, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    torch.manual_seed(1)  # of stochastic depth, which has to fall alike when a block is computed again
    model.zero_grad()
    model(*inputs).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def calls(blocks: nn.ModuleList) -> list[int]:
    """How often each block is computed in a pass forth and back, counted at its attention."""
    counts = [0] * len(blocks)

    def count(number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[number] += 1

        return hook

    for number, block in enumerate(blocks):
        block.attention.register_forward_pre_hook(count(number))
    return counts


@pytest.mark.parametrize(("setting", "computed"), [("none", [1, 1, 1]), ("full", [2, 2, 2]), (2, [1, 2, 1])])
def test_recomputed_blocks_give_the_same_gradients(
    build_transformer: Callable[..., STARTransformer],
    inputs: tuple[Any, ...],
    setting: str | int,
    computed: list[int],
) -> None:
    model = build_transformer(depth=3, drop_path=0.5).train()
    names = set(model.state_dict())
    expected = gradients(model, inputs)
    BlockExecution(setting).apply(nn.ModuleDict({"transformer": model}))
    counts = calls(model.blocks)
    found = gradients(model, inputs)
    assert counts == computed
    assert set(model.state_dict()) == names
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_compiled_blocks_give_the_same_gradients_and_sampling_stays_as_it_is(
    build_transformer: Callable[..., STARTransformer], inputs: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_transformer().train()
    expected = gradients(model, inputs)
    compiled: list[str] = []

    def stand_in(function: Callable[..., Any], *, backend: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            compiled.append(backend)
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", stand_in)
    BlockExecution(compile="blocks").apply(nn.ModuleDict({"transformer": model}))
    found = gradients(model, inputs)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert compiled == ["inductor"] * 2
    with torch.no_grad():
        model.eval()(*inputs)
    assert len(compiled) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own doing
def test_the_compiler_takes_a_block(build_transformer: Callable[..., STARTransformer], inputs: tuple[Any, ...]) -> None:
    model = build_transformer().train()
    expected = gradients(model, inputs)
    BlockExecution("full", "blocks", compiler="aot_eager").apply(nn.ModuleDict({"transformer": model}))
    found = gradients(model, inputs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_frozen_parts_are_left_alone_and_nothing_to_do_is_an_error(
    build_transformer: Callable[..., STARTransformer],
) -> None:
    module = nn.ModuleDict({"transformer": build_transformer().requires_grad_(False), "head": nn.Linear(2, 2)})
    BlockExecution().apply(module)
    with pytest.raises(ValueError, match="this task trains none"):
        BlockExecution("full").apply(module)


@pytest.mark.parametrize("setting", ["all", 0, -1, True, 1.5])
def test_other_settings_are_refused(setting: Any) -> None:
    with pytest.raises(ValueError, match="none, full, or a number"):
        BlockExecution(setting)
    with pytest.raises(ValueError, match="false or blocks"):
        BlockExecution(compile="everything")
