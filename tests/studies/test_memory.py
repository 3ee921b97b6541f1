from __future__ import annotations

import torch

from star.studies.memory import AllocationWatch

KIB = 1024


def test_what_is_held_counts_and_what_is_freed_does_not() -> None:
    given = torch.randn(256, requires_grad=True)
    with AllocationWatch() as watch:
        doubled = given * 2
        assert watch.live == KIB
        view = doubled.view(16, 16)
        assert watch.live == KIB  # the same storage
        squared = view * view  # holds both for the backward pass
        del doubled, view
        assert watch.live == 2 * KIB
        squared.sum().backward()
        del squared
        assert watch.live == KIB  # the gradient
        assert watch.peak >= 3 * KIB
    assert watch.largest == 256
    given.grad = None
    assert watch.live == 0


def test_in_place_operations_allocate_nothing() -> None:
    x = torch.zeros(64)
    with AllocationWatch() as watch:
        x.add_(1)
    assert watch.peak == 0


def test_backward_passes_are_seen() -> None:
    x = torch.randn(8, 4, requires_grad=True)
    loss = (x @ x.T).exp().sum()
    with AllocationWatch() as watch:
        loss.backward()
    assert watch.shape == (8, 8)
