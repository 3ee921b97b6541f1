from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch

from star.models.transformer import STARTransformer
from star.nn.position import AbsolutePosition
from star.schedule import ScaleSchedule
from star.training.optim import AdamW, MuonAdamW, WarmupLinear, decays


def test_the_rate_rises_stays_and_falls() -> None:
    rate = WarmupLinear(warmup=0.1, plateau=0.2, start=0.005, end=0.01)
    assert rate(0, 100) == pytest.approx(0.005)
    assert rate(10, 100) == pytest.approx(1.0)
    assert rate(20, 100) == pytest.approx(1.0)
    assert rate(60, 100) == pytest.approx(1 - 0.99 / 2)
    assert rate(100, 100) == pytest.approx(0.01)


def test_decay_belongs_on_matrices_alone(
    build_transformer: Callable[..., STARTransformer], schedule: ScaleSchedule
) -> None:
    model = build_transformer(position=AbsolutePosition(32, schedule=schedule))
    decayed = {name for name, parameter in model.named_parameters() if decays(name, parameter)}
    assert {"embed.weight", "start.weight", "head.logits.weight", "blocks.0.attention.qkv.weight"} <= decayed
    assert (
        not {"level.weight", "position.table", "start_position", "blocks.0.attention.norm.log_scale", "embed.bias"}
        & decayed
    )


@pytest.mark.parametrize("spec", [AdamW(1e-2), MuonAdamW(1e-2)])
def test_every_trained_parameter_is_stepped_once(
    build_transformer: Callable[..., STARTransformer], spec: AdamW | MuonAdamW
) -> None:
    model = build_transformer()
    model.embed.bias.requires_grad_(False)
    optimizer, _ = spec.build(model.named_parameters(), 10)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held)) == sum(parameter.requires_grad for parameter in model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(before) - {"embed.bias"}


def test_a_joint_optimizer_resumes_to_the_bit(build_transformer: Callable[..., STARTransformer]) -> None:
    def steps(model: STARTransformer, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for number in range(first, last):
            torch.manual_seed(number)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()

    straight, resumed = build_transformer(), build_transformer()
    resumed.load_state_dict(straight.state_dict())
    spec = MuonAdamW(1e-2)
    optimizer, _ = spec.build(straight.named_parameters(), 10)
    steps(straight, optimizer, 0, 2)
    resumed.load_state_dict(straight.state_dict())
    other, _ = spec.build(resumed.named_parameters(), 10)
    other.load_state_dict(state_dict=deepcopy(optimizer.state_dict()))
    steps(straight, optimizer, 2, 4)
    steps(resumed, other, 2, 4)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_muon_needs_matrices() -> None:
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"'blocks\.'"):
        MuonAdamW(1e-2).build(layer.named_parameters(), 10)
    with pytest.raises(ValueError, match="0"):
        AdamW(0.0)


def test_offsets_of_adaptive_norms_do_not_decay(build_transformer: Callable[..., STARTransformer]) -> None:
    model = build_transformer(context_width=None, adaptive_norm="shared", pooled_width=32)
    decayed = {name for name, parameter in model.named_parameters() if decays(name, parameter)}
    assert "shared_modulation.weight" in decayed
    assert not any(name.endswith("offsets") for name in decayed)


@pytest.mark.parametrize("wrong", [{"warmup": 500}, {"plateau": -0.1}, {"start": 2.0}, {"end": 1.5}])
def test_a_schedule_of_steps_is_refused(wrong: dict[str, float]) -> None:
    """`warmup=500` would keep the rate at its start for ever."""
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"shares of all steps.*'{name}': {value}"):
        WarmupLinear(**wrong)


@pytest.mark.parametrize("spec", [AdamW, MuonAdamW])
def test_a_negative_decay_would_let_weights_grow(spec: type[AdamW | MuonAdamW]) -> None:
    with pytest.raises(ValueError, match="weight_decay can't be negative, got -1"):
        spec(1e-3, weight_decay=-1)


@pytest.mark.parametrize("spec", [AdamW, MuonAdamW])
@pytest.mark.parametrize("betas", [(0.9,), (0.9, 1.0), 0.9])
def test_betas_are_two_numbers(spec: type[AdamW | MuonAdamW], betas: object) -> None:
    with pytest.raises(ValueError, match="betas are two numbers"):
        spec(1e-3, betas=betas)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"momentum": -0.1}, {"iterations": 0}])
def test_impossible_settings_of_muon_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Muon's momentum"):
        MuonAdamW(1e-3, **wrong)  # type: ignore[arg-type]
