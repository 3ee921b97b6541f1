from __future__ import annotations

import pytest
import torch
from torch import nn

from star.training import muon
from star.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_on_matrices_it_is_torch_s_muon(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "cpu_has_bf16", lambda: True)  # torch's is always in bf16
    start = torch.randn(shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = (
        Muon([ours], 0.02, momentum=0.9, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(4):
        gradient = torch.randn(shape)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_a_convolution_is_updated_like_its_matrix() -> None:
    start = torch.randn(4, 3, 2, 2)
    conv, matrix = nn.Parameter(start.clone()), nn.Parameter(start.clone().flatten(1))
    gradient = torch.randn(4, 3, 2, 2)
    for parameter in (conv, matrix):
        parameter.grad = gradient.view_as(parameter)
        Muon([parameter], 0.1).step()
    assert torch.equal(conv.flatten(1), matrix)


@pytest.mark.parametrize("together", [2**23, 1])
def test_parameters_of_one_shape_are_updated_as_each_alone(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "_TOGETHER", together)
    shapes = [(6, 10), (6, 10), (10, 6), (6, 10), (10, 6), (4, 3, 2, 2)]
    start, gradients = [torch.randn(shape) for shape in shapes], [torch.randn(shape) for shape in shapes]
    joint = [nn.Parameter(values.clone()) for values in start]
    single = [nn.Parameter(values.clone()) for values in start]
    for optimizers in ([Muon(joint, 0.1)], [Muon([parameter], 0.1) for parameter in single]):
        for parameter, gradient in zip(joint if len(optimizers) == 1 else single, gradients, strict=True):
            parameter.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for ours, alone, before in zip(joint, single, start, strict=True):
        torch.testing.assert_close(ours, alone, atol=2e-3, rtol=0)
        assert (ours - before).abs().max() > 0.01


@pytest.mark.parametrize("shape", [(5, 20), (20, 5), (3, 20, 5)])
def test_singular_values_move_close_to_one(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)).float())
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_a_cpu_without_bf16_computes_the_same_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, found = torch.randn(12, 30), {}
    for bf16 in (True, False):
        monkeypatch.setattr(muon, "cpu_has_bf16", lambda bf16=bf16: bf16)
        found[bf16] = orthogonal(matrix)
    assert (found[True].dtype, found[False].dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(found[True].float(), found[False], atol=0.05, rtol=0)


def test_parameters_without_gradient_stay_and_vectors_are_refused() -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    Muon([parameter], 0.1, weight_decay=0.5).step()
    assert torch.equal(parameter, torch.ones(2, 2))
    with pytest.raises(ValueError, match="matrices"):
        Muon([nn.Parameter(torch.ones(3))], 0.1)


@pytest.mark.parametrize("wrong", [{"momentum": 1.5}, {"iterations": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        Muon([nn.Parameter(torch.ones(2, 2))], 0.1, **wrong)  # type: ignore[arg-type]
